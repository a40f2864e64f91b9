"""COCO-format data: reading and checking it, images, the disk cache, the demo set."""
