"""Building blocks of dense detection heads as shapes: towers, focal loss, matching. Standard library only.

A detector assembles its training step behind the pyramid from these, see `detector/retinanet.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cst_search.errors import ConfigError
from cst_search.memory.parts import LayerShape, Part
from cst_search.memory.plan import DenseTower, StepShape, images_at_once
from cst_search.memory.tape import Allocation, ShapeTensor, Tape


def run_by_level(
    tape: Tape, step: StepShape, levels: list[ShapeTensor], run: Callable[[ShapeTensor], list[ShapeTensor]]
) -> list[list[ShapeTensor]]:
    """Return the outputs of a head, level by level; recomputed ones in pieces, as in `detector.lean_heads`."""
    if step.recompute == "none":
        return [run(level) for level in levels]
    outputs = []
    for level in levels:
        pieces = tape.split(level, images_at_once(level.numel // step.batch))
        found = [tape.recompute(partial(run, piece)) for piece in pieces]
        outputs.append([tape.stack([each[i] for each in found]) for i in range(len(found[0]))])
        del pieces, found
    return outputs


def flatten_anchors(tape: Tape, x: ShapeTensor, per_anchor: int) -> ShapeTensor:
    """Reshape (B, A * n, H, W) to (B, H W A, n) with a copy; ``per_anchor`` is n."""
    b, c, h, w = x.shape
    return tape.op((b, h * w * c // per_anchor, per_anchor), x, passes=True)


def join_anchors(tape: Tape, parts: list[ShapeTensor]) -> ShapeTensor:
    b, _, n = parts[0].shape
    return tape.cat(parts, (b, sum(part.shape[1] for part in parts), n))


def _tower(tape: Tape, part: Part, x: ShapeTensor, tower: DenseTower, key: str) -> ShapeTensor:
    for i in range(tower.n_convs):
        x = part.conv(tape, x, x.shape[1], 3, key=f"{key}.{i}", bias=tower.bias)
        if tower.group_norm:
            x = part.group_norm(tape, x, f"{key}.{i}.norm")
        x = part.relu(tape, x, inplace=tower.inplace_relu, before_last=i == tower.n_convs - 1)
    return x


def dense_heads(
    tape: Tape, step: StepShape, levels: list[ShapeTensor], outputs: list[list[tuple[int, bool]]]
) -> list[ShapeTensor]:
    """Run the detector's towers over all levels and return every output, its levels joined: (B, all anchors, n).

    Args:
        outputs: for each tower, its outputs as (n channels per anchor, a ReLU follows).
    """
    tower, part = declared_tower(step), step.head_part

    def run(index: int, outs: list[tuple[int, bool]], x: ShapeTensor) -> list[ShapeTensor]:
        key = f"tower{index}"
        x = _tower(tape, part, x, tower, key)
        flat: list[ShapeTensor] = []
        for n, relu in outs:
            out = part.conv(tape, x, tower.anchors_per_cell * n, 3, key=f"{key}.out{len(flat)}", last=True)
            if relu:
                out = tape.relu(out, inplace=False)
            out = flatten_anchors(tape, out, n)
            # torchvision joins all levels at once; recomputed levels are joined one by one
            flat.append(out if step.recompute == "none" else join_anchors(tape, [out]))
        return flat

    results: list[ShapeTensor] = []
    for index, outs in enumerate(outputs):
        by_level = run_by_level(tape, step, levels, partial(run, index, outs))
        results += [join_anchors(tape, [level[i] for level in by_level]) for i in range(len(outs))]
        del by_level
    return results


def score_levels(tape: Tape, levels: list[ShapeTensor], logits: ShapeTensor, copies: int) -> None:
    """Mirror torchvision's ``postprocess_detections`` of dense detectors for one image, as far as shapes decide it.

    Anchors of all levels are made and joined; then the scores of one level at a time are compared with the threshold.
    The detections that pass it, a small part of all, are left out.

    Args:
        logits: of all levels, (1, anchors, labels).
        copies: arrays as large as a level's logits that its scores take at once.
    """
    _, n, k = logits.shape
    by_level = [Allocation(tape, 16 * n)]
    anchors = Allocation(tape, 16 * n)
    del by_level
    cells = sum(level.shape[2] * level.shape[3] for level in levels)
    for level in levels:
        values = n * level.shape[2] * level.shape[3] // cells * k
        Allocation(tape, copies * logits.width * values)
        Allocation(tape, (logits.width + 1) * values)
    del anchors


def dense_head_layers(step: StepShape, outputs: Sequence[int], n_towers: int = 2) -> list[LayerShape]:
    """Return the layers of dense heads.

    Args:
        outputs: channels per anchor of every output; each is a 3x3 convolution with bias.
    """
    tower, c = declared_tower(step), step.channels
    layers = [LayerShape(c, c, 3, bias=tower.bias, norm=tower.group_norm)] * (n_towers * tower.n_convs)
    return layers + [LayerShape(c, tower.anchors_per_cell * n, 3, last=True) for n in outputs]


def declared_tower(step: StepShape) -> DenseTower:
    """Return the tower that the detector declares. Raises ConfigError if it declares none."""
    if step.tower is None:
        raise ConfigError("a detector whose heads use dense_heads must declare its tower (detector.Detector.tower)")
    return step.tower


def focal_loss(tape: Tape, x: ShapeTensor, targets: ShapeTensor) -> ShapeTensor:
    """Mirror torchvision.ops.sigmoid_focal_loss, operation by operation, and the sum over it."""

    def constant(width: int) -> ShapeTensor:
        return tape.tensor(*x.shape, width=width)

    full = 4 if tape.half and "bce" in tape.fp32_ops else 0
    p = tape.pointwise(x, save_out=True)
    wide, wide_targets = (tape.cast(x, 4), tape.cast(targets, 4)) if full else (x, targets)
    ce = tape.pointwise(wide, save=[wide, wide_targets])
    del wide, wide_targets
    first = tape.pointwise(p, save=[targets])
    rest = constant(targets.width)
    second = tape.pointwise(tape.pointwise(p), save=[rest])
    del rest
    p_t = tape.add(first, second)
    del first, second
    q = tape.pointwise(p_t)
    if tape.half and "pow" in tape.fp32_ops:
        q = tape.cast(q, 4)
    power = tape.op(q.shape, q, save=[q], transient=q.nbytes)
    del q
    loss = tape.pointwise(ce, power, save=[ce, power])
    del power
    alpha = tape.pointwise(constant(targets.width), constant(targets.width))
    loss = tape.pointwise(loss, save=[alpha])
    del alpha
    return tape.op((1,), loss)


# bytes that box_iou holds at once per pair of an anchor and a box, counted in torchvision's code (0.26):
# two corners and their difference (x, y each), intersection, a sum, the union; 4 bytes each
BOX_IOU_PAIR = 36
IOU_PAIRS = 2_000_000  # pairs that `detector.lean_heads.box_iou` works on at once


def matching(tape: Tape, n_anchors: int, n_boxes: int) -> None:
    """Mirror `detector.lean_heads.box_iou` and torchvision's Matcher for one image.

    The Matcher holds the best box and value of every anchor, and flags of the best anchors.
    """
    n_boxes = max(1, n_boxes)
    overlaps = Allocation(tape, 4 * n_boxes * n_anchors)
    Allocation(tape, BOX_IOU_PAIR * n_anchors * min(n_boxes, max(1, IOU_PAIRS // n_anchors)))
    Allocation(tape, (n_boxes + 20) * n_anchors)
    del overlaps


def unbind_images(tape: Tape, x: ShapeTensor) -> list[ShapeTensor]:
    """Mirror ``unbind``: one view per image, with one node between them, whose gradient is a new tensor."""
    row = tape.op(x.shape[1:], x, alias=True)
    return [ShapeTensor(row.storage, row.shape, row.width, row.node) for _ in range(x.shape[0])]
