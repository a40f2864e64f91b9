"""Compare predicted memory with real training steps on the CPU: every live tensor, storage by storage.

    python benchmarks/prediction.py --configs 240 --out benchmarks/results/prediction-cpu.json

Draws random configurations of all methods (search_spaces/petl.yaml), detectors, ResNet depths, batch sizes, image
sizes, precisions and memory-saving options. Each runs two steps of the real detector with AdamW under two witnesses
that know nothing of each other: a dispatch mode, which sees every storage that an operation returns, and
torch.profiler, which the allocator tells of every allocation and release, also of those inside an operation. The second
step, when the optimiser has its state, is compared with the prediction. CUDA's rules are checked separately, by what
autograd keeps of fake tensors on that device, for every method and detector.

Rows are written to a journal beside --out as they are measured; the same command goes on where it ended.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import sigmoid_focal_loss

from cst_search.config.loading import load_space, load_space_for
from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.detector.build import build_detector
from cst_search.memory import estimate as memory
from cst_search.petl import METHODS
from cst_search.trial import cost
from cst_search.trial.engine import make_optimiser

CPU_FP32_OPS = frozenset({"bce"})  # operations of the prediction that autocast on a CPU runs in fp32

WITNESS_SHAPE = memory.InputShape(800, 1344, 20)  # COCO's size, for a ResNet-50: fake tensors cost nothing


class LiveBytes(TorchDispatchMode):
    """Dispatch mode that counts the bytes of all live storages made by operations, except those of ``own``."""

    def __init__(self, own: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        known = self._seen.get(key)
        if key in self._own or (known is not None and known() is not None):
            return

        def gone(_: object) -> None:
            self.live -= nbytes
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.live += nbytes
        self.peak = max(self.peak, self.live)


def real_step(
    recipe: Recipe, n_classes: int, shape: memory.InputShape, *, with_events: bool = True
) -> tuple[int, int, int]:
    """Run a step of a real detector on the CPU.

    Args:
        with_events: watch the allocator's events too, which takes longer than the step of a small detector.

    Returns:
        Bytes kept of the forward pass, peak of active bytes, and this peak by the allocator's events (else 0).
    """
    torch.manual_seed(0)
    model = build_detector(recipe, n_classes, shapes_only=True).train()
    _calm(model)
    own = [*model.parameters(), *model.buffers()]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = make_optimiser(model, 1e-6, 0.0)
    for group in optimiser.param_groups:
        group["foreach"] = True  # as on CUDA
    live = LiveBytes(own)
    gc.disable()  # so that memory held by reference cycles shows
    try:
        events = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
        with events if with_events else nullcontext(), live:
            for step in range(2):
                with record_function(f"step {step}"):  # marks where it begins
                    pass
                live.peak = live.live
                images = [torch.rand(3, shape.height_px, shape.width_px) for _ in range(recipe.batch_size)]
                corner = torch.rand(shape.max_boxes, 2) * torch.tensor([shape.width_px, shape.height_px]) * 0.6
                boxes, labels = torch.cat([corner, corner + 24], 1), torch.ones(shape.max_boxes, dtype=torch.int64)
                before = live.live
                for _ in range(recipe.accumulate):
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision != "fp32"):
                        losses = model(images, [{"boxes": boxes, "labels": labels} for _ in images])
                    loss = torch.stack([value.float() for value in losses.values()]).sum()
                    del losses
                    kept = live.live - before
                    (loss / recipe.accumulate).backward()
                    before = live.live
                nn.utils.clip_grad_norm_(parameters, 5.0)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                del images, boxes, labels
    finally:
        gc.enable()
    held = sum(t.numel() * t.element_size() for t in own)
    return kept, live.peak + held, profiled_peak(events, "step 1") + held if with_events else 0


def profiled_peak(profiler: profile, mark: str) -> int:
    """Return the peak of what the allocator held after a mark, above what it held when the profiler began."""
    assert profiler.profiler is not None
    now = peak = 0
    marked = False
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        marked = marked or event.name() == mark
        now += event.nbytes() if event.name() == "[memory]" else 0
        peak = max(peak, now) if marked else 0
    return peak


def _calm(model: nn.Module) -> None:
    """Scale down every residual branch: untrained deep ResNets give infinities, and then no region is proposed."""
    for name, module in model.backbone.body.named_modules():  # type: ignore[union-attr]
        if name.endswith(("bn2", "bn3")) and hasattr(module, "weight"):
            with torch.no_grad():
                module.weight.mul_(0.1)


def predicted_step(recipe: Recipe, n_classes: int, shape: memory.InputShape) -> tuple[int, int]:
    """Return the same two figures predicted for a CPU under a dispatch mode.

    That means a CPU's autocast rules, no rounding of allocations, out-of-place sums, and no workspaces.
    """
    step = cost.predict_step(
        recipe, n_classes, shape, fp32_ops=CPU_FP32_OPS, block=1, sums_in_place=False, workspaces=False
    )
    return step.kept, step.active_bytes


def kept_on_cuda(recipe: Recipe, n_classes: int, shape: memory.InputShape) -> int:
    """Return the bytes that autograd keeps of the dense part on CUDA under its autocast rules; needs no GPU.

    This is an independent check with fake tensors, which have a device, shapes and dtypes, but no contents. Matching,
    whose shapes depend on contents, is left out; regions are a tensor of their number. Nothing may be recomputed
    (``recompute: none``), because autograd's hooks do not see what a checkpoint holds.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that its address is not reused
        return tensor

    with FakeTensorMode(), torch.device("cuda"):
        model = build_detector(recipe, n_classes, shapes_only=True).train()
        own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        images = torch.empty(recipe.batch_size, 3, shape.height_px, shape.width_px)
        # torch.autocast turns itself off where there is no GPU
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", recipe.precision != "fp32")
        torch.autocast_increment_nesting()
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                _dense_part(model, recipe, images)
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.autocast_decrement_nesting()
            torch.clear_autocast_cache()
        return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def _dense_part(model: Any, recipe: Recipe, images: Tensor) -> None:
    levels = list(model.backbone(images).values())
    if recipe.detector.startswith("fasterrcnn"):
        logits, _ = model.rpn.head(levels)
        anchors = sum(one.shape[1] * one.shape[2] * one.shape[3] for one in logits)
        n_rois = recipe.batch_size * min(512, anchors)
        regions = torch.empty(n_rois, recipe.fpn_channels, 7, 7, dtype=levels[0].dtype, requires_grad=True)
        model.roi_heads.box_predictor(model.roi_heads.box_head(regions * 1))
        return
    logits = model.head(levels)["cls_logits"]
    if recipe.detector.startswith("retinanet"):  # image by image, each through its mask of counted anchors
        for one in logits:
            sigmoid_focal_loss(one.clone(), torch.zeros_like(one), reduction="sum")
    else:
        sigmoid_focal_loss(logits, torch.zeros_like(logits), reduction="sum")


def draw(rng: random.Random) -> tuple[Recipe, memory.InputShape]:
    """Draw a random configuration, small enough for a CPU."""
    detector, backbone = rng.choice(DETECTORS), rng.choice(("resnet18", "resnet34", "resnet50", "resnet101"))
    height, width = rng.choice((96, 128)), rng.choice((96, 128, 160))
    fixed = Recipe(
        detector=detector,
        backbone=backbone,
        width=rng.choice((0.25, 0.5, 1.0)) if backbone in ("resnet18", "resnet34") else rng.choice((0.125, 0.25, 0.5)),
        weights=rng.choice(("demo-detector", "demo-detector", "demo-detector", "none")),
        lora_rank=rng.choice((1, 2, 4, 8, 16)),
        fpn_channels=rng.choice((64, 128, 256)),
        head_convs=rng.choice((1, 2, 4)),
        image_size_px=min(height, width),
        max_size_px=max(height, width),
        precision=rng.choice(("fp32", "fp32", "fp32", "bf16")),  # which a CPU only emulates
        memsave=rng.random() < 0.5,
        recompute=rng.choice(("none", "neck", "all")),
        accumulate=rng.choice((1, 1, 1, 2)),
    )
    drawn = load_space_for("petl", fixed)[0].sample(rng) | {"batch_size": rng.choice((1, 2))}
    own = ("image_size_px", "recompute", "accumulate")  # not as a search varies them
    configured = fixed.configured({key: value for key, value in drawn.items() if key not in own})
    return configured, memory.InputShape(height, width, rng.choice((1, 5, 40)))


def compare(n: int, seed: int, journal: Path | None = None) -> list[dict[str, Any]]:
    """Return one row per configuration with its values, real and predicted bytes, and their ratios.

    Args:
        journal: file that gets each row as it is measured; rows that it has already are not measured again.
    """
    rng = random.Random(seed)
    before = [json.loads(line) for line in journal.read_text().splitlines()] if journal and journal.exists() else []
    rows: list[dict[str, Any]] = []
    while len(rows) < n:
        recipe, shape = draw(rng)
        if recipe.weights == "none" and not METHODS[recipe.method].side and recipe.method not in ("full", "partial"):
            continue  # PETL inside a backbone of random weights is not a realistic configuration
        if len(rows) < len(before):
            rows.append(before[len(rows)])
            continue
        begun = time.process_time()
        gc.collect()  # what the last row left
        kept, active, profiled = real_step(recipe, 3, shape)
        guess_kept, guess_active = predicted_step(recipe, 3, shape)
        row = {
            "recipe": recipe.to_dict(),
            "shape": vars(shape),
            "kept": kept,
            "active": active,
            "profiled": profiled,
            "predicted_kept": guess_kept,
            "predicted_active": guess_active,
            "kept_ratio": guess_kept / kept,
            "active_ratio": guess_active / active,
            "profiled_ratio": guess_active / profiled,
            "witness_ratio": profiled / active,
            "seconds": time.process_time() - begun,
        }
        rows.append(row)
        if journal:
            with journal.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"[{len(rows)}/{n}] {describe(row)}", flush=True)
    return rows


def predicted_anew(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an earlier run with its real figures and new predictions."""
    rows = json.loads(path.read_text())["rows"]
    for row in rows:
        tuples = {name: tuple(v) if isinstance(v, list) else v for name, v in row["recipe"].items()}
        recipe = Recipe.from_dict(tuples)
        recipe = recipe.configured(cost.with_former_recompute({}, recipe))  # so it ran
        kept, active = predicted_step(recipe, 3, memory.InputShape(**row["shape"]))
        row |= {"predicted_kept": kept, "predicted_active": active}
        row |= {"profiled_ratio": active / row["profiled"]} if "profiled" in row else {}
        row |= {"kept_ratio": kept / row["kept"], "active_ratio": active / row["active"]}
    return rows


def describe(row: dict[str, Any]) -> str:
    r, shape = row["recipe"], row["shape"]
    options = " ".join(
        f"{k}={v}" for k, v in r["options"].items() if k in ("granularity", "block", "after", "position")
    )
    return (
        f"{r['method']:14} {r['detector']:10} {r['backbone']:9} x{r['width']} {r['precision']} "
        f"{r['batch_size']} x {shape['height_px']} x {shape['width_px']}, {shape['max_boxes']} boxes, "
        f"memsave {r['memsave']!s:5} recompute {Recipe.from_dict(r).recompute:4} x{r['accumulate']} "
        f"neck {r.get('neck', 'train')} head {r.get('head', 'train')} {options} | "
        f"{row['active'] / 1e6:7.1f} MB, active {row['active_ratio']:.3f}, kept {row['kept_ratio']:.3f}"
        + (f", profiled {row['profiled_ratio']:.3f}" if "profiled" in row else "")
    )


def errors(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    """Return median, 90th percentile and maximum of |ratio - 1|, and the signed mean, as shares."""
    off = sorted(abs(row[key] - 1) for row in rows)
    return {
        "median": statistics.median(off),
        "p90": off[int(0.9 * (len(off) - 1))],
        "worst": off[-1],
        "mean": statistics.fmean(row[key] - 1 for row in rows),
    }


def seconds_for_predictions(n: int, seed: int) -> float:
    """Time predictions of n new random configurations of an 800 px Faster R-CNN with a ResNet-50, in seconds."""
    rng, space = random.Random(seed), load_space("petl")
    recipes = [Recipe().configured(space.sample(rng)) for _ in range(n)]
    begun = time.perf_counter()
    for recipe in recipes:
        cost.predict_step(recipe, 80, memory.InputShape(800, 1344, 100))
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--again", type=Path, help="JSON of an earlier run: predict its configurations anew")
    args = parser.parse_args()
    torch.set_num_threads(1)
    journal = args.out and args.out.with_suffix(".jsonl")
    rows = predicted_anew(args.again) if args.again else compare(args.configs, args.seed, journal)
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "configs": len(rows),
        "seed": args.seed,
        "active": errors(rows, "active_ratio"),
        **{name: errors(rows, f"{name}_ratio") for name in ("profiled", "witness") if f"{name}_ratio" in rows[0]},
        "kept": errors(rows, "kept_ratio"),
        "seconds_for_1000_predictions": seconds_for_predictions(1000, args.seed),
    }
    witness = [
        cost.predict_step(recipe, 80, WITNESS_SHAPE, block=1).kept / kept_on_cuda(recipe, 80, WITNESS_SHAPE)
        for recipe in (
            Recipe(detector=d, method=m, precision=p, batch_size=2, recompute="none")
            for d in DETECTORS for m in METHODS for p in ("fp32", "bf16")
        )
    ]  # fmt: skip
    result["kept_on_cuda"] = errors([{"ratio": ratio} for ratio in witness], "ratio") | {"configs": len(witness)}
    worst = sorted(rows, key=lambda row: -abs(row["active_ratio"] - 1))
    print("\nworst ten:", *(describe(row) for row in worst[:10]), sep="\n  ")
    for key in ("active", "profiled", "witness", "kept", "kept_on_cuda"):
        if key not in result:
            continue
        shares = {name: f"{100 * value:.2f} %" for name, value in result[key].items() if name != "configs"}
        print(f"{key:12}", shares)
    print(f"1,000 predictions (Faster R-CNN, ResNet-50, 800 px): {result['seconds_for_1000_predictions']:.1f} s")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")
        journal.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
