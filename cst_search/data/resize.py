"""Image sizes after resizing, in integer arithmetic. Standard library only."""


def resized_hw(height: int, width: int, image_size_px: int, max_size_px: int) -> tuple[int, int]:
    """Return (height, width) after resizing by min(image_size / short side, max_size / long side), rounded down.

    This is the rule of torchvision's GeneralizedRCNNTransform in integer arithmetic. The limiting side gets exactly its
    size (floats may give one pixel less), so the transform, applied afterwards, finds a scale of 1 and changes nothing.
    """
    short, long = min(height, width), max(height, width)
    if image_size_px * long <= max_size_px * short:
        new_short, new_long = image_size_px, long * image_size_px // short
    else:
        new_short, new_long = max(1, short * max_size_px // long), max_size_px
    return (new_short, new_long) if height <= width else (new_long, new_short)
