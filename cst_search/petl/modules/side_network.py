"""The interface of a side network."""

from __future__ import annotations

from torch import Tensor, nn


class SideNetwork(nn.Module):
    """A network beside the body: states first, then each level of the pyramid calibrated with its state.

    Called with the features ``{"image", "c1".."c5"}`` (and ``"c3.0"`` ... where the body taps its blocks), it gives
    the states of the stages that the pyramid reads, ``{"c3": (B, s_3, H / 8, W / 8), ...}``.

    Attributes:
        recompute: its blocks keep their inputs only and are computed again in the backward pass.
    """

    recompute = False

    def calibrate(self, key: str, feature: Tensor, state: Tensor) -> Tensor:
        """What the pyramid reads in the place of a feature, of its shape."""
        raise NotImplementedError
