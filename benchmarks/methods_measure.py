"""Make one measurement in a process of its own: an accuracy trial, or the speed of one detector beside another.

    python benchmarks/methods_measure.py < job.json        (a job as one line of JSON; prints the result as one)

`methods.py` runs it for every figure of its table, so that a crash is a result and GPU memory starts empty. With
--with-parent it ends as soon as its standard input ends, and so with the process that started it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.images import CocoImages, loader
from cst_search.detector.build import build_detector, trained_tensors
from cst_search.detector.pretrained import SHIPPED
from cst_search.detector.weights import save_trained
from cst_search.trial.device import choose_device
from cst_search.trial.engine import choose_precision, detect, make_lr_schedule, make_optimiser, train_one_epoch
from cst_search.trial.run import run_trial

N_RANDOM_CLASSES, N_RANDOM_BOXES = 80, 10  # for random images; COCO has 80 classes and 7.3 boxes per image
Batches = list[tuple[list[Tensor], list[dict[str, Any]]]]


@dataclass(frozen=True)
class Job:
    """A measurement to make; ready for JSON.

    Attributes:
        row: name of the row in the table.
        dataset: name of the dataset and hash of its annotations, or ``random``.
        folder: folder of the dataset; None: random images, for speed only.
        limit: number of images used of each split; None: all.
        start: the first 12 digits of the SHA-256 of the weights file; empty for weights that have a name elsewhere.
        epochs: length of an accuracy trial; 0: measure speed, ``rounds`` of ``steps`` beside the recipe ``reference``.
    """

    row: str
    recipe: dict[str, Any]
    dataset: str
    folder: str | None
    limit: int | None
    device: str
    threads: int
    start: str = ""
    epochs: int = 0
    rounds: int = 0
    steps: int = 0
    reference: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """Identity for resuming: everything that affects the result, without paths of this machine.

        Of recipes only what is not the default counts, so that a field added later changes no key.
        """
        defaults = Recipe().to_dict()

        def changed(recipe: Mapping[str, Any] | None) -> dict[str, Any]:
            return {name: value for name, value in (recipe or {}).items() if value != defaults.get(name)}

        recipes = {"recipe": changed(self.recipe), "reference": changed(self.reference)}
        content = json.dumps(asdict(self) | {"row": None, "folder": None} | recipes, sort_keys=True)
        return sha256(without_folders(content).encode()).hexdigest()[:16]


def without_folders(text: str) -> str:
    """Shorten absolute paths to their last part, because results are published."""
    return re.sub(r"(?<![\w:/.])(?:/[\w.+~-]+)+/(?=[\w.+~-])", "", text)


def start_digest(recipe: Recipe) -> str:
    """Return the start of the hash of the weights file that a recipe names, as in `Job`."""
    file = SHIPPED if recipe.weights_kind == "demo-detector" else Path(recipe.weights).expanduser()
    return sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else ""


def first_images(data: DetectionData, limit: int | None) -> DetectionData:
    """Return a dataset with the first images of every split; None: all of them."""
    return replace(data, splits={name: replace(s, images=s.images[:limit]) for name, s in data.splits.items()})


def measure(job: Job) -> dict[str, Any]:
    """Run a job. Returns a TrialResult as a dict with ``saved_bytes``, or that of `run_speed`, with the GPU's name."""
    recipe = Recipe.from_dict(job.recipe)
    data = None if job.folder is None else first_images(load_data(job.folder, check_images=False)[0], job.limit)
    if job.reference is not None:
        reference = Recipe.from_dict(job.reference)
        result = run_speed(recipe, reference, data, rounds=job.rounds, steps=job.steps, device=job.device)
    else:
        assert data is not None
        result = run_accuracy(recipe, data, epochs=job.epochs, device=job.device)
    return result | {"gpu": torch.cuda.get_device_name() if job.device == "cuda" else None}


def run_accuracy(recipe: Recipe, data: DetectionData, *, epochs: int, device: str) -> dict[str, Any]:
    saved: dict[str, int] = {}

    def keep(model: nn.Module) -> None:
        saved["saved_bytes"] = saved_bytes(model, recipe, data.class_names)

    return run_trial(recipe, data, epochs=epochs, device=device, keep=keep).to_dict() | saved


def saved_bytes(model: nn.Module, recipe: Recipe, class_names: tuple[str, ...]) -> int:
    """Return the size of the file that `cst-search train` writes; without safetensors, of its tensors (few kB less)."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            save_trained(model, recipe, class_names, path := Path(folder, "weights.safetensors"))
            return path.stat().st_size
    except ImportError:
        return sum(tensor.numel() * tensor.element_size() for tensor in trained_tensors(model).values())


class Timed:
    """A detector as a trial builds it, with preloaded batches.

    Its learning rate is so small that the weights hardly change. Untrained heads of FCOS and Faster R-CNN find the
    maximum number of boxes, those of RetinaNet none, which affects the time of postprocessing.
    """

    def __init__(self, recipe: Recipe, data: DetectionData | None, n_batches: int, device: str) -> None:
        self.recipe, self.device = recipe, choose_device(device)
        names = () if data is None else data.class_names
        self.model = build_detector(recipe, len(names) or N_RANDOM_CLASSES, names).to(device)
        self.batches = {split: load_batches(recipe, data, split, n_batches) for split in ("train", "val")}
        self.optimiser = make_optimiser(self.model, 1e-9, recipe.weight_decay)
        self.schedule = make_lr_schedule(self.optimiser, 10**6, 0)
        self.precision = choose_precision(recipe.precision, self.device)
        self.scaler = torch.amp.GradScaler(device, enabled=self.precision.scaled)

    def train(self) -> float:
        """Return images per second of the median step: forward, backward, clipping and update, as in a trial."""
        batches, ticks = self.batches["train"], [self._now()]
        train_one_epoch(
            self.model, batches, self.optimiser, self.schedule, self.scaler, device=self.device,
            precision=self.precision, accumulate=1, clip_norm=self.recipe.clip_norm, n_batches=len(batches),
            after_step=lambda _: ticks.append(self._now()),
        )  # fmt: skip
        return _median_rate(batches, ticks)

    def evaluate(self) -> float:
        """Return images per second of the median batch: forward and postprocessing, without COCO scores."""
        ticks = [self._now()]
        for batch in self.batches["val"]:
            list(detect(self.model, [batch], device=self.device, precision=self.precision))
            ticks.append(self._now())
        return _median_rate(self.batches["val"], ticks)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()


def _median_rate(batches: Batches, ticks: Sequence[float]) -> float:
    return median(len(batch[0]) / (end - begun) for batch, (begun, end) in zip(batches, pairwise(ticks), strict=True))


def load_batches(recipe: Recipe, data: DetectionData | None, split: str, n: int) -> Batches:
    """Load the first n shuffled batches of a split; without data, random landscape images of the largest size."""
    if data is not None:
        images = CocoImages(
            data.splits[split], image_size_px=recipe.image_size_px, max_size_px=recipe.max_size_px, hflip=False
        )
        return list(islice(loader(images, batch_size=recipe.batch_size, shuffle=True, seed=0), n))
    generator, height, width = torch.Generator().manual_seed(0), recipe.image_size_px, recipe.max_size_px

    def target() -> dict[str, Any]:
        corner, size = torch.rand(2, N_RANDOM_BOXES, 2, generator=generator) * torch.tensor([width, height]) * 0.45
        labels = torch.randint(1, N_RANDOM_CLASSES + 1, (N_RANDOM_BOXES,), generator=generator)
        boxes = torch.cat([corner, corner + size + 2], 1)  # xyxy, at least 2 px wide
        return {"boxes": boxes, "labels": labels, "image_id": 0, "scale_xy": (1.0, 1.0)}

    each = range(recipe.batch_size)
    return [
        ([torch.rand(3, height, width, generator=generator) for _ in each], [target() for _ in each]) for _ in range(n)
    ]


def run_speed(
    recipe: Recipe, reference: Recipe, data: DetectionData | None, *, rounds: int, steps: int, device: str
) -> dict[str, Any]:
    """Measure the speed of a recipe beside a reference.

    Args:
        data: the dataset; None: random images.
        steps: batches of each split in every round, or fewer if the split has fewer.

    Returns:
        ``outcome``; ``train`` and ``eval``: for each round [images/s of the recipe, of the reference]; on a GPU the
        recipe's peak memory in a training step, in bytes.
    """
    result: dict[str, Any] = {"outcome": "complete"}
    try:
        timed = Timed(recipe, data, steps, device)
        timed.train()  # warm-up: chooses kernels and creates the optimiser's state
        result |= _peak_bytes(timed) if device == "cuda" else {}
        beside = Timed(reference, data, steps, device)
        for phase, clocks in {
            "train": (timed.train, beside.train),
            "eval": (timed.evaluate, beside.evaluate),
        }.items():
            for clock in clocks:
                clock()
            result[phase] = []
            for n in range(rounds):
                order = (0, 1) if n % 2 == 0 else (1, 0)  # alternate which one is first
                rates = {which: clocks[which]() for which in order}
                result[phase].append([rates[0], rates[1]])
    except torch.OutOfMemoryError as error:  # perhaps only both together: the peak of one may be known
        result |= {"outcome": "oom", "reason": str(error).splitlines()[0]}
    return result


def _peak_bytes(timed: Timed) -> dict[str, int]:
    """Return the peaks before the reference is built. ``device_bytes`` includes other processes on the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    timed.train()
    free, total = torch.cuda.mem_get_info()
    return {
        "active_bytes": torch.cuda.max_memory_allocated(),
        "reserved_bytes": torch.cuda.max_memory_reserved(),
        "device_bytes": total - free,
    }


def _end_with_input() -> None:
    """End this process when standard input does: whoever held its other end is gone, and nobody reads the result."""
    while os.read(0, 1024):  # sys.stdin would hold its lock while the interpreter ends
        pass
    os._exit(1)


if __name__ == "__main__":
    wanted = Job(**json.loads(sys.stdin.readline()))
    if "--with-parent" in sys.argv:
        threading.Thread(target=_end_with_input, daemon=True).start()
    print("\n" + json.dumps(measure(wanted)))
