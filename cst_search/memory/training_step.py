"""A detector's training step as shapes: what `detector.py`, `engine.py` and torchvision do, told to a `Tape`.

Every function stands for the one of the same name there, with its temporaries and their order. A PETL method says by a
`Plan` what it changes. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cst_search.memory.resnet_shapes import BackboneShape, BlockShape, ConvShape
from cst_search.memory.tape import Storage, Tape, Tensor

Features = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """What a method changes in a backbone.

    Attributes:
        grad_from: index of the first stage with autograd, as `backbone.Body.grad_from`; 5: none.
        trained_from: convolutions (and live batch norms) of this stage, 1 to 5, and of those behind it are trained.
        norm: what stands in the place of the norms from ``norm_from`` on: ``frozen``, ``bias``, ``affine`` (scale and
            shift trained), ``ssf`` (a frozen one and a trained ScaleShift).
        conv: a convolution's replacement, (tape, x, stage, shape, stride) -> result, or None where it stays.
        beside: an adapter of a convolution, (tape, x, stage, place in the block's path, shape, stride) -> its result,
            or None where there is none.
        behind: an adapter of a block, (tape, result, stage) -> result, the same where there is none.
        side: the side network, (tape, features with the image, whether its blocks are recomputed) -> states.
        calibrate: (tape, key, feature, state) -> what the pyramid reads.
        taps: the features of single blocks are read too.
        recompute: residual blocks are recomputed, whatever the recipe says.
        start: a pass over one image before training, see `petl.Method.prepare`; None: there is none.
    """

    grad_from: int = 5
    trained_from: int = 6
    norm: str = "frozen"
    norm_from: int = 6
    conv: Callable[[Tape, Tensor, int, ConvShape, int], Tensor | None] | None = None
    beside: Callable[[Tape, Tensor, int, int, ConvShape, int], Tensor | None] | None = None
    behind: Callable[[Tape, Tensor, int], Tensor] | None = None
    side: Callable[[Tape, Features, bool], Features] | None = None
    calibrate: Callable[[Tape, str, Tensor, Tensor], Tensor] | None = None
    taps: bool = False
    recompute: bool = False
    start: Plan | None = None


@dataclass(frozen=True)
class Step:
    """All that the shapes of a training step depend on, besides the method's plan.

    Attributes:
        heads: what the detector does behind the pyramid, (tape, step, levels) -> losses.
        head_params: its parameters there.
        pooled: its pyramid has one more level, by pooling; else two, by convolutions.
        shape: of the backbone.
        channels: of a pyramid level.
        head_convs: of an FCOS tower.
        n_classes: without background.
        batch: images.
        height_px, width_px: of the padded batch.
        max_boxes: in every image.
        memsave: frozen layers are lean.
        recompute: ``none``, ``neck`` or ``all``.
    """

    heads: Callable[[Tape, Step, list[Tensor]], list[Tensor]]
    head_params: Callable[[Step], int]
    pooled: bool
    shape: BackboneShape
    channels: int
    head_convs: int
    n_classes: int
    batch: int
    height_px: int
    width_px: int
    max_boxes: int
    memsave: bool
    recompute: str

    @property
    def n_labels(self) -> int:
        return self.n_classes + 1


# --- the body --------------------------------------------------------------------------------------------------------


def run_body(tape: Tape, step: Step, plan: Plan, images: Tensor) -> Features:
    """`backbone.Body.forward`."""
    shape, features = step.shape, {}
    x = images
    with tape.no_grad(plan.grad_from > 0):
        x = tape.conv(x, shape.stage_channels[0], 7, 2, trained=plan.trained_from <= 1, lean=step.memsave)
        x = _norm(tape, step, plan, x, 1)
        x = tape.relu(x, lean=step.memsave and plan.trained_from > 1)
        x = _maxpool(tape, x, step.memsave)
    features["c1"] = x
    blocks = shape.blocks()
    for stage in range(2, 6):
        again = (step.recompute == "all" or plan.recompute) and plan.grad_from < stage
        with tape.no_grad(plan.grad_from >= stage):
            mine = [block for block in blocks if block.stage == stage]
            for j, block in enumerate(mine):
                stride = 2 if j == 0 and stage > 2 else 1
                run = partial(_block, tape, step, plan, block, stride, x)
                x = tape.recompute(run) if again else run()
                del run
                if plan.taps:
                    features[f"c{stage}.{j}"] = x
        features[f"c{stage}"] = x
    return features


def _maxpool(tape: Tape, x: Tensor, lean: bool) -> Tensor:
    b, c, h, w = x.shape
    shape = (b, c, -(-h // 2), -(-w // 2))
    n = b * c * shape[2] * shape[3]
    indices = Storage(tape, 8 * n)
    kept = Storage(tape, 4 * n) if lean else indices
    save: list[Tensor | Storage] = [kept] if lean else [x, kept]
    return tape.op(shape, x, save=save, transient=8 * n + x.nbytes if lean else 0)


def _norm(tape: Tape, step: Step, plan: Plan, x: Tensor, stage: int) -> Tensor:
    """The norm behind a convolution of the body."""
    if stage >= plan.norm_from and plan.norm != "frozen":
        if plan.norm == "ssf":
            x = tape.frozen_norm(x)
        return tape.open_norm(x, weight=plan.norm != "bias")
    if step.shape.frozen_norm or (step.memsave and stage < plan.trained_from):
        return tape.frozen_norm(x)
    if stage >= plan.trained_from:
        return tape.batch_norm(x)
    return tape.op(x.shape, x, save=[x])  # BatchNorm2d in eval mode keeps its input as well


def _block(tape: Tape, step: Step, plan: Plan, block: BlockShape, stride: int, x: Tensor) -> Tensor:
    """A residual block of torchvision; the stride is that of the first 3x3."""
    stage, trained = block.stage, block.stage >= plan.trained_from
    lean_relu = step.memsave and not trained

    def conv(x: Tensor, shape: ConvShape, place: int, stride: int) -> Tensor:
        out = plan.conv(tape, x, stage, shape, stride) if plan.conv else None
        if out is None:
            out = tape.conv(x, shape.c_out, shape.kernel, stride, trained=trained, lean=step.memsave)
        if plan.beside and place >= 0:
            beside = plan.beside(tape, x, stage, place, shape, stride)
            if beside is not None:
                out = tape.add(out, beside)
        return out

    strided = next(place for place, shape in enumerate(block.path) if shape.kernel == 3)
    identity = out = x
    for place, shape in enumerate(block.path):
        out = conv(out, shape, place, stride if place == strided else 1)
        out = _norm(tape, step, plan, out, stage)
        if place < len(block.path) - 1:
            out = tape.relu(out, lean=lean_relu)
    if block.downsample is not None:
        identity = _norm(tape, step, plan, conv(x, block.downsample, -1, stride), stage)
    out = tape.relu(tape.add(out, identity, inplace=True), lean=lean_relu)
    return plan.behind(tape, out, stage) if plan.behind else out


# --- the pyramid -----------------------------------------------------------------------------------------------------


def run_backbone(tape: Tape, step: Step, plan: Plan, images: Tensor) -> list[Tensor]:
    """`detector.Backbone.forward`: the levels of the pyramid, finest first."""
    features = run_body(tape, step, plan, images)
    neck = step.recompute != "none"
    states = plan.side(tape, {**features, "image": images}, neck) if plan.side else {}

    levels: list[Tensor] = []
    above: Tensor | None = None
    for stage in reversed(step.shape.used_stages):
        key = f"c{stage}"
        run = partial(_level, tape, step, plan, key)
        if not neck:
            above, level = run(features[key], states.get(key), above)
        else:
            n = images_at_once(features[key].numel // step.batch)
            pieces = tape.split(features[key], n)
            none: list[Tensor | None] = [None] * len(pieces)
            state = states.get(key)
            given = (
                pieces,
                none if state is None else tape.split(state, n),
                none if above is None else tape.split(above, n),
            )
            parts = [tape.recompute(partial(run, *each)) for each in zip(*given, strict=True)]
            finest = stage == step.shape.used_stages[0]
            above = None if finest else _stacked(tape, [inner for inner, _ in parts])
            level = _stacked(tape, [level for _, level in parts])
            del parts, pieces, given, state
        levels.insert(0, level)
    last = levels[-1]
    if step.pooled:  # LastLevelMaxPool: every second value
        levels.append(_half_grid(tape, last))
    else:  # LastLevelP6P7
        p6 = tape.conv(last, step.channels, 3, 2, bias=True)
        p7 = tape.conv(tape.relu(p6, inplace=False), step.channels, 3, 2, bias=True)
        levels += [p6, p7]
    return levels


def _level(
    tape: Tape, step: Step, plan: Plan, key: str, feature: Tensor, state: Tensor | None, above: Tensor | None
) -> tuple[Tensor, Tensor]:
    if plan.calibrate and state is not None:
        feature = plan.calibrate(tape, key, feature, state)
    inner = tape.conv(feature, step.channels, 1, bias=True, key=f"fpn.inner.{key}")
    if above is not None:
        # nearest neighbour: keeps nothing
        inner = tape.add(inner, tape.op(inner.shape, above))
    return inner, tape.conv(inner, step.channels, 3, bias=True, key=f"fpn.{key}")


def _half_grid(tape: Tape, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    n = b * c * -(-h // 2) * -(-w // 2)
    return tape.op((b, c, -(-h // 2), -(-w // 2)), x, save=[Storage(tape, 8 * n)])  # a max pooling of one value


# --- heads -----------------------------------------------------------------------------------------------------------


MAP_VALUES = 4_000_000  # of a feature map, that a recomputed head works on at once if the map has several images


def images_at_once(values: int) -> int:
    """Images of a feature map of so many values each that a recomputed head works on at once."""
    return max(1, MAP_VALUES // values)


def _by_level(
    tape: Tape, step: Step, levels: list[Tensor], run: Callable[[Tensor], list[Tensor]]
) -> list[list[Tensor]]:
    """`lean_heads._ByLevel`: the outputs of a head for every level."""
    if step.recompute == "none":
        return [run(level) for level in levels]
    outputs = []
    for level in levels:
        pieces = tape.split(level, images_at_once(level.numel // step.batch))
        found = [tape.recompute(partial(run, piece)) for piece in pieces]
        outputs.append([_stacked(tape, [each[i] for each in found]) for i in range(len(found[0]))])
        del pieces, found
    return outputs


def _stacked(tape: Tape, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return tape.cat(parts, (sum(part.shape[0] for part in parts), *parts[0].shape[1:]))


def _flat(tape: Tape, x: Tensor, per_anchor: int) -> Tensor:
    """(B, A * n, H, W) -> (B, H W A, n), which copies."""
    b, c, h, w = x.shape
    return tape.op((b, h * w * c // per_anchor, per_anchor), x, passes=True)


def _joined(tape: Tape, parts: list[Tensor]) -> Tensor:
    b, _, n = parts[0].shape
    return tape.cat(parts, (b, sum(part.shape[1] for part in parts), n))


def _tower(tape: Tape, x: Tensor, n_convs: int, norm: bool, key: str) -> Tensor:
    """All levels share its weights."""
    for i in range(n_convs):
        x = tape.conv(x, x.shape[1], 3, bias=True, key=f"{key}.{i}")
        if norm:
            x = tape.group_norm(x, key=f"{key}.{i}.norm", stock=True)
        x = tape.relu(x, inplace=not norm)  # RetinaNet's ReLUs are in place, FCOS's are not
    return x


def _dense_heads(tape: Tape, step: Step, levels: list[Tensor], outputs: list[list[tuple[int, bool]]]) -> list[Tensor]:
    """Towers over all levels, (channels of an output per anchor, ReLU behind it) for each -> every output, joined."""
    fcos = step.heads is run_fcos
    n_anchors = 1 if fcos else 9

    def run(tower: int, outs: list[tuple[int, bool]], x: Tensor) -> list[Tensor]:
        key = f"tower{tower}"
        x = _tower(tape, x, step.head_convs if fcos else 4, fcos, key)
        flat: list[Tensor] = []
        for n, relu in outs:
            out = tape.conv(x, n_anchors * n, 3, bias=True, key=f"{key}.out{len(flat)}")
            if relu:
                out = tape.relu(out, inplace=False)
            out = _flat(tape, out, n)
            # torchvision joins the levels that it is given; where recomputed, one by one
            flat.append(out if step.recompute == "none" else _joined(tape, [out]))
        return flat

    results: list[Tensor] = []
    for tower, outs in enumerate(outputs):
        by_level = _by_level(tape, step, levels, partial(run, tower, outs))
        results += [_joined(tape, [level[i] for level in by_level]) for i in range(len(outs))]
        del by_level
    return results


def focal_loss(tape: Tape, x: Tensor, targets: Tensor) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss, value by value, and its sum."""

    def constant(width: int) -> Tensor:
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


# Bytes that matching holds at once for every pair of an anchor and a box, counted in torchvision's code (0.26).
BOX_IOU_PAIR = 36  # box_iou: two corners and their difference (x, y each), intersection, a sum, the union; 4 bytes each
FCOS_PAIR = 33  # four distances in a list, and stacked; one flag
IOU_PAIRS = 2_000_000  # pairs that `lean_heads.box_iou` works on at once


def _matching(tape: Tape, n_anchors: int, n_boxes: int) -> None:
    """`lean_heads.box_iou`, then torchvision's Matcher: best box and value of every anchor, flags of the best anchors."""
    n_boxes = max(1, n_boxes)
    overlaps = Storage(tape, 4 * n_boxes * n_anchors)
    Storage(tape, BOX_IOU_PAIR * n_anchors * min(n_boxes, max(1, IOU_PAIRS // n_anchors)))
    Storage(tape, (n_boxes + 20) * n_anchors)
    del overlaps


def run_fasterrcnn(tape: Tape, step: Step, levels: list[Tensor]) -> list[Tensor]:
    """`FasterRCNN.forward` behind the backbone: its losses."""
    b = step.batch

    def rpn_head(x: Tensor) -> list[Tensor]:
        x = tape.relu(tape.conv(x, step.channels, 3, bias=True, key="rpn"))
        return [tape.conv(x, 3, 1, bias=True, key="rpn.logits"), tape.conv(x, 12, 1, bias=True, key="rpn.deltas")]

    def concatenated(outputs: list[list[Tensor]]) -> list[Tensor]:
        flat = [[_flat(tape, logits, 1), _flat(tape, deltas, 4)] for logits, deltas in outputs]
        return [_joined(tape, [each[i] for each in flat]) for i in (0, 1)]

    def rpn_loss() -> tuple[list[Tensor], int]:
        outputs = _by_level(tape, step, levels, rpn_head)
        n = sum(logits.shape[1] * logits.shape[2] * logits.shape[3] for logits, _ in outputs)
        anchors = Storage(tape, 16 * b * n)
        logits, deltas = concatenated(outputs)
        del outputs
        width = deltas.width
        # decode: the anchors again, their four measures, four codes, two clamped, four results, four corners, stacked
        Storage(tape, b * n * (16 + 22 * width))
        proposals = Storage(tape, 4 * width * b * n)
        Storage(tape, 24 * n)  # levels of the anchors, twice while they are concatenated
        kept = []
        for _ in range(b):
            _matching(tape, n, step.max_boxes)
            kept.append(Storage(tape, 20 * n))  # labels and matched boxes
        # encode: both kinds of boxes again, four measures of each, four codes, then all four of them in one
        Storage(tape, 96 * b * n)
        kept.append(Storage(tape, 16 * b * n))
        # the sampler's indices of one image, and its masks of all; labels and codes again
        Storage(tape, 16 * n)
        kept.append(Storage(tape, 22 * b * n))
        objectness = tape.op((1,), logits)
        boxes = tape.op((1,), deltas)
        del anchors, proposals, kept
        return [objectness, boxes], n

    losses, n_anchors = rpn_loss()
    n_proposals = min(2000, n_anchors) + step.max_boxes
    for _ in range(b):
        Storage(tape, BOX_IOU_PAIR * n_proposals * max(1, step.max_boxes))
    n_rois = min(512, n_proposals) * b
    return [*losses, *_roi_heads(tape, step, levels[:4], n_rois)]


def _roi_heads(tape: Tape, step: Step, levels: list[Tensor], n_rois: int) -> list[Tensor]:
    def pool() -> Tensor:
        """MultiScaleRoIAlign: the result is filled level by level."""
        width = levels[0].width
        result = tape.tensor(n_rois, step.channels, 7, 7, width=width)
        # which level a region falls on depends on its size; most are small, so here the finest takes them all
        for level in levels:
            wide = tape.cast(level, 4)
            found = tape.op((n_rois if level is levels[0] else 1, step.channels, 7, 7), wide, width=4)
            del wide
            if found.width != width:
                found = tape.cast(found, width)
            # index_put: the gradient of what is overwritten is a copy of the result's
            result = tape.op(result.shape, result, found, alias=True)
        return result

    x = pool()
    flat = tape.op((n_rois, step.channels * 49), x, alias=True, passes=True)
    del x
    hidden = tape.relu(tape.linear(flat, 1024), inplace=False)
    del flat
    hidden = tape.relu(tape.linear(hidden, 1024), inplace=False)
    scores, deltas = tape.linear(hidden, step.n_labels), tape.linear(hidden, 4 * step.n_labels)
    return [tape.op((1,), scores, save=[tape.cast(scores, 4)]), tape.op((1,), deltas)]


def run_retinanet(tape: Tape, step: Step, levels: list[Tensor]) -> list[Tensor]:
    """`RetinaNet.forward` behind the backbone: its losses."""
    logits, deltas = _dense_heads(tape, step, levels, [[(step.n_labels, False)], [(4, False)]])
    b, n, k = logits.shape
    anchors = Storage(tape, 16 * b * n)
    matched = []
    for _ in range(b):
        _matching(tape, n, step.max_boxes)
        matched.append(Storage(tape, 8 * n))

    def image_loss(one: Tensor, _held: object = matched) -> Tensor:  # where recomputed, they are an argument
        targets = tape.tensor(n, k, width=one.width)
        mine = tape.op(one.shape, one, save=[Storage(tape, n)])  # the flags of the anchors that count
        valid = tape.tensor(n, k, width=one.width)
        loss = focal_loss(tape, mine, valid)
        del targets
        return loss

    again = step.recompute != "none"
    # an image's part of the logits is a view; the gradients of all of them are stacked
    images = _rows(tape, logits)
    losses = [tape.recompute(partial(image_loss, one)) if again else image_loss(one) for one in images]
    del images, anchors, matched
    return [*losses, tape.op((1,), deltas)]


def _rows(tape: Tape, x: Tensor) -> list[Tensor]:
    """``unbind``: views with one node between them, whose gradient is a new tensor."""
    row = tape.op(x.shape[1:], x, alias=True)
    return [Tensor(row.storage, row.shape, row.width, row.node) for _ in range(x.shape[0])]


def run_fcos(tape: Tape, step: Step, levels: list[Tensor]) -> list[Tensor]:
    """`FCOS.forward` behind the backbone: its losses."""
    logits, deltas, centres = _dense_heads(tape, step, levels, [[(step.n_labels, False)], [(4, True), (1, False)]])
    b, n, k = logits.shape
    kept = [Storage(tape, 16 * b * n)]  # anchors
    for _ in range(b):
        Storage(tape, (FCOS_PAIR * max(1, step.max_boxes) + 24) * n)
        kept.append(Storage(tape, 8 * n))

    def losses(_held: object = kept) -> Tensor:  # where recomputed, they are arguments
        stacked = Storage(tape, (8 + 16 + 16) * b * n)  # classes, boxes and anchors
        targets = tape.tensor(b, n, k, width=logits.width)
        classes = focal_loss(tape, logits, targets)
        size = tape.tensor(b, n, 4)
        boxes = tape.op((b, n, 4), deltas, save=[size], width=4)
        del size
        for _ in range(2):  # corners, then all in one
            boxes = tape.op((b, n, 4), boxes)
        box_loss = tape.op((1,), boxes)
        Storage(tape, 32 * b * n)
        centre_loss = tape.op((1,), centres)
        del stacked
        return tape.op((1,), classes, box_loss, centre_loss, passes=True)

    return [tape.recompute(losses) if step.recompute != "none" else losses()]


# --- a step ----------------------------------------------------------------------------------------------------------


def training_step(tape: Tape, step: Step, plan: Plan) -> int:
    """Images in, forward, backward; gradients are left. Returns the bytes that autograd kept of the forward pass."""
    b, h, w = step.batch, step.height_px, step.width_px
    given = [tape.tensor(3, h, w) for _ in range(b)]
    _forward(tape, step, plan, given)
    tape.end_forward()
    kept = tape.live - sum(image.storage.nbytes for image in given)
    tape.backward()
    return kept


def _forward(tape: Tape, step: Step, plan: Plan, given: list[Tensor]) -> None:
    images = _transform(tape, step, given)
    levels = run_backbone(tape, step, plan, images)
    tape.op((1,), *step.heads(tape, step, levels))  # their sum


def _transform(tape: Tape, step: Step, given: list[Tensor]) -> Tensor:
    """Normalised, resized (which copies even where nothing changes), padded into one batch."""
    scaled = []
    for image in given:
        normal = tape.tensor(*image.shape)
        scaled.append(tape.tensor(*image.shape))
        del normal
    return tape.tensor(step.batch, 3, step.height_px, step.width_px)


def neck_and_head_params(step: Step) -> int:
    """Parameters of pyramid and heads, all trained, in closed form (a test compares with the built model)."""
    f, used = step.channels, [step.shape.stage_channels[s - 1] for s in step.shape.used_stages]
    levels = len(used) + (0 if step.pooled else 2)
    return sum(c * f + f for c in used) + levels * _square(step) + step.head_params(step)


def _square(step: Step) -> int:
    return 9 * step.channels**2 + step.channels  # a 3x3 with bias that keeps the channels


def fasterrcnn_params(step: Step) -> int:
    f, k = step.channels, step.n_labels
    return _square(step) + 15 * (f + 1) + (49 * f + 1) * 1024 + 1025 * 1024 + 1025 * 5 * k


def retinanet_params(step: Step) -> int:
    return 8 * _square(step) + 9 * (9 * step.channels + 1) * (step.n_labels + 4)


def fcos_params(step: Step) -> int:
    f = step.channels
    return 2 * step.head_convs * (_square(step) + 2 * f) + (9 * f + 1) * (step.n_labels + 5)
