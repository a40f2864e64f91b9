"""The embedded demo: a small synthetic detection dataset in COCO layout. Needs no download.

Six classes share three outlines, so the outline alone never determines the class:

=========  =======  ====================  ========================
class      outline  colours               marking
=========  =======  ====================  ========================
melon      disc     greens                stripes up and down
planet     disc     violet to orange      stripes left to right
crate      box      browns, yellows       a frame, crossed planks
die        box      blues, violets        pips
lantern    diamond  red to orange         facets
gem        diamond  blues                 facets
=========  =======  ====================  ========================

Plain discs and boxes, diamonds of other colours, rings, triangles and sticks are distractors without a class. The
backbone weights shipped for the demo (`tools/train_demo_backbone.py`) were trained on images in which the outline is
the class, and colour and marking mean nothing. Its deep features hold little of what the demo asks for; its early ones
still do. So the demo rewards methods that adapt the backbone, like a domain shift in practice.

Uses numpy and Pillow only: torchvision and pycocotools depend on both, and a trial must run with no more than these.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cst_search.errors import ConfigError

Array = NDArray[np.floating[Any]]

VERSION = 2  # raise it whenever a drawn pixel or a box changes: sets of another version are then redrawn
CATEGORIES = ("melon", "planet", "crate", "die", "lantern", "gem")  # category ids are 1..6 in this order
IMAGE_SIZE_PX = 128
N_TRAIN, N_VAL = 200, 60
MARKER = "demo.json"
_SPLITS = ("train", "val")
_SUPERSAMPLE = 2  # samples per pixel side inside an object, for smooth edges
_MIN_VISIBLE = 0.6  # an object is not drawn if it would leave less than this share of an earlier one visible
_DISTRACTORS = ("disc", "box", "diamond", "ring", "triangle", "stick")


def write_demo(folder: Path, *, n_train: int = N_TRAIN, n_val: int = N_VAL, seed: int = 0) -> Path:
    """Draw the demo dataset into ``folder`` unless it is already there, and return ``folder``.

    Layout: ``train.json``, ``val.json`` (COCO instances) beside ``train/`` and ``val/`` (128 x 128 px RGB PNG).
    An image depends only on ``(seed, split, index)``. The folder appears complete or not at all.

    Args:
        n_train, n_val: number of images per split, at least 6, so that every class is present.

    Raises:
        ConfigError: there are fewer images than classes, or ``folder`` holds something else.
    """
    if min(n_train, n_val) < len(CATEGORIES):
        raise ConfigError(
            f"each split of the demo needs at least {len(CATEGORIES)} images; got n_train={n_train}, n_val={n_val}"
        )
    marker = {"version": VERSION, "n_train": n_train, "n_val": n_val, "seed": seed}
    if _marker(folder) == marker:
        return folder
    if folder.exists() and _marker(folder) is None and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not a demo data set; remove it or choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        for split, n_images in zip(_SPLITS, (n_train, n_val), strict=True):
            _write_split(fresh, split, n_images, seed)
        (fresh / MARKER).write_text(json.dumps(marker) + "\n")
        _publish(fresh, folder, marker, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _publish(fresh: Path, folder: Path, marker: dict[str, int], scratch: Path) -> None:
    """Move ``fresh`` to ``folder``, after moving an old set away. Several processes may do so at once."""
    for attempt in range(3):
        if _marker(folder) == marker:
            return  # another process was faster: its bytes are the same, and may already be in use
        try:
            if folder.exists():
                os.replace(folder, scratch / f"old-{attempt}")
            os.replace(fresh, folder)
            return
        except OSError:
            if attempt == 2:
                raise


def _marker(folder: Path) -> Any:
    """Return the content of the marker file of a complete set, or None if there is none."""
    try:
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return None


def _write_split(folder: Path, split: str, n_images: int, seed: int) -> None:
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(n_images):
        pixels, boxes, labels = draw_image(seed, split, index)
        name = f"{index + 1:06d}.png"
        Image.fromarray(pixels).save(
            folder / split / name, compress_level=1
        )  # 3 x faster than the default, 10 % larger
        images.append({"id": index + 1, "file_name": name, "width": IMAGE_SIZE_PX, "height": IMAGE_SIZE_PX})
        for (x, y, w, h), label in zip(boxes, labels, strict=True):
            row = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": label, "bbox": [x, y, w, h]}
            annotations.append(row | {"area": w * h, "iscrowd": 0})
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
    content = {"info": {"description": f"cst-search demo, version {VERSION}"}, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(content | {"images": images, "annotations": annotations}))


def draw_image(
    seed: int, split: str, index: int
) -> tuple[NDArray[np.uint8], list[tuple[float, float, float, float]], list[int]]:
    """Draw one image of the set. Returns pixels (128, 128, 3), boxes xywh in pixels, and category ids."""
    rng = np.random.default_rng([seed, _SPLITS.index(split), index])
    scene = Scene(rng, IMAGE_SIZE_PX, background(rng, IMAGE_SIZE_PX))
    labels = [index % len(CATEGORIES) + 1, *rng.integers(1, len(CATEGORIES) + 1, size=rng.integers(1, 5)).tolist()]
    plan = labels + [0] * int(rng.integers(1, 4))  # 0: a distractor
    boxes: list[tuple[float, float, float, float]] = []
    kept: list[int] = []
    # the class assigned to the index comes first, so that no other object can prevent it from being drawn
    for label in [plan[0], *rng.permutation(plan[1:]).tolist()]:
        outline, paint = _object(rng, CATEGORIES[label - 1]) if label else _distractor(rng)
        box = scene.add(outline, paint, size_px=float(rng.triangular(18, 36, 60)), counts=bool(label))
        if label and box:
            boxes.append(box)
            kept.append(label)
    return finish(rng, scene.pixels, noise=0.03), boxes, kept


# --- appearance of the classes ---------------------------------------------------------------------------------------
# Local coordinates u, v: the object fills [-1, 1]. An outline maps them to inside or outside, a paint to RGB in 0..1.

Outline = Callable[[Array, Array], NDArray[np.bool_]]
Paint = Callable[[Array, Array], Array]

OUTLINES: dict[str, Outline] = {
    "disc": lambda u, v: u**2 + v**2 < 1,
    "box": lambda u, v: np.maximum(abs(u), abs(v)) < 0.88,
    "diamond": lambda u, v: abs(u) + abs(v) < 1,
    "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.4),
    "triangle": lambda u, v: (v < 0.8) & (v > 2 * abs(u) - 0.9),
    "stick": lambda u, v: (abs(u) < 0.2) & (abs(v) < 1),
}


HUES = {  # range of the class's hues, in turns
    "melon": (0.2, 0.42),
    "planet": (0.72, 1.08),
    "crate": (0.02, 0.14),
    "die": (0.5, 0.8),
    "lantern": (-0.03, 0.11),
    "gem": (0.5, 0.66),
}


def _object(rng: np.random.Generator, name: str) -> tuple[Outline, Paint]:
    first, second = _two_tones(rng, HUES[name])
    if name in ("melon", "planet"):
        n_stripes, phase = rng.uniform(2.2, 3.6), rng.uniform(0, 2 * np.pi)

        def stripes(u: Array, v: Array) -> NDArray[np.bool_]:
            return np.sin(np.pi * n_stripes * (u if name == "melon" else v) + phase) > 0

        return OUTLINES["disc"], _two_tone(first, second, stripes)
    if name == "crate":

        def planks(u: Array, v: Array) -> NDArray[np.bool_]:
            return (abs(abs(u) - abs(v)) < 0.22) | (np.maximum(abs(u), abs(v)) > 0.7)

        return OUTLINES["box"], _two_tone(first, second, planks)
    if name == "die":
        corner = rng.uniform(0.42, 0.52)

        def pips(u: Array, v: Array) -> NDArray[np.bool_]:
            return np.minimum((abs(u) - corner) ** 2 + (abs(v) - corner) ** 2, u**2 + v**2) < 0.05

        return OUTLINES["box"], _two_tone(first, second, pips)
    return OUTLINES["diamond"], _facets(rng, HUES[name])


def _distractor(rng: np.random.Generator) -> tuple[Outline, Paint]:
    name = str(rng.choice(_DISTRACTORS))
    if name == "diamond":
        return OUTLINES[name], _facets(rng, (0.22, 0.4) if rng.random() < 0.5 else (0.76, 0.88))
    tone = _two_tones(rng, (0, 1))[0]
    return OUTLINES[name], _two_tone(tone, tone, lambda u, v: u > 0)


def _two_tones(rng: np.random.Generator, hues: tuple[float, float]) -> tuple[Array, Array]:
    """Return a dark and a light colour in random order, so that it tells nothing which of them is the marking."""
    values = [rng.uniform(0.2, 0.45), rng.uniform(0.75, 1.0)]
    tones = [hsv(rng.uniform(*hues), rng.uniform(0.4, 0.9), value) for value in values]
    return (tones[0], tones[1]) if rng.random() < 0.5 else (tones[1], tones[0])


def _two_tone(first: Array, second: Array, where: Callable[[Array, Array], NDArray[np.bool_]]) -> Paint:
    def paint(u: Array, v: Array) -> Array:
        shade = (1 - 0.18 * (u + v))[..., None]  # the same soft light from the upper left on every object
        return np.where(where(u, v)[..., None], first, second) * shade

    return paint


def _facets(rng: np.random.Generator, hues: tuple[float, float]) -> Paint:
    """Return a paint of four facets of one hue with random brightness."""
    hue = rng.uniform(*hues)
    facets = np.stack([hsv(hue, rng.uniform(0.55, 0.95), value) for value in rng.uniform(0.45, 1.0, size=4)])
    return lambda u, v: facets[2 * (u > 0) + (v > 0)]


# --- drawing, shared with the source domain of the backbone ----------------------------------------------------------


class Scene:
    """A picture to which objects are added, each in front of the earlier ones.

    Attributes:
        pixels: (S, S, 3) float RGB in 0..1.
    """

    def __init__(self, rng: np.random.Generator, size_px: int, pixels: Array) -> None:
        self.rng, self.size_px, self.pixels = rng, size_px, pixels
        self._visible: list[tuple[NDArray[np.bool_], int]] = []  # per counted object: its visible part, its whole area

    def add(
        self, outline: Outline, paint: Paint, size_px: float, counts: bool = True, tilt: float = 0.22
    ) -> tuple[float, float, float, float] | None:
        """Draw one object at a sufficiently free position.

        Args:
            size_px: longer side before the rotation.
            counts: the object has a label, so later ones must not hide most of it.
            tilt: largest rotation in radians, either way.

        Returns:
            Tight box xywh in pixels around the whole object, hidden parts included, clipped to the image. None if no
            position was found.
        """
        rng, s = self.rng, self.size_px
        angle, aspect = rng.uniform(-tilt, tilt), rng.uniform(0.72, 1.0)
        half = np.array([1.0, aspect] if rng.random() < 0.5 else [aspect, 1.0]) * size_px / 2
        for _ in range(8):
            center = rng.uniform(0.3 * size_px, s - 0.3 * size_px, size=2)  # up to a fifth may lie outside
            x0, y0 = np.maximum(np.floor(center - 0.75 * size_px), 0).astype(int)
            x1, y1 = np.minimum(np.ceil(center + 0.75 * size_px), s).astype(int)
            u, v = _local(x0, y0, x1, y1, center, half, angle)
            cover = _pool(outline(u, v).astype(np.float32))
            mask = np.zeros((s, s), bool)
            mask[y0:y1, x0:x1] = cover > 0.5
            if mask.sum() < 40 or not self._leaves_others_visible(mask):
                continue
            patch = self.pixels[y0:y1, x0:x1]
            color = _pool(paint(u, v).astype(np.float32))
            self.pixels[y0:y1, x0:x1] = patch + cover[..., None] * (color - patch)
            self._visible = [(seen & ~mask, area) for seen, area in self._visible]
            if counts:
                self._visible.append((mask, int(mask.sum())))
            columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            left, top = float(columns[0]), float(rows[0])
            return left, top, float(columns[-1]) + 1 - left, float(rows[-1]) + 1 - top
        return None

    def _leaves_others_visible(self, mask: NDArray[np.bool_]) -> bool:
        return all((seen & ~mask).sum() >= _MIN_VISIBLE * area for seen, area in self._visible)


def _local(x0: int, y0: int, x1: int, y1: int, center: Array, half: Array, angle: float) -> tuple[Array, Array]:
    """Return local coordinates u, v of a pixel window's samples, each (h * k, w * k) for k samples per pixel side."""
    k = _SUPERSAMPLE
    x = x0 + (np.arange((x1 - x0) * k, dtype=np.float32) + 0.5) / k - center[0]
    y = (y0 + (np.arange((y1 - y0) * k, dtype=np.float32) + 0.5) / k - center[1])[:, None]
    return (x * np.cos(angle) + y * np.sin(angle)) / half[0], (y * np.cos(angle) - x * np.sin(angle)) / half[1]


def _pool(samples: Array) -> Array:
    """Average the samples of each pixel: (h * k, w * k, ...) -> (h, w, ...)."""
    k = _SUPERSAMPLE
    h, w = samples.shape[0] // k, samples.shape[1] // k
    pooled: Array = samples.reshape(h, k, w, k, *samples.shape[2:]).mean(axis=(1, 3))
    return pooled


def hsv(hue: float, saturation: float, value: float) -> Array:
    """Convert HSV to RGB (3,) in 0..1; the hue is in turns."""
    k = (np.array([5.0, 3.0, 1.0]) + 6 * hue) % 6
    return (value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))).astype(np.float32)


def smooth_noise(rng: np.random.Generator, size_px: int, cells: tuple[int, int], channels: int = 1) -> Array:
    """Return noise (S, S, channels) in about -1..1: a random ``cells`` grid (rows, columns), enlarged bicubically."""
    grid = rng.uniform(-1, 1, size=(*cells, channels)).astype(np.float32)
    size = (size_px, size_px)
    return np.stack(
        [np.asarray(Image.fromarray(grid[..., i]).resize(size, Image.Resampling.BICUBIC)) for i in range(channels)], -1
    )


def background(rng: np.random.Generator, size_px: int) -> Array:
    """Return a textured background with clutter: (S, S, 3) float RGB in about 0..1."""
    ground = hsv(rng.random(), rng.uniform(0.05, 0.5), rng.uniform(0.3, 0.75)) + 0.12 * smooth_noise(
        rng, size_px, (4, 4), 3
    )
    kind, strength = rng.integers(4), rng.uniform(0.04, 0.14)
    if kind == 0:  # blotches
        ground = ground + strength * smooth_noise(rng, size_px, (16, 16))
    elif kind == 1:  # wood grain
        cells = (48, 4) if rng.random() < 0.5 else (4, 48)
        ground = ground + strength * smooth_noise(rng, size_px, cells)
    elif kind == 2:  # tiles
        pitch = int(rng.integers(14, 30))
        joint = (np.arange(size_px) + rng.integers(pitch)) % pitch < 2
        ground = ground - 1.5 * strength * (joint[:, None] | joint[None, :])[..., None]
    else:  # coarse sand
        ground = ground + strength * smooth_noise(rng, size_px, (64, 64))
    scene = Scene(rng, size_px, ground.astype(np.float32))
    for _ in range(int(rng.integers(2, 8))):  # crumbs and twigs, too small or too thin to pass for an object
        tone = np.clip(hsv(rng.random(), 0.4, rng.uniform(0.1, 0.9)), 0, 1)
        shape = OUTLINES["stick"] if rng.random() < 0.5 else OUTLINES["disc"]
        length = rng.uniform(20, 50) if shape is OUTLINES["stick"] else rng.uniform(7, 9)
        scene.add(
            _thin(shape) if shape is OUTLINES["stick"] else shape, _flat(tone), float(length), counts=False, tilt=3.1
        )
    return scene.pixels


def _thin(outline: Outline) -> Outline:
    return lambda u, v: outline(3 * u, v)


def _flat(tone: Array) -> Paint:
    return lambda u, v: np.broadcast_to(tone, (*u.shape, 3))


def finish(rng: np.random.Generator, pixels: Array, noise: float) -> NDArray[np.uint8]:
    """Apply uneven light, exposure, colour cast, slight blur and noise. (S, S, 3) float -> uint8.

    Args:
        noise: upper bound of the noise's standard deviation, in 0..1.
    """
    size_px = pixels.shape[0]
    light = rng.uniform(0.75, 1.15) + 0.2 * smooth_noise(rng, size_px, (2, 2))
    cast = rng.uniform(0.93, 1.07, size=3).astype(np.float32)
    image = np.clip(pixels * light * cast, 0, 1)
    if rng.random() < 0.3:
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
        image = 0.5 * image + 0.125 * (padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2])
    image = image + rng.uniform(0.005, noise) * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
