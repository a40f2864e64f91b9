"""Detection in videos: a copy of the same size, rate and times; one message for what cannot be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from studies import run_cli
from trained_runs import write_run

from cst_search.config.recipe import Recipe
from cst_search.trial.inference import predict

av = pytest.importorskip("av", reason="videos need the extra `video`, which `test` includes")

TIMES = (0, 1, 2, 5, 6)  # of the frames, at 10 per second: two are missing, as of a camera that drops frames
SIZE = (91, 60)  # an odd width, which 4:2:0 cannot have


def make_video(
    path: Path,
    codec: str = "ffv1",
    pix_fmt: str = "bgr0",
    options: dict[str, str] | None = None,
    noise: int = 256,
    turn: int = 0,
) -> Path:
    """Pixels below ``noise`` at random, without loss, so that a frame is known to the bit."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as file:
        stream = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, pix_fmt
        if turn:
            stream.set_display_rotation(turn)
        for time in TIMES:
            frame = av.VideoFrame.from_ndarray(rng.integers(0, noise, (SIZE[1], SIZE[0], 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


@pytest.fixture
def run(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", tiny_recipe(method="head"))


def frames_of(path: Path) -> tuple[list[Any], Fraction]:
    with av.open(str(path)) as file:
        return list(file.decode(video=0)), file.streams.video[0].average_rate


def test_every_frame_is_a_line_with_its_time_and_is_drawn(run: Path, tmp_path: Path) -> None:
    video = make_video(tmp_path / "clip.mkv", noise=8)  # nearly black, so that a lossy copy is too
    frames, rate = frames_of(video)
    ran = run_cli("predict", run, video, "--score", 0, "--out", tmp_path / "out", "--device", "cpu")
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [(line["frame"], line["seconds"]) for line in lines] == [(i, t / 10) for i, t in enumerate(TIMES)]
    copy = Path(lines[0]["copy"])
    assert copy == tmp_path / "out" / "clip.mp4" and f"5 frame(s) in {copy}" in ran.err

    # a frame is detected in as an image file of it is
    picture = tmp_path / "3.png"
    Image.fromarray(frames[3].to_ndarray(format="rgb24")).save(picture)
    [of_file] = predict(run, [picture], None, score=0.0, device="cpu")
    assert lines[3]["detections"] == of_file["detections"] != []
    assert (lines[3]["width"], lines[3]["height"]) == SIZE

    drawn, drawn_rate = frames_of(copy)
    assert [(f.width, f.height, round(f.time, 3)) for f in drawn] == [(*SIZE, t / 10) for t in TIMES]
    assert drawn_rate == pytest.approx(rate, rel=0.35)  # the rate of so few frames depends on how long the last one is
    assert all(frame.to_ndarray(format="rgb24").max() > 100 for frame in drawn)  # boxes


def test_no_more_than_a_frame_is_held(run: Path, tmp_path: Path) -> None:
    """Frames are read as they are asked for, and drawn before the next one."""
    import cst_search

    found = cst_search.predict_video(run, make_video(tmp_path / "clip.mkv"), out=tmp_path / "out", device="cpu")
    assert next(found)["frame"] == 0
    found.close()  # what was drawn can be played
    assert len(frames_of(tmp_path / "out" / "clip.mp4")[0]) == 1


def test_a_turned_video_is_shown_upright(run: Path, tmp_path: Path) -> None:
    """Of a phone: the file says by how much to turn its pictures."""
    turned = make_video(tmp_path / "phone.mp4", "libx264rgb", "rgb24", {"crf": "0"}, turn=90)
    assert [frame.rotation for frame in frames_of(turned)[0]] == [90] * len(TIMES)
    lines = run_cli("predict", run, turned, "--out", tmp_path / "out", "--device", "cpu").out.splitlines()
    assert (json.loads(lines[0])["width"], json.loads(lines[0])["height"]) == SIZE[::-1]
    (shown, *_), _ = frames_of(tmp_path / "out" / "phone.mp4")
    assert (shown.width, shown.height, shown.rotation) == (*SIZE[::-1], 0)


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def test_what_is_no_video_is_one_message(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_video(tmp_path / "whole.mp4", "libx264", "yuv444p")
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:-300])
    (tmp_path / "text.mp4").write_text("not a video")
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    start = make_video(tmp_path / "start.mp4", "libx264", "yuv444p", {"movflags": "faststart"})
    start.write_bytes(start.read_bytes()[:-20_000])  # the list of frames is whole, of which some are missing
    for files, said in (
        (["cut.mp4"], "cut.mp4 cannot be read as a video"),
        (["text.mp4"], "text.mp4 cannot be read as a video"),
        (["start.mp4"], "start.mp4 is damaged"),
        ([sound(tmp_path / "sound.mp4").name], "sound.mp4 holds no pictures, only audio"),
        (["gone.mp4"], "there is no video"),
        (["whole.mp4", "1.png"], "no image beside it"),
        (["--max-pixels", "100", "whole.mp4"], f"has frames of {SIZE[0]}x{SIZE[1]}, more than --max-pixels 100"),
        (["--out", ".", "whole.mp4"], "would replace"),
    ):
        monkeypatch.chdir(tmp_path)
        ran = run_cli("predict", run, *files, "--device", "cpu")
        assert (ran.code, ran.err.count("\n")) == (2, 1), (files, ran.err)
        assert said in ran.err


def test_without_the_extra_it_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    ran = run_cli("predict", run, tmp_path / "clip.mp4")
    assert ran.code == 2 and "pip install 'cst-search[video]'" in ran.err
