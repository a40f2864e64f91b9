"""Images for training: sizes, flips, batches, and the pixels that are kept or shared between trials."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_folders import picture
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cst_search.data import images as images_module
from cst_search.data.dataset import ImageEntry, Split
from cst_search.data.disk_cache import Cache, Store
from cst_search.data.images import CocoImages, loader
from cst_search.data.resize import resized_hw
from cst_search.errors import DataError


def split_of(folder: Path, sizes: list[tuple[int, int]], boxes: list[list[tuple[float, ...]]]) -> Split:
    """PNG noise of (width, height) with boxes of label 1."""
    entries = []
    for i, ((width, height), of_image) in enumerate(zip(sizes, boxes, strict=True)):
        path = folder / f"{i}.png"
        picture(path, width, height, seed=i)
        n = len(of_image)
        entries.append(ImageEntry(
            i + 1, path.name, path, width, height, tuple(of_image), (1,) * n, (0,) * n, (1.0,) * n
        ))  # fmt: skip
    return Split("train", folder / "x.json", folder, tuple(entries))


@pytest.fixture
def split(tmp_path: Path) -> Split:
    sizes = [(60, 40), (33, 71), (50, 50), (64, 48), (97, 31), (40, 60), (45, 55)]
    return split_of(tmp_path, sizes, [[(3.0, 5.0, 10.0, 20.0)]] * 6 + [[]])


@pytest.mark.parametrize("image_size_px, max_size_px", [(800, 1333), (64, 100), (97, 97), (333, 500), (49, 1000)])
def test_size_rule_leaves_nothing_for_torchvision(image_size_px: int, max_size_px: int) -> None:
    transform = GeneralizedRCNNTransform(image_size_px, max_size_px, [0.0] * 3, [1.0] * 3, size_divisible=1).eval()
    rng = np.random.default_rng(0)
    for height, width in [(480, 640), (1, 5000), (3, 3), (1080, 1920), *rng.integers(1, 1500, (15, 2)).tolist()]:
        new_h, new_w = resized_hw(height, width, image_size_px, max_size_px)
        images, _ = transform([torch.zeros(3, new_h, new_w)])
        assert images.image_sizes == [(new_h, new_w)], (height, width)
        # and it is torchvision's size but for a pixel that floats lose
        scale = min(image_size_px / min(height, width), max_size_px / max(height, width))
        assert new_h in {max(1, int(height * scale)), int(height * scale) + 1}
        assert new_w in {max(1, int(width * scale)), int(width * scale) + 1}


def test_size_rule_is_torchvisions_on_the_original() -> None:
    transform = GeneralizedRCNNTransform(80, 133, [0.0] * 3, [1.0] * 3, size_divisible=1).eval()
    for height, width in [(48, 64), (64, 48), (31, 97), (50, 50), (100, 301)]:
        images, _ = transform([torch.zeros(3, height, width)])
        assert images.image_sizes == [resized_hw(height, width, 80, 133)]


def test_an_item(split: Split) -> None:
    image, target = CocoImages(split, image_size_px=80, max_size_px=200, hflip=False)[0]  # 60x40 -> 120x80
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (3, 80, 120))
    assert 0 <= image.min() < 0.2
    assert 0.8 < image.max() <= 1
    assert target["boxes"].tolist() == [[6, 10, 26, 50]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64
    assert (target["image_id"], target["scale_xy"]) == (1, (0.5, 0.5))


def test_scale_xy_undoes_the_resizing(split: Split) -> None:
    images = CocoImages(split, image_size_px=37, max_size_px=71, hflip=False)
    for i, entry in enumerate(split.images[:-1]):
        _, target = images[i]
        sx, sy = target["scale_xy"]
        x, y, w, h = entry.boxes_xywh[0]
        back = target["boxes"][0] * torch.tensor([sx, sy, sx, sy])
        torch.testing.assert_close(back, torch.tensor([x, y, x + w, y + h]))


def test_pixels_are_those_of_the_file(split: Split) -> None:
    """At its own size an image is untouched: RGB order, no transposition."""
    image, _ = CocoImages(split, image_size_px=40, max_size_px=60, hflip=False)[0]
    stored = np.asarray(Image.open(split.images[0].path))
    assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), stored)


def test_an_image_without_boxes(split: Split) -> None:
    _, target = CocoImages(split, image_size_px=40, max_size_px=60, hflip=True)[6]
    assert {key: tuple(target[key].shape) for key in ("boxes", "labels", "iscrowd")} == {
        "boxes": (0, 4), "labels": (0,), "iscrowd": (0,),
    }  # fmt: skip


def test_crowds_are_left_out_unless_asked(tmp_path: Path) -> None:
    split = split_of(tmp_path, [(60, 40)], [[(3.0, 5.0, 10.0, 20.0), (1.0, 2.0, 3.0, 4.0)]])
    entry = ImageEntry(**{**vars(split.images[0]), "iscrowd": (1, 0), "labels": (1, 2)})
    split = Split("train", split.annotation_file, split.image_folder, (entry,))
    options = {"image_size_px": 40, "max_size_px": 60, "hflip": False}
    assert CocoImages(split, **options)[0][1]["labels"].tolist() == [2]
    assert CocoImages(split, **options, keep_crowd=True)[0][1]["iscrowd"].tolist() == [1, 0]


def test_boxes_mirror_with_the_pixels(tmp_path: Path) -> None:
    """A white box on black: after any flip, the box must frame exactly the white pixels."""
    split = split_of(tmp_path, [(41, 30)] * 12, [[(5.0, 4.0, 9.0, 20.0)]] * 12)
    for entry in split.images:
        pixels = np.zeros((30, 41, 3), np.uint8)
        pixels[4:24, 5:14] = 255
        Image.fromarray(pixels).save(entry.path)
    images = CocoImages(split, image_size_px=30, max_size_px=41, hflip=True)
    lefts = []
    for i in range(12):
        image, target = images[i]
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        assert image[:, y1:y2, x1:x2].min() == 1
        assert image.sum() == 3 * (x2 - x1) * (y2 - y1)
        lefts.append(x1)
    assert set(lefts) == {5, 41 - 14}, "some are flipped, some are not"


def flips(images: CocoImages) -> list[float]:
    return [images[i][0][0, 0, 0].item() for i in range(len(images))]


def test_flips_depend_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    split = split_of(tmp_path, [(20, 16)] * 64, [[]] * 64)
    images = CocoImages(split, image_size_px=16, max_size_px=20, hflip=True)
    plain = flips(CocoImages(split, image_size_px=16, max_size_px=20, hflip=False))
    drawn = {}
    for epoch, seed in [(0, 0), (1, 0), (0, 1), (0, 0)]:
        images.set_epoch(epoch, seed)
        drawn.setdefault((epoch, seed), []).append(flips(images))
    assert drawn[0, 0][0] == drawn[0, 0][1]
    assert len({tuple(d[0]) for d in drawn.values()}) == 3
    n_flipped = sum(a != b for a, b in zip(plain, drawn[0, 0][0], strict=True))
    assert 16 < n_flipped < 48  # 32 +- 4 standard deviations


def epochs(split: Split, workers: int, **options: Any) -> list[tuple[int, bytes, list[list[float]]]]:
    images = CocoImages(split, image_size_px=30, max_size_px=60, hflip=True, **options)
    seen = []
    for epoch in range(3):
        for batch, targets in loader(images, batch_size=2, shuffle=True, seed=5, epoch=epoch, workers=workers):
            seen += [
                (t["image_id"], image.numpy().tobytes(), t["boxes"].tolist())
                for image, t in zip(batch, targets, strict=True)
            ]
    return seen


def test_the_same_batches_for_any_number_of_workers(split: Split) -> None:
    before = torch.get_rng_state()
    alone = epochs(split, workers=0)
    orders = [[item[0] for item in alone[7 * epoch : 7 * epoch + 7]] for epoch in range(3)]
    assert all(sorted(order) == list(range(1, 8)) for order in orders)
    assert orders[0] != orders[1], "epochs differ in order"
    assert len({item[:2] for item in alone}) > 7, "and in what is flipped"
    assert epochs(split, workers=2) == alone
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"


@pytest.mark.parametrize("cache_bytes", [0, 1, 10_000, 2**30])  # 0, none fits, some fit, all fit
def test_keeping_pixels_does_not_change_them(split: Split, cache_bytes: int) -> None:
    assert epochs(split, workers=0, cache_bytes=cache_bytes) == epochs(split, workers=0, cache_bytes=0)


def test_kept_pixels_are_not_read_again_not_even_by_workers(split: Split) -> None:
    images = CocoImages(split, image_size_px=30, max_size_px=60, hflip=True)
    options = {"batch_size": 2, "shuffle": True, "seed": 0}
    first = [t["image_id"] for _, targets in loader(images, **options, workers=2) for t in targets]
    for entry in split.images:
        entry.path.unlink()
    again = [t["image_id"] for _, targets in loader(images, **options) for t in targets]
    assert again == first
    with pytest.raises(DataError, match="cannot be read"):
        pickle.loads(pickle.dumps(images))[0]  # a copy starts empty


def test_kept_bytes_are_bounded(split: Split) -> None:
    images = CocoImages(split, image_size_px=30, max_size_px=60, hflip=False, cache_bytes=2 * 3 * 30 * 64)
    for i in range(len(images)):
        images[i]
    kept = [i for i in range(len(images)) if images._kept.get(i) is not None]
    assert kept == [0, 1]  # 45x30 and 27x60 or so; the third does not fit


def test_an_item_can_be_written_to_without_harm(split: Split) -> None:
    images = CocoImages(split, image_size_px=30, max_size_px=60, hflip=False)
    first = images[0][0].clone()
    images[0][0].zero_()
    assert torch.equal(images[0][0], first)


def test_a_file_that_changed_after_the_check_is_an_error(split: Split) -> None:
    picture(split.images[0].path, 10, 10)
    with pytest.raises(DataError, match="is 10x10, and was 60x40 when it was checked"):
        CocoImages(split, image_size_px=30, max_size_px=60, hflip=False)[0]


# --- pixels that trials share -----------------------------------------------------------------------------------------


def shared(split: Split, folder: Path, image_size_px: int = 30, bound: int = 10**8) -> CocoImages:
    return CocoImages(
        split, image_size_px=image_size_px, max_size_px=60, hflip=False, store=Store(Cache(folder, bound))
    )


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Filled with the names of the files that are decoded."""
    found: list[str] = []
    read = images_module._read_resized
    monkeypatch.setattr(images_module, "_read_resized", lambda e, size: found.append(e.file_name) or read(e, size))
    return found


def test_shared_pixels_are_decoded_once(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = CocoImages(split, image_size_px=30, max_size_px=60, hflip=False, cache_bytes=0)
    decoded = reads(monkeypatch)
    first, second = shared(split, tmp_path / "cache"), shared(split, tmp_path / "cache")
    for i in range(len(split.images)):
        for images in (first, second, pickle.loads(pickle.dumps(first))):
            assert torch.equal(images[i][0], plain[i][0])
    assert decoded.count("0.png") == 1 + 3  # once for all that share, and each time without
    del first, second
    decoded.clear()
    shared(split, tmp_path / "cache")[0]  # a later launch
    assert decoded == []


def test_shared_pixels_of_a_file_that_changed_or_another_size_are_others(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = shared(split, tmp_path / "cache")
    keys = {before.content_key(), shared(split, tmp_path / "cache", image_size_px=31).content_key()}
    old = before[0][0]
    picture(split.images[0].path, 60, 40, seed=99)
    after = shared(split, tmp_path / "cache")
    assert len({after.content_key(), *keys}) == 3
    assert not torch.equal(after[0][0], old)


def test_shared_pixels_beyond_the_bound_are_decoded_each_time(
    split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = reads(monkeypatch)
    images = shared(split, tmp_path / "cache", bound=3 * 10**4)  # not all fit: half of it, two of 4 kB
    for _ in range(2):
        for i in range(len(images)):
            images[i]
    assert len(split.images) < len(decoded) < 2 * len(split.images)
