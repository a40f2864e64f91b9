"""Compare published training memory of detectron2 and mmdetection with the prediction. Needs neither torch nor a GPU.

    python benchmarks/published.py --out benchmarks/results/published.json

Published is the largest `torch.cuda.max_memory_allocated` of a run on 8 V100s in GiB: 2 images a GPU, fp32, SGD with
momentum, stem and first stage frozen, COCO at up to 800 x 1333 px. Active bytes are predicted for the same settings,
then with what those libraries do otherwise, one thing after the other:

    settings    our detector with their settings: 93 boxes in an image, as COCO has; one state per trained parameter;
                gradients that stay, since `zero_grad` filled them with zeros then and did not drop them;
                the stride in a stage's first 1x1 (caffe); BatchNorm2d in eval mode, which keeps its input (mmdetection)
    matching    overlaps of all anchors and boxes of an image at once, where ours works on a few boxes at a time
    loss        their loss over the classes: detectron2's takes all images at once, mmdetection's is one CUDA kernel
                that keeps its input alone; and the GroupNorm of PyTorch 1.3, which keeps two tensors
    buckets     the copy of all gradients that DistributedDataParallel exchanges

Workspaces are left out: cuDNN's on a V100 are unmeasured, and cuBLAS's did not come from this allocator then.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cst_search.config.recipe import Recipe
from cst_search.memory import dense_heads
from cst_search.memory.dense_heads import focal_loss, matching
from cst_search.memory.estimate import InputShape, StepBytes, step_bytes
from cst_search.memory.plan import StepShape
from cst_search.memory.resnet_shapes import ConvShape
from cst_search.memory.tape import Allocation, ShapeTensor, Tape
from cst_search.petl import get_method
from cst_search.trial import cost

COCO_BATCH = InputShape(800, 1344, 93)  # largest padded batch, and most boxes in an image of COCO's training split
N_CLASSES = 80
Heads = Callable[[Tape, StepShape, list[ShapeTensor]], list[ShapeTensor]]

SMALL = "all but a few percent is explained; cuDNN's workspaces are left out"
TORCHSCRIPT = "the rest is unexplained; its loss is TorchScript, which needed more than autograd then"
LATER = "published two years later, with a newer PyTorch; rounding alone is 3 %"


@dataclass(frozen=True)
class Published:
    """Published figure.

    Attributes:
        style: caffe, with the stride of a stage in its first 1x1 convolution, or pytorch, with it in the 3x3.
        gib: as printed, rounded to 0.1.
        tolerance: largest share by which the last prediction may be off.
        why: explanation of what is left.
        batch_size: images on a GPU.
        n_gpus: GPUs.
    """

    library: str
    style: str
    detector: str
    backbone: str
    gib: float
    tolerance: float = 0.05
    why: str = SMALL
    batch_size: int = 2
    n_gpus: int = 8

    @property
    def source(self) -> str:
        """Repository and path of the figure."""
        if self.library == "detectron2":
            return "facebookresearch/detectron2 MODEL_ZOO.md"
        folder = {"fasterrcnn": "faster_rcnn"}.get(self.detector, self.detector)
        file = "metafile.yml" if self.detector == "fcos" else "README.md"
        return f"open-mmlab/mmdetection configs/{folder}/{file}"


ROWS = (
    Published("detectron2", "caffe", "fasterrcnn", "resnet50", 3.0),
    Published("detectron2", "caffe", "fasterrcnn", "resnet101", 4.1),
    Published("detectron2", "caffe", "retinanet", "resnet50", 3.9, 0.1, TORCHSCRIPT),
    Published("detectron2", "caffe", "retinanet", "resnet101", 5.1, 0.1, TORCHSCRIPT),
    Published("mmdetection", "caffe", "fasterrcnn", "resnet50", 3.8),
    Published("mmdetection", "pytorch", "fasterrcnn", "resnet50", 4.0),
    Published("mmdetection", "caffe", "fasterrcnn", "resnet101", 5.7),
    Published("mmdetection", "pytorch", "fasterrcnn", "resnet101", 6.0),
    Published("mmdetection", "pytorch", "retinanet", "resnet18", 1.7, 0.09, LATER),
    Published("mmdetection", "pytorch", "retinanet", "resnet18", 5.0, 0.09, LATER, batch_size=8, n_gpus=1),
    Published("mmdetection", "caffe", "retinanet", "resnet50", 3.5),
    Published("mmdetection", "pytorch", "retinanet", "resnet50", 3.8),
    Published("mmdetection", "caffe", "retinanet", "resnet101", 5.5),
    Published("mmdetection", "pytorch", "retinanet", "resnet101", 5.7),
    Published("mmdetection", "caffe", "fcos", "resnet50", 3.6),
    Published("mmdetection", "caffe", "fcos", "resnet101", 5.5),
)

# bytes per pair of an anchor and a box that the overlaps take at once, beside the four of the result. Of 2019, both
# libraries hold two corners, their difference and its product (28) while they divide by the union (4); detectron2 also
# a mask of one byte. Both sums, 37 and 36, were seen in a run on a CPU.
PAIR_BYTES = {"detectron2": 33, "mmdetection": 32}


def detectron2_retinanet(tape: Tape, step: StepShape, levels: list[ShapeTensor]) -> list[ShapeTensor]:
    """Mirror RetinaNet.losses of detectron2 v0.1: the loss of all images at once."""
    logits, deltas = dense_heads.dense_heads(tape, step, levels, [[(N_CLASSES, False)], [(4, False)]])
    b, n, k = logits.shape
    held = [Allocation(tape, 16 * b * n)]  # anchors
    for _ in range(b):
        matching(tape, n, step.max_boxes)
        held.append(Allocation(tape, (8 + 16) * n))  # classes and codes
    targets = tape.tensor(b, n, k)
    valid = tape.op(logits.shape, logits, save=[Allocation(tape, 8 * b * n)])  # indices of the anchors that count
    loss = focal_loss(tape, valid, tape.tensor(b, n, k))
    del targets, valid, held
    return [loss, tape.op((1,), deltas)]


def _fused_focal_loss(tape: Tape, x: ShapeTensor) -> ShapeTensor:
    """Mirror mmdetection's sigmoid_focal_loss, a CUDA kernel, its weights and the sum."""
    return tape.op((1,), tape.pointwise(tape.pointwise(x, save=[x])))


def mmdetection_retinanet(tape: Tape, step: StepShape, levels: list[ShapeTensor]) -> list[ShapeTensor]:
    """Mirror AnchorHead.loss of mmdetection v2: level by level."""
    outputs = [[(N_CLASSES, False)], [(4, False)]]
    by_level = [dense_heads.dense_heads(tape, step, [level], outputs) for level in levels]
    n = sum(logits.shape[1] for logits, _ in by_level)
    held = [Allocation(tape, 16 * step.batch * n)]
    for _ in range(step.batch):
        matching(tape, n, step.max_boxes)
        held.append(Allocation(tape, (8 + 4 + 16 + 16) * n))  # labels, boxes, and the weights of both
    losses = []
    for logits, deltas in by_level:
        losses += [_fused_focal_loss(tape, logits), tape.op((1,), deltas)]
    del by_level, held
    return losses


def mmdetection_fcos(tape: Tape, step: StepShape, levels: list[ShapeTensor]) -> list[ShapeTensor]:
    """Mirror FCOSHead.loss of mmdetection v2."""
    assert step.tower is not None
    step = replace(step, tower=replace(step.tower, inplace_relu=True))
    logits, deltas, centres = dense_heads.dense_heads(
        tape, step, levels, [[(N_CLASSES, False)], [(4, True), (1, False)]]
    )
    b, n, _ = logits.shape
    for _ in range(b):
        Allocation(tape, 56 * step.max_boxes * n)  # areas, four distances, these stacked, extremes with their indices
    held = Allocation(tape, (8 + 16 + 8) * b * n)  # labels, boxes, points
    losses = [_fused_focal_loss(tape, logits), tape.op((1,), deltas), tape.op((1,), centres)]
    del logits, held
    return losses


def stride_first(tape: Tape, x: ShapeTensor, stage: int, shape: ConvShape, stride: int) -> ShapeTensor:
    """Run a convolution of a ResNet in caffe's style: a stage's first 1x1 has the stride, not the 3x3 behind it."""
    if shape.kernel == 3:
        stride = 1
    elif shape.c_in == 2 * shape.c_out:  # from one stage to the middle of the next
        stride = 2
    return tape.conv(x, shape.c_out, shape.kernel, stride, trained=stage >= 3)


def group_norm_as_batch_norm(
    tape: Tape, x: ShapeTensor, key: str = "", stock: bool = False, trained: bool = True
) -> ShapeTensor:
    """Record the GroupNorm of PyTorch 1.3: a batch norm, then scale and shift, as ATen's `math_group_norm` still is."""
    normal = tape.op(x.shape, x, save=[x])
    return tape.op(x.shape, normal, save=[normal], params=8 * x.shape[1], key=key)


LOSSES: dict[tuple[str, str], Heads] = {
    ("detectron2", "retinanet"): detectron2_retinanet,
    ("mmdetection", "retinanet"): mmdetection_retinanet,
    ("mmdetection", "fcos"): mmdetection_fcos,
}


def predicted(row: Published) -> dict[str, float]:
    """Return the predicted GiB after each thing that the library does otherwise, in order; keys as in the module."""
    recipe = Recipe(
        detector=row.detector, backbone=row.backbone, method="partial", options={"stages": 3},
        batch_size=row.batch_size, precision="fp32", memsave=False, recompute="none",
        weights="IMAGENET" if row.library == "detectron2" else "none",  # frozen norms, or BatchNorm2d
    )  # fmt: skip
    step, plan = cost.describe(recipe, N_CLASSES, COCO_BATCH)
    if row.style == "caffe":
        plan = replace(plan, conv=stride_first)
    method = get_method(recipe.method)
    petl_params = method.petl_params(step.shape, method.make_options(recipe.options))

    def active(step: StepShape) -> StepBytes:
        return step_bytes(step, plan, petl_params, half=False, accumulates=True, workspaces=False)

    stages = {"settings": active(step)}
    with mock.patch.multiple(dense_heads, IOU_PAIRS=10**12, BOX_IOU_PAIR=PAIR_BYTES[row.library]):
        stages["matching"] = active(step)
        with mock.patch.object(Tape, "group_norm", group_norm_as_batch_norm):
            stages["loss"] = active(replace(step, heads=LOSSES.get((row.library, row.detector), step.heads)))
    # AdamW has two states of each trained parameter, SGD with momentum one
    figures = {name: found.active_bytes - found.parts["optimiser"] // 2 for name, found in stages.items()}
    gradients = 4 * stages["loss"].trainable_params if row.n_gpus > 1 else 0
    figures["buckets"] = figures["loss"] + gradients
    return {name: round(value / 2**30, 3) for name, value in figures.items()}


def compare() -> list[dict[str, Any]]:
    """Return a row for each published figure, with what was predicted and the share by which the last is off."""
    rows = []
    for row in ROWS:
        figures = predicted(row)
        off = round(figures["buckets"] / row.gib - 1, 3)
        rows.append(asdict(row) | {"source": row.source, "predicted": figures, "off": off})
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    print("| model | published | settings | matching | loss | buckets | off |\n|---|---|---|---|---|---|---|")
    for row in rows:
        name = f"{row['library']} {row['detector']} {row['backbone']}, {row['style']}"
        name += f", batch {row['batch_size']}" if row["batch_size"] != 2 else ""
        figures = " | ".join(f"{value:.2f}" for value in row["predicted"].values())
        print(f"| {name} | {row['gib']} | {figures} | {100 * row['off']:+.0f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = compare()
    show(rows)
    if args.out:
        args.out.write_text(json.dumps({"date": date.today().isoformat(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
