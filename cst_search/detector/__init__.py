"""torchvision detectors with a PETL method in place, and their weights on disk."""
