"""Pictures of which every pixel is known, stored in the ways in which cameras, scanners and tools store them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.decoding import open_image
from cst_search.data.images import CocoImages
from cst_search.data.options import ReadOptions
from cst_search.data.pixels import inspect_image, shown_size
from cst_search.data.validation.findings import DataReport
from cst_search.errors import DataError

WIDTH, HEIGHT = 60, 40  # of the picture as shown
BOX = (6, 10, 20, 8)  # x, y, width, height on the picture as shown
SIDEWAYS = (5, 6, 7, 8)
# undoes an orientation; the meaning of each is that of Exif 3.0, section 4.6.5.1.5
TO_STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, 1),  # shown by turning it clockwise
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p, -1),
}


def shown_picture(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Noise with a white object in BOX: no turn leaves it as it is."""
    pixels = np.random.default_rng(seed).integers(0, 128, (height, width, 3), dtype=np.uint8)
    x, y, w, h = BOX
    pixels[y : y + h, x : x + w] = 255
    return pixels


def save(path: Path, pixels: np.ndarray, orientation: int = 1, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, **options)


def save_shown(path: Path, orientation: int, seed: int = 0, **options: Any) -> None:
    save(path, TO_STORED[orientation](shown_picture(seed)), orientation, **options)


def entry(name: str, size: tuple[int, int] | None, box: tuple[int, ...] = BOX) -> dict[str, Any]:
    return {"file_name": name, "box": box} | ({} if size is None else {"width": size[0], "height": size[1]})


def write(folder: Path, train: list[dict[str, Any]]) -> Path:
    """A data set of these entries with one plain validation image; the images in train/ are there already."""
    save(folder / "val" / "v.png", shown_picture(99))
    for name, entries in (("train", train), ("val", [entry("v.png", (WIDTH, HEIGHT))])):
        document = {
            "images": [
                {"id": i} | {key: value for key, value in one.items() if key != "box"} for i, one in enumerate(entries)
            ],
            "annotations": [
                {"id": i, "image_id": i, "category_id": 1, "bbox": one["box"]} for i, one in enumerate(entries)
            ],
            "categories": [{"id": 1, "name": "object"}],
        }
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def item(data: DetectionData, i: int, *, size_px: int | None = None) -> tuple[np.ndarray, list[float]]:
    """The pixels (H, W, 3) and the first box of a training image, not resized."""
    image = data.splits["train"].images[i]
    short, long = sorted((image.width, image.height))
    images = CocoImages(data.splits["train"], image_size_px=size_px or short, max_size_px=long, hflip=False)
    pixels, target = images[i]
    return (pixels.numpy().transpose(1, 2, 0) * 255).round().astype(np.uint8), target["boxes"][0].tolist()


def notes(report: DataReport) -> dict[str, int]:
    return {note.kind: note.count for note in report.notes}


def fault(folder: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_data(folder, ReadOptions(**options))
    return str(caught.value)


# --- EXIF orientation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_boxes_were_drawn(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The second image says which picture the tool showed; the first may have the same size either way."""
    options = {"webp": {"lossless": True}}.get(suffix, {})
    save_shown(tmp_path / "train" / f"a.{suffix}", orientation, **options)
    save_shown(tmp_path / "train" / f"b.{suffix}", 8, seed=1, **options)
    names = [f"a.{suffix}", f"b.{suffix}"]
    data, report = load_data(write(tmp_path, [entry(name, (WIDTH, HEIGHT)) for name in names]))
    pixels, box = item(data, 0)
    np.testing.assert_array_equal(pixels, shown_picture())
    assert box == [6, 10, 26, 18] and (pixels[10:18, 6:26] == 255).all()
    np.testing.assert_array_equal(item(data, 1)[0], shown_picture(1))
    assert notes(report) == {"exif-shown": 1 + (orientation != 1)}
    viewer = ImageOps.exif_transpose(Image.open(tmp_path / "train" / names[0]))
    np.testing.assert_array_equal(np.asarray(viewer), shown_picture())


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_left_as_stored_if_its_boxes_lie_on_that(tmp_path: Path, orientation: int, suffix: str) -> None:
    names, stored = [f"a.{suffix}", f"b.{suffix}"], shown_picture(0)
    save(tmp_path / "train" / names[0], stored, orientation)
    save(tmp_path / "train" / names[1], shown_picture(1), 6)
    data, report = load_data(write(tmp_path, [entry(name, (WIDTH, HEIGHT)) for name in names]))
    pixels, box = item(data, 0)
    np.testing.assert_array_equal(pixels, stored)
    assert box == [6, 10, 26, 18]
    assert notes(report) == {"exif-stored": 1 + (orientation != 1)}


def test_a_jpeg_is_turned(tmp_path: Path) -> None:
    save_shown(tmp_path / "train" / "a.jpg", 6, quality=100, subsampling=0)
    data, _ = load_data(write(tmp_path, [entry("a.jpg", (WIDTH, HEIGHT))]))
    pixels, _ = item(data, 0)
    assert np.abs(pixels.astype(int) - shown_picture()).max() <= 8
    assert data.splits["train"].images[0].width == WIDTH


@pytest.mark.parametrize("orientation", [2, 3, 4])
def test_an_image_that_keeps_its_size_needs_an_answer(tmp_path: Path, orientation: int) -> None:
    save_shown(tmp_path / "train" / "a.png", orientation)
    folder = write(tmp_path, [entry("a.png", (WIDTH, HEIGHT))])
    said = fault(folder)
    assert "[exif-unclear]: a.png" in said and "--exif shown" in said and "--exif stored" in said
    for exif, expected in (("shown", shown_picture()), ("stored", TO_STORED[orientation](shown_picture()))):
        data, report = load_data(folder, ReadOptions(exif=exif))
        np.testing.assert_array_equal(item(data, 0)[0], expected)
        assert notes(report) == {f"exif-{exif}": 1}


def test_a_square_image_needs_an_answer(tmp_path: Path) -> None:
    square = shown_picture(0, 40, 40)
    save(tmp_path / "train" / "a.png", TO_STORED[6](square), 6)
    folder = write(tmp_path, [entry("a.png", (40, 40))])
    assert "[exif-unclear]" in fault(folder)
    data, _ = load_data(folder, ReadOptions(exif="shown"))
    np.testing.assert_array_equal(item(data, 0)[0], square)


def test_images_that_disagree_answer_for_themselves_only(tmp_path: Path) -> None:
    save_shown(tmp_path / "train" / "shown.png", 6)
    save(tmp_path / "train" / "stored.png", shown_picture(1), 6)
    save_shown(tmp_path / "train" / "both.png", 3, seed=2)
    listed = [entry(name, (WIDTH, HEIGHT)) for name in ("shown.png", "stored.png")]
    data, report = load_data(write(tmp_path, listed))
    np.testing.assert_array_equal(item(data, 0)[0], shown_picture())
    np.testing.assert_array_equal(item(data, 1)[0], shown_picture(1))
    assert notes(report) == {"exif-shown": 1, "exif-stored": 1}
    assert "1  image has an EXIF" in fault(write(tmp_path, [*listed, entry("both.png", (WIDTH, HEIGHT))]))


def test_another_split_answers_too(tmp_path: Path) -> None:
    save_shown(tmp_path / "train" / "a.png", 3)
    folder = write(tmp_path, [entry("a.png", (WIDTH, HEIGHT))])
    save_shown(tmp_path / "val" / "v.png", 6, seed=99)
    data, _ = load_data(folder)
    np.testing.assert_array_equal(item(data, 0)[0], shown_picture())


def test_an_explicit_choice_outweighs_the_size(tmp_path: Path) -> None:
    """A script may write the stored size beside boxes that were drawn in a browser."""
    save_shown(tmp_path / "train" / "a.png", 6)
    data, _ = load_data(write(tmp_path, [entry("a.png", (HEIGHT, WIDTH))]), ReadOptions(exif="shown"))
    image = data.splits["train"].images[0]
    assert (image.width, image.height) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(item(data, 0)[0], shown_picture())


def test_a_format_may_say_which_picture_it_means(tmp_path: Path) -> None:
    """YOLO's shares are those of the picture as shown: the only image, upside down, needs no answer."""
    for split, orientation in (("train", 3), ("val", 1)):
        save_shown(tmp_path / "images" / split / "a.png", orientation)
        (tmp_path / "labels" / split).mkdir(parents=True)
        x, y, w, h = BOX
        row = (0, (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
        (tmp_path / "labels" / split / "a.txt").write_text(" ".join(map(str, row)))
    (tmp_path / "data.yaml").write_text("names: [object]\ntrain: images/train\nval: images/val\n")
    pixels, box = item(load_data(tmp_path)[0], 0)
    np.testing.assert_array_equal(pixels, shown_picture())
    assert box == pytest.approx([6, 10, 26, 18])


def test_a_size_as_shown_contradicts_boxes_as_stored(tmp_path: Path) -> None:
    save_shown(tmp_path / "train" / "a.png", 6)
    folder = write(tmp_path, [entry("a.png", (WIDTH, HEIGHT))])
    assert "says 60x40, is 40x60 and with its EXIF orientation as listed: --exif shown" in fault(folder, exif="stored")


def test_a_turned_image_has_a_key_of_its_own_in_the_disk_cache(tmp_path: Path) -> None:
    save_shown(tmp_path / "train" / "a.png", 3)
    folder = write(tmp_path, [entry("a.png", (WIDTH, HEIGHT))])

    def key(exif: str) -> str:
        split = load_data(folder, ReadOptions(exif=exif))[0].splits["train"]
        return CocoImages(split, image_size_px=40, max_size_px=60, hflip=False).content_key()

    assert key("shown") != key("stored")


def test_the_cache_of_checked_images_knows_the_orientation(tmp_path: Path) -> None:
    save_shown(tmp_path / "train" / "a.png", 6)
    save_shown(tmp_path / "train" / "b.tif", 8, seed=1)
    folder = write(tmp_path, [entry(name, (WIDTH, HEIGHT)) for name in ("a.png", "b.tif")])
    cache = tmp_path / "checked.json"
    first, second = (load_data(folder, cache=cache) for _ in range(2))
    assert second[1].n_from_cache == 3 and first[0] == second[0] and first[1].notes == second[1].notes


def test_the_check_may_read_headers_only(tmp_path: Path) -> None:
    save_shown(tmp_path / "train" / "a.png", 6)
    save_shown(tmp_path / "train" / "b.tif", 8, seed=1)
    save(tmp_path / "train" / "c.jpg", shown_picture(2))
    sizes = [(WIDTH, HEIGHT), (WIDTH, HEIGHT), None]
    folder = write(tmp_path, [entry(n, s) for n, s in zip(("a.png", "b.tif", "c.jpg"), sizes, strict=True)])
    data, report = load_data(folder, check_images=False)
    for i in (0, 1):
        np.testing.assert_array_equal(item(data, i)[0], shown_picture(i))
    assert notes(report) == {"exif-shown": 2, "image-size-missing": 1}
    assert data.splits["train"].images[2].width == WIDTH and not data.splits["train"].images[2].digest


def test_the_orientation_of_a_png_may_stand_behind_its_pixels(tmp_path: Path) -> None:
    save_shown(tmp_path / "a.png", 6)
    content = (tmp_path / "a.png").read_bytes()
    begin = content.index(b"eXIf") - 4
    end = begin + 12 + int.from_bytes(content[begin : begin + 4], "big")
    iend = content.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(content[:begin] + content[end:iend] + content[begin:end] + content[iend:])
    save(tmp_path / "c.png", shown_picture())
    assert [inspect_image(str(tmp_path / name))[3] for name in ("a.png", "b.png", "c.png")] == [6, 6, 1]
    assert [shown_size(tmp_path / name) for name in ("a.png", "b.png", "c.png")] == [(WIDTH, HEIGHT)] * 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_no_orientation(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(shown_picture()).save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert inspect_image(str(path))[:2] == (WIDTH, HEIGHT)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [{}, {"width": None}, {"width": 0, "height": 0}, {"width": -1, "height": -1},
                                  {"width": WIDTH, "height": None}], ids=str)  # fmt: skip
def test_a_size_that_is_missing_is_the_images(tmp_path: Path, size: dict[str, Any]) -> None:
    save(tmp_path / "train" / "a.png", shown_picture())
    data, report = load_data(write(tmp_path, [entry("a.png", None) | size]))
    image = data.splits["train"].images[0]
    assert (image.width, image.height, image.boxes_xywh) == (WIDTH, HEIGHT, (BOX,))
    assert notes(report) == {"image-size-missing": 1}


def test_boxes_are_checked_against_the_size_that_was_missing(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a.png", shown_picture())
    assert "[box-outside]" in fault(write(tmp_path, [entry("a.png", None, (55, 10, 20, 8))]))


def test_a_size_that_is_missing_says_nothing_of_the_orientation(tmp_path: Path) -> None:
    save_shown(tmp_path / "train" / "a.png", 6)
    folder = write(tmp_path, [entry("a.png", None)])
    assert "[exif-unclear]" in fault(folder)
    data, _ = load_data(folder, ReadOptions(exif="shown"))
    np.testing.assert_array_equal(item(data, 0)[0], shown_picture())


# --- grey scale of more than 8 bits -----------------------------------------------------------------------------------

RAMP = np.linspace(0, 1, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("why", "values", "suffix", "white"),
    [
        ("16 bits", (RAMP * 65535).astype(np.uint16), "png", 65535),
        ("16 bits in TIFF", (RAMP * 60000).astype(np.uint16), "tif", 65535),
        ("32 bits of which 16 are used", (RAMP * 65535).astype(np.int32), "tif", 65535),
        ("floats from 0 to 1", RAMP.astype(np.float32), "tif", 1),
        ("floats from 0 to 255", (RAMP * 200).astype(np.float32), "tif", 255),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_deep_grey_scale_is_scaled_by_the_range_of_its_format(
    tmp_path: Path, why: str, values: np.ndarray, suffix: str, white: float
) -> None:
    (tmp_path / "train").mkdir()
    Image.fromarray(values).save(tmp_path / "train" / f"a.{suffix}")
    data, report = load_data(write(tmp_path, [entry(f"a.{suffix}", (WIDTH, HEIGHT))]))
    pixels, _ = item(data, 0)
    np.testing.assert_array_equal(pixels[..., 0], np.rint(values.astype(np.float32) * np.float32(255 / white)))
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    assert notes(report) == {"grey-scaled": 1}


@pytest.mark.parametrize(
    ("why", "values", "advice"),
    [
        ("a camera of 12 bits would be almost black", (RAMP * 4000).astype(np.uint16), "--white-level 4095"),
        ("32 bits", (RAMP * 100_000).astype(np.int32), "--white-level 100000"),
        ("floats of no usual range", (RAMP * 1000).astype(np.float32), "--white-level 1000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unclear_white_is_asked_for(tmp_path: Path, why: str, values: np.ndarray, advice: str) -> None:
    (tmp_path / "train").mkdir()
    Image.fromarray(values).save(tmp_path / "train" / "a.tif")
    folder = write(tmp_path, [entry("a.tif", (WIDTH, HEIGHT))])
    assert f"a.tif (up to {values.max():g}; {advice})" in fault(folder)
    level = float(advice.split()[1])
    pixels, _ = item(load_data(folder, ReadOptions(white_level=level))[0], 0)
    assert pixels.max() == round(float(values.max()) * 255 / level)


def test_one_bright_image_speaks_for_all(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for name, top in (("dark.png", 3000), ("bright.png", 64000)):
        Image.fromarray((RAMP * top).astype(np.uint16)).save(tmp_path / "train" / name)
    data, _ = load_data(write(tmp_path, [entry(name, (WIDTH, HEIGHT)) for name in ("dark.png", "bright.png")]))
    assert [item(data, i)[0].max() for i in (0, 1)] == [12, 249]  # 3000 and 64000 of 65535


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_values_that_are_no_brightness_are_refused(tmp_path: Path, bad: float) -> None:
    values = RAMP.astype(np.float32)
    values[3, 4] = bad
    (tmp_path / "train").mkdir()
    Image.fromarray(values).save(tmp_path / "train" / "a.tif")
    assert "[image-unreadable]: a.tif (grey values below 0, or not numbers" in fault(
        write(tmp_path, [entry("a.tif", (WIDTH, HEIGHT))])
    )


# --- colours ----------------------------------------------------------------------------------------------------------

COLOUR = (200, 40, 90)


def of_mode(mode: str) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), COLOUR)
    if mode == "P":
        return image.quantize(4)
    if mode == "CMYK":
        return Image.merge(
            "CMYK", [*(band.point(lambda v: 255 - v) for band in image.split()), Image.new("L", image.size)]
        )
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix", "expected"),
    [
        ("P", "png", COLOUR),
        ("P", "gif", COLOUR),
        ("RGBA", "png", COLOUR),
        ("CMYK", "jpg", COLOUR),  # Adobe's inverted inks
        ("CMYK", "tif", COLOUR),
        ("YCbCr", "tif", COLOUR),
        ("L", "png", (93, 93, 93)),  # 0.299 R + 0.587 G + 0.114 B
        ("LA", "png", (93, 93, 93)),
        ("1", "png", None),
    ],
)
def test_colours_are_those_of_the_file(
    tmp_path: Path, mode: str, suffix: str, expected: tuple[int, int, int] | None
) -> None:
    (tmp_path / "train").mkdir()
    image = of_mode(mode)
    image.save(tmp_path / "train" / f"a.{suffix}")
    pixels, _ = item(load_data(write(tmp_path, [entry(f"a.{suffix}", (WIDTH, HEIGHT))]))[0], 0)
    if expected is None:
        np.testing.assert_array_equal(pixels[..., 0] == 255, np.asarray(image))
    else:
        assert np.abs(pixels.astype(int) - expected).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_pixels_are_said(tmp_path: Path, mode: str) -> None:
    (tmp_path / "train").mkdir()
    image = of_mode(mode)
    colour = image.getpixel((0, 0)) if mode in ("P", "L", "RGB") else None
    if colour is None:
        image.putalpha(0)
    image.save(tmp_path / "train" / "a.png", **({} if colour is None else {"transparency": colour}))
    data, report = load_data(write(tmp_path, [entry("a.png", (WIDTH, HEIGHT))]))
    assert notes(report) == {"image-transparent": 1}
    expected = (93, 93, 93) if mode in ("L", "LA") else COLOUR
    assert np.abs(item(data, 0)[0].astype(int) - expected).max() <= 3


# --- large and broken files -------------------------------------------------------------------------------------------


def test_max_pixels_is_a_choice(tmp_path: Path) -> None:
    """The message names the size that is needed; Pillow's own bound, in force elsewhere, is not in the way."""
    (tmp_path / "train").mkdir()
    Image.new("1", (20_000, 10_000)).save(tmp_path / "train" / "a.png")
    folder = write(tmp_path, [entry("a.png", (20_000, 10_000))])
    cache = tmp_path / "checked.json"
    assert "[image-too-large]: a.png (20000x10000: --max-pixels 200000000)" in fault(folder)
    data, _ = load_data(folder, ReadOptions(max_pixels=200_000_000), cache=cache)
    assert data.splits["train"].images[0].width == 20_000
    with pytest.raises(DataError, match="image-too-large"):
        load_data(folder, cache=cache)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "train" / "a.png")
    with open_image(tmp_path / "train" / "a.png") as image:
        assert image.size == (20_000, 10_000)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_file_that_is_cut_off_is_used_if_wanted(tmp_path: Path, suffix: str) -> None:
    path, cache = tmp_path / "train" / f"a.{suffix}", tmp_path / "checked.json"
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    save(path, noise, **({"quality": 95, "subsampling": 0} if suffix == "jpg" else {}))
    whole = np.asarray(Image.open(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    folder = write(tmp_path, [entry(path.name, (WIDTH, HEIGHT))])
    assert "[image-truncated]" in fault(folder) and "--truncated use" in fault(folder)
    for _ in range(2):  # from the file, then from the cache
        data, report = load_data(folder, ReadOptions(truncated="use"), cache=cache)
        pixels, _ = item(data, 0)
        np.testing.assert_array_equal(pixels[:16], whole[:16])  # two of a JPEG's rows of blocks
        assert (pixels[-1] == pixels[-1, 0]).all(), "what is missing has one colour"
        assert notes(report) == {"image-cut-off": 1}
    with pytest.raises(DataError, match="image-truncated"):
        load_data(folder, cache=cache)
    with pytest.raises(OSError), Image.open(path) as image:  # Pillow is as it was
        image.load()


def test_a_file_that_is_no_image_is_not_used_in_any_way(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(os.urandom(200))
    assert "[image-unreadable]" in fault(write(tmp_path, [entry("a.jpg", (WIDTH, HEIGHT))]), truncated="use")
