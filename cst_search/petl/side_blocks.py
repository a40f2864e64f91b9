"""Kinds of the small layers that methods add, and closed formulas of their parameters (built by `modules.layers`)."""

BLOCKS = ("3x3", "depthwise", "bottleneck", "1x1")
NORMS = ("bn", "gn", "none")


def norm_params(norm: str, channels: int) -> int:
    """Parameters of a norm, or of the bias that stands in its place."""
    return channels if norm == "none" else 2 * channels


def block_params(kind: str, norm: str, channels: int) -> int:
    """Parameters of `make_block`, in closed form."""
    bias, inner = int(norm == "none"), max(1, channels // 4)
    convs = {
        "3x3": 9 * channels**2,
        "1x1": channels**2,
        "depthwise": 9 * channels + channels**2 + bias * channels,
        "bottleneck": 2 * channels * inner + 9 * inner**2 + 2 * bias * inner,
    }[kind]
    return convs + norm_params(norm, channels)
