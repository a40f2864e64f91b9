"""Kinds of small layers that methods add (built by `modules.layers`), and closed formulas for their parameters."""

BLOCKS = ("3x3", "depthwise", "bottleneck", "1x1")
NORMS = ("bn", "gn", "none")


def norm_params(norm: str, channels: int) -> int:
    """Return the parameters of a norm, or of the bias that replaces it."""
    return channels if norm == "none" else 2 * channels


def block_params(kind: str, norm: str, channels: int) -> int:
    """Return the parameters of `make_block` in closed form."""
    bias, inner = int(norm == "none"), max(1, channels // 4)
    convs = {
        "3x3": 9 * channels**2,
        "1x1": channels**2,
        "depthwise": 9 * channels + channels**2 + bias * channels,
        "bottleneck": 2 * channels * inner + 9 * inner**2 + 2 * bias * inner,
    }[kind]
    return convs + norm_params(norm, channels)
