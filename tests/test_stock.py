"""benchmarks/stock.py, wall.py, real.py, overhead.py: what they compute, that the spaces are one, and that they run."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import warm
from smaller_demo import use_smaller_demo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import overhead
import real
import wall

from cst_search.config.loading import load_recipe, load_space

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--set", "search_epochs=1"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``run(script, *arguments)`` -> what it printed; the searches that it starts are processes, the script is not."""
    use_smaller_demo(monkeypatch, tmp_path)
    forked = SimpleNamespace(run=warm.run, STDOUT=subprocess.STDOUT)
    for each in (wall, overhead):
        monkeypatch.setattr(each, "subprocess", forked)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def ran(script: ModuleType, *arguments: Any) -> str:
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
        script.main()
        return capsys.readouterr().out

    return ran


def trial(seconds: float | None, score: float | None = 0.5, **config: Any) -> dict[str, Any]:
    return {"config": {"method": "cst", **config}, "map": score, "train_seconds": seconds}


# --- what they compute -----------------------------------------------------------------------------------------------


def test_the_plain_script_searches_the_space_of_the_launch() -> None:
    import stock

    class Asked:
        """Takes the place of optuna's trial: what it is asked for."""

        def __init__(self) -> None:
            self.found: dict[str, Any] = {}

        def suggest_categorical(self, name: str, choices: list[Any]) -> None:
            self.found[name] = tuple(choices)

        def suggest_float(self, name: str, low: float, high: float, log: bool = False) -> None:
            self.found[name] = (low, high, log)

    asked, space = Asked(), load_space("cst", load_recipe("demo"))
    assert stock.space(asked) == {"method": space.methods[0]}
    assert asked.found == {
        d.name: tuple("".join(map(str, c)) if isinstance(c, tuple) else c for c in d.choices) or (d.low, d.high, d.log)
        for d in space.by_method["cst"]
    }


def test_the_rest_is_what_was_not_training() -> None:
    found = wall.shares(40.0, [trial(30.0), trial(20.0), trial(None)], n_workers=2)  # a trial that failed trained 0 s
    assert found == {"n_trials": 3, "wall_seconds": 40, "training_seconds": 25, "rest_seconds": 15, "rest_share": 0.375}


def test_ratios_are_of_means_over_the_rounds() -> None:
    runs = [{"side": side} | wall.shares(seconds, [trial(60.0)], 2)
            for side, seconds in (("stock", 90.0), ("launch", 40.0), ("stock", 70.0), ("launch", 60.0))]  # fmt: skip
    launch, stock = wall.summary(runs)
    assert (launch["side"], launch["wall_seconds"], launch["wall_low"], launch["wall_high"]) == ("launch", 50, 40, 60)
    assert launch["wall_seconds_of_launch"] == 1
    assert stock["wall_seconds_of_launch"] == pytest.approx(80 / 50)
    assert stock["rest_seconds_of_launch"] == pytest.approx(50 / 20)
    assert stock["rest_share_of_launch"] == pytest.approx((50 / 80) / (20 / 50))
    lines = wall.table([launch, stock]).splitlines()
    assert "| cst-search launch | 1 | 50.0 s (40 to 60) |" in lines[2] and "| 1.60 x | 2.50 x |" in lines[3]
    assert "wall_seconds_of_launch" not in wall.summary(runs[:1])[0]


def test_a_configuration_of_a_launch_and_of_the_script_is_one() -> None:
    ours, theirs = (
        trial(1.0, 0.5, **{"cst.mtc_stages": [4, 5], "lr": 0.01}),
        trial(9.0, 0.5, **{"cst.mtc_stages": "45", "lr": 0.01}),
    )
    assert wall.as_points([ours]) == [{"cst.mtc_stages": "45", "lr": 0.01}] == wall.as_points([theirs])
    alone = trial(1.0, 0.5, lr=0.02)
    assert wall.agreement([{"trials": [ours, alone]}, {"trials": [theirs]}]) == {"configurations": 1, "with_one_map": 1}
    theirs["map"] = 0.25
    assert wall.agreement([{"trials": [ours]}, {"trials": [theirs]}]) == {"configurations": 1, "with_one_map": 0}


def test_every_side_gets_the_same_trials_and_threads(tmp_path: Path) -> None:
    args = argparse.Namespace(trials=3, workers=1, seed=7, same=True, set=["search_epochs=1"])
    threads = str(wall.threads_of(1))
    for side in wall.SIDES:
        words = wall.command(side, tmp_path, tmp_path / "points.json", args)
        text = " ".join(words)
        assert f"--home {tmp_path} --trials 3 --workers 1 --set search_epochs=1" in text
        assert ("--points" in words) == (side != "launch") and ("--sampler random" in text) == (side == "launch")
        assert side == "launch" or words[words.index("--threads") + 1] == threads
        assert ("--reuse-actors" in words) == (side == "stock-reuse")


def test_overhead_is_read_from_when_trials_began_and_ended() -> None:
    # two workers; the first pair waits for the imports, the last trial for a slow start
    spans = [(10.0, 11.0), (10.5, 12.0), (11.25, 12.5), (12.25, 13.0), (14.0, 15.0)]
    notes = [{"pid": i % 2, "begun": begun, "ended": ended} for i, (begun, ended) in enumerate(reversed(spans))]
    found = overhead.figures(4.0, 17.0, notes, n_workers=2)
    assert found == {
        "startup_seconds": 6, "per_trial_seconds": 1, "start_seconds": 0.25, "start_seconds_high": 1.5,
        "end_seconds": 2, "total_seconds": 13,
    }  # fmt: skip


def test_real_searches_are_compared_in_one_box() -> None:
    launch = {"side": "launch", "seed": 0, "seconds": 61.2, "n_started": 4, "reference": [0.0, 100.0, 10.0],
              "points": [[0.5, 50, 5], [0.4, 60, 6]]}  # fmt: skip
    stock = {"side": "stock", "seed": 0, "seconds": 60.0, "n_started": 2, "points": [[0.6, 100, 5]]}
    assert real.figures(launch, launch["reference"]) == {
        "hypervolume": pytest.approx(0.5**3), "best map": 0.5, "front": 1, "complete": 2,
    }  # fmt: skip
    assert real.table([launch, stock]).splitlines()[2:] == [
        "| 0 | launch | 61 | 4 | 2 | 0.125 | 0.500 | 1 |",
        "| 0 | stock | 60 | 2 | 1 | 0.000 | 0.600 | 1 |",
    ]
    nothing = real.figures(stock | {"points": []}, launch["reference"])
    assert nothing == {"hypervolume": 0.0, "best map": 0.0, "front": 0, "complete": 0}


def test_the_plain_script_searches_as_long_as_the_launch_took(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []

    def run_process(name: str, words: list[str], home: Path) -> tuple[str, float]:
        seen.extend(words)
        found = [
            {"config": {}, "map": 0.3, "device_bytes": 900, "trainable_params": 7, "train_seconds": 1.0},
            {"config": {}, "map": None, "device_bytes": None, "trainable_params": None, "train_seconds": None},
        ]
        return f"noise\n{json.dumps(found)}\nmore", 63.0  # fmt: skip

    monkeypatch.setattr(real, "run_process", run_process)
    run = real.run_stock(tmp_path, ["--recipe", "demo"], 5, {"seconds": 60.4, "context_bytes": 600})
    assert seen[seen.index("--seconds") + 1] == "60" and seen[seen.index("--seed") + 1] == "5"
    assert (run["n_started"], run["points"], run["seconds"]) == (2, [[0.3, 300, 7]], 63.0)


# --- the scripts -----------------------------------------------------------------------------------------------------


def test_one_trial_of_the_plain_script(run: Callable[..., str], tmp_path: Path) -> None:
    """Real processes, Ray and a trial. All sides together take minutes: that is the benchmark itself."""
    out = tmp_path / "wall.json"
    said = run(wall, "--trials", 1, "--workers", 1, "--sides", "stock", *TINY, "--out", out)
    (row,) = json.loads(out.read_text())["rows"]
    assert row["side"] == "stock" and row["n_trials"] == 1 and 0 < row["training_seconds"] < row["wall_seconds"]
    assert "| stock.py | 1 |" in said
    assert str(ROOT) not in out.read_text() and str(tmp_path) not in out.read_text()


def test_trials_that_do_nothing_go_through_a_whole_launch(run: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "overhead.json"
    said = run(overhead, "--sides", "function,in-process", "--trials", 4, "--out", out)
    function, launch = json.loads(out.read_text())["rows"]
    assert function["n_trials"] == launch["n_trials"] == 4 and launch["n_processes"] == 1
    assert launch["per_trial_seconds"] > function["per_trial_seconds"]  # a database and a record against nothing
    assert {"data", "survey", "study"} <= set(launch["startup"]) and "startup" not in function
    assert "| cst-search launch --in-process |" in said


@pytest.mark.parametrize(
    ("script", "wrong"),
    [
        ("wall.py", ["--sides", "pool"]),
        ("wall.py", ["--sides", "nonsense"]),
        ("wall.py", ["--same", "--sides", "stock,launch"]),
        ("overhead.py", ["--sides", "nonsense"]),
        ("overhead.py", ["--trials", "2"]),
    ],
)
def test_a_mistake_ends_with_2(script: str, wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, *wrong])
    with pytest.raises(SystemExit) as ended:
        (wall if script == "wall.py" else overhead).main()
    assert ended.value.code == 2
