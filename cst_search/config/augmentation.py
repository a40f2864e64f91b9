"""How strongly training images are varied: the presets of the recipe's ``augment``. Standard library only.

Sources: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021,
section 3 (standard scale jitter 0.8 to 1.25, large scale jitter 0.1 to 2.0); torchvision's
``references/detection/presets.py``, ``ssd`` (photometric distortion with the defaults of ``RandomPhotometricDistort``,
then zoom out on the mean colour) and ``lsj``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Augmentation:
    """Strength of the two jitters of a training image.

    Attributes:
        scale_jitter: largest factor f, at least 1: objects are shown 1/f to f times as large; 1: at their size.
        photometric: strength from 0 (pixels keep their colours) to 1, see `colour_ranges`.
    """

    scale_jitter: float = 1.0
    photometric: float = 0.0

    @property
    def changes_images(self) -> bool:
        """True if an image differs from epoch to epoch by more than a flip."""
        return self.scale_jitter > 1 or self.photometric > 0

    @property
    def colour_ranges(self) -> dict[str, float]:
        """Largest change by property of colour; brightness, contrast and saturation are factors of 1 -+ this.

        Hue, a share of the colour circle, begins to move at half the strength: classes may be told by their colour.
        Channels are never swapped, for the same reason.
        """
        ranges = {name: self.photometric * full for name, full in _FULL_COLOUR_RANGES.items()}
        return ranges | {"hue": max(0.0, 2 * self.photometric - 1) * _FULL_COLOUR_RANGES["hue"]}


# torchvision's RandomPhotometricDistort
_FULL_COLOUR_RANGES = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}

#: By the value of ``augment``. ``light`` is the standard scale jitter, ``strong`` the upper end of the large one: its
#: lower end, 0.1, is for images of 1024 pixels and schedules of hundreds of epochs.
PRESETS = {
    "none": Augmentation(),
    "light": Augmentation(scale_jitter=1.25, photometric=0.4),
    "strong": Augmentation(scale_jitter=2.0, photometric=1.0),
}
