"""Image sizes after resizing, in whole numbers. Standard library only."""


def resized_hw(height: int, width: int, image_size_px: int, max_size_px: int) -> tuple[int, int]:
    """(height, width) after resizing: scale = min(image_size / short side, max_size / long side), sizes rounded down.

    The rule of torchvision's GeneralizedRCNNTransform, in whole numbers: the side that decides gets exactly its size
    (floats may give one pixel less), so that the transform, applied afterwards, finds a scale of 1 and changes nothing.
    """
    short, long = min(height, width), max(height, width)
    if image_size_px * long <= max_size_px * short:
        new_short, new_long = image_size_px, long * image_size_px // short
    else:
        new_short, new_long = max(1, short * max_size_px // long), max_size_px
    return (new_short, new_long) if height <= width else (new_long, new_short)
