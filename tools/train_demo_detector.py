"""Train the whole detector that the package ships: FCOS on a half-width ResNet-18, on drawings that are not the demo's.

    python tools/train_demo_detector.py --epochs 0 --drawn drawn.pt
    torchrun --nproc-per-node 2 tools/train_demo_detector.py --drawn drawn.pt

    drew 3000 + 200 images in 500 s           (rich ones, a quarter of a core; the plain ones took 50 s)
    source mAP 0.196; with float16 weights 0.196, mAP50 0.290
    epoch 16/16  17.5 minutes                 (two cores, shared with other work from the second minute on)

Source: 3000 rich images of 28 classes (`source_domain`) and 1500 plain ones of nine of them (`train_demo_backbone`).
The body starts as the shipped one. Six epochs reached a source mAP of 0.145 (plain 0.506, rich 0.050). By part:

    100 plain images    0.591, mAP50 0.795
    100 rich images     0.089, mAP50 0.151    most pieces are small, faint or half hidden

No real image took part in training. Transfer to photographs of playing cards, validation mAP after six epochs at
160 px, bf16, one seed: `cst` with `neck: frozen`, `head: predictor` 0.336 (0.319 from the weights of six epochs),
`full` at its prior of the learning rate 0.354 (0.258).

Tried before: rich images alone, batch 16, 7 epochs, the body at the full rate: source mAP 0.028 on the rich images;
on the demo (weights of epoch 5) cst, frozen, 0.285 and full 0.295, below the start from the body alone. The class
logits had learnt next to nothing, and the body had lost what it knew. Plain images and a slow body mended both.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import train_demo_backbone
from safetensors.torch import save_file
from source_domain import CLASS_NAMES, draw_image
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS
from torchvision.transforms.v2 import functional as TF
from train_demo_backbone import Target, evaluate, flipped, optimization

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cst_search.backbone.lean_layers import fix_statistics
from cst_search.backbone.resnet import STAGES, load_body, read_body
from cst_search.config.recipe import Recipe
from cst_search.detector import build_detector

OUT = Path(__file__).resolve().parent.parent / "cst_search" / "detector" / "weights" / "demo-detector.safetensors"
VAL_SIZE_PX = 160
FROZEN_STAGES = 2  # the stem and the first stage stay those of the shipped body
# side of a batch's images, images in the batch, share of the batches. Large ones are few, for they cost most; without
# them the two coarsest levels of the pyramid would never see an object
BATCHES = ((128, 24, 0.3), (160, 24, 0.3), (192, 24, 0.2), (256, 16, 0.15), (352, 8, 0.05))
ONE_WAY = {label for label, name in enumerate(CLASS_NAMES, 1) if name.startswith("letter")}


def load_source(first: int, n_rich: int, n_plain: int, workers: int) -> tuple[list[Tensor], list[Target]]:
    """Draw images (3, S, S) uint8 and their targets: rich ones, then plain ones of `train_demo_backbone`.

    The plain ones have the first nine of the classes.
    """
    seeds = range(first, first + n_rich)
    with ProcessPoolExecutor(workers) as pool:
        drawn = list(pool.map(draw_image, seeds, chunksize=50))
    images = [torch.from_numpy(pixels).permute(2, 0, 1).contiguous() for pixels, _, _ in drawn]
    targets = [{"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)} for _, boxes, labels in drawn]
    plain_images, plain_targets = train_demo_backbone.load_source(first, n_plain)
    return [*images, *plain_images], [*targets, *plain_targets]


def detector() -> FCOS:
    """Return the detector of the demo's recipe for the source classes; its body is the shipped one.

    The norms of the body keep their statistics, as in the product; the first stages keep all of their tensors.
    """
    recipe = Recipe(
        detector="fcos",
        backbone="resnet18",
        width=0.5,
        weights="none",
        fpn_channels=64,
        head_convs=2,
        anchor_scale=0.5,
        image_size_px=VAL_SIZE_PX,
        max_size_px=VAL_SIZE_PX,
        method="full",
        memsave=False,
        recompute="none",
    )
    model = build_detector(recipe, len(CLASS_NAMES))
    model.backbone.body.grad_from = FROZEN_STAGES
    for stage in STAGES[:FROZEN_STAGES]:
        for child in stage:
            getattr(model.backbone.body, child).requires_grad_(False)
    load_body(model.backbone.body, read_body("resnet18", "demo"), "demo")
    fix_statistics(model)
    model.head.register_forward_hook(lambda _module, _inputs, outputs: {k: v.float() for k, v in outputs.items()})
    return model


def jittered(image: Tensor, target: Target, size_px: int) -> tuple[Tensor, Target]:
    """Return a random crop (0.45 to 1 of each side) at ``size_px``, flipped, with jittered light and colour.

    Args:
        image: (3, S, S) uint8.

    Returns:
        Image (3, size_px, size_px) float in 0..1; boxes of which at least 0.4 is left, clipped to the crop.
    """
    s = image.shape[-1]
    zoom = 1.0 if torch.rand(()) < 0.4 else float(torch.empty(()).uniform_(0.45, 1))
    w, h = (max(32, round(s * min(1.0, zoom * float(torch.empty(()).uniform_(0.85, 1.18))))) for _ in range(2))
    x, y = int(torch.randint(s - w + 1, ())), int(torch.randint(s - h + 1, ()))
    old = target["boxes"]
    boxes = (old - torch.tensor([x, y, x, y])).clamp(min=0).minimum(torch.tensor([w, h, w, h], dtype=torch.float))
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = (sides.min(1).values > 2) & (sides.prod(1) > 0.4 * (old[:, 2:] - old[:, :2]).prod(1))
    boxes = boxes[kept] * (size_px / torch.tensor([w, h, w, h]))
    part = image[None, :, y : y + h, x : x + w].float() / 255
    part = F.interpolate(part, (size_px, size_px), mode="bilinear", antialias=size_px < w)[0]
    if torch.rand(()) < 0.5:
        part = TF.adjust_brightness(part, float(torch.empty(()).uniform_(0.7, 1.35)))
        part = TF.adjust_contrast(part, float(torch.empty(()).uniform_(0.7, 1.35)))
        part = TF.adjust_saturation(part, float(torch.empty(()).uniform_(0.5, 1.5)))
    new = {"boxes": boxes, "labels": target["labels"][kept]}
    return (part, new) if ONE_WAY & set(new["labels"].tolist()) else flipped(part, new)


def train(
    model: FCOS,
    images: list[Tensor],
    targets: list[Target],
    *,
    epochs: int,
    lr: float,
    after_epoch: Callable[[int, FCOS], None],
    rank: int,
    n_processes: int,
) -> None:
    """Train, with a running mean of the weights; the body learns at a fifth of the rate.

    Args:
        rank, n_processes: this process computes every n_processes-th image of a batch, from ``rank`` on.
        after_epoch: called with the epoch, from 1, and the mean model.
    """
    mean = copy.deepcopy(model)
    n_steps = epochs * len(images) // BATCHES[0][1]
    parameters, optimizer, schedule = optimization(model, lr, n_steps, slow="backbone.body.")
    generator = np.random.default_rng(0)
    losses: list[float] = []
    for step in range(n_steps):
        model.train()
        size_px, n_batch, _ = BATCHES[int(generator.choice(len(BATCHES), p=[share for *_, share in BATCHES]))]
        chosen = generator.integers(len(images), size=n_batch)[rank::n_processes]
        batch = [jittered(images[i], targets[i], size_px) for i in chosen]
        model.transform.min_size, model.transform.max_size = (size_px,), size_px
        with torch.autocast("cpu", torch.bfloat16):
            loss = sum(model([x for x, _ in batch], [t for _, t in batch]).values())
        optimizer.zero_grad()
        loss.backward()
        if n_processes > 1:
            average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if rank:
            continue
        update_mean(mean, model, min(0.998, (step + 1) / (step + 20)))
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{n_steps}  loss {np.mean(losses[-50:]):.3f}", flush=True)
        if (step + 1) % (n_steps // epochs) == 0:
            after_epoch((step + 1) // (n_steps // epochs), mean)


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace the gradients by their mean over all processes."""
    flat = torch.cat([p.grad.flatten() for p in parameters])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(gradient.view_as(p))


@torch.no_grad()
def update_mean(mean: FCOS, model: FCOS, keep: float) -> None:
    """Move the tensors of ``mean`` towards those of ``model`` by the share 1 - ``keep``."""
    for old, new in zip(mean.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - keep)


def rounded(model: FCOS) -> dict[str, Tensor]:
    """Return the tensors as float16 under torchvision's names, and round those of the model to the same values."""
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=False)
    return state


def write(state: dict[str, Tensor], path: Path, figures: dict[str, str]) -> None:
    metadata = {
        "format": "cst-search/detector-1",
        "what": "FCOS on a half-width ResNet-18, pyramid of 64 channels, 2 convolutions in each tower; float16",
        "class_names": json.dumps(CLASS_NAMES),
        "script": "tools/train_demo_detector.py",
        "date": datetime.date.today().isoformat(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata=metadata | figures)
    path.chmod(0o644)  # safetensors writes 0600, which a wheel would carry on


def command(args: argparse.Namespace, n_processes: int) -> str:
    start = "python" if n_processes == 1 else f"torchrun --nproc-per-node {n_processes}"
    numbers = ("images", "plain_images", "epochs", "lr", "seed")
    options = " ".join(f"--{name.replace('_', '-')} {getattr(args, name):g}" for name in numbers)
    return f"{start} tools/train_demo_detector.py {options}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shipped detector on the source domain.")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--plain-images", type=int, default=1500, help="of tools/train_demo_backbone.py")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draw-workers", type=int, default=2, help="processes that draw, before training")
    parser.add_argument("--drawn", type=Path, help="file that keeps the drawn images for another run")
    parser.add_argument("--out", type=Path, default=OUT, help="written after every epoch")
    args = parser.parse_args()
    rank, n_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # as torchrun sets them
    torch.set_num_threads(1)
    started = time.monotonic()
    if args.drawn and args.drawn.is_file():
        images, targets, val_images, val_targets = torch.load(args.drawn)
    elif n_processes > 1:
        parser.error("several processes need the images in a file: run it once as one process with --drawn, --epochs 0")
    else:
        images, targets = load_source(0, args.images, args.plain_images, args.draw_workers)
        val_images, val_targets = load_source(10**6, 100, 100, args.draw_workers)
        print(f"drew {len(images)} + {len(val_images)} images in {time.monotonic() - started:.0f} s", flush=True)
        if args.drawn:
            torch.save((images, targets, val_images, val_targets), args.drawn)
    n_classes = len(CLASS_NAMES) + 1

    def scores(model: FCOS) -> tuple[float, float]:
        return evaluate(model, val_images, val_targets, n_classes)

    def after_epoch(epoch: int, mean: FCOS) -> None:
        model = copy.deepcopy(mean)
        state, figures = rounded(model), {"command": command(args, n_processes), "epoch": str(epoch)}
        if epoch in (args.epochs // 2, args.epochs):  # an evaluation takes as long as a tenth of an epoch
            exact, (source_map, source_map50) = scores(mean)[0], scores(model)
            figures |= {"source_map": f"{source_map:.4f}", "source_map50": f"{source_map50:.4f}"}
            print(
                f"source mAP {exact:.3f}; with float16 weights {source_map:.3f}, mAP50 {source_map50:.3f}", flush=True
            )
        write(state, args.out, figures)
        print(f"epoch {epoch}/{args.epochs}  {(time.monotonic() - started) / 60:.1f} minutes", flush=True)

    if not args.epochs:
        return
    if n_processes > 1:
        distributed.init_process_group("gloo")
    options = {"epochs": args.epochs, "lr": args.lr, "rank": rank, "n_processes": n_processes}
    model = detector()
    torch.manual_seed(args.seed + rank)  # of the jitter; the initial weights have the recipe's seed
    train(model, images, targets, after_epoch=after_epoch, **options)
    if rank:
        return
    print(f"wrote {args.out.name}: {args.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
