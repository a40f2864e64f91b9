"""Layers of a detector with rows per class, and the rows that new classes take over by name. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_IRREGULAR = {"people": "person", "mice": "mouse", "knives": "knife", "children": "child", "geese": "goose"}


@dataclass(frozen=True)
class ClassLayer:
    """Convolution or linear layer with outputs for every label, background included.

    Its rows are ordered (anchors of a cell, labels, ``per_label``), as torchvision's heads reshape them.

    Attributes:
        name: name of the module in the detector.
        per_label: values for each label and anchor: 1 for scores, 4 for boxes.
    """

    name: str
    per_label: int = 1


@cache
def coco_labels() -> tuple[str, ...]:
    """Return the names of the 91 labels of torchvision's COCO detectors: the background, 80 classes, and ``N/A``."""
    return tuple((Path(__file__).parent / "coco_labels.txt").read_text(encoding="utf-8").splitlines())


def matching_labels(class_names: Sequence[str], known: Sequence[str]) -> list[tuple[int, int]]:
    """Return pairs (label, known label) of equal meaning; the background, 0, is always one.

    Names are equal if they differ in case, in ``_``, ``-`` and spaces, or in a plural alone. A known label of the same
    number is preferred, then the first with the same spelling, then the first that differs in the plural.

    Args:
        class_names: of the labels 1, 2, ...
        known: of all labels that the detector knows, the background first.
    """
    spelt = [_plain(name) for name in known]
    stems = [_singulars(name) for name in known]
    pairs = [(0, 0)] if known else []
    for label, name in enumerate(class_names, start=1):
        plain, singulars = _plain(name), _singulars(name)
        found = [label] if label < len(spelt) and spelt[label] == plain else []
        if plain != "n/a":  # COCO's labels without a class: equal in number only
            found += [i for i in range(1, len(spelt)) if spelt[i] == plain]
            found += [i for i in range(1, len(spelt)) if stems[i] & singulars]
        pairs += [(label, found[0])] if found else []
    return pairs


def copy_rows(own: Tensor, given: Tensor, per_label: int, n_labels: int, pairs: Sequence[tuple[int, int]]) -> None:
    """Copy the rows of known labels into a class layer's weight or bias, in place.

    Args:
        own: (anchors * n_labels * per_label, ...).
        given: (anchors * known labels * per_label, ...).
        pairs: (label, known label), from `matching_labels`.
    """
    anchors = len(own) // (n_labels * per_label)
    rows = own.view(anchors, n_labels, per_label, *own.shape[1:])
    known = given.view(anchors, -1, per_label, *given.shape[1:])
    for label, known_label in pairs:
        rows[:, label] = known[:, known_label].to(own.dtype)


def n_known_labels(own_rows: int, given_rows: int, n_labels: int) -> int | None:
    """Return for how many labels a class layer was made, given one for ``n_labels``; None: the rows do not fit."""
    per_label = own_rows // n_labels  # times anchors
    return given_rows // per_label if given_rows % per_label == 0 else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _singulars(name: str) -> frozenset[str]:
    """Return the plain name and what may be its singular. Two letters are no plural: ``as``, ``is``."""
    words = re.split(r"[\s_-]+", name.casefold().strip())
    *before, last = words if words != [""] else ["", ""]
    stems = {last, _IRREGULAR.get(last, last)}
    if len(last) > 3:
        stems |= {last.removesuffix("s"), last.removesuffix("es")} if not last.endswith("ss") else set()
        stems |= {last[:-3] + "y"} if last.endswith("ies") else set()
    return frozenset("".join(before) + stem for stem in stems)
