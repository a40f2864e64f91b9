"""Draw the figures of the documentation that come from numbers: measured results and the memory model.

    python tools/figures.py          (writes docs/pictures/promise.png and gpu-memory.png)

`tools/pictures.py` takes the screenshots.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

import cst_search
from cst_search.memory.estimate import CONTEXT_BYTES
from cst_search.units import parse_bytes

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/pictures"
INK, MUTED, ACCENT, LIMIT = "#1b2330", "#5d6878", "#0b6bcb", "#b3261e"

# --- what a budget buys: README ---------------------------------------------------------------------------------------

BUDGET = "740MB"
RESULTS = "benchmarks/results/methods-demo.json", "benchmarks/results/methods-demo-256.json"
# row of the results: label, and its place beside the point (in pt, and the alignment)
POINTS: dict[str, tuple[str, tuple[int, int], str]] = {
    "full lr=0.002 image_size_px=256 max_size_px=256": ("full fine-tuning, 256 px", (-10, -26), "center"),
    "full lr=0.002": ("full fine-tuning, 128 px", (0, -16), "center"),
    "cst image_size_px=256 max_size_px=256 batch_size=2 reduction=2 mtc_stages=[4,5] gate_init=0.75 lr=0.0025 "
    "recompute=neck": ("found by a search, 256 px", (-10, 8), "right"),
    "cst image_size_px=256 max_size_px=256 batch_size=2 reduction=16 mtc_stages=[4,5] gate_init=0.16 neck=frozen "
    "head=lora lr=0.0017 recompute=neck": (
        "another, neck frozen,\nLoRA in the heads, 256 px", (-8, 8), "right"),
    "cst reduction=8 neck=frozen head=lora lr=0.003 batch_size=2": (
        "CST, LoRA in the heads, 128 px", (12, -4), "left"),
    "cst neck=frozen head=predictor": ("CST, last layers alone, 128 px", (12, -5), "left"),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A configuration of the demo: mAP as mean and standard deviation of three seeds, predicted memory in bytes."""

    label: str
    map_mean: float
    map_std: float
    working_bytes: int
    trainable_params: int
    saved_bytes: int


def points() -> dict[str, Point]:
    """Return the points of the first figure by their row in the results. Raises KeyError if a row is missing."""
    rows = {row["row"]: row for name in RESULTS for row in json.loads((ROOT / name).read_text("utf-8"))["rows"]}
    return {
        name: Point(
            label, rows[name]["map_mean"], rows[name]["map_std"], rows[name]["device_bytes"] - CONTEXT_BYTES,
            rows[name]["trainable_params"], rows[name]["saved_bytes"],
        )
        for name, (label, _, _) in POINTS.items()
    }  # fmt: skip


def draw_promise(ax: Axes) -> None:
    """Memory against mAP on the demo, with a budget that full fine-tuning exceeds."""
    limit = (parse_bytes(BUDGET) - CONTEXT_BYTES) / 1e6
    ax.set(xlim=(0, 125), ylim=(0.61, 0.76))
    ax.axvspan(limit, 125, color=LIMIT, alpha=0.07, lw=0)
    ax.axvline(limit, color=LIMIT, lw=1.5, ls="--")
    ax.text(limit - 1, 0.752, f"budget {BUDGET[:-2]} MB", color=LIMIT, ha="right", va="top")
    ax.text(limit + 1, 0.752, "refused before it runs", color=LIMIT, ha="left", va="top")
    for name, point in points().items():
        _, offset, align = POINTS[name]
        x, fits = point.working_bytes / 1e6, point.working_bytes / 1e6 <= limit
        color = ACCENT if fits else LIMIT
        ax.errorbar(x, point.map_mean, point.map_std, fmt="o" if fits else "X", color=color, ms=8, capsize=3, lw=1.2)
        ax.annotate(
            point.label,
            (x, point.map_mean),
            xytext=offset,
            textcoords="offset points",
            color=INK,
            ha=align,
            va="center",
        )
    ax.set_xlabel(
        f"predicted working memory, MB (GPU memory beyond the {CONTEXT_BYTES / 1e6:.0f} MB of the CUDA context)"
    )
    ax.set_ylabel("mAP on val (three seeds)")


# --- where GPU memory goes: docs/gpu-memory.md ------------------------------------------------------------------------

METHODS = "full", "norm", "conv_lora", "cst", "head"
# part of the prediction: label and colour; in this order live tensors, what the allocator adds, what CUDA adds
PARTS = {
    "weights": ("weights", "#1f4e79"),
    "optimiser": ("optimiser", "#2e75b6"),
    "images": ("images", "#8fb8de"),
    "activations": ("activations", "#e08e2b"),
    "gradients_and_transients": ("gradients, temporaries", "#f2c27b"),
    "blas_workspace": ("cuBLAS workspace", "#a88bc4"),
    "allocator": ("held by the allocator", "#b9c0ca"),
    "blas_context": ("cuBLAS in the context", "#8a94a1"),
    "context": ("CUDA context", "#5d6878"),
}


def memory_of(method: str) -> Mapping[str, Any]:
    """Return the prediction for the recipe ``resnet50`` with a method."""
    return cst_search.estimate("resnet50", {"method": method})


def draw_memory(ax: Axes) -> None:
    """The parts of device memory as stacked bars, with what each tool shows below the first."""
    for place, method in enumerate(METHODS):
        needed, left = memory_of(method), 0.0
        for part, (label, color) in PARTS.items():
            size = needed["breakdown"].get(part, 0) / 1e9
            ax.barh(place, size, left=left, color=color, height=0.5, label=label if place == 0 else None)
            left += size
        ax.text(left + 0.03, place, f"{left:.2f} GB", va="center", color=INK)
        if place == 0:
            _brackets(ax, needed)
    ax.set_yticks(range(len(METHODS)), METHODS)
    ax.set(ylim=(len(METHODS) - 0.5, -1.35), xlim=(0, 4.6), xlabel="predicted GPU memory, GB")
    ax.legend(loc="lower right", frameon=False, fontsize=8)


def _brackets(ax: Axes, needed: Mapping[str, Any]) -> None:
    shown = (
        ("active_bytes", "torch.cuda.max_memory_allocated"),
        ("reserved_bytes", "torch.cuda.max_memory_reserved"),
        ("device_bytes", "nvidia-smi, and what --budget-mem limits"),
    )
    for line, (name, text) in enumerate(shown):
        y, end = -0.42 - 0.28 * line, needed[name] / 1e9
        ax.annotate("", (0, y), (end, y), arrowprops={"arrowstyle": "|-|,widthA=0.2,widthB=0.2", "color": MUTED})
        ax.text(0.05, y - 0.03, text, color=MUTED, fontsize=8, va="bottom")


def main() -> None:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK})
    for name, draw, size in (("promise", draw_promise, (7.6, 3.9)), ("gpu-memory", draw_memory, (7.6, 3.9))):
        figure, ax = plt.subplots(figsize=size, dpi=140, layout="constrained")
        draw(ax)
        figure.savefig(FOLDER / f"{name}.png")
        print(FOLDER / f"{name}.png", (FOLDER / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main()
