"""Train the backbone weights that ship with the demo: a half-width ResNet-18, on drawings of another domain.

    python tools/train_demo_backbone.py

    drew 3000 + 200 images in 34 s
    epoch 8/8  loss 0.932  698 s
    source mAP 0.551, mAP50 0.769
    source mAP with float16 weights 0.551
    wrote demo-resnet18.safetensors: 5.62 MB, 12.3 minutes     (one core of a busy machine with two)

In the source domain, nine outlines are the classes; colour and marking mean nothing, and most pieces differ from the
background in hue alone. So the early stages must detect colours and the deep ones learn to ignore them. The demo asks
the opposite: which colour, which marking (`cst_search/data/demo.py`). Results on the demo with FCOS as in
`trials/demo.yaml`, but 6 epochs of batch 4 and anchor_scale 1: validation mAP, and core-seconds of training and
evaluation.

    head    lr 1e-3 0.432, lr 3e-3 0.408 and 0.412 (seeds 0, 1), lr 1e-2 0.386     21 s
    cst     lr 3e-3 0.569, 0.561, 0.566 (seeds 0, 1, 2)                            23 s
    full    lr 1e-3 0.590, 0.625 (seeds 0, 1)                                      35 s

An earlier grey source domain gave source mAP 0.36 (3000 images, 8 epochs of batch 16), and on the demo at lr 2.5e-3:
head 0.29, cst 0.41 and 0.32 (seeds 0, 1).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import math
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cst_search.backbone.resnet import Body
from cst_search.data import demo

OUT = Path(__file__).resolve().parent.parent / "cst_search" / "backbone" / "weights" / "demo-resnet18.safetensors"
SIZE_PX = 128
Target = dict[str, Tensor]  # boxes (n, 4) xyxy in pixels, labels (n,) from 1

# --- source domain: the outline determines the class; colours and markings are random --------------------------------


def _star(u: demo.Array, v: demo.Array) -> NDArray[np.bool_]:
    return np.hypot(u, v) < 0.66 + 0.3 * np.cos(5 * np.arctan2(u, -v))


def _drop(u: demo.Array, v: demo.Array) -> NDArray[np.bool_]:
    return ((u / 0.72) ** 2 + ((v - 0.28) / 0.72) ** 2 < 1) | ((v < 0.2) & (v > -1) & (abs(u) < 0.58 * (v + 1)))


SHAPES: dict[str, demo.Outline] = {
    "disc": demo.OUTLINES["disc"],
    "box": demo.OUTLINES["box"],
    "diamond": demo.OUTLINES["diamond"],
    "triangle": demo.OUTLINES["triangle"],
    "ring": demo.OUTLINES["ring"],
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.34) & (np.maximum(abs(u), abs(v)) < 0.95),
    "star": _star,
    "drop": _drop,
    "crescent": lambda u, v: (u**2 + v**2 < 1) & ((u - 0.45) ** 2 + v**2 > 0.55),
}


def _paint(rng: np.random.Generator, ground_luma: float) -> demo.Paint:
    """Return a paint of any colour, shaded in a random direction; three in five have a meaningless marking.

    Two in three pieces are about as bright as the background, so that only their hue stands out. The early stages must
    then detect colours, while the deep ones learn to ignore them.
    """
    tone, light = _tone(rng, ground_luma if rng.random() < 0.67 else None), rng.uniform(-0.25, 0.25, size=2)
    other = _tone(rng, None)
    pitch, angle, phase = rng.uniform(4, 14), rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
    kind = int(rng.integers(5))

    def paint(u: demo.Array, v: demo.Array) -> demo.Array:
        a = np.sin(pitch * (u * math.cos(angle) + v * math.sin(angle)) + phase)
        b = np.sin(pitch * (v * math.cos(angle) - u * math.sin(angle)))
        marked = {0: a > 0.2, 1: a * b > 0.25, 2: np.maximum(a, b) > 0.8}.get(kind, np.zeros_like(u, bool))
        return np.where(marked[..., None], other, tone) * (1 + light[0] * u + light[1] * v)[..., None]

    return paint


def _tone(rng: np.random.Generator, luma: float | None) -> demo.Array:
    """Return a random colour; with ``luma``, one of about that brightness and higher saturation."""
    if luma is None:
        return demo.hsv(rng.random(), rng.uniform(0.1, 0.9), rng.uniform(0.15, 1.0))
    tone = demo.hsv(rng.random(), rng.uniform(0.4, 0.95), 0.8)
    return np.clip(tone * max(luma + rng.normal(0, 0.06), 0.08) / (tone @ _LUMA), 0, 1)


_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def draw_source(seed: int) -> tuple[NDArray[np.uint8], demo.Array, NDArray[np.int64]]:
    """Draw one source image. Returns pixels (128, 128, 3), boxes (n, 4) xyxy in pixels, and labels (n,) from 1."""
    rng = np.random.default_rng([7, seed])
    base = demo.hsv(rng.random(), rng.uniform(0.05, 0.6), rng.uniform(0.25, 0.85))
    ground = base + 0.15 * demo.smooth_noise(rng, SIZE_PX, (3, 3), 3)
    ground = ground + rng.uniform(0, 0.12) * demo.smooth_noise(rng, SIZE_PX, (24, 24))
    if rng.random() < 0.5:  # waves
        x, y = np.meshgrid(np.arange(SIZE_PX), np.arange(SIZE_PX))
        angle = rng.uniform(0, math.pi)
        wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * rng.uniform(0.3, 1.5))
        ground = ground + rng.uniform(0.02, 0.1) * wave[..., None]
    scene = demo.Scene(rng, SIZE_PX, ground.astype(np.float32))
    boxes, labels = [], []
    for _ in range(int(rng.integers(3, 9))):
        label = int(rng.integers(len(SHAPES)))
        outline = list(SHAPES.values())[label]
        tilt = 0.25 if label in (1, 2) else math.pi  # a box turned by 45 degrees would be a diamond
        paint = _paint(rng, float(base @ _LUMA))
        box = scene.add(outline, paint, float(rng.triangular(14, 26, 60)), tilt=tilt)
        if box:
            boxes.append((box[0], box[1], box[0] + box[2], box[1] + box[3]))
            labels.append(label + 1)
    return (
        demo.finish(rng, scene.pixels, noise=0.04),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
    )


def load_source(first: int, n_images: int) -> tuple[Tensor, list[Target]]:
    drawn = [draw_source(seed) for seed in range(first, first + n_images)]
    images = torch.from_numpy(np.stack([pixels for pixels, _, _ in drawn])).permute(0, 3, 1, 2).contiguous()
    return images, [{"boxes": torch.from_numpy(b), "labels": torch.from_numpy(c)} for _, b, c in drawn]


# --- the detector ----------------------------------------------------------------------------------------------------


class Pyramid(nn.Module):
    """Feature pyramid: C3..C5 of the body and the FPN's P3..P7, all with 64 channels."""

    out_channels = 64

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(body.stage_channels[2:]), 64, extra_blocks=LastLevelP6P7(64, 64))

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        features = self.body(x)
        return self.fpn(OrderedDict((name, features[name]) for name in ("c3", "c4", "c5")))


def detector(backbone: nn.Module, n_classes: int) -> FCOS:
    """Build the detector. ``n_classes`` includes the background, as in torchvision."""
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5)
    head = FCOSHead(64, anchors.num_anchors_per_location()[0], n_classes, num_convs=2)
    sizes = {"min_size": SIZE_PX, "max_size": SIZE_PX}
    return FCOS(backbone, n_classes, anchor_generator=anchors, head=head, score_thresh=0.05, **sizes)


def optimization(
    model: nn.Module, lr: float, n_steps: int, slow: str | None = None
) -> tuple[list[nn.Parameter], torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the trained parameters, AdamW without decay of norms and biases, and one cosine with 5 % warm-up.

    Args:
        slow: prefix of the parameters that learn at a fifth of the rate; None: none do.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = []
    for is_slow in (False, True):
        some = [p for name, p in named.items() if (slow is not None and name.startswith(slow)) == is_slow]
        for decay, parameters in ((0.05, [p for p in some if p.ndim > 1]), (0.0, [p for p in some if p.ndim <= 1])):
            if parameters:
                groups.append({"params": parameters, "weight_decay": decay, "lr": lr / 5 if is_slow else lr})
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in groups],
        total_steps=n_steps,
        pct_start=0.05,
        div_factor=25,
        cycle_momentum=False,
    )
    return list(named.values()), optimizer, schedule


def train(
    model: FCOS,
    images: Tensor,
    targets: list[Target],
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    seconds: float = math.inf,
) -> None:
    """Train as `optimization` says, with horizontal flips. Stops early, with a note, after ``seconds``."""
    per_epoch = len(images) // batch_size
    parameters, optimizer, schedule = optimization(model, lr, epochs * per_epoch)
    model.train()
    started = time.monotonic()
    for epoch in range(epochs):
        losses = []
        order = torch.randperm(len(images))
        for step in range(per_epoch):
            batch = [
                flipped(images[i].float() / 255, targets[i])
                for i in order[step * batch_size : (step + 1) * batch_size].tolist()
            ]
            loss = sum(model([x for x, _ in batch], [t for _, t in batch]).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        elapsed = time.monotonic() - started
        print(f"epoch {epoch + 1}/{epochs}  loss {np.mean(losses):.3f}  {elapsed:.0f} s", flush=True)
        if elapsed > seconds:
            print("stopped: out of time")
            return


def flipped(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    if torch.rand(()) < 0.5:
        return image, target
    boxes = target["boxes"].clone()
    boxes[:, [0, 2]] = image.shape[-1] - boxes[:, [2, 0]]
    return image.flip(-1), {**target, "boxes": boxes}


@torch.no_grad()
def evaluate(model: FCOS, images: Tensor, targets: list[Target], n_classes: int) -> tuple[float, float]:
    """Return (mAP@[.50:.95], AP50) by pycocotools."""
    model.eval()
    truth: list[dict[str, object]] = []
    found: list[dict[str, object]] = []
    for k, (image, target) in enumerate(zip(images, targets, strict=True)):
        for (x0, y0, x1, y1), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            box = [x0, y0, x1 - x0, y1 - y0]
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": k,
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        result = model([image.float() / 255])[0]
        for (x0, y0, x1, y1), label, score in zip(
            result["boxes"].tolist(), result["labels"].tolist(), result["scores"].tolist(), strict=True
        ):
            found.append({"image_id": k, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": k} for k in range(len(images))],
            "annotations": truth,
            "categories": [{"id": i} for i in range(1, n_classes)],
        }
        coco.createIndex()
        scores = COCOeval(coco, coco.loadRes(found), "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    return float(scores.stats[0]), float(scores.stats[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo's backbone weights on the source domain.")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    started = time.monotonic()
    images, targets = load_source(0, args.images)
    val_images, val_targets = load_source(10**6, 200)
    print(f"drew {len(images)} + {len(val_images)} images in {time.monotonic() - started:.0f} s", flush=True)

    body = Body("resnet18", width=0.5, frozen_norm=False)
    body.grad_from = 0
    n_classes = len(SHAPES) + 1
    model = detector(Pyramid(body), n_classes)
    train(model, images, targets, epochs=args.epochs, lr=args.lr, batch_size=args.batch_size)
    source_map, source_map50 = evaluate(model, val_images, val_targets, n_classes)
    print(f"source mAP {source_map:.3f}, mAP50 {source_map50:.3f}")

    state = {
        key: value.half().contiguous()
        for key, value in body.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    body.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    rounded = evaluate(model, val_images, val_targets, n_classes)[0]
    print(f"source mAP with float16 weights {rounded:.3f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    options = f"--images {args.images} --epochs {args.epochs} --lr {args.lr:g} --batch-size {args.batch_size}"
    metadata = {
        "what": "half-width ResNet-18 body of an FCOS trained from random start on drawn pieces told apart by outline "
        "alone; float16",
        "script": "tools/train_demo_backbone.py",
        "command": f"python tools/train_demo_backbone.py {options} --threads {args.threads} --seed {args.seed}",
        "source_map": f"{rounded:.4f}",
        "date": datetime.date.today().isoformat(),
    }
    save_file(state, args.out, metadata=metadata)
    args.out.chmod(0o644)  # safetensors writes 0600, which a wheel would keep
    minutes = (time.monotonic() - started) / 60
    print(f"wrote {args.out.name}: {args.out.stat().st_size / 1e6:.2f} MB, {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
