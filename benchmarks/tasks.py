"""Compare N detectors that share a frozen body with N full detectors and N merged LoRA detectors, on one CPU core.

    python benchmarks/tasks.py --out benchmarks/results/tasks.json            (small; minutes)
    python benchmarks/tasks.py --case fcos-r50 --case fasterrcnn-r50 --images 2 --out benchmarks/results/tasks-r50.json

All detectors of a side stand in one `MultiPredictor`, which holds equal tensors once. Trained tensors are their start
and random numbers. Each side runs in a fresh process of its own: memory is the growth of its resident set, from the
imports to the peak of detection. The sides see each image in turn, so that what else the machine does hits them alike.
Latency is that of an image through all N detectors. Storage: the start once and what each task trained, as `pack` and
`train` write them; of full detectors the N whole ones.

What is finished stands in --out; the same command goes on from there and prints the table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

R50 = {"backbone": "resnet50", "width": 1.0, "image_size_px": 800, "max_size_px": 1333, "anchor_scale": 1.0,
       "fpn_channels": 256, "head_convs": 4, "weights": "none"}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "small": {},
    "fcos-r50": R50 | {"detector": "fcos"},
    "fasterrcnn-r50": R50 | {"detector": "fasterrcnn"},
    "fcos-r50-slim": R50 | {"detector": "fcos", "fpn_channels": 64, "head_convs": 2},
}
SIDES = {
    "bundle": {"method": "cst", "neck": "frozen", "head": "predictor"},
    "merged LoRA": {"method": "conv_lora", "neck": "frozen", "head": "predictor"},
    "full": {"method": "full", "neck": "train", "head": "train"},
}
N_CLASSES = 3


def start_of_case(case: str, folder: Path) -> Any:
    """Return the recipe of a case. Where no weights are shipped, all start from a detector of random numbers."""
    from cst_search.config.loading import load_recipe, make_recipe
    from cst_search.detector.build import build_detector
    from cst_search.detector.weights import save_trained

    recipe = make_recipe(load_recipe("small").to_dict() | CASES[case], case)
    if recipe.weights != "none":
        return recipe
    run = folder / case / "weights.safetensors"
    if not run.is_file():
        start = make_recipe(recipe.to_dict() | {"method": "head"}, case)
        save_trained(build_detector(start, N_CLASSES), start, tuple("abc"), run)
    return make_recipe(recipe.to_dict() | {"weights": str(run)}, case)


def recipe_of(case: str, side: str, folder: Path) -> Any:
    from cst_search.config.loading import make_recipe

    return make_recipe(start_of_case(case, folder).to_dict() | SIDES[side], side)


def detector(recipe: Any, seed: int) -> Any:
    """Return a detector whose trained tensors moved away from their start."""
    import torch

    from cst_search.detector.build import build_detector, trained_tensors

    model = build_detector(recipe, N_CLASSES)
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in trained_tensors(model).values():
            if tensor.is_floating_point():
                tensor += (0.02 * tensor.abs().mean() + 1e-4) * torch.randn_like(tensor)  # some start as zeros
    return model.eval()


def resident_bytes(field: str) -> int:
    """Return VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise ValueError(field)


def serve(case: str, side: str, n: int, folder: Path, pipe: Any) -> None:
    """Hold the detectors of a side; for each image that the pipe brings, send back seconds and number of detections."""
    import torch

    from cst_search.detector.build import merge
    from cst_search.trial.multi_inference import MultiPredictor

    torch.set_num_threads(1)
    recipe = recipe_of(case, side, folder)
    before = resident_bytes("VmRSS")
    detectors = MultiPredictor("cpu")
    for i in range(n):
        model = detector(recipe, i)
        if side == "merged LoRA":
            merge(model, recipe)
        detectors.add_model(f"task-{i}", model, recipe, tuple("abc"))
        del model
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    pipe.send({"groups": len(detectors.groups()), "tensor_bytes": detectors.tensor_bytes()})
    while (image := pipe.recv()) is not None:
        begun = time.perf_counter()
        [found] = detectors.detect([image], score=0.05)
        pipe.send((time.perf_counter() - begun, sum(len(task["detections"]) for task in found["tasks"].values())))
    pipe.send(resident_bytes("VmHWM") - before)


def storage(case: str, side: str, n: int, folder: Path) -> int:
    """Return the bytes of N tasks on disk."""
    from cst_search.detector.build import merge, start_of
    from cst_search.detector.pretrained import save_start
    from cst_search.detector.weights import save_trained

    recipe = recipe_of(case, side, folder)
    model = detector(recipe, 0)
    if side == "full":
        merge(model, recipe)
        return n * sum(tensor.nbytes for tensor in model.state_dict().values())
    delta, base = folder / "delta.safetensors", folder / "base.safetensors"
    save_trained(model, recipe, tuple("abc"), delta)
    save_start(start_of(recipe), base)  # type: ignore[arg-type]
    return base.stat().st_size + n * delta.stat().st_size


def write_images(case: str, count: int, folder: Path) -> list[Path]:
    """Write images of noise in 4 x 4 blocks, as large as the recipe makes them, 4 to 3."""
    import numpy as np
    from PIL import Image

    short = start_of_case(case, folder).image_size_px
    paths = [folder / f"{case}-{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        blocks = np.random.default_rng(i).integers(0, 256, (short // 4, short // 3, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((short * 4 // 3, short), Image.Resampling.NEAREST).save(path)
    return paths


def measure(case: str, n: int, count: int, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each side."""
    images = write_images(case, count, folder)
    start_of_case(case, folder)  # written before the processes look for it
    context = multiprocessing.get_context("spawn")
    pipes, processes, rows = {}, [], []
    for side in SIDES:
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(case, side, n, folder, theirs), daemon=True))
        processes[-1].start()
        pipes[side] = ours
        rows.append({"case": case, "n": n, "side": side, "seconds": [], "detections": 0} | ours.recv())
    for i, image in enumerate((images[0], *images)):  # the first warms up
        for row, (_, pipe) in zip(rows, pipes.items(), strict=True):
            pipe.send(image)
            seconds, detections = pipe.recv()
            if i:
                row["seconds"].append(seconds)
                row["detections"] += detections
    for row, (side, pipe), process in zip(rows, pipes.items(), processes, strict=True):
        pipe.send(None)
        row["memory_bytes"] = pipe.recv()
        process.join()
        row["storage_bytes"] = storage(case, side, n, folder)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| case | N | side | storage | memory | latency, median (quartiles) | of full |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    full = {(row["case"], row["n"]): row["seconds"] for row in rows if row["side"] == "full"}
    for row in rows:
        seconds = row["seconds"]
        low, _, high = quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        # of the same image: what else the machine did then hit both
        ratio = median(a / b for a, b in zip(seconds, full[row["case"], row["n"]], strict=True))
        lines.append(
            f"| {row['case']} | {row['n']} | {row['side']} | {row['storage_bytes'] / 1e6:.1f} MB "
            f"| {row['memory_bytes'] / 1e6:.0f} MB | {median(seconds):.2f} s ({low:.2f}-{high:.2f}) | {ratio:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES), help="may be repeated [small]")
    parser.add_argument("--tasks", default="1,5,20", help="numbers of tasks")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, help="JSON; what stands in it is not measured again")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    journal = json.loads(args.out.read_text()) if args.out.is_file() else {"rows": []}
    journal |= {"cpu": platform.processor() or platform.machine(), "python": platform.python_version(),
                "versions": {name: version(name) for name in ("torch", "torchvision")}}  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tasks-") as folder:
        for case in args.case or ["small"]:
            for n in map(int, args.tasks.split(",")):
                if any((row["case"], row["n"]) == (case, n) for row in journal["rows"]):
                    continue
                journal["rows"] += measure(case, n, args.images, Path(folder))
                args.out.parent.mkdir(parents=True, exist_ok=True)
                part = args.out.with_suffix(".part")
                part.write_text(json.dumps(journal, indent=1) + "\n")
                part.replace(args.out)
                print(f"{case}, {n} tasks: done", flush=True)
    print(table(journal["rows"]))


if __name__ == "__main__":
    main()
