"""COCO evaluation: both libraries give the same floats, and those of pycocotools used by its book."""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData, coco_ground_truth, load_data
from cst_search.data.images import CocoImages, loader
from cst_search.detector.build import build_detector
from cst_search.trial.coco_eval import CocoFigures, chosen_library, coco_figures, precision_recall
from cst_search.trial.engine import Precision, detect, make_lr_schedule, make_optimiser, train_one_epoch

BCCD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "bccd"
needs_bccd = pytest.mark.skipif(not BCCD.is_dir(), reason="the BCCD blood-cell images are not in ../shared/data/bccd")
needs_fast = pytest.mark.skipif(find_spec("faster_coco_eval") is None, reason="faster-coco-eval is not installed")
FAST = pytest.param("faster-coco-eval", marks=needs_fast)
in_each_library = pytest.mark.parametrize("library", [FAST, "pycocotools"])
LIMITS = (1, 10, 100)  # those of COCO's twelve figures
Case = tuple[dict[str, Any], list[dict[str, Any]]]


# --- the twelve figures ----------------------------------------------------------------------------------------------


def by_the_book(case: Case) -> tuple[Any, np.ndarray]:
    """Evaluate as pycocotools' demo does. Returns the evaluation and its twelve figures."""
    truth, detections = case
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = truth | {"annotations": [dict(a) for a in truth["annotations"]]}
        index.createIndex()
        evaluation = COCOeval(index, index.loadRes([dict(one) for one in detections]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation, evaluation.stats


def twelve_figures(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """Let pycocotools summarise curves."""
    summary = COCOeval()
    summary.params = Params("bbox")
    summary.eval = {"precision": precision, "recall": recall}
    with contextlib.redirect_stdout(io.StringIO()):
        summary.summarize()
    return summary.stats


def assert_equal(case: Case) -> CocoFigures:
    """Assert that every float is the same in both libraries and, but for 1 / (1 + 2^-52), by the book."""
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    fast = precision_recall(*case, max_detections=LIMITS, library="faster-coco-eval")
    slow = precision_recall(*case, max_detections=LIMITS, library="pycocotools")
    assert fast.precision.shape == (10, 101, len(case[0]["categories"]), 4, 3)
    np.testing.assert_array_equal(fast.precision, slow.precision)
    np.testing.assert_array_equal(fast.recall, slow.recall)
    assert fast.category_ids == slow.category_ids
    figures = coco_figures(*case, library="faster-coco-eval")
    assert figures == coco_figures(*case, library="pycocotools")
    twelve = twelve_figures(fast.precision, fast.recall)
    assert [figures.map_small, figures.map_medium, figures.map_large] == [
        float(one) if one > -1 else None for one in twelve[3:6]
    ]
    assert [figures.map, figures.map50, figures.map75] == [max(0.0, float(one)) for one in twelve[:3]]
    if case[1]:
        evaluation, stats = by_the_book(case)
        precision = evaluation.eval["precision"]
        np.testing.assert_array_equal(np.where(precision == 1 / (1 + 2**-52), 1.0, precision), fast.precision)
        np.testing.assert_array_equal(evaluation.eval["recall"], fast.recall)
        np.testing.assert_allclose(stats, twelve, rtol=0, atol=2**-51)
    return figures


# --- drawn cases -----------------------------------------------------------------------------------------------------


def document(boxes: list[tuple[int, int, tuple[float, ...], bool]], n_images: int, n_classes: int) -> dict[str, Any]:
    """Return a COCO document of boxes (image, class, x y width height, crowd); ids are 10, 20 ... and 3, 6 ..."""
    return {
        "images": [{"id": 10 * (i + 1), "width": 400, "height": 300} for i in range(n_images)],
        "categories": [{"id": 3 * (k + 1), "name": f"class {k}"} for k in range(n_classes)],
        "annotations": [
            {"id": n, "image_id": 10 * (i + 1), "category_id": 3 * (k + 1), "bbox": list(box), "area": box[2] * box[3],
             "iscrowd": int(crowd)}
            for n, (i, k, box, crowd) in enumerate(boxes, start=1)
        ],
    }  # fmt: skip


def drawn(seed: int, n_images: int = 6, n_classes: int = 3, n_boxes: int = 8, crowd: float = 0.0) -> dict[str, Any]:
    """Draw a document. Sides lie on both sides of COCO's 32 and 96 px; half of the images may stay empty."""
    rng = np.random.default_rng(seed)
    boxes = []
    for image in range(n_images):
        for _ in range(int(rng.integers(0, n_boxes + 1))):
            x, y, w, h = *rng.uniform(0, 150, 2), *rng.choice([6, 20, 31, 32, 33, 60, 96, 97, 140], 2)
            boxes.append((image, int(rng.integers(n_classes)), (float(x), float(y), float(w), float(h)), False))
    return document([(i, k, box, bool(rng.random() < crowd)) for i, k, box, _ in boxes], n_images, n_classes)


def detected(truth: dict[str, Any], seed: int, n_per_image: int = 12, levels: int = 0) -> list[dict[str, Any]]:
    """Perturb ground truth as a detector does: shifted and resized, double, of a wrong class, missed, invented.

    Args:
        levels: number of different scores; 0: all differ.
    """
    rng = np.random.default_rng(seed)
    classes = [category["id"] for category in truth["categories"]]
    found = []
    for image in truth["images"]:
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        for _ in range(n_per_image):
            category = int(rng.choice(classes))
            if mine and rng.random() < 0.7:
                near = mine[int(rng.integers(len(mine)))]
                x, y, w, h = near["bbox"]
                spread = float(rng.choice([0.0, 0.02, 0.1, 0.3]))  # the first: the box itself, at IoU 1
                dx, dy, dw, dh = rng.normal(0, spread, 4)
                box = [x + dx * w, y + dy * h, w * float(np.exp(dw)), h * float(np.exp(dh))]
                category = near["category_id"] if rng.random() < 0.9 else category
            else:
                box = [*rng.uniform(0, 200, 2), *rng.uniform(2, 200, 2)]
            score = float(rng.random())
            score = float(int(score * levels) / levels) if levels else score
            found.append(
                {"image_id": image["id"], "category_id": category, "bbox": [float(v) for v in box], "score": score}
            )
    return found


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("crowd", "levels"),
    [
        (0.0, 0),
        (0.3, 0),  # crowd regions: matched by many, counted by none
        (0.0, 4),  # ties: their order decides which is the match, and the curve
        (0.3, 1),  # one score for all
    ],
)
def test_libraries_are_equal_on_drawn_detections(seed: int, crowd: float, levels: int) -> None:
    truth = drawn(seed, crowd=crowd)
    figures = assert_equal((truth, detected(truth, seed, levels=levels)))
    assert figures.map50 > 0


EMPTY_IMAGES = document([(1, 0, (10, 10, 40, 40), False), (1, 1, (90, 90, 20, 50), False)], n_images=4, n_classes=2)
NO_BOXES = document([], n_images=3, n_classes=2)
ONE_OF_THREE_CLASSES = document([(0, 1, (10, 10, 40, 40), False), (2, 1, (50, 9, 9, 9), False)], 3, 3)
ALL_CROWD = document([(0, 0, (10, 10, 200, 200), True), (1, 0, (0, 0, 90, 90), True)], n_images=2, n_classes=1)


@pytest.mark.parametrize(
    "truth", [EMPTY_IMAGES, NO_BOXES, ONE_OF_THREE_CLASSES, ALL_CROWD], ids=["empty", "none", "classes", "crowd"]
)
@pytest.mark.parametrize(
    "kept",
    [
        lambda one: True,
        lambda one: one["category_id"] == 3,  # detections of one class
        lambda one: one["image_id"] == 10,  # and in one image
        lambda one: False,  # no detections at all
    ],
    ids=["all", "one class", "one image", "none"],
)
def test_libraries_are_equal_where_something_is_missing(
    truth: dict[str, Any], kept: Callable[[dict[str, Any]], bool]
) -> None:
    figures = assert_equal((truth, [one for one in detected(truth, 5) if kept(one)]))
    with_boxes = {a["category_id"] for a in truth["annotations"] if not a["iscrowd"]}
    known = {c["name"] for c in truth["categories"] if c["id"] in with_boxes}
    assert {name for name, value in figures.per_class.items() if value is not None} == known
    if not known:
        assert (figures.map, figures.map50, figures.map75, figures.map_small) == (0.0, 0.0, 0.0, None)


def test_libraries_are_equal_at_many_images_with_few_detections() -> None:
    truth = drawn(0, n_images=700, n_classes=5, n_boxes=2)
    assert 0 < assert_equal((truth, detected(truth, 1, n_per_image=1))).map < 1


def test_equal_scores_keep_the_order_in_which_they_were_given() -> None:
    """The sort is stable in both libraries: of equal scores the earlier detection is matched first."""
    truth = document([(0, 0, (10, 10, 40, 40), False)], n_images=1, n_classes=1)
    right = {"image_id": 10, "category_id": 3, "bbox": [10, 10, 40, 40], "score": 0.5}
    wrong = right | {"bbox": [200, 200, 40, 40]}
    assert assert_equal((truth, [right, wrong])).map == 1.0
    assert assert_equal((truth, [wrong, right])).map == 0.5


def test_equal_scores_of_two_images_keep_the_order_of_the_image_ids() -> None:
    """Curves join the images by ascending id, whatever the order of the detections."""
    truth = document([(0, 0, (10, 10, 40, 40), False), (1, 0, (10, 10, 40, 40), False)], n_images=2, n_classes=1)
    first = {"image_id": 10, "category_id": 3, "bbox": [200, 200, 40, 40], "score": 0.5}
    second = first | {"image_id": 20, "bbox": [10, 10, 40, 40]}
    truth["annotations"].pop(0)
    assert assert_equal((truth, [first, second])).map == assert_equal((truth, [second, first])).map == 0.5


# --- limits and faults -----------------------------------------------------------------------------------------------


def dense(n: int) -> Case:
    """One image with ``n`` objects of one class, all found; the last is the surest."""
    truth = document([(0, 0, (5.0 * (i % 60), 5.0 * (i // 60), 4, 4), False) for i in range(n)], 1, 1)
    found = [
        {"image_id": 10, "category_id": 3, "bbox": list(a["bbox"]), "score": a["id"] / (n + 1)}
        for a in truth["annotations"]
    ]
    return truth, found


@in_each_library
def test_only_the_best_detections_of_an_image_and_class_count(library: Any) -> None:
    truth, found = dense(300)
    # 100 of 300 right: precision 1 at the recalls 0, 0.01 ... 0.33, 0 at the other 67
    assert coco_figures(truth, found, library=library).map == pytest.approx(34 / 101)
    assert coco_figures(truth, found, max_detections=300, library=library).map == 1.0
    assert coco_figures(truth, found, max_detections=3, library=library).map == pytest.approx(2 / 101)  # 0 and 0.01
    # half of them become another class, which has a limit of its own
    for number, (annotation, one) in enumerate(zip(truth["annotations"], found, strict=True)):
        annotation["category_id"] = one["category_id"] = 3 + 3 * (number % 2)
    truth["categories"].append({"id": 6, "name": "other"})
    assert coco_figures(truth, found, library=library).map == pytest.approx(67 / 101)  # 100 of 150 each


def test_libraries_are_equal_beyond_the_limit() -> None:
    truth = drawn(3, n_images=2, n_classes=2, n_boxes=40)
    case = truth, detected(truth, 3, n_per_image=450, levels=20)
    of_a_class = Counter((one["image_id"], one["category_id"]) for one in case[1])
    assert min(of_a_class.values()) > 100
    assert_equal(case)
    fast, slow = (coco_figures(*case, max_detections=900, library=one) for one in ("faster-coco-eval", "pycocotools"))
    assert fast == slow


@in_each_library
@pytest.mark.parametrize("box", [[float("nan")] * 4, [10, 10, float("inf"), 40], [10, float("-inf"), float("inf"), 1]])
def test_a_box_that_is_not_finite_detects_nothing(library: Any, box: list[float]) -> None:
    truth = document([(0, 0, (10, 10, 40, 40), False)], n_images=1, n_classes=1)
    bad = {"image_id": 10, "category_id": 3, "bbox": box, "score": 0.9}
    assert coco_figures(truth, [bad], library=library).map == 0.0
    right = bad | {"bbox": [10, 10, 40, 40], "score": 0.1}
    assert coco_figures(truth, [bad, right], library=library).map == 1.0


def test_pycocotools_itself_calls_a_nan_box_right() -> None:
    """The reason for the rule above."""
    truth = document([(0, 0, (10, 10, 40, 40), False)], n_images=1, n_classes=1)
    bad = {"image_id": 10, "category_id": 3, "bbox": [float("nan")] * 4, "score": 0.9}
    assert by_the_book((truth, [bad]))[1][0] > 0.99


def test_one_right_detection_of_one_is_perfect() -> None:
    """pycocotools says 0.9999999999999998, faster-coco-eval 1: the one difference there is, taken out."""
    truth = document([(0, 0, (10, 10, 40, 40), False)], n_images=1, n_classes=1)
    found = [{"image_id": 10, "category_id": 3, "bbox": [10, 10, 40, 40], "score": 0.9}]
    assert by_the_book((truth, found))[1][0] == 1 - 2**-52
    assert assert_equal((truth, found)).map == 1.0


@in_each_library
def test_what_is_given_is_not_changed(library: Any) -> None:
    truth = drawn(0, crowd=0.3)
    found = detected(truth, 0)
    before = repr((truth, found))
    coco_figures(truth, found, library=library)
    assert repr((truth, found)) == before


# --- the choice ------------------------------------------------------------------------------------------------------


@needs_fast
def test_the_fast_library_is_chosen_where_it_is() -> None:
    chosen_library.cache_clear()
    assert chosen_library() == "faster-coco-eval"


def test_pycocotools_is_the_fallback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # an import fails
    chosen_library.cache_clear()
    try:
        assert chosen_library() == "pycocotools"
        truth, found = dense(5)
        assert coco_figures(truth, found).map == 1.0
        assert capsys.readouterr().out == ""  # its progress is not printed
    finally:
        chosen_library.cache_clear()


# --- real images -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bccd() -> DetectionData:
    return load_data(BCCD)[0]


@needs_bccd
def test_libraries_are_equal_on_perturbed_bccd(bccd: DetectionData) -> None:
    truth = coco_ground_truth(bccd.splits["val"])
    figures = assert_equal((truth, detected(truth, 0, n_per_image=100)))
    assert 0.1 < figures.map < 0.9 and None not in figures.per_class.values()


@needs_bccd
def test_libraries_are_equal_on_detections_of_a_detector(
    bccd: DetectionData, tiny_recipe: Callable[..., Recipe]
) -> None:
    """After a few steps on BCCD, without a threshold: an image has 300 real boxes, from good to bad."""
    recipe = tiny_recipe(data=str(BCCD), detector="retinanet", weights="none", width=0.25, batch_size=4, method="full")
    model = build_detector(recipe, 3)
    model.score_thresh = 0.0
    some = replace(bccd.splits["val"], images=bccd.splits["val"].images[:30])
    train, val = (
        CocoImages(split, image_size_px=96, max_size_px=128, hflip=split.name == "train")
        for split in (bccd.splits["train"], some)
    )
    cpu, fp32 = torch.device("cpu"), Precision(None, False)
    batches = list(islice(loader(train, batch_size=4, shuffle=True, seed=0), 10))
    optimiser = make_optimiser(model, 2e-3, 1e-4)
    train_one_epoch(
        model, batches, optimiser, make_lr_schedule(optimiser, 10, 0.1), torch.amp.GradScaler("cpu"),
        device=cpu, precision=fp32, accumulate=1, clip_norm=1.0, n_batches=10,
    )  # fmt: skip
    found = [
        {"image_id": one.image_id, "category_id": bccd.category_ids[label - 1],
         "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for one in detect(model, loader(val, batch_size=4, shuffle=False, seed=0), device=cpu, precision=fp32)
        for (x1, y1, x2, y2), score, label in zip(one.boxes_xyxy, one.scores, one.labels, strict=True)
    ]  # fmt: skip
    assert len(found) == 300 * len(val)
    assert assert_equal((coco_ground_truth(some), found)).map50 > 0.001
