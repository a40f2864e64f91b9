"""Detect objects in a video, frame by frame: no more than one frame is held. PyAV, of the extra ``video``, reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cst_search.config.catalog import check_folder
from cst_search.errors import ConfigError
from cst_search.trial.inference import Predictor
from cst_search.trial.pictures import draw_on, picture_names

_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")


def is_video(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES


def predict_videos(
    run: Path, videos: Sequence[Path], out: Path | None, *, score: float, device: str, max_pixels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Detect objects in videos and draw them into copies, MP4 of the same size and frame rate, without sound.

    Args:
        run: folder that `cst-search train` wrote, or its weights file.
        out: folder for the copies; None: draw nothing. A copy holds the frames so far if the work ends early.
        score: lowest score of a reported detection, 0..1.
        max_pixels: bound of a frame's width times height; None: the recipe's.
        progress: called with the number of finished frames and what the file says of their total, 0 if nothing.

    Yields:
        Per frame ``video``, ``frame`` (from 0), ``seconds`` from the start (None: the file does not say), ``copy``
        (or None), ``width``, ``height`` and ``detections`` as of `inference.predict`.

    Raises:
        ConfigError: there are no weights, PyAV is not installed, or a file is no video, is damaged or holds no frame.
    """
    _pyav()
    for path in videos:
        if not path.is_file():
            raise ConfigError(f"there is no video {path}")
    if out is not None:
        check_folder("--out", out)
    predictor = Predictor(run, device)
    limit = predictor.recipe.max_pixels if max_pixels is None else max_pixels
    for path, name in zip(videos, picture_names(videos), strict=True):
        copy = None if out is None else out / name.with_suffix(".mp4")
        if copy is not None and copy.resolve() == path.resolve():
            raise ConfigError(f"--out {out} would replace {path}; choose another folder")
        yield from _predict_video(predictor, path, copy, score, limit, progress)


def _predict_video(
    predictor: Predictor, path: Path, copy: Path | None, score: float, max_pixels: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    n = 0
    with ExitStack() as files:
        source = _open(path, files)
        writer = None
        for n, frame in enumerate(_frames(source, path), 1):
            image = _shown(frame)
            if image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height}"
                raise ConfigError(f"{path} has frames of {size}, more than --max-pixels {max_pixels}")
            found = predictor.detect_image(image, score)
            if copy is not None:
                writer = writer or _Writer(copy, source, image.size, files)
                draw_on(image, found["detections"], predictor.class_names)
                writer.write(image, frame)
            seconds = None if frame.time is None else round(frame.time, 4)
            where = {"video": str(path), "frame": n - 1, "seconds": seconds}
            yield where | {"copy": None if copy is None else str(copy)} | found
            if progress is not None:
                progress(n, source.frames)
    if n == 0:
        raise ConfigError(f"{path} holds no frame that can be decoded; is it complete?")


def _pyav() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise ConfigError("videos need PyAV: pip install 'cst-search[video]'") from None
    return av


def _open(path: Path, files: ExitStack) -> Any:
    """Return the stream of pictures in a file. Raises ConfigError."""
    av = _pyav()
    try:
        container = files.enter_context(av.open(str(path)))
    except (av.error.FFmpegError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as a video: {error.strerror}") from None
    if not container.streams.video:
        kinds = ", ".join(dict.fromkeys(stream.type for stream in container.streams))
        raise ConfigError(f"{path} holds no pictures, only {kinds or 'nothing'}")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    return stream


def _frames(source: Any, path: Path) -> Iterator[Any]:
    """Yield the frames in the order in which they are shown. Raises ConfigError where the file is damaged."""
    n, av = 0, _pyav()
    try:
        for frame in source.container.decode(source):
            n += 1
            yield frame
    except av.error.FFmpegError as error:
        raise ConfigError(f"{path} is damaged after {n} frames, which are done: {error.strerror}") from None


def _shown(frame: Any) -> Image.Image:
    """Return a frame as a player shows it: a phone stores what its sensor saw, and by how much to turn it."""
    pixels = frame.to_ndarray(format="rgb24")
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)))


class _Writer:
    """A video with the times of the frames of another one; complete when ``files`` closes."""

    def __init__(self, path: Path, source: Any, size: tuple[int, int], files: ExitStack) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container = files.enter_context(_pyav().open(str(path), "w"))
        self._stream = self._container.add_stream("libx264", rate=source.average_rate or source.guessed_rate)
        self._stream.width, self._stream.height = size
        # 4:2:0, which every player knows, has half as many colours each way and so needs an even size
        self._stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        self._stream.codec_context.time_base = source.time_base
        files.callback(lambda: self._container.mux(self._stream.encode(None)))

    def write(self, image: Image.Image, frame: Any) -> None:
        copy = _pyav().VideoFrame.from_image(image)
        copy.pts, copy.time_base = frame.pts, frame.time_base
        self._container.mux(self._stream.encode(copy))
