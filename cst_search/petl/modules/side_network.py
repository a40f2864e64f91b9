"""Interface of a side network."""

from __future__ import annotations

from torch import Tensor, nn


class SideNetwork(nn.Module):
    """Network beside the body: computes states, then calibrates each feature map that the pyramid reads with its state.

    It maps the feature maps ``{"image", "c1".."c5"}`` (and ``"c3.0"`` ... if the body taps its blocks) to the states of
    the stages that the pyramid reads, ``{"c3": (B, s_3, H / 8, W / 8), ...}``.

    Attributes:
        recompute: True if its blocks keep only their inputs and are recomputed in the backward pass.
    """

    recompute = False

    def calibrate(self, key: str, feature: Tensor, state: Tensor) -> Tensor:
        """Return the calibrated feature map that the pyramid reads, of the same shape."""
        raise NotImplementedError
