"""Compare predicted memory with a real GPU, each configuration in a fresh process, and fit the device constants.

    python benchmarks/memory.py --configs 60 --out benchmarks/results/memory-NAME.json --fit
    python benchmarks/memory.py --dry-run          # on a CPU: everything but the figures
    python benchmarks/memory.py --again benchmarks/results/memory-h100*.json  # measured rows, predicted anew

Needs torch and torchvision alone. Random configurations of all methods, detectors and ResNets are trained for a few
steps on their worst batch (`cst_search.trial.measure`). Prints the errors of active, reserved and device bytes, the
number of configurations that need over 10 % more than predicted, and with --fit the constants of memory/memory.yaml for
this device.
With --jobs several run at a time. The allocator's figures are per process; device figures are kept only if the driver
reports them per process. The first few configurations run alone, so some device figures always exist.
With --hold the allocator is limited to the predicted memory. A configuration that runs out of it is one that a search
would lose, except that a search allows a tenth more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cst_search.config.recipe import BACKBONES, DETECTORS, Recipe
from cst_search.memory.allocator import CONFIG_VARIABLES, expands_segments
from cst_search.memory.estimate import InputShape, estimate_of, worst_input
from cst_search.memory.gpu_costs import GENERIC, GpuCosts
from cst_search.petl import METHODS
from cst_search.trial.cost import predict, predict_step, with_former_recompute
from cst_search.trial.device import choose_device
from cst_search.trial.measure import measure, synthetic_batch

N_CLASSES = 80
N_ALONE = 4
OF_PROCESS = "nvidia-smi"  # see `measure.Measured`
OPTIONS: dict[str, dict[str, Sequence[Any]]] = {
    "cst": {
        "reduction": (2, 4, 16),
        "granularity": ("stage", "block"),
        "norm": ("gn", "none"),
        "operator": ("max", "lst"),
    },
    "lst": {"reduction": (4, 8, 16)},
    "side_tuning": {"reduction": (4, 8), "blocks": (0, 1)},
    "bitfit": {"first_stage": (1, 3)},
    "conv_lora": {"rank": (4, 16), "targets": ("3x3", "all")},
    "conv_adapter": {"gamma": (4, 8)},
    "serial_adapter": {"position": ("transition", "middle")},
    "partial": {"stages": (1, 2)},
}


def draw(rng: random.Random, small: bool) -> tuple[Recipe, InputShape]:
    """Draw a random configuration; ``small``: of a size that a CPU trains within a second."""
    method = rng.choice(sorted(METHODS))
    short = rng.choice((48, 64)) if small else rng.choice((480, 640, 800))
    recipe = Recipe(
        detector=rng.choice(DETECTORS),
        backbone=rng.choice(BACKBONES[:2] if small else BACKBONES),
        width=0.125 if small else 1.0,
        fpn_channels=64 if small else 256,
        weights="DEFAULT",  # only their shapes are used; no file is read
        image_size_px=short,
        max_size_px=round(short * rng.choice((1.0, 1.333, 1.666))),
        batch_size=rng.choice((1, 2) if small else (1, 2, 4, 8)),
        precision="fp32" if small else rng.choice(("fp32", "bf16")),
        memsave=rng.random() < 0.7,
        recompute=rng.choice(("auto", "auto", "none", "neck", "all")),
        accumulate=rng.choice((1, 1, 2)),
        method=method,
        options={name: rng.choice(values) for name, values in OPTIONS.get(method, {}).items()},
    )
    recipe = recipe.configured(with_former_recompute({}, recipe))  # a seed gives the same configurations as ever
    return recipe, worst_input(recipe, max_boxes=rng.choice((5, 50, 200)))


def measured(
    recipe: Recipe, shape: InputShape, steps: int, limit_bytes: int | None, device_name: str
) -> dict[str, Any]:
    """Run `measure.measure` in this process. Returns its result as a dict; an exception becomes an outcome."""
    batch, device = synthetic_batch(recipe, shape, N_CLASSES), choose_device(device_name)
    try:
        return asdict(
            measure(
                recipe, N_CLASSES, batch, steps=steps, device=device, memory_limit_bytes=limit_bytes, read_weights=False
            )
        )
    except Exception as error:
        return {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}


def row_of(
    recipe: Recipe, shape: InputShape, steps: int, hold: bool, device: str = "auto", gpu: GpuCosts = GENERIC
) -> dict[str, Any]:
    """Return a row with a configuration, its prediction and its measurement."""
    guess = predict(recipe, N_CLASSES, shape, evaluates=False, gpu=gpu)
    found = measured(recipe, shape, steps, guess.device_bytes if hold else None, device)
    return {
        "recipe": recipe.to_dict(),
        "shape": vars(shape),
        "outcome": found["outcome"],
        "reason": found.get("reason"),
        "predicted_active": guess.active_bytes,
        "predicted_reserved": guess.reserved_bytes,
        "predicted_device": guess.device_bytes,
        "active": found.get("active_bytes"),
        "reserved": found.get("reserved_bytes"),
        "device": found.get("process_bytes"),
        "device_source": found.get("process_source"),
        "step_seconds": found.get("step_seconds"),
    }


def described(row: dict[str, Any]) -> str:
    recipe, shape = row["recipe"], row["shape"]
    ratio = f"{row['predicted_reserved'] / row['reserved']:.3f}" if row["reserved"] else "not measured"
    what = " ".join(str(recipe[name]) for name in ("method", "detector", "backbone", "precision"))
    size = f"{recipe['batch_size']} x {shape['height_px']} x {shape['width_px']}"
    return f"{what} {size}: {row['outcome']}, predicted {row['predicted_device'] / 1e9:.2f} GB, reserved {ratio}"


def fitted(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the constants that fit rows with measured figures best, and their spread."""
    slope, offset = statistics.linear_regression([r["active"] for r in rows], [r["reserved"] for r in rows])
    contexts = [r["device"] - r["reserved"] for r in rows if r["device"]]
    residuals = [r["reserved"] - slope * r["active"] - offset for r in rows]
    return {
        "context_bytes": statistics.median(contexts) if contexts else float("nan"),
        "context_spread": statistics.pstdev(contexts) if contexts else float("nan"),
        "fragmentation": slope,
        "slack_bytes": offset,
        "reserved_spread": statistics.pstdev(residuals),
    }


def errors(rows: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Return errors of predicted / measured - 1: median and 90th percentile of the size, lowest and highest value."""
    signed = sorted(r[f"predicted_{name}"] / r[name] - 1 for r in rows if r[name])
    sizes = sorted(map(abs, signed))
    return {
        "median": statistics.median(sizes),
        "p90": sizes[int(0.9 * (len(sizes) - 1))],
        "lowest": signed[0],
        "highest": signed[-1],
    }


def predicted_again(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return a file's rows with the figures predicted now, by rule: ``rough``, and ``simulated`` as they were run."""
    content = json.loads(path.read_text())
    expandable = expands_segments({CONFIG_VARIABLES[0]: content["allocator"]})
    found: dict[str, list[dict[str, Any]]] = {"rough": [], "simulated": []}
    for row in content["rows"]:
        if not row["reserved"]:
            continue
        recipe = Recipe.from_dict({k: tuple(v) if isinstance(v, list) else v for k, v in row["recipe"].items()})
        recipe = recipe.configured(with_former_recompute({}, recipe))  # so it ran
        for rule, rows in found.items():
            step = predict_step(recipe, N_CLASSES, InputShape(**row["shape"]), traced=rule == "simulated")
            guess = estimate_of(step, expandable=expandable)
            names = ("active", "reserved", "device")
            rows.append(row | {f"predicted_{name}": getattr(guess, f"{name}_bytes") for name in names})
    return found


def show_again(paths: Sequence[Path]) -> None:
    """Print the errors of measured rows that are predicted anew."""
    for path in paths:
        for rule, rows in predicted_again(path).items():
            for name in ("active", "reserved", "device"):
                n_short = sum(bool(r[name]) and r[name] > 1.1 * r[f"predicted_{name}"] for r in rows)
                found = {key: f"{100 * value:+.1f} %" for key, value in errors(rows, name).items()}
                print(f"{path.stem} {rule:9} {name:8} {found} over 10 % short: {n_short} of {len(rows)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1, help="configurations at a time, after the first few [1]")
    parser.add_argument("--fit", action="store_true", help="also the constants as this device has them")
    parser.add_argument("--hold", action="store_true", help="each to the device bytes that are predicted of it")
    parser.add_argument("--dry-run", action="store_true", help="four small configurations, on any machine")
    parser.add_argument("--again", type=Path, nargs="+", metavar="FILE", help="results whose rows are predicted anew")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.again:
        show_again(args.again)
        return
    device = choose_device()
    if device.type != "cuda" and not args.dry_run:
        parser.error("there is no GPU here; --dry-run shows that the script works")
    args.steps = 2 if args.dry_run else args.steps
    rng = random.Random(args.seed)
    drawn = [draw(rng, small=args.dry_run) for _ in range(4 if args.dry_run else args.configs)]
    rows: list[dict[str, Any]] = []
    # one process per configuration, forked from one that has imported torch but not used a GPU
    fresh = multiprocessing.get_context("forkserver")
    fresh.set_forkserver_preload(["torchvision", "cst_search.trial.measure"])

    def run(n_at_once: int, part: Sequence[tuple[Recipe, InputShape]]) -> None:
        with ProcessPoolExecutor(n_at_once, mp_context=fresh, max_tasks_per_child=1) as pool:
            for row in pool.map(
                partial(row_of, steps=args.steps, hold=args.hold and not args.dry_run), *zip(*part, strict=True)
            ):
                if n_at_once > 1 and row["device_source"] != OF_PROCESS:  # the figure covers all processes
                    row["device"] = None
                rows.append(row)
                print(f"[{len(rows)}] {described(row)}", flush=True)

    run(1, drawn[:N_ALONE])
    if drawn[N_ALONE:]:
        run(args.jobs, drawn[N_ALONE:])
    good = [r for r in rows if r["outcome"] == "complete" and r["reserved"]]
    result: dict[str, Any] = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "configs": len(rows),
        "seed": args.seed,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "steps": args.steps,
        "held": args.hold,
        "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
    }
    ends = [row["outcome"] for row in rows]
    result["outcomes"] = {outcome: ends.count(outcome) for outcome in sorted(set(ends))}
    print(result["outcomes"])
    if good:
        result |= {name: errors(good, name) for name in ("active", "reserved", "device")}
        short = [r for r in good if r["device"] and r["device"] > 1.1 * r["predicted_device"]]
        result["need_over_10_percent_more"] = len(short)
        for name in ("active", "reserved", "device"):
            print(f"{name:9}", {key: f"{100 * value:+.1f} %" for key, value in result[name].items()})
        if args.fit and len(good) > 2:
            result["constants"] = fitted(good)
            print("constants of this device:", json.dumps(result["constants"], indent=1))
    else:
        print("no GPU: nothing was measured, and the device constants stay as stated")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result | {"rows": rows}, indent=1) + "\n")
    sys.exit(0 if all(r["outcome"] in ("complete", "oom") for r in rows) else 1)


if __name__ == "__main__":
    main()
