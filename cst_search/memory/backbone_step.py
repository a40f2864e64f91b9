"""Body, side network and feature pyramid of a training step, as shapes.

Each function mirrors the one of the same name in `backbone.resnet` and `detector.pyramid`, with its temporaries and
their order, since these decide the peak. Standard library only.
"""

from __future__ import annotations

from functools import partial

from cst_search.memory.plan import Features, MemoryPlan, StepShape
from cst_search.memory.resnet_shapes import BlockShape, ConvShape
from cst_search.memory.tape import Allocation, ShapeTensor, Tape


def run_body(tape: Tape, step: StepShape, plan: MemoryPlan, images: ShapeTensor) -> Features:
    """Mirror `backbone.Body.forward`: images (B, 3, H, W) -> feature maps ``c1`` to ``c5``."""
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


def _maxpool(tape: Tape, x: ShapeTensor, lean: bool) -> ShapeTensor:
    b, c, h, w = x.shape
    shape = (b, c, -(-h // 2), -(-w // 2))
    n = b * c * shape[2] * shape[3]
    indices = Allocation(tape, 8 * n)
    kept = Allocation(tape, 4 * n) if lean else indices
    save: list[ShapeTensor | Allocation] = [kept] if lean else [x, kept]
    return tape.op(shape, x, save=save, transient=8 * n + x.nbytes if lean else 0)


def _norm(tape: Tape, step: StepShape, plan: MemoryPlan, x: ShapeTensor, stage: int) -> ShapeTensor:
    """Run the norm behind a convolution of the body."""
    if stage >= plan.norm_from and plan.norm != "frozen":
        if plan.norm != "ssf":
            return tape.open_norm(x, weight=plan.norm != "bias", fused=not step.shape.frozen_norm)
        x = tape.frozen_norm(x, fused=not step.shape.frozen_norm)
        return tape.open_norm(x, weight=True)
    if step.shape.frozen_norm or (step.memsave and stage < plan.trained_from):
        return tape.frozen_norm(x, fused=not step.shape.frozen_norm)
    if stage >= plan.trained_from:
        return tape.batch_norm(x)
    return tape.op(x.shape, x, save=[x])  # BatchNorm2d in eval mode keeps its input as well


def _block(
    tape: Tape, step: StepShape, plan: MemoryPlan, block: BlockShape, stride: int, x: ShapeTensor
) -> ShapeTensor:
    """Run a residual block of torchvision; the stride is that of its first 3x3."""
    stage, trained = block.stage, block.stage >= plan.trained_from
    lean_relu = step.memsave and not trained

    def conv(x: ShapeTensor, shape: ConvShape, place: int, stride: int) -> ShapeTensor:
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


def run_backbone(tape: Tape, step: StepShape, plan: MemoryPlan, images: ShapeTensor) -> list[ShapeTensor]:
    """Mirror `detector.pyramid.Backbone.forward`: images -> levels of the pyramid, finest first."""
    return run_pyramid(tape, step, plan, run_body(tape, step, plan, images), images)


def run_pyramid(
    tape: Tape, step: StepShape, plan: MemoryPlan, features: Features, images: ShapeTensor
) -> list[ShapeTensor]:
    """Mirror the part of `Backbone.forward` behind the body: side network and pyramid."""
    neck = step.recompute != "none"
    states = plan.side(tape, {**features, "image": images}, neck) if plan.side else {}

    levels: list[ShapeTensor] = []
    above: ShapeTensor | None = None
    if step.p6_from_c5 and plan.calibrate and "c5" in states:
        features["c5"] = plan.calibrate(tape, "c5", features["c5"], states.pop("c5"))
    for stage in reversed(step.shape.used_stages):
        key = f"c{stage}"
        run = partial(_level, tape, step, plan, key)
        if not neck:
            above, level = run(features[key], states.get(key), above)
        else:
            n = step.neck_images(features[key].numel // step.batch)
            pieces = tape.split(features[key], n)
            none: list[ShapeTensor | None] = [None] * len(pieces)
            state = states.get(key)
            given = (
                pieces,
                none if state is None else tape.split(state, n),
                none if above is None else tape.split(above, n),
            )
            parts = [tape.recompute(partial(run, *each)) for each in zip(*given, strict=True)]
            finest = stage == step.shape.used_stages[0]
            above = None if finest else tape.stack([inner for inner, _ in parts])
            level = tape.stack([level for _, level in parts])
            del parts, pieces, given, state
        levels.insert(0, level)
    last = levels[-1]
    if step.pooled:  # LastLevelMaxPool: every second value
        levels.append(_half_grid(tape, last))
    else:  # LastLevelP6P7
        neck_part = step.neck_part
        p6 = neck_part.conv(tape, features["c5"] if step.p6_from_c5 else last, step.channels, 3, 2)
        p7 = neck_part.conv(tape, tape.relu(p6, inplace=False), step.channels, 3, 2)
        levels += [p6, p7]
    return levels


def _level(
    tape: Tape,
    step: StepShape,
    plan: MemoryPlan,
    key: str,
    feature: ShapeTensor,
    state: ShapeTensor | None,
    above: ShapeTensor | None,
) -> tuple[ShapeTensor, ShapeTensor]:
    if plan.calibrate and state is not None:
        feature = plan.calibrate(tape, key, feature, state)
    inner = _neck_conv(tape, step, feature, 1, f"fpn.inner.{key}")
    if above is not None:
        # nearest-neighbour interpolation keeps nothing
        inner = tape.add(inner, tape.op(inner.shape, above))
    return inner, _neck_conv(tape, step, inner, 3, f"fpn.{key}")


def _neck_conv(tape: Tape, step: StepShape, x: ShapeTensor, kernel: int, key: str) -> ShapeTensor:
    part = step.neck_part
    x = part.conv(tape, x, step.channels, kernel, key=key, bias=not step.neck_norm)
    return part.batch_norm(tape, x, f"{key}.norm") if step.neck_norm else x


def _half_grid(tape: Tape, x: ShapeTensor) -> ShapeTensor:
    b, c, h, w = x.shape
    n = b * c * -(-h // 2) * -(-w // 2)
    return tape.op((b, c, -(-h // 2), -(-w // 2)), x, save=[Allocation(tape, 8 * n)])  # max pooling with kernel size 1
