"""COCO evaluation of detected boxes, by the faster of two libraries that this process can import.

pycocotools is the reference and is always there; its loops are in Python. faster-coco-eval matches in C++. Both give
the same floats (docs/data.md, "Evaluation"), so a study may mix machines with and without the second.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np

from cst_search.config.recipe import DETECTIONS_PER_IMAGE

Library = Literal["faster-coco-eval", "pycocotools"]
#: COCO's limit: the best detections of an image that count, in each class by itself.
MAX_DETECTIONS = DETECTIONS_PER_IMAGE
_AREAS = ("all", "small", "medium", "large")  # COCO's ranges, in both libraries' order: below 32², to 96², above (px)
_AP50, _AP75 = 0, 5  # indices of the IoU thresholds 0.50, 0.55 ... 0.95
# pycocotools adds numpy.spacing(1) to the number of detections, against 0/0; of the counts only 1 is changed by it
_ONE_OF_ONE = 1 / (1 + np.spacing(1))


@dataclass(frozen=True)
class CocoFigures:
    """Average precisions in 0..1: ``map`` is mAP@[.50:.95], ``per_class`` the same by class name.

    The figure of a class or of an object size without ground truth is None; of the first three it is 0.
    """

    map: float
    map50: float
    map75: float
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    per_class: dict[str, float | None]


@dataclass(frozen=True)
class Curves:
    """Precision and recall of an evaluation; -1 where there is no ground truth.

    Attributes:
        precision: [10 IoU thresholds, 101 recalls, class, 4 object sizes, limit of detections].
        recall: the highest recall, [10 IoU thresholds, class, 4 object sizes, limit of detections].
        category_ids: COCO ids of the classes, ascending.
    """

    precision: np.ndarray
    recall: np.ndarray
    category_ids: tuple[int, ...]


@cache
def chosen_library() -> Library:
    """Return the library that evaluates in this process: faster-coco-eval if it can be imported, else pycocotools."""
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        return "pycocotools"
    return "faster-coco-eval"


def coco_figures(
    ground_truth: Mapping[str, Any],
    detections: Iterable[Mapping[str, Any]],
    *,
    max_detections: int = MAX_DETECTIONS,
    library: Library | None = None,
) -> CocoFigures:
    """Evaluate detections against ground truth.

    Args:
        ground_truth: COCO document; annotation ids are not 0, which means "not matched" to both libraries.
        detections: COCO results: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height in pixels), ``score``.
        max_detections: the best detections of an image that count, in each class by itself.
        library: None: see `chosen_library`.
    """
    curves = precision_recall(ground_truth, detections, max_detections=(max_detections,), library=library)
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    everything, *by_size = (curves.precision[:, :, :, area, 0] for area in range(len(_AREAS)))
    small, medium, large = map(_mean, by_size)
    return CocoFigures(
        map=_mean(everything) or 0.0,
        map50=_mean(everything[_AP50]) or 0.0,
        map75=_mean(everything[_AP75]) or 0.0,
        map_small=small,
        map_medium=medium,
        map_large=large,
        per_class={names[k]: _mean(everything[:, :, i]) for i, k in enumerate(curves.category_ids)},
    )


def _mean(precision: np.ndarray) -> float | None:
    """Return the mean precision of what has ground truth; None if nothing has."""
    known = precision[precision > -1]
    return float(np.mean(known)) if known.size else None


def precision_recall(
    ground_truth: Mapping[str, Any],
    detections: Iterable[Mapping[str, Any]],
    *,
    max_detections: Sequence[int] = (MAX_DETECTIONS,),
    library: Library | None = None,
) -> Curves:
    """Match detections to ground truth. For the arguments see `coco_figures`; each limit has its own curves."""
    make_index, make_evaluation = _classes(library or chosen_library())
    # both libraries write an ``ignore`` into the annotations
    truth = {**ground_truth, "annotations": [dict(annotation) for annotation in ground_truth["annotations"]]}
    found = {**ground_truth, "annotations": list(_as_annotations(detections))}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        indices = []
        for document in (truth, found):
            index = make_index()
            index.dataset = document
            index.createIndex()
            indices.append(index)
        evaluation = make_evaluation(*indices, "bbox")
        evaluation.params.maxDets = list(max_detections)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])
    precision[precision == _ONE_OF_ONE] = 1.0
    return Curves(precision, np.asarray(evaluation.eval["recall"]), tuple(map(int, evaluation.params.catIds)))


def _classes(library: Library) -> tuple[Any, Any]:
    """Return a library's makers of an index of annotations and of an evaluation."""
    if library == "faster-coco-eval":
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, partial(COCOeval_faster, print_function=_say_nothing)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def _say_nothing(*_: object) -> None:
    pass


def _as_annotations(detections: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Give detections what the libraries' ``loadRes`` gives them, without its polygons, which boxes do not need.

    A box or score that is not finite detects nothing. pycocotools would call it right, as NaN is below no threshold.
    """
    finite = (one for one in detections if math.isfinite(sum(one["bbox"]) + one["score"]))
    for number, one in enumerate(finite, start=1):
        yield {**one, "id": number, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0}
