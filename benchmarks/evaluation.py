"""Measure COCO evaluation by pycocotools and by faster-coco-eval: CPU seconds, equality, share of a trial.

    python benchmarks/evaluation.py --data BCCD --out benchmarks/results/evaluation-cpu2.json

First, detections drawn around the ground truth of ``val``, 100 an image, are evaluated by each library in turn; all
twelve figures of COCO and the precisions of each class are compared. Second, a trial of the demo runs with each
library on a filled cache, as most trials of a search do; the share is that of `coco_figures` in the trial's CPU
seconds. Seconds are the least and the share is the median of --rounds, in turned order.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval, Params

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cst_search import __version__
from cst_search.config.loading import load_recipe
from cst_search.data.dataset import DetectionData, coco_ground_truth, load_data
from cst_search.data.demo import write_demo
from cst_search.data.disk_cache import Cache
from cst_search.trial import engine
from cst_search.trial.coco_eval import Curves, Library, coco_figures, precision_recall
from cst_search.trial.run import run_trial

BOUND_BYTES = 20 * 10**9
LIBRARIES: tuple[Library, ...] = ("pycocotools", "faster-coco-eval")
FIGURES = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR 1", "AR 10", "AR 100", "AR small",
           "AR medium", "AR large")  # fmt: skip


def draw_detections(truth: dict[str, Any], n_per_image: int, seed: int = 0) -> list[dict[str, Any]]:
    """Draw detections: seven of ten near a box of the image, more or less well, the others anywhere."""
    rng = np.random.default_rng(seed)
    classes = [category["id"] for category in truth["categories"]]
    boxes: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        boxes[annotation["image_id"]].append(annotation)
    found = []
    for image in truth["images"]:
        for _ in range(n_per_image):
            x, y = rng.uniform(0, 0.8, 2) * (image["width"], image["height"])
            w, h = rng.uniform(0.02, 0.4, 2) * (image["width"], image["height"])
            category, quality = int(rng.choice(classes)), 0.0
            if boxes[image["id"]] and rng.random() < 0.7:
                near = boxes[image["id"]][int(rng.integers(len(boxes[image["id"]])))]
                spread = float(rng.uniform(0, 0.4))
                shift, scale = rng.normal(0, spread, 2), np.exp(rng.normal(0, spread, 2))
                bx, by, bw, bh = near["bbox"]
                x, y, w, h = bx + shift[0] * bw, by + shift[1] * bh, bw * scale[0], bh * scale[1]
                category, quality = near["category_id"], 1 - spread
            score = float(np.clip(0.6 * quality + 0.4 * rng.random(), 0, 1))
            found.append({"image_id": image["id"], "category_id": category,
                          "bbox": [float(x), float(y), float(w), float(h)], "score": score})  # fmt: skip
    return found


def twelve_figures(curves: Curves) -> list[float]:
    """Return COCO's twelve figures, as pycocotools summarises curves with the limits 1, 10, 100."""
    summary = COCOeval()
    summary.params = Params("bbox")
    summary.eval = {"precision": curves.precision, "recall": curves.recall}
    with contextlib.redirect_stdout(io.StringIO()):
        summary.summarize()
    return [float(value) for value in summary.stats]


def compare_on(data: DetectionData, n_per_image: int, rounds: int) -> dict[str, Any]:
    """Evaluate the same detections with each library: CPU seconds of `coco_figures`, and whether all is equal."""
    truth = coco_ground_truth(data.splits["val"])
    detections = draw_detections(truth, n_per_image)
    seconds: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    figures = {library: coco_figures(truth, detections, library=library) for library in LIBRARIES}  # imports, too
    for n in range(rounds):
        for library in LIBRARIES if n % 2 else LIBRARIES[::-1]:
            begun = time.process_time()
            coco_figures(truth, detections, library=library)
            seconds[library].append(time.process_time() - begun)
    curves = {
        library: precision_recall(truth, detections, max_detections=(1, 10, 100), library=library)
        for library in LIBRARIES
    }
    slow, fast = (curves[library] for library in LIBRARIES)
    return {
        "images": len(truth["images"]),
        "boxes": len(truth["annotations"]),
        "detections": len(detections),
        "cpu_seconds": seconds,
        "ratio": min(seconds["pycocotools"]) / min(seconds["faster-coco-eval"]),
        "figures": {library: dict(zip(FIGURES, twelve_figures(curves[library]), strict=True)) for library in LIBRARIES},
        "per_class": {library: figures[library].per_class for library in LIBRARIES},
        "equal": bool(
            figures[LIBRARIES[0]] == figures[LIBRARIES[1]]
            and np.array_equal(slow.precision, fast.precision)
            and np.array_equal(slow.recall, fast.recall)
        ),
    }


@contextlib.contextmanager
def evaluated_by(library: Library) -> Iterator[list[float]]:
    """Let trials of this process evaluate with a library. Yields the CPU seconds of each evaluation."""
    seconds: list[float] = []

    def timed(*args: Any, **options: Any) -> Any:
        begun = time.process_time()
        figures = coco_figures(*args, **options, library=library)
        seconds.append(time.process_time() - begun)
        return figures

    before, engine.coco_figures = engine.coco_figures, timed
    try:
        yield seconds
    finally:
        engine.coco_figures = before


def time_trials(recipe_name: str, data: DetectionData, epochs: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run the trial of a recipe with each library: CPU seconds in all and in evaluation."""
    recipe = load_recipe(recipe_name)
    cache = Cache(folder, BOUND_BYTES)
    run_trial(recipe, data, epochs=epochs, device="cpu", cache=cache)  # fills the cache
    runs: list[dict[str, Any]] = []
    for n in range(rounds):
        for library in LIBRARIES if n % 2 else LIBRARIES[::-1]:
            with evaluated_by(library) as seconds:
                begun = time.process_time()
                result = run_trial(recipe, data, epochs=epochs, device="cpu", cache=cache)
                taken = time.process_time() - begun
            runs.append({"library": library, "cpu_seconds": taken, "evaluation_seconds": seconds, "map": result.map})
    shares = {
        library: [sum(run["evaluation_seconds"]) / run["cpu_seconds"] for run in runs if run["library"] == library]
        for library in LIBRARIES
    }
    return {
        "recipe": recipe_name,
        "epochs": epochs,
        "val_images": len(data.splits["val"].images),
        "share": {library: median(each) for library, each in shares.items()},
        "equal": len({run["map"] for run in runs}) == 1,
        "runs": runs,
    }


def print_tables(drawn: dict[str, Any], trial: dict[str, Any] | None) -> None:
    print(f"{drawn['images']} images, {drawn['boxes']} boxes, {drawn['detections']} detections")
    for library, seconds in drawn["cpu_seconds"].items():
        print(f"  {library:17} {min(seconds):7.3f} s of CPU")
    print(f"  ratio {drawn['ratio']:.1f}, all precisions and recalls equal: {drawn['equal']}")
    for name in FIGURES:
        print(f"  {name:10}" + "".join(f"  {drawn['figures'][library][name]!r:20}" for library in LIBRARIES))
    for name in drawn["per_class"]["pycocotools"]:
        print(f"  {name:10}" + "".join(f"  {drawn['per_class'][library][name]!r:20}" for library in LIBRARIES))
    if trial is not None:
        print(f"share of a trial of recipe {trial['recipe']}, {trial['epochs']} epochs, in evaluation:")
        for library, share in trial["share"].items():
            best = min(run["cpu_seconds"] for run in trial["runs"] if run["library"] == library)
            print(f"  {library:17} {100 * share:5.1f} % of {best:.2f} s of CPU")
        print(f"  mAP equal: {trial['equal']}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="COCO-format folder for the drawn detections [the demo]")
    parser.add_argument("--per-image", type=int, default=100, help="drawn detections of an image [%(default)s]")
    parser.add_argument("--recipe", default="demo", help="recipe of the trial on the demo [%(default)s]")
    parser.add_argument("--epochs", type=int, default=5, help="of that trial; 0: no trial [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        asks_for_demo = args.epochs or not args.data
        demo = load_data(write_demo(Path(folder) / "demo"))[0] if asks_for_demo else None
        drawn = compare_on(load_data(args.data)[0] if args.data else demo, args.per_image, args.rounds)
        cache = Path(folder) / "cache"
        trial = time_trials(args.recipe, demo, args.epochs, args.rounds, cache) if args.epochs else None
    stamp = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": platform.processor() or platform.machine(),
        "versions": {"cst_search": __version__, "python": platform.python_version()}
        | {name: version(name) for name in (*LIBRARIES, "numpy", "torch")},
        "data": Path(args.data).name if args.data else "demo",
    }
    args.out.write_text(json.dumps(stamp | {"drawn": drawn, "trial": trial}, indent=1) + "\n")
    print_tables(drawn, trial)


if __name__ == "__main__":
    main()
