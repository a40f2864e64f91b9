"""Detection in new images, which no annotation file describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cst_search.config.recipe import Recipe
from cst_search.detector.build import build_detector
from cst_search.detector.weights import save_trained
from cst_search.errors import ConfigError
from cst_search.trial.inference import predict

WIDTH, HEIGHT = 90, 60


@pytest.fixture
def detect(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Detects in one image with the weights of a recipe, and draws."""

    def run(image: Path, **fields: Any) -> dict[str, Any]:
        recipe = tiny_recipe(method="head", **fields)
        weights = tmp_path / "weights.safetensors"
        save_trained(build_detector(recipe, 3), recipe, ("a", "b", "c"), weights)
        [found] = predict(weights, [image], tmp_path / "drawn", score=0.0, device="cpu")
        assert found["detections"]
        return found

    return run


def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def stored(path: Path, pixels: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif)
    return path


def test_a_photo_is_turned_as_a_viewer_shows_it(detect: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    upright = detect(stored(tmp_path / "upright.png", noise(), 1))
    sideways = detect(stored(tmp_path / "sideways.png", np.rot90(noise()), 6))
    assert sideways["detections"] == upright["detections"]
    assert (sideways["width"], sideways["height"]) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(Image.open(sideways["picture"]), Image.open(upright["picture"]))


def test_a_recipe_that_read_pictures_as_stored_still_does(
    detect: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = detect(stored(tmp_path / "sideways.png", np.rot90(noise()), 6), exif="stored")
    assert (found["width"], found["height"]) == (HEIGHT, WIDTH)
    assert found["detections"] == detect(stored(tmp_path / "plain.png", np.rot90(noise()), 1))["detections"]


def test_grey_values_are_scaled_as_in_training(detect: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    grey = noise()[..., 0]
    Image.fromarray(grey.astype(np.uint16) * 16).save(tmp_path / "twelve.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(grey).save(tmp_path / "eight.png")
    eight = detect(tmp_path / "eight.png")["detections"]
    assert detect(tmp_path / "twelve.png", white_level=255 * 16)["detections"] == eight
    assert detect(tmp_path / "sixteen.png")["detections"] == eight


def test_limits_are_those_of_the_recipe(detect: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = stored(tmp_path / "x.png", noise(), 1)
    with pytest.raises(ConfigError, match=f"--max-pixels {WIDTH * HEIGHT}"):
        detect(path, max_pixels=WIDTH * HEIGHT - 1)
    of_recipe = {"score": 0.0, "device": "cpu"}
    [found] = predict(tmp_path / "weights.safetensors", [path], None, **of_recipe, max_pixels=WIDTH * HEIGHT)
    assert found["width"] == WIDTH
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(ConfigError, match="truncated"):
        detect(path)
    assert detect(path, truncated="use")["width"] == WIDTH
