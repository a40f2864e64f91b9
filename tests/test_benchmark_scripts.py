"""The other scripts of benchmarks/: predictions, evaluation, data check, GPU session, several tasks, load."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from studies import drawn_info, run_cli

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import data_check as data_check_benchmark
import evaluation as evaluation_benchmark
import gpu_session
import memory as memory_benchmark
import prediction
import recompute
import seven_tasks
import slots
import soak
from test_benchmarks import NOTHING_ELSE, never

from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20


# --- the memory benchmark's arithmetic -------------------------------------------------------------------------------


def test_the_constants_that_fit_are_found_again() -> None:
    rows = [{"active": a, "reserved": 1.08 * a + 7e7, "device": 1.08 * a + 7e7 + 4.2e8} for a in (1e9, 2e9, 5e9)]
    found = memory_benchmark.fitted(rows)
    assert found["fragmentation"] == pytest.approx(1.08) and found["slack_bytes"] == pytest.approx(7e7)
    assert found["context_bytes"] == pytest.approx(4.2e8) and found["reserved_spread"] == pytest.approx(0, abs=1)


def test_errors_are_of_predicted_over_measured() -> None:
    rows = [{"active": 100, "predicted_active": guess} for guess in (90, 100, 103, 110)]
    found = memory_benchmark.errors(rows, "active")
    assert found["lowest"] == pytest.approx(-0.1) and found["highest"] == pytest.approx(0.1)
    assert found["median"] == pytest.approx(0.065)


# --- predictions on a CPU, and recomputation -------------------------------------------------------------------------


def test_the_allocators_peak_is_counted_from_the_mark() -> None:
    options = {"activities": [torch.profiler.ProfilerActivity.CPU], "profile_memory": True, "acc_events": True}
    with torch.profiler.profile(**options) as profiler:
        held = torch.empty(1000, dtype=torch.uint8)
        torch.empty(50_000, dtype=torch.uint8)  # gone before the mark
        with torch.profiler.record_function("now"):
            pass
        torch.empty(2000, dtype=torch.uint8)
        del held
        torch.empty(2500, dtype=torch.uint8)
    assert prediction.profiled_peak(profiler, "now") == pytest.approx(3000, abs=300)  # marks allocate a few bytes


def test_a_journal_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Recipe] = []

    def step(recipe: Recipe, n_classes: int, shape: Any) -> tuple[int, int, int]:
        measured.append(recipe)
        return 10, 100, 110

    monkeypatch.setattr(prediction, "real_step", step)
    monkeypatch.setattr(prediction, "predicted_step", lambda *args: (11, 99))
    monkeypatch.setattr(prediction.gc, "collect", lambda: 0)  # a second each, after a thousand tests
    journal = tmp_path / "rows.jsonl"
    prediction.compare(2, 5, journal)
    whole = prediction.compare(4, 5, journal)
    assert len(measured) == 4 and [row["recipe"] for row in whole] == [recipe.to_dict() for recipe in measured]
    assert (whole[0]["active_ratio"], whole[0]["profiled_ratio"], whole[3]["witness_ratio"]) == (0.99, 0.9, 1.1)


def test_ratios_of_recomputation_are_paired_by_round() -> None:
    rounds = [{"cst none": 2.0, "head": 1.0}, {"cst none": 6.0, "head": 2.0}, {"cst none": 1.0, "head": 1.0}]
    assert recompute.ratios(rounds, "cst none", "head") == [1.0, 2.0, 3.0]


# --- COCO evaluation by two libraries --------------------------------------------------------------------------------


def test_both_libraries_evaluate_drawn_detections(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    out = tmp_path / "evaluation.json"
    evaluation_benchmark.main(
        ["--data", str(tiny_folder), "--per-image", "10", "--rounds", "1", "--epochs", "0", "--out", str(out)]
    )
    drawn = json.loads(out.read_text())["drawn"]
    assert drawn["equal"] and (drawn["images"], drawn["detections"]) == (4, 40)
    assert 0 < drawn["figures"]["pycocotools"]["AP"] == drawn["figures"]["faster-coco-eval"]["AP"] < 1
    assert set(drawn["per_class"]["pycocotools"]) == {"square", "disc", "bar"}
    assert "all precisions and recalls equal: True" in capsys.readouterr().out


# --- check of a data set ---------------------------------------------------------------------------------------------


def test_the_check_is_measured_cold_and_warm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "check.json"
    monkeypatch.setattr(
        sys, "argv", ["data_check.py", "--images", "5", "--boxes", "2", "--rounds", "1", "--out", str(out)]
    )
    data_check_benchmark.main()
    found = json.loads(out.read_text())
    assert [(row["kind"], row["n_from_cache"]) for row in found["rounds"]] == [("cold", 0), ("warm", 5)]
    assert found["boxes"] == 10 and all(row["check_seconds"] > 0 for row in found["rows"])
    assert capsys.readouterr().out.count("check_seconds") == 2


# --- a session on a GPU ----------------------------------------------------------------------------------------------


def test_a_session_on_a_gpu_is_rehearsed_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a trial's libraries alone. The same command does again only what failed, here a result that was cut off."""
    (tmp_path / "sitecustomize.py").write_text(NOTHING_ELSE)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    out = tmp_path / "out"
    options = ["--device", "cpu", "--minutes", "60", "--out", str(out)]
    ran = subprocess.run(
        [sys.executable, gpu_session.__file__, *options], env=os.environ | {"PYTHONPATH": paths}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    states = json.loads((out / "session.json").read_text())["parts"]
    one = dict.fromkeys("bcdefh", "1 complete")
    assert states == {"a": "1 skipped", **one, "g": "3 complete"}, (out / "results.jsonl").read_text()
    summary = (out / "summary.txt").read_text()
    assert "skipped in" in summary and "g. a search: cache, several at a time: 3 complete\n   one after" in summary
    kept = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text("\n".join(line for line in kept if '"h ' not in line) + '\n{"key": "h bit')

    again: list[str] = []

    def run_jobs(jobs: list[Any], n_at_once: int, until: float, write: Callable[..., object]) -> list[Any]:
        for job in jobs:
            again.append(job.key)
            write(job, {"outcome": "complete"})
        return []

    monkeypatch.setattr(gpu_session, "run_jobs", run_jobs)
    gpu_session.main(options)
    assert again == ["h bitfit"]
    assert json.loads((out / "session.json").read_text())["parts"] == states


def test_events_of_the_allocator_are_replayed() -> None:
    entries = [
        {"action": "segment_alloc", "addr": 0, "size": 2 * MIB},
        {"action": "alloc", "addr": 0, "size": 512},
        {"action": "alloc", "addr": 512, "size": 1024},
        {"action": "free_requested", "addr": 0, "size": 512},
        {"action": "free_completed", "addr": 0, "size": 512},
        {"action": "free_requested", "addr": 4096, "size": 512},  # from before the recording
        {"action": "alloc", "addr": 0, "size": 30 * MIB},
    ]
    events = gpu_session.allocations(entries)
    assert events == [512, 1024, ~0, 30 * MIB]
    assert gpu_session.replayed(events, expandable=True) == 42 * MIB  # a page of 2 MiB, two of 20 MiB


def well(n: int) -> dict[str, Any]:
    return {"outcome": "complete", "n": n}


def dies(seconds: float) -> dict[str, Any]:
    time.sleep(seconds)
    os._exit(7)


def test_jobs_that_die_are_results_and_those_out_of_time_are_left() -> None:
    ended: dict[str, dict[str, Any]] = {}
    jobs = [gpu_session.Job("a", well, {"n": 3}), gpu_session.Job("b", dies, {"seconds": 0})]
    left = gpu_session.run_jobs(jobs, 2, math.inf, lambda job, row: ended.update({job.key: row}), start="fork")
    assert left == [] and ended["a"] == {"outcome": "complete", "n": 3}
    assert ended["b"] == {"outcome": "failed", "reason": "the process ended with exit code 7"}
    jobs = [gpu_session.Job("c", dies, {"seconds": 600}), gpu_session.Job("d", well, {"n": 1})]
    assert gpu_session.run_jobs(jobs, 1, time.monotonic() + 0.5, never, start="fork") == jobs  # type: ignore[arg-type]


def test_the_worst_predicted_configurations_are_traced_first(tmp_path: Path) -> None:
    session = gpu_session.Session(tmp_path, tmp_path, "cuda", None, 7, small=False)
    jobs = gpu_session.traces(session)
    assert [job.key.split()[1] for job in jobs[:3]] == ["side_tuning", "norm", "conv_adapter"]
    every = [job for part in gpu_session.PARTS[:5] for job in part.jobs(session)]
    assert len(every) == len({job.key for job in every}) == 14 + 40 + 24 + 12 + 24
    drawn = [json.dumps([job.arguments["recipe"], job.arguments["shape"]]) for job in every[14:]]
    assert len(set(drawn)) == len(drawn)


# --- several data sets in one budget ---------------------------------------------------------------------------------


def test_budgets_are_where_the_gain_is() -> None:
    curve = [{"total_bytes": 10 * i, "value": value} for i, value in enumerate((0.2, 0.3, 0.36, 0.38, 0.4))]
    assert seven_tasks.chosen_budgets(curve) == [10, 30, 40]
    assert seven_tasks.chosen_budgets(curve[:1]) == [0]


def test_several_tasks_from_search_to_table_and_what_is_whole_is_not_run_again(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def run(*words: str, journal: Path) -> str:
        done = run_cli(*words)
        assert done.code == 0, done
        ran.append(words[0])
        journal.write_text(json.dumps({"command": words[0]}))
        return done.out

    folders = [str(shutil.copytree(tiny_folder, tmp_path / name)) for name in ("cells", "cards")]
    write_yaml(tmp_path / "space.yaml", {"methods": ["head"], "shared": {"lr": {"choice": [0.001, 0.01]}}}, "test")
    monkeypatch.setattr(seven_tasks, "run", run)
    results = tmp_path / "results.json"
    monkeypatch.setattr("sys.argv", ["seven_tasks.py", *folders, "--home", str(tmp_path / "home"), "--results",
                        str(results), "--space", str(tmp_path / "space.yaml"), "--device", "cpu", "--in-process",
                        "--quick"])  # fmt: skip
    seven_tasks.main()
    assert ran[:2] == ["launch", "allocate"] and ran[-2:] == ["train", "train"]
    found = json.loads(results.read_text())
    assert set(found["full"]) == {"seven-cells", "seven-cards"}
    for plan in found["plans"]:
        assert set(plan["tasks"]) == set(found["full"]) and plan["bundle_bytes"] > plan["budget_bytes"]
    assert str(tmp_path) not in results.read_text()
    assert seven_tasks.table(found).count("\n") == 4 and "| cells |" in seven_tasks.table(found)
    ran.clear()
    seven_tasks.main()
    assert set(ran) == {"allocate"}


# --- load and soak ----------------------------------------------------------------------------------------------------


def test_every_trial_in_flight_ends_once(tmp_path: Path) -> None:
    """slots.py: no more at a time than there are slots, and one that lost its worker is handed out again."""
    left, at_work, ended = list(range(40)), set[int](), list[int]()
    most = n_lost = 0

    class Supply:
        def lost(self, trial: int) -> None:
            nonlocal n_lost
            n_lost += 1
            at_work.remove(trial)
            left.append(trial)

        def progressed(self, trial: int, entry: dict[str, Any]) -> None:
            assert trial in at_work and entry["epoch"] == 1

        def ended(self, trial: int, result: dict[str, Any]) -> None:
            assert result["outcome"] == "complete" and 0 < result["map"] < 1
            at_work.remove(trial)
            ended.append(trial)

    class Turns:
        def next(self) -> Any:
            nonlocal most
            if not left:
                return None
            at_work.add(trial := left.pop(0))
            most = max(most, len(at_work))
            return 0, Supply(), SimpleNamespace(trial=trial, estimate={"petl_params": 1000})

    slots.Slots(str(tmp_path), "7", "0.2")._run_all(Turns())  # type: ignore[arg-type]
    assert sorted(ended) == list(range(40)) and ended != sorted(ended)
    assert most == 7 and n_lost and (tmp_path / "ended").stat().st_size == 40


def test_the_soak_notices_what_is_lost(tmp_path: Path) -> None:
    place = SimpleNamespace(launch=SimpleNamespace(poll=lambda: None), n_launches=1, output="",
                            figures=lambda: {"launch": 1, "launch_bytes": 5, "open_files": 6, "threads": 7,
                                             "processes": 8})  # fmt: skip
    watch = soak.Watch(place, tmp_path / "soak.jsonl")  # type: ignore[arg-type]
    info = drawn_info()
    place.info = lambda: info
    for minute in (1, 2, 3):
        watch.look(minute, "worker killed", "of the trial that reported last")
    assert watch.faults == [] and watch.rows[-1]["finished"] == 10  # what ran and ended
    (span,) = watch.result()["launch_by_launch"]
    assert span["minutes"] == 1 and span["launch_bytes"] == [5, 5]
    trials = [replace(r, map=0.1) if r.trial == 10 else r for r in info.trials if r.trial != 12]
    info = replace(info, trials=tuple(trials))
    place.output = "Traceback (most recent call last):"
    for minute in (4, 5):
        watch.look(minute)
    assert watch.faults == ["minute 4.0: trials [10, 12] are lost, or have changed", "launch 1 printed a traceback"]
    assert len((tmp_path / "soak.jsonl").read_text().splitlines()) == 5


def test_the_faults_of_a_soak_take_turns() -> None:
    turns = soak.Faults(SimpleNamespace(server=None), random.Random(0)).in_turn()  # type: ignore[arg-type]
    names = [next(turns).__name__ for _ in range(40)]
    assert names[9::10] == ["launch_killed", "launch_terminated", "raylet_killed", "launch_hung_up"]
    passing = Counter(name for n, name in enumerate(names, 1) if n % 10)
    assert len(passing) == 5 and max(passing.values()) - min(passing.values()) <= 1
