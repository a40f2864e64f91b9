"""`serial_adapter`: a bottleneck after every residual block, or parallel to one of its convolutions.

    transition             ReLU(y + Adapter(y)), after the block's output y
    front, middle, back    conv(x) + Adapter(x), the block's first, second, last convolution, before its norm

    Adapter = Norm W2 ReLU Norm W1 (``bottleneck``: 1x1 to c_in / r and 1x1 back), or Norm W (``basic``: one 1x1)

Positions and kinds follow the ResNet adapters in Ladder Side-Tuning's repository. There an adapter parallel to a layer
is added after the norm if it has norms itself, else before it; here it is always added before. The repository's
variant with a zero gate trains a single number in the first step. Here the last norm (without norms: the last 1x1)
starts at zero instead: step 0 is the pre-trained detector, and every output channel learns from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

from cst_search.lazy import deferred
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape, ConvShape
from cst_search.memory.tape import ShapeTensor, Tape
from cst_search.petl.base import Method, check, from_stage, one_of, whole
from cst_search.petl.side_blocks import NORMS, norm_params

POSITIONS = ("transition", "front", "middle", "back")
KINDS = ("bottleneck", "basic")
PLACES = {"front": 0, "middle": 1, "back": -1}  # a basic block has two convolutions: its middle one is the last


@dataclass(frozen=True)
class SerialAdapterOptions:
    """Options of `serial_adapter`.

    Attributes:
        reduction: reduction r; a bottleneck has max(1, c_in // r) channels. Not used by ``basic``.
        position: place of the adapter, ``transition``, ``front``, ``middle`` or ``back``, see the module.
        kind: kind of the adapter, ``bottleneck`` or ``basic``.
        norm: norm of the adapter, ``gn``, ``bn`` (the reference's) or ``none``.
        first_stage: first stage with adapters; earlier stages keep no activations.
    """

    reduction: int = 32
    position: str = "transition"
    kind: str = "bottleneck"
    norm: str = "gn"
    first_stage: int = 2

    def __post_init__(self) -> None:
        check(
            "serial_adapter",
            {
                "reduction": whole(self.reduction, 1, 256),
                "position": one_of(self.position, POSITIONS),
                "kind": one_of(self.kind, KINDS),
                "norm": one_of(self.norm, NORMS),
                "first_stage": from_stage(self.first_stage, 2),
            },
        )


def petl_params(shape: BackboneShape, options: SerialAdapterOptions) -> int:
    """Return, summed over blocks, c_in s + s c_out (bottleneck of s channels) or c_in c_out (basic).

    Each normalised channel adds two parameters, or one bias without norms.
    """
    total = 0
    for block in shape.blocks(options.first_stage):
        if options.position == "transition":
            c_in = c_out = block.c_out
        else:
            c_in, c_out, _ = block.path[PLACES[options.position]]
        if options.kind == "bottleneck":
            s = max(1, c_in // options.reduction)
            total += c_in * s + norm_params(options.norm, s) + s * c_out + norm_params(options.norm, c_out)
        else:
            total += c_in * c_out + norm_params(options.norm, c_out)
    return total


def footprint(shape: BackboneShape, options: SerialAdapterOptions) -> MemoryPlan:
    last = len(shape.blocks()[0].path) - 1

    def adapter(tape: Tape, x: ShapeTensor, c_out: int, stride: int) -> ShapeTensor:
        inner = max(1, x.shape[1] // options.reduction) if options.kind == "bottleneck" else c_out
        bias = options.norm == "none"
        x = tape.norm(options.norm, tape.conv(x, inner, 1, stride, bias=bias))
        if options.kind == "bottleneck":
            x = tape.norm(options.norm, tape.conv(tape.relu(x), c_out, 1, bias=bias))
        return x

    def behind(tape: Tape, x: ShapeTensor, stage: int) -> ShapeTensor:
        if stage < options.first_stage:
            return x
        return tape.relu(tape.add(x, adapter(tape, x, x.shape[1], 1)), inplace=False)

    def beside(tape: Tape, x: ShapeTensor, stage: int, place: int, conv: ConvShape, stride: int) -> ShapeTensor | None:
        wanted = PLACES[options.position] % (last + 1)
        return adapter(tape, x, conv.c_out, stride) if stage >= options.first_stage and place == wanted else None

    if options.position == "transition":
        return MemoryPlan(grad_from=options.first_stage - 1, behind=behind)
    return MemoryPlan(grad_from=options.first_stage - 1, beside=beside)


_MODULES = "cst_search.petl.modules.serial_adapter"

METHOD = Method(
    name="serial_adapter",
    options=SerialAdapterOptions,
    lr=1e-3,
    side=False,
    source="Houlsby et al., ICML 2019; on ResNets VisualAdapter of github.com/ylsung/Ladder-Side-Tuning @1798e82",
    apply=deferred(_MODULES, "apply"),
    petl_params=petl_params,
    footprint=footprint,
)
