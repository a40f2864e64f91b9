"""Checks that a cluster node has what trials need: files, weights, library versions, GPUs.

Runs on every node, and needs only the standard library to report what is missing.

    wanted = requirements_of(recipe, data, on_gpus=True)    # on the machine that starts the search
    found = inspect_node(wanted)                            # on a node
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cst_search.config.recipe import Recipe
    from cst_search.data.dataset import DetectionData

_SAMPLE = 20  # images per split whose content is compared; all of COCO would be 19 GB over a network


@dataclass(frozen=True)
class RequiredFile:
    """A file that must exist. ``digest``: BLAKE2b of its content, as in `data`; empty: any content."""

    what: str
    path: Path
    n_bytes: int
    digest: str = ""


@dataclass(frozen=True)
class NodeRequirements:
    """Requirements that a node must meet to run trials.

    Attributes:
        recipe: its weights are torchvision's, which each node downloads itself; None: there is nothing to download.
        versions: versions of torch and torchvision, without a suffix such as ``+cu126``.
        demo: folder in which the embedded demo is drawn if it is missing.
        token: small file by which a node finds out if its folder is shared; None: not checked.
    """

    files: tuple[RequiredFile, ...]
    recipe: Recipe | None
    versions: tuple[tuple[str, str], ...]
    on_gpus: bool
    demo: Path | None = None
    token: Path | None = None


@dataclass
class NodeReport:
    """Result of the check of a node.

    Attributes:
        faults: reasons why no trial can run there, one line each.
        gpu_bytes: total memory of each GPU.
        is_shared: True if the folder of `NodeRequirements.token` is shared with the machine that started the search.
        memory_monitor: True if Ray's memory monitor is on.
    """

    faults: list[str] = field(default_factory=list)
    gpu_bytes: list[int] = field(default_factory=list)
    is_shared: bool = False
    memory_monitor: bool = False


def requirements_of(
    recipe: Recipe, data: DetectionData, *, on_gpus: bool, token: Path | None = None
) -> NodeRequirements:
    """Return the requirements of a recipe's trials on this data, as this machine meets them."""
    demo = data.folder if recipe.data == "demo" else None
    files = []
    for name, split in data.splits.items() if demo is None else ():
        files.append(_file("the annotation file of " + name, split.annotation_file.absolute()))
        step = max(1, len(split.images) // _SAMPLE)
        for entry in split.images[::step][:_SAMPLE]:
            size = entry.path.stat().st_size
            files.append(RequiredFile(f"an image of {name}", entry.path, size, entry.digest or _digest(entry.path)))
    from cst_search.detector.trained_file import lineage

    sources = lineage(recipe)
    files += [_file("the weights", path) for _, path in sources if path is not None]
    to_fetch = recipe if any(source.weights_kind in ("COCO", "IMAGENET") for source, _ in sources) else None
    versions = tuple((name, _version(name)) for name in ("torch", "torchvision"))
    return NodeRequirements(tuple(files), to_fetch, versions, on_gpus, demo, token)


def inspect_node(wanted: NodeRequirements) -> NodeReport:
    """Compare this machine with the requirements. Missing parts become faults, not errors."""
    found = NodeReport(memory_monitor=os.environ.get("RAY_memory_monitor_refresh_ms") != "0")
    if wanted.token is not None:
        found.is_shared = wanted.token.is_file()
    _look_at_files(wanted, found)
    for name, version in wanted.versions:
        try:
            if _version(name) != version:
                found.faults.append(f"{name} is {_version(name)}, where the search was started {version}")
        except Exception as error:  # an import may raise anything
            found.faults.append(f"{name} cannot be imported: {type(error).__name__}: {error}")
            return found
    if wanted.on_gpus:
        _look_at_gpus(found)
    if wanted.recipe is not None:
        _fetch_weights(wanted.recipe, found)
    return found


@contextmanager
def token(folder: Path) -> Iterator[Path]:
    """Keep a small file in a folder while other nodes look for it."""
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".shared-{uuid.uuid4().hex}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _look_at_files(wanted: NodeRequirements, found: NodeReport) -> None:
    if wanted.demo is not None:
        try:
            from cst_search.data.demo import write_demo

            write_demo(wanted.demo)  # draws the same pictures on every machine
        except Exception as error:
            found.faults.append(f"the demo cannot be drawn in {wanted.demo}: {error}")
    by_kind: dict[str, list[str]] = {}
    n_of_kind: dict[str, int] = {}
    for file in wanted.files:
        n_of_kind[file.what] = n_of_kind.get(file.what, 0) + 1
        if fault := _fault_of(file):
            by_kind.setdefault(file.what, []).append(fault)
    for what, faults in by_kind.items():
        n = f" ({len(faults)} of {n_of_kind[what]} that were looked at)" if n_of_kind[what] > 1 else ""
        found.faults.append(f"{what} {faults[0]}{n}")


def _fault_of(file: RequiredFile) -> str | None:
    try:
        if not file.path.is_file():
            return f"is not there: {file.path}"
        if file.path.stat().st_size != file.n_bytes or (file.digest and _digest(file.path) != file.digest):
            return f"is another one: {file.path}"
    except OSError as error:
        return f"cannot be read: {file.path}: {error.strerror}"
    return None


def _look_at_gpus(found: NodeReport) -> None:
    import torch

    try:
        n_gpus = torch.cuda.device_count()
        found.gpu_bytes = [torch.cuda.get_device_properties(i).total_memory for i in range(n_gpus)]
    except Exception as error:
        found.faults.append(f"torch cannot use its GPUs: {error}")
        return
    if not n_gpus:
        found.faults.append("Ray counts GPUs there, and torch sees none: check nvidia-smi, and that torch has CUDA")


def _fetch_weights(recipe: Recipe, found: NodeReport) -> None:
    from cst_search.detector.pretrained import fetch_weights
    from cst_search.errors import ConfigError

    try:
        fetch_weights(recipe)
    except ConfigError as error:
        found.faults.append(str(error))


def _file(what: str, path: Path) -> RequiredFile:
    return RequiredFile(what, path, path.stat().st_size, _digest(path))


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _version(name: str) -> str:
    """Return a package's version without its build suffix, so CPU and GPU builds compare equal.

    The package is imported, because metadata would hide a broken installation.
    """
    return str(__import__(name).__version__).partition("+")[0]
