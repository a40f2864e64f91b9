"""Scale and photometric jitter of a training image, with torchvision's transforms (v2).

    rng = np.random.default_rng((seed, epoch, i))
    pixels, boxes, kept = augment(pixels, boxes, Augmentation(scale_jitter=2.0), rng)

An image keeps its size: zooming in cuts a window out and enlarges it, zooming out shrinks the image onto a canvas of
its size. So no batch is padded to more than without augmentation, and no more memory is needed than predicted.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from cst_search.config.augmentation import Augmentation

# Least share of a box's area that a window must show. RandomIoUCrop keeps a box whose centre is inside: that shows a
# quarter at least.
MIN_VISIBLE_SHARE = 0.25
# torchvision's references/detection/presets.py: ImageNet's mean colour, which the detector's normalisation makes 0,
# like the padding of a batch
_CANVAS_COLOUR = [123.0, 117.0, 104.0]
_GREY_SHARES = (0.2989, 0.587, 0.114)  # of red, green, blue: torchvision's rgb_to_grayscale
_COLOUR_SHARE = 0.5  # probability of each change of colour: RandomPhotometricDistort's
_COLOURS = ("brightness", "contrast", "saturation", "hue")


class _Window(NamedTuple):
    top: int
    left: int
    height: int
    width: int


class _Draws:
    """All random numbers of one image, uniform in 0..1: as many whatever the strength, so that none shifts another."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.scale, self.top, self.left, self.box, self.contrast_first = rng.random(5).tolist()
        self.changed = dict(zip(_COLOURS, rng.random(4).tolist(), strict=True))
        self.amount = dict(zip(_COLOURS, rng.random(4).tolist(), strict=True))


def augment(
    pixels: np.ndarray, boxes: Tensor, how: Augmentation, rng: np.random.Generator
) -> tuple[np.ndarray, Tensor, list[int]]:
    """Vary an image and its boxes; the arguments are not written to.

    Args:
        pixels: uint8 (3, H, W), RGB; H or W at least 8.
        boxes: float32 (N, 4), xyxy in pixels.
        rng: decides everything; 13 numbers are drawn.

    Returns:
        pixels of the same shape; boxes (M, 4), clipped to the image; the M indices of these boxes among the N. A box
        of which less than `MIN_VISIBLE_SHARE` is visible is left out; M is 0 only if N is.
    """
    draws = _Draws(rng)
    image = tv_tensors.Image(_recoloured(torch.from_numpy(pixels), how, draws))
    found = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=pixels.shape[-2:])
    scaled, found, kept = _rescaled(image, found, how.scale_jitter ** (2 * draws.scale - 1), draws)
    return scaled.as_subclass(torch.Tensor).numpy(), found.as_subclass(torch.Tensor), kept


# --- scale ------------------------------------------------------------------------------------------------------------


def _rescaled(
    image: tv_tensors.Image, boxes: tv_tensors.BoundingBoxes, scale: float, draws: _Draws
) -> tuple[Tensor, Tensor, list[int]]:
    """Show objects `scale` times as large, or image and boxes as they are where no box would be left."""
    visible = torch.ones(len(boxes), dtype=torch.bool)
    if scale > 1:
        window = _window(boxes, image.shape[-2:], scale, draws)
        visible = _visible_share(boxes, window) >= MIN_VISIBLE_SHARE
        new_image, new_boxes = (
            F.resized_crop(x, *window, list(image.shape[-2:]), antialias=True) for x in (image, boxes)
        )
    elif scale < 1:
        new_image, new_boxes = (_shrunk(x, image.shape[-2:], scale, draws) for x in (image, boxes))
    else:
        new_image, new_boxes = image, boxes
    new_boxes = F.clamp_bounding_boxes(new_boxes)  # scaling may round an end to beyond the image
    # a tiny box may lose its extent to rounding, which detectors refuse
    kept = (visible & (new_boxes[:, 2:] > new_boxes[:, :2]).all(1)).nonzero().flatten()
    if len(boxes) and not len(kept):
        return image, boxes, list(range(len(boxes)))
    return new_image, new_boxes[kept], kept.tolist()


def _window(boxes: Tensor, canvas_hw: tuple[int, int], scale: float, draws: _Draws) -> _Window:
    """Return a window at random; where it shows none of the boxes, moved as little as shows one drawn of them."""
    height, width = canvas_hw
    h, w = max(1, round(height / scale)), max(1, round(width / scale))
    window = _Window(int(draws.top * (height - h + 1)), int(draws.left * (width - w + 1)), h, w)
    if not len(boxes) or bool((_visible_share(boxes, window) >= MIN_VISIBLE_SHARE).any()):
        return window
    x1, y1, x2, y2 = boxes[int(draws.box * len(boxes))].tolist()
    return _Window(_moved(window.top, h, height, y1, y2), _moved(window.left, w, width, x1, x2), h, w)


def _moved(start: int, length: int, end: int, low: float, high: float) -> int:
    """Return the start nearest to `start` whose window of `length` holds low..high, or lies in it where it is longer.

    The window stays within 0..end.
    """
    first, last = sorted((math.floor(low), math.ceil(high) - length))
    return min(max(min(max(start, first), last), 0), end - length)


def _visible_share(boxes: Tensor, window: _Window) -> Tensor:
    """Return the share 0..1 of each box's area within a window: (N,)."""
    corner = torch.tensor([window.left, window.top])
    low = torch.maximum(boxes[:, :2], corner)
    high = torch.minimum(boxes[:, 2:], corner + torch.tensor([window.width, window.height]))
    return (high - low).clamp(min=0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _shrunk(inpt: Any, canvas_hw: tuple[int, int], scale: float, draws: _Draws) -> Any:
    """Return an image or boxes `scale` times as large, at a random place of the canvas."""
    height, width = canvas_hw
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = int(draws.top * (height - h + 1)), int(draws.left * (width - w + 1))
    small = F.resize(inpt, [h, w], antialias=True)
    return F.pad(small, [left, top, width - w - left, height - h - top], fill=_CANVAS_COLOUR)


# --- colour -----------------------------------------------------------------------------------------------------------


def _recoloured(image: Tensor, how: Augmentation, draws: _Draws) -> Tensor:
    """Return the image with its colours changed, in the order of torchvision's RandomPhotometricDistort."""
    change = {
        name: (2 * draws.amount[name] - 1) * largest
        for name, largest in how.colour_ranges.items()
        if largest and draws.changed[name] < _COLOUR_SHARE
    }
    contrast_first = draws.contrast_first < 0.5
    if "brightness" in change:
        image = F.adjust_brightness(image, 1 + change["brightness"])
    if "contrast" in change and contrast_first:
        image = _adjust_contrast(image, 1 + change["contrast"])
    if "saturation" in change:
        image = F.adjust_saturation(image, 1 + change["saturation"])
    if "hue" in change:
        image = F.adjust_hue(image, change["hue"])
    if "contrast" in change and not contrast_first:
        image = _adjust_contrast(image, 1 + change["contrast"])
    return image


def _adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Do as torchvision's ``adjust_contrast``, but sum in whole numbers: a sum of floats depends on the threads.

    A process that loads images has one thread, the trial's own may have more, and their images must be the same.
    """
    sums = image.flatten(1).sum(1).tolist()  # whole numbers
    mean_grey = sum(share * total for share, total in zip(_GREY_SHARES, sums, strict=True)) / image[0].numel()
    return image.mul(factor).add_((1 - factor) * mean_grey).clamp_(0, 255).to(torch.uint8)
