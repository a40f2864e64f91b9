"""A tiny COCO folder and recipes that train on it within a second, for whatever runs trials.

Needs no more than a trial does, so that tests/test_gpu.py runs where there is just torch, torchvision and pycocotools:
benchmarks/gpu_session.py runs it with these fixtures as a plugin, without conftest.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.models.detection import FasterRCNN

from cst_search.backbone.resnet import Body
from cst_search.config.recipe import GROUP_NORM_DETECTORS, Recipe
from cst_search.data.dataset import DetectionData, load_data

# tensors of a few thousand numbers: handing them to a second thread costs more than it saves
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


# ids with holes, so that a label taken for a category id shows
CATEGORIES = {2: ("square", "red"), 5: ("disc", "lime"), 9: ("bar", "blue")}
N_IMAGES = {"train": 8, "val": 4, "test": 2}
SIZES = ((96, 64), (64, 96), (80, 80), (72, 64))  # (width, height): a batch that must be padded both ways
EMPTY = ("train", 3)  # the image without boxes


def _draw(path: Path, split: str, index: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write one image with one to three objects; its COCO entry and its annotations, without ids."""
    width, height = SIZES[index % len(SIZES)]
    image = Image.new("RGB", (width, height), (90 + 9 * index, 100, 110 + len(split)))
    draw = ImageDraw.Draw(image)
    boxes = []
    for n in range(0 if (split, index) == EMPTY else 1 + index % 3):
        category = list(CATEGORIES)[(index + n) % 3]
        name, colour = CATEGORIES[category]
        x, y = 3 + 19 * n + index, 5 + 11 * ((index + n) % 3)
        w, h = (18, 18) if name != "bar" else (16, 9)
        (draw.ellipse if name == "disc" else draw.rectangle)((x, y, x + w - 1, y + h - 1), fill=colour)
        boxes.append({"category_id": category, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
    image.save(path)
    return {"file_name": path.name, "width": width, "height": height}, boxes


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder: 8 training images (one without boxes), 4 for validation, 2 for test; three classes."""
    folder = tmp_path_factory.mktemp("tiny") / "shapes"
    for split, n_images in N_IMAGES.items():
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(n_images):
            image, boxes = _draw(folder / split / f"{index}.png", split, index)
            images.append({"id": 10 + index, **image})
            annotations += [{"image_id": 10 + index, **box} for box in boxes]
        content = {
            "images": images,
            "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, 1)],
            "categories": [{"id": i, "name": name} for i, (name, _) in CATEGORIES.items()],
        }
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_folder: Path) -> DetectionData:
    """`tiny_folder`, read. Do not change it."""
    return load_data(tiny_folder)[0]


@pytest.fixture
def few_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faster R-CNN with a twentieth of its proposals: of a tiny trial its box head takes four fifths of the time."""
    few = {"rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 50, "box_batch_size_per_image": 32}
    monkeypatch.setattr("torchvision.models.detection.FasterRCNN", partial(FasterRCNN, **few))


def random_body_state(backbone: str, width: float, seed: int = 0) -> dict[str, torch.Tensor]:
    """A body's tensors under torchvision's names, with statistics as training leaves them: none is 0 or 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state = Body(backbone, width, frozen_norm=False).state_dict()
        for name, tensor in state.items():
            if name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight", "downsample.1.weight")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
    return state


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, float], str]:
    """(backbone, width) -> path of a file with random weights for it, which stand for pre-trained ones."""
    folder = tmp_path_factory.mktemp("weights")

    @lru_cache
    def write(backbone: str, width: float) -> str:
        path = folder / f"{backbone}-{width:g}.pt"
        torch.save(random_body_state(backbone, width), path)
        return str(path)

    return write


@pytest.fixture(scope="session")
def tiny_recipe(tiny_folder: Path, weights_file: Callable[[str, float], str]) -> Callable[..., Recipe]:
    """``tiny_recipe(**changes)`` -> a recipe that trains on `tiny_folder`, on a frozen base of random weights."""

    def make(**changes: Any) -> Recipe:
        values: dict[str, Any] = {
            "detector": "fcos",
            "backbone": "resnet18",
            "width": 0.125,
            # the least that 32 groups of a norm can have
            "fpn_channels": 64 if changes.get("detector", "fcos") in GROUP_NORM_DETECTORS else 16,
            "head_convs": 1,
            "anchor_scale": 0.5,
            "data": str(tiny_folder),
            "image_size_px": 64,
            "max_size_px": 96,
            "epochs": 1,
            "search_epochs": 1,
            "batch_size": 2,
        } | changes
        values.setdefault("weights", weights_file(values["backbone"], values["width"]))
        return Recipe(**values)

    return make
