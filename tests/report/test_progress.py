"""What a person sees while a search runs, where trials are stopped and go on."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cst_search.report.progress import Standing, View
from cst_search.search.suggestion import Suggestion
from cst_search.study.records import TrialRecord

ESTIMATE = {"device_bytes": 500_000_000, "trainable_params": 1000}


def suggestion(trial: int, promoted_from: int | None = None) -> Suggestion:
    return Suggestion(trial, {"method": "head", "lr": 0.01}, ESTIMATE, promoted_from=promoted_from)


def stopped(trial: int, **changes: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "map": 0.25, "device_bytes": 500_000_000, "trainable_params": 1000, "seconds": 2.0, "ran": True,
        "reason": "stopped after epoch 1 of 9", "waits": True, "state": "pruned", "config": {"method": "head"},
        "history": [{"epoch": 1}],
    }  # fmt: skip
    return TrialRecord(trial=trial, **values | changes)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_promoted_trial_counts_once(is_terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=140)
    view = View(console, title="x", n_trials=4, n_workers=1, n_done=1, epochs=9, on_finished=lambda: Standing(0.5))
    # trial 0 was stopped by an earlier launch, trial 1 by this one
    view.started(suggestion(1))
    view.finished(stopped(1))
    assert view._n_finished() == 2
    view.started(suggestion(0, promoted_from=1))
    assert view._n_finished() == 1
    view.finished(stopped(0, state="complete", reason=None, waits=False))
    view.started(suggestion(1, promoted_from=1))
    assert view._n_finished() == 1
    console.print(view._render())
    view.finished(stopped(1, reason="stopped after epoch 3 of 9"))
    assert view._n_finished() == 2
    console.print(view._render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "pruned" in text and "running" in text
    if not is_terminal:
        assert "trial 1 pruned: map 0.250, 500 MB, 1k trainable, 2s, stopped after epoch 1 of 9 | 2 of 4" in text
        assert "trial 1 started (goes on after epoch 1): head" in text


def test_the_time_left_is_not_over_before_the_last_trial_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("cst_search.report.progress.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=140)
    view = View(console, title="x", n_trials=4, n_workers=2, n_done=0, epochs=9, on_finished=lambda: Standing(0.5))
    view.started(suggestion(0))
    assert view._time_left() == "time left unknown"
    now[0] = 10.0
    view.progressed(0, {"epoch": 3})
    assert view._time_left() == "about 55s left"  # 30 s a trial: 20 s of this one and three more, on two workers
    now[0] = 0.0
    view.finished(stopped(0, state="complete", seconds=100.0, waits=False))
    assert view._time_left() == "about 2m30s left"  # three of 100 s on two workers
    for trial in (1, 2, 3):
        view.started(suggestion(trial))
    view.finished(stopped(1, state="complete", seconds=100.0, waits=False))
    now[0] = 60.0
    assert view._time_left() == "about 40s left"
    now[0] = 500.0  # both take longer than the others did
    assert view._time_left() == "about 10s left"
    for trial in (2, 3):
        view.finished(stopped(trial, state="complete", seconds=100.0, waits=False))
    assert view._time_left() == "none left"


def complete(trial: int, quality: float, memory: int, **more: Any) -> TrialRecord:
    config = {"method": "cst", "cst.reduction": 8, "lr": 0.01 * (trial + 1), "batch_size": 2 + trial}
    values = {"state": "complete", "feasible": True, "reason": None, "waits": False, "config": config}
    return stopped(trial, **values | {"map": quality, "device_bytes": memory} | more)


def drawn(view: View) -> str:
    with view.console.capture() as said:
        view.console.print(view._render())
    return said.get()


@pytest.mark.parametrize(("height", "is_plotted"), [(50, True), (20, False)])
def test_the_leader_is_marked_and_told_apart(height: int, is_plotted: bool) -> None:
    size = {"width": 140, "height": height, "_environ": {"TERM": "xterm"}}  # a dumb terminal is always 80 x 25
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, **size)
    standing = Standing(0.5, 0, {0, 1})
    view = View(console, title="x", n_trials=9, n_workers=1, n_done=1, epochs=9, on_finished=lambda: standing,
                earlier=[complete(0, 0.4, 300_000_000)])  # fmt: skip
    assert "best so far: trial 0, map 0.400, 300 MB" in drawn(view)  # of an earlier launch
    view.finished(complete(1, 0.5, 400_000_000))
    view.finished(complete(2, 0.9, 500_000_000, state="infeasible", feasible=False))
    view.finished(complete(3, 0.2, 400_000_000, notes=("features kept: 88% less", "began anew: gone")))
    text = drawn(view)
    (best,) = [line for line in text.splitlines() if "best 1" in line]
    assert "cst, lr 0.02, batch 3" in best and "reduction" not in best  # which all have
    assert "best so far: trial 1, map 0.500, 400 MB, 1k trainable: cst, lr 0.02, batch 3" in text
    assert "in all of them: reduction 8" in text
    assert ("working memory" in text) == is_plotted
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "trial 3: began anew: gone" in said and "88%" not in said


@pytest.mark.parametrize("n_earlier", [0, 40])
def test_what_matters_comes_first_once_it_is_known(n_earlier: int) -> None:
    """The first dimension does nothing; the second decides. Known during a launch, and from earlier ones."""
    records = [
        complete(i, 0.3 + 0.1 * (i % 2), 300_000_000, config={"method": "cst", "cst.x": i // 2 % 2, "cst.y": i % 2})
        for i in range(40)
    ]
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=140)
    view = View(console, title="x", n_trials=80, n_workers=1, n_done=0, epochs=9, on_finished=Standing,
                earlier=records[:n_earlier])  # fmt: skip
    if not n_earlier:
        for i, record in enumerate(records):
            view.finished(record)
            assert i < 3 or ("cst, y" in drawn(view)) == (i >= 19), i  # two alike share a dimension
    assert ": cst, y 1, x 0" in drawn(view)  # of the best one


def test_notes_for_developers_are_for_verbose() -> None:
    console = Console(file=io.StringIO(), width=140)
    view = View(console, title="x", n_trials=9, n_workers=1, n_done=0, epochs=9, on_finished=Standing, verbose=True)
    view.finished(complete(3, 0.2, 400_000_000, notes=("features kept: 88% less",)))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "trial 3: features kept: 88% less" in said
    assert "best so far: trial 3, map 0.200" in said  # as a line, where there is no table
    view.finished(complete(4, 0.1, 400_000_000))
    assert "best so far: trial 4" not in console.file.getvalue()  # type: ignore[attr-defined]


WATCHED = """
import sys, time
from pathlib import Path
from rich.console import Console
from cst_search.report.progress import Standing, View
from cst_search.search.suggestion import Suggestion

view = View(Console(), title="x", n_trials=4, n_workers=2, n_done=0, epochs=9, on_finished=lambda: Standing(0.5))
with view:
    view.say("a line above")
    for trial in range(2):
        config = {"method": "conv_adapter", "conv_adapter.gamma": 16 + trial, "conv_adapter.kernel": 3 + trial}
        view.started(Suggestion(trial, config, {"device_bytes": 500_000_000, "trainable_params": 1000}))
    while not Path(sys.argv[1]).exists():
        time.sleep(0.02)
"""


def watch(tmp_path: Path, sizes: list[tuple[int, int]], **environment: str) -> list[bytes]:
    """What a terminal of such (rows, columns) gets, one after the other, while two trials run: a part for each."""
    master, slave = pty.openpty()
    environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    resize(master, sizes[0])
    child = subprocess.Popen(
        [sys.executable, "-c", WATCHED, str(tmp_path / "over")],
        stdin=slave, stdout=slave, stderr=slave, env=environ | {"TERM": "xterm-256color"} | environment,
    )  # fmt: skip
    os.close(slave)
    parts = [b""]
    try:
        # the first drawing, and after every new size another whole one
        for place, size in enumerate(sizes):
            if place:
                resize(master, size)
                parts.append(b"")
            parts[-1] += read_until(master, lambda found: found.count(b"4 trials") >= 3)
        (tmp_path / "over").touch()
        parts[-1] += read_until(master, lambda _: False)
    finally:
        child.kill()
        child.wait()
        os.close(master)
    return parts


def resize(master: int, size: tuple[int, int]) -> None:
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def read_until(master: int, enough: Callable[[bytes], bool]) -> bytes:
    """What comes until it is enough, the program has ended, or nothing comes for long."""
    found = b""
    while not enough(found) and select.select([master], [], [], 20)[0]:
        try:
            found += os.read(master, 65536)
        except OSError:  # the other side is closed
            break
    return found


def plain(data: bytes) -> list[str]:
    """Its lines without what moves the cursor or colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode()).replace("\r", "\n").split("\n")


def test_the_table_survives_a_narrower_window(tmp_path: Path) -> None:
    wide, narrow, wider = watch(tmp_path, [(40, 140), (40, 60), (40, 160)])
    clear = b"\x1b[2J"
    assert clear not in wide and any("conv_adapter, gamma 16, kernel 3" in line for line in plain(wide))
    # what is drawn wide and late may stand before it
    assert narrow.count(clear) == 1
    lines = plain(narrow.partition(clear)[2])
    assert max(map(len, lines)) <= 60 and any("conv_adapter" in line for line in lines)
    assert clear not in wider  # nothing is wrapped by a wider one


def test_no_colours_where_none_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "over").touch()
    colours = re.compile(rb"\x1b\[[0-9;]*3[0-9]")
    assert colours.search(b"".join(watch(tmp_path, [(40, 140)])))
    assert not colours.search(b"".join(watch(tmp_path, [(40, 140)], NO_COLOR="1")))
    dumb = b"".join(watch(tmp_path, [(40, 140)], TERM="dumb"))
    assert b"\x1b" not in dumb and b"trial 0 started" in dumb


@pytest.mark.parametrize("is_terminal", [False, True])
def test_trials_of_several_studies_are_told_apart(is_terminal: bool) -> None:
    """Both have a trial 0; of the second, an earlier launch had stopped it."""
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=140)
    view = View(console, title="x", n_trials=8, n_workers=2, n_done=3, epochs=0, on_finished=Standing)
    cells = view.of("cells", 0, 9, lambda: Standing(0.5, 2))
    cards = view.of("cards", 3, 4, lambda: Standing(0.7, 1))
    cells.started(suggestion(0))
    cards.started(suggestion(0, promoted_from=1))
    cells.progressed(0, {"epoch": 5, "map": 0.111})
    cards.progressed(0, {"epoch": 3, "map": 0.222})
    table = Console(file=io.StringIO(), width=160)
    table.print(view._render())
    rows = [line.split() for line in table.file.getvalue().splitlines() if "head" in line]  # type: ignore[attr-defined]
    assert [(row[1], row[3]) for row in rows] == [("cells", "0"), ("cards", "0")]
    assert "5/9" in rows[0] and "0.111" in rows[0] and "3/4" in rows[1] and "0.222" in rows[1]
    cards.finished(stopped(0, state="complete", reason=None, waits=False))
    assert view._n_finished() == 3 and list(view.running) == [("cells", 0)]
    cells.finished(stopped(0, state="complete", reason=None, waits=False))
    cards.left(1, "it is gone")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "cards trial 1: it is gone" in text and view._n_finished() == 4
    assert "cells 1 (best -), cards 3 (best -), 3 over the budget" in str(view._summary(4))
    if not is_terminal:
        assert "cells trial 0 started: head" in text and "cards trial 0 started (goes on after epoch 1): head" in text
        assert "cards trial 0 complete: map 0.250" in text and "3 of 8" in text


def test_the_best_of_each_study_is_named_by_what_its_own_trials_do_not_share() -> None:
    """Lines, without a table that says what all have in common: first trials of two studies are often equal."""
    console = Console(file=io.StringIO(), width=140)
    view = View(console, title="x", n_trials=4, n_workers=1, n_done=0, epochs=9, on_finished=Standing)
    cells, cards = (view.of(name, 0, 9, Standing) for name in ("cells", "cards"))
    config = {"method": "cst", "lr": 0.02, "batch_size": 3}
    cells.finished(complete(0, 0.4, 300_000_000, config=config))
    cards.finished(complete(0, 0.5, 300_000_000, config=config))
    cards.finished(complete(1, 0.6, 300_000_000, config=config | {"lr": 0.01}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    best = [line.partition("trainable: ")[2] for line in text.splitlines() if "best so far" in line]
    assert best == ["cst, lr 0.02, batch 3", "cst, lr 0.02, batch 3", "cst, lr 0.01"]
