"""Description of a training step in shapes, by the detector (`StepShape`) and by the PETL method (`MemoryPlan`).

Standard library only. Methods and detectors of other packages describe themselves with these classes too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cst_search.memory.parts import LayerShape, Part
from cst_search.memory.resnet_shapes import BackboneShape, ConvShape
from cst_search.memory.tape import ShapeTensor, Tape

Features = dict[str, ShapeTensor]  # feature maps by key: c1..c5, c3.0 for a block, image


@dataclass(frozen=True)
class MemoryPlan:
    """Changes that a PETL method makes to the training step of a frozen backbone.

    Attributes:
        grad_from: index of the first stage that runs with autograd, as `backbone.Body.grad_from`; 5: none does.
        trained_from: convolutions (and live batch norms) are trained from this stage on, 1 to 5; 6: none are.
        norm: kind of the norms from stage ``norm_from`` on: ``frozen``, ``bias`` (shift trained), ``affine`` (scale and
            shift trained), ``ssf`` (a frozen norm and a trained ScaleShift).
        conv: replacement of a convolution, (tape, x, stage, shape, stride) -> result, or None where it stays.
        beside: adapter parallel to a convolution, (tape, x, stage, place in the block's path, shape, stride) -> its
            result, or None where there is none.
        behind: adapter behind a residual block, (tape, output, stage) -> output, the same where there is none.
        side: side network, (tape, feature maps and image, whether its blocks are recomputed) -> states by stage.
        calibrate: (tape, key, feature map, state) -> feature map that the pyramid reads.
        taps: True if feature maps of single residual blocks are read too.
        recompute: True if residual blocks are recomputed in the backward pass, whatever the recipe says.
        start: forward and backward pass over one image before training, see `petl.Method.prepare`; None: none.
    """

    grad_from: int = 5
    trained_from: int = 6
    norm: str = "frozen"
    norm_from: int = 6
    conv: Callable[[Tape, ShapeTensor, int, ConvShape, int], ShapeTensor | None] | None = None
    beside: Callable[[Tape, ShapeTensor, int, int, ConvShape, int], ShapeTensor | None] | None = None
    behind: Callable[[Tape, ShapeTensor, int], ShapeTensor] | None = None
    side: Callable[[Tape, Features, bool], Features] | None = None
    calibrate: Callable[[Tape, str, ShapeTensor, ShapeTensor], ShapeTensor] | None = None
    taps: bool = False
    recompute: bool = False
    start: MemoryPlan | None = None


@dataclass(frozen=True)
class DenseTower:
    """Convolutions that a dense detector runs on every pyramid level before each of its outputs.

    Attributes:
        n_convs: 3x3 convolutions with bias that keep the channels of the pyramid; all levels share their weights.
        anchors_per_cell: predictions per cell of a level.
        group_norm: True if a GroupNorm follows each convolution.
        inplace_relu: True if the ReLUs work in place.
        bias: True if the convolutions have a bias.
    """

    n_convs: int
    anchors_per_cell: int
    group_norm: bool = False
    inplace_relu: bool = True
    bias: bool = True


@dataclass(frozen=True)
class StepShape:
    """Inputs that determine the shapes of a training step, besides the method's `MemoryPlan`.

    Attributes:
        heads: the detector's work behind the pyramid, (tape, step, levels) -> losses.
        head_layers: layers with parameters behind the pyramid.
        tower: towers of the detector's dense heads; None: it has none.
        pooled: True if the pyramid has one more level, by pooling; else it has two more, by convolutions.
        p6_from_c5: True if the first of these two reads C5 instead of the level before it.
        neck_norm: True if a BatchNorm2d follows each convolution of the pyramid's levels, which then has no bias.
        fixed_norms: True if norms of pyramid and heads keep the statistics of the weights; else they use the batch's.
        shape: shape of the backbone.
        channels: channels of a pyramid level.
        n_classes: number of classes without background.
        batch: images per step.
        height_px, width_px: size of the padded batch in pixels.
        max_boxes: boxes in every image.
        memsave: True if frozen layers are lean, see `backbone.lean_layers`.
        recompute: ``none``, ``neck`` or ``all``, see `backbone.recompute`.
        neck, head: trained part of each, see `memory.parts`.
        lora_rank: rank of their low-rank updates.
        detect: the detector's work behind the pyramid when it detects, (tape, step, levels) -> outputs; None: `heads`
            stands for it.
        max_detections: most detections of an image.
        fixed_body_norms: True if norms of the body keep the statistics of the weights.
    """

    heads: Callable[[Tape, StepShape, list[ShapeTensor]], list[ShapeTensor]]
    head_layers: Callable[[StepShape], list[LayerShape]]
    tower: DenseTower | None
    pooled: bool
    shape: BackboneShape
    channels: int
    n_classes: int
    batch: int
    height_px: int
    width_px: int
    max_boxes: int
    memsave: bool
    recompute: str
    neck: str = "train"
    head: str = "train"
    lora_rank: int = 8
    p6_from_c5: bool = False
    neck_norm: bool = False
    fixed_norms: bool = False
    detect: Callable[[Tape, StepShape, list[ShapeTensor]], list[ShapeTensor]] | None = None
    max_detections: int = 100
    fixed_body_norms: bool = False

    def neck_images(self, values: int) -> int:
        """Return the images of a feature map that the pyramid processes at once, see `images_at_once`."""
        return self.batch if self.neck_norm and not self.fixed_norms else images_at_once(values)

    @property
    def neck_part(self) -> Part:
        """Pyramid as its mode trains it."""
        return Part(self.neck, self.lora_rank, self.memsave)

    @property
    def head_part(self) -> Part:
        """Heads as their mode trains them."""
        return Part(self.head, self.lora_rank, self.memsave)

    @property
    def n_labels(self) -> int:
        """Number of classes with background."""
        return self.n_classes + 1


# values of a feature map that a recomputed part processes at once, if the map has several images
MAP_VALUES = 4_000_000


def images_at_once(values: int) -> int:
    """Return the number of images that a recomputed part processes at once, with ``values`` values per image."""
    return max(1, MAP_VALUES // values)
