"""Measure CUDA's own memory use on this machine's GPU, and the error of predictions there. Runs by itself:

    python -m cst_search.trial.calibrate --home cst-runs

A dozen configurations are trained for a few steps each, in a process of its own. CUDA's context, with and without
cuBLAS, is what the driver shows beyond the reserved bytes; cuBLAS's workspace is what the allocator gives at the first
product of matrices. Predictions of `estimate` and of searches with this home folder then use these figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from cst_search.config.catalog import default_home
from cst_search.config.recipe import Recipe
from cst_search.errors import UserError
from cst_search.import_path import program
from cst_search.memory.correction import Correction
from cst_search.memory.estimate import worst_input
from cst_search.memory.gpu_costs import GENERIC, GpuCosts
from cst_search.memory.gpu_profile import GpuProfile, write_profile
from cst_search.trial.cost import predict
from cst_search.trial.result import Outcome
from cst_search.units import format_bytes

N_CLASSES, N_BOXES = 20, 20
# small enough for a card of 4 GB; FCOS and RetinaNet load no cuBLAS, Faster R-CNN does
_BASES: tuple[dict[str, Any], ...] = (
    {"detector": "fcos", "backbone": "resnet18"},
    {"detector": "retinanet", "backbone": "resnet50"},
    {"detector": "fasterrcnn", "backbone": "resnet18"},
    {"detector": "fasterrcnn", "backbone": "resnet50"},
)
_METHODS = (("cst", "auto"), ("bitfit", "fp32"), ("full", "auto"))
_SOURCES = ("nvidia-smi", "nvidia-smi of the device")  # of `measure.Measured.process_bytes`: with the context

Measure = Callable[[Recipe], dict[str, Any]]


def recipes() -> list[Recipe]:
    """Return the dozen configurations."""
    fixed: dict[str, Any] = {"weights": "IMAGENET", "image_size_px": 480, "max_size_px": 640, "batch_size": 2}
    return [
        Recipe(method=method, precision=precision, **base, **fixed) for base in _BASES for method, precision in _METHODS
    ]


def in_own_process(recipe: Recipe) -> dict[str, Any]:
    """Measure a configuration by `trial.measure` in a fresh process. Returns its figures, with an ``outcome``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(json.dumps(recipe.to_dict()), encoding="utf-8")
        command = [*program("cst_search.trial.measure", "main"), str(file), "--no-weights", "--device", "cuda"]
        command += ["--n-classes", str(N_CLASSES), "--boxes", str(N_BOXES)]
        done = subprocess.run(command, capture_output=True, text=True)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        found = {"outcome": Outcome.FAILED, "reason": f"exit code {done.returncode}: {last[0]}"}
    return found


def blas_workspace_bytes() -> int:
    """Return the bytes that CUDA's allocator gives cuBLAS in this thread at the first product of matrices."""
    import torch

    square = torch.ones(128, 128, device="cuda")
    before = torch.cuda.memory_allocated()
    product = square @ square
    return torch.cuda.memory_allocated() - before - product.numel() * product.element_size()


def calibrate(
    configs: Sequence[Recipe], measure: Measure, workspace_bytes: int, say: Callable[[str], object]
) -> tuple[GpuProfile, list[dict[str, Any]]]:
    """Measure configurations. Returns the profile, and a row of predicted and measured bytes of each that was measured.

    Args:
        measure: gives figures as `trial.measure` does.
        workspace_bytes: of cuBLAS in one thread.

    Raises:
        UserError: none could be measured.
    """
    rows, reasons = [], []
    for n, recipe in enumerate(configs, start=1):
        found = measure(recipe)
        name = f"{recipe.method} {recipe.detector} {recipe.backbone} {recipe.precision}"
        if found["outcome"] != Outcome.COMPLETE or not found.get("reserved_bytes"):
            reasons.append(str(found.get("reason") or "no GPU was measured"))
            say(f"[{n}/{len(configs)}] {name}: left out: {reasons[-1]}")
            continue
        rows.append(_row(recipe, found))
        say(f"[{n}/{len(configs)}] {name}: reserved {format_bytes(found['reserved_bytes'])}")
    if not rows:
        raise UserError(f"no configuration could be measured; of the last one: {reasons[-1]}")
    costs, unmeasured = _costs(rows, workspace_bytes)
    profile = GpuProfile(
        date.today().isoformat(), rows[0]["torch"], costs, unmeasured, len(rows),
        _error(rows, GENERIC), _error(rows, costs),
    )  # fmt: skip
    return profile, rows


def _row(recipe: Recipe, found: dict[str, Any]) -> dict[str, Any]:
    guess = predict(recipe, N_CLASSES, worst_input(recipe, max_boxes=N_BOXES), evaluates=False)
    process = found.get("process_bytes") if found.get("process_source") in _SOURCES else None
    return {
        "recipe": recipe.to_dict(),
        "device": found["device"],
        "torch": found["torch"],
        "multiplies": "blas_context" in guess.breakdown,
        "active": found["active_bytes"],
        "reserved": found["reserved_bytes"],
        "process": process,
        "predicted_reserved": guess.reserved_bytes,
    }


def _costs(rows: list[dict[str, Any]], workspace_bytes: int) -> tuple[GpuCosts, tuple[str, ...]]:
    """Return the costs that rows show, and what they do not show."""
    contexts: dict[bool, list[int]] = {False: [], True: []}
    for row in rows:
        if row["process"] is not None:
            contexts[row["multiplies"]].append(row["process"] - row["reserved"])
    plain, with_blas = (round(statistics.median(found)) if found else None for found in contexts.values())
    unmeasured = [words for found, words in ((plain, "context"), (with_blas, "context with cuBLAS")) if found is None]
    costs = GpuCosts(
        plain or GENERIC.context_bytes,
        max(with_blas or GENERIC.context_with_blas_bytes, plain or 0),
        2 * workspace_bytes,
        rows[0]["device"],
    )
    ratios = [row["reserved"] / _predicted(row, costs).reserved_bytes for row in rows]
    return replace(costs, reserved_factor=Correction.learned(ratios).factor), tuple(unmeasured)


def _predicted(row: dict[str, Any], costs: GpuCosts) -> Any:
    recipe = Recipe.from_dict(row["recipe"])
    return predict(recipe, N_CLASSES, worst_input(recipe, max_boxes=N_BOXES), evaluates=False, gpu=costs)


def _error(rows: Iterable[dict[str, Any]], costs: GpuCosts) -> float | None:
    """Return the median size of predicted / measured - 1 of device bytes; None: none is known."""
    known = [row for row in rows if row["process"] is not None]
    errors = [abs(_predicted(row, costs).device_bytes / row["process"] - 1) for row in known]
    return statistics.median(errors) if errors else None


def summary(profile: GpuProfile) -> str:
    """Return what a user should know about a profile."""
    costs = profile.costs
    lines = [
        f"{costs.target}, PyTorch {profile.torch}: CUDA context {format_bytes(costs.context_bytes)}, with cuBLAS "
        f"{format_bytes(costs.context_with_blas_bytes)}; cuBLAS's workspaces "
        f"{format_bytes(costs.blas_workspace_bytes)}; reserved bytes {costs.reserved_factor:.3f} times the predicted"
    ]
    if profile.error is not None and profile.error_before is not None:
        lines.append(
            f"predicted device memory was off by {100 * profile.error_before:.1f} % (median of {profile.n_configs} "
            f"configurations), and by {100 * profile.error:.1f} % with these figures"
        )
    if profile.unmeasured:
        lines.append(
            f"not measured, for the driver does not say it here: {', '.join(profile.unmeasured)}; the H100's stand"
        )
    return "\n".join(lines)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description="Measure what CUDA takes on this GPU; predictions then use it.")
    parser.add_argument("--home", type=Path, default=default_home(), help="folder of the studies [%(default)s]")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(2, "there is no GPU here to calibrate: torch.cuda.is_available() is False; check nvidia-smi\n")
    try:
        profile, rows = calibrate(
            recipes(), in_own_process, blas_workspace_bytes(), lambda line: print(line, flush=True)
        )
    except UserError as error:
        parser.exit(error.exit_code, f"{error}\n")
    path = write_profile(profile, rows, args.home)
    print(summary(profile))
    print(f"wrote {path}; `cst-search estimate` and searches with --home {args.home} use it")


if __name__ == "__main__":
    main()
