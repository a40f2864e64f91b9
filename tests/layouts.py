"""Write a data set of our layout in those of other tools, as these write them: what the readers are tested with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

Document = dict[str, Any]


def documents(source: Path) -> Iterator[tuple[str, Document]]:
    """Train and val of a data set in our layout."""
    for split in ("train", "val"):
        yield split, json.loads((source / f"{split}.json").read_text())


def boxes_of(document: Document, image: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in document["annotations"] if a["image_id"] == image["id"]]


def link(source: Path, split: str, file_name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    os.link(source / split / file_name, target)


def ours(source: Path, out: Path) -> Path:
    for split, document in documents(source):
        for image in document["images"]:
            link(source, split, image["file_name"], out / split / image["file_name"])
        (out / f"{split}.json").write_text(json.dumps(document))
    return out


def single_json(source: Path, out: Path) -> Path:
    """CVAT's COCO export of a task: one file and one folder of images."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for split, document in documents(source):
        base = max((image["id"] for image in images), default=0)
        for image in document["images"]:
            file_name = f"{split}-{image['file_name']}"  # both splits may have a 0.png
            link(source, split, image["file_name"], out / "images" / file_name)
            images.append(image | {"id": base + image["id"], "file_name": file_name})
        annotations += [a | {"image_id": base + a["image_id"]} for a in document["annotations"]]
    annotations = [a | {"id": i} for i, a in enumerate(annotations, start=1)]
    (out / "annotations").mkdir()
    content = {"images": images, "annotations": annotations, "categories": document["categories"]}
    (out / "annotations" / "instances_default.json").write_text(json.dumps(content))
    return out


def roboflow(source: Path, out: Path) -> Path:
    """Roboflow's COCO export: ids from 0, and a category for the project before the classes."""
    for split, document in documents(source):
        folder = out / {"train": "train", "val": "valid"}[split]
        for image in document["images"]:
            link(source, split, image["file_name"], folder / image["file_name"])
        ids = {category["id"]: i for i, category in enumerate(document["categories"], start=1)}
        images = {image["id"]: i for i, image in enumerate(document["images"])}
        content = {
            "categories": [
                {"id": 0, "name": "things", "supercategory": "none"},
                *({"id": ids[c["id"]], "name": c["name"], "supercategory": "things"} for c in document["categories"]),
            ],
            "images": [image | {"id": images[image["id"]], "license": 1} for image in document["images"]],
            "annotations": [
                a | {"id": i, "image_id": images[a["image_id"]], "category_id": ids[a["category_id"]],
                     "segmentation": []}
                for i, a in enumerate(document["annotations"])
            ],
        }  # fmt: skip
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return out


def yolo(source: Path, out: Path, digits: int = 6) -> Path:
    """Ultralytics' layout; shares with six decimals, as its converters write them."""
    for split, document in documents(source):
        numbers = {category["id"]: i for i, category in enumerate(document["categories"])}
        for image in document["images"]:
            link(source, split, image["file_name"], out / "images" / split / image["file_name"])
            rows = []
            for a in boxes_of(document, image):
                x, y, w, h = a["bbox"]
                width, height = image["width"], image["height"]
                shares = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
                rows.append(" ".join([str(numbers[a["category_id"]]), *(f"{share:.{digits}f}" for share in shares)]))
            label_file = (out / "labels" / split / image["file_name"]).with_suffix(".txt")
            label_file.parent.mkdir(parents=True, exist_ok=True)
            if rows:  # an image without objects has no file
                label_file.write_text("\n".join(rows) + "\n")
    names = "\n".join(f"  {i}: {json.dumps(c['name'])}" for i, c in enumerate(document["categories"]))
    (out / "data.yaml").write_text(f"path: ../datasets/set\ntrain: images/train\nval: images/val\nnames:\n{names}\n")
    return out


def voc_xml(image: dict[str, Any], objects: list[tuple[str, tuple[float, ...]]], database: str) -> str:
    """An annotation file; objects are (class, (xmin, ymin, xmax, ymax))."""
    size = f"<size><width>{image['width']}</width><height>{image['height']}</height><depth>3</depth></size>"
    parts = [
        f"<object><name>{escape(name)}</name><pose>Unspecified</pose><truncated>0</truncated>"
        "<difficult>0</difficult><bndbox>"
        + "".join(f"<{k}>{v:g}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
        + "</bndbox></object>"
        for name, corners in objects
    ]
    return (
        f"<annotation><folder>x</folder><filename>{escape(image['file_name'])}</filename><source><database>{database}"
        f"</database></source>{size}<segmented>0</segmented>{''.join(parts)}</annotation>"
    )


def voc(source: Path, out: Path) -> Path:
    """VOC's layout as CVAT fills it: positions from 0 with two decimals, and the classes in labelmap.txt."""
    (out / "ImageSets" / "Main").mkdir(parents=True)
    (out / "Annotations").mkdir()
    for split, document in documents(source):
        names = {category["id"]: category["name"] for category in document["categories"]}
        stems = []
        for image in document["images"]:
            file_name = f"{split}-{image['file_name']}"
            link(source, split, image["file_name"], out / "JPEGImages" / file_name)
            objects = [(names[a["category_id"]], _corners(a["bbox"])) for a in boxes_of(document, image)]
            file = (out / "Annotations" / file_name).with_suffix(".xml")
            file.write_text(voc_xml(image | {"file_name": file_name}, objects, "Unknown"))
            stems.append(file.stem)
        (out / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", *(f"{name}:1,2,3::" for name in names.values())]
    (out / "labelmap.txt").write_text("\n".join(lines) + "\n")
    return out


def _corners(bbox: list[float]) -> tuple[float, ...]:
    x, y, w, h = bbox
    return tuple(round(value, 2) for value in (x, y, x + w, y + h))


WRITERS: dict[str, Callable[[Path, Path], Path]] = {
    "ours": ours, "single_json": single_json, "roboflow": roboflow, "yolo": yolo, "voc": voc,
}  # fmt: skip
