"""benchmarks/methods.py: what it computes from results, what it runs again, and that a failing trial is a row."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import warm
from studies import drawn_info, run_cli

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import data_check as data_check_benchmark
import evaluation as evaluation_benchmark
import gpu_session
import memory as memory_benchmark
import methods
import methods_measure
import methods_summary
import methods_table
import prediction
import recompute
import seven_tasks
import slots
import soak
from methods_measure import Job

from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.detector.build import build_detector
from cst_search.detector.weights import save_trained
from cst_search.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
# a sitecustomize.py after which there are torch, torchvision, pycocotools, Pillow and numpy, but no more of what the
# project uses
NOTHING_ELSE = (
    "import sys\n"
    "sys.modules |= dict.fromkeys(('ray', 'optuna', 'mlflow', 'typer', 'rich', 'pydantic', 'safetensors', 'yaml',\n"
    "    'psutil', 'matplotlib', 'jinja2', 'moocore', 'sqlalchemy'))\n"
)

# --- from results to the table ---------------------------------------------------------------------------------------

PREDICTED = {"petl_params": 50, "trainable_params": 400, "active_bytes": 1000, "reserved_bytes": 2000,
             "device_bytes": 3000, "breakdown": {}}  # fmt: skip


def done(score: float, **more: Any) -> dict[str, Any]:
    return {"outcome": "complete", "map": score, "map50": 2 * score, "saved_bytes": 1600, **more}


def row(name: str, *trials: dict[str, Any], predicted: dict[str, Any] = PREDICTED, **speed: Any) -> dict[str, Any]:
    return methods_table.summarise(name, predicted, trials, speed)


def test_mean_and_spread_are_over_the_seeds_that_completed() -> None:
    found = row("a", done(0.1), done(0.2), {"outcome": "oom", "reason": "no room", "map": None}, done(0.6))
    assert found["map_mean"] == pytest.approx(0.3)
    assert found["map_std"] == pytest.approx(0.07**0.5)  # (0.04 + 0.01 + 0.09) / (3 - 1)
    assert found["map50_mean"] == pytest.approx(0.6)
    assert found["outcomes"] == {"complete": 3, "oom": 1} and found["reasons"] == ["no room"]


@pytest.mark.parametrize(
    ("trials", "map_mean"),
    [
        ((done(0.4),), 0.4),  # one seed has no spread
        (({"outcome": "failed", "reason": "x"},), None),  # nothing completed
        ((), None),  # only speed was asked for
    ],
)
def test_what_is_not_known_is_none(trials: tuple[dict[str, Any], ...], map_mean: float | None) -> None:
    found = row("a", *trials)
    assert found["map_mean"] == map_mean and found["map_std"] is None
    assert found["train_images_per_second"] is None and found["memory_source"] == "predicted"


def test_speed_is_the_median_and_its_ratio_is_paired_by_round() -> None:
    # the machine became half as fast after the first round: both sides did
    found = row("a", outcome="complete", train=[[30.0, 20.0], [15.0, 10.0], [14.0, 7.0]], eval=[[3.0, 4.0]])
    assert found["train_images_per_second"] == pytest.approx(
        {"median": 15, "percent_of_full": 150, "percent_low": 150, "percent_high": 200}
    )
    assert found["eval_images_per_second"]["percent_of_full"] == pytest.approx(75)


def test_percent_of_full() -> None:
    double = PREDICTED | {"trainable_params": 800, "active_bytes": 4000}
    rows = [row("cst", done(0.3)), row("full", done(0.6), predicted=double)]
    methods_table.relate(rows)
    assert rows[0]["percent_of_full"] == pytest.approx(
        {"map_mean": 50, "map50_mean": 50, "petl_params": 100, "trainable_params": 50, "active_bytes": 25,
         "reserved_bytes": 100, "device_bytes": 100, "saved_bytes": 100}
    )  # fmt: skip
    assert set(rows[1]["percent_of_full"].values()) == {100}


def test_a_prediction_is_no_share_of_a_measurement_and_without_full_there_is_none() -> None:
    measured = {"active_bytes": 500, "reserved_bytes": 600, "device_bytes": 700}
    rows = [row("cst", done(0.3)), row("full", done(0.6, **measured))]
    methods_table.relate(rows)
    assert (rows[1]["memory_source"], rows[1]["device_bytes"]) == ("measured", 700)
    assert rows[1]["memory_predicted"]["device_bytes"] == 3000
    assert "device_bytes" not in rows[0]["percent_of_full"] and rows[0]["percent_of_full"]["map_mean"] == 50
    methods_table.relate(rows[:1])
    assert rows[0]["percent_of_full"] == {}


def test_the_table_is_aligned_and_shows_failures() -> None:
    rows = [row("full", done(0.5), done(0.25), train=[[10.0, 8.0]]), row("cst", {"outcome": "failed"}, outcome="oom")]
    methods_table.relate(rows)
    lines = methods_table.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1 and len({line.count("|") for line in lines}) == 1
    for text in ("0.375 (100 %)", "0.177", "1 kB (100 %)", "10 (125 %, 125..125)", "2 complete"):
        assert text in lines[2], text
    assert "1 failed, speed oom" in lines[3] and "| -" in lines[3]


def test_the_summary_names_what_differs_beyond_the_noise(tmp_path: Path) -> None:
    maps = {"full": (0.50, 0.52), "cst": (0.60, 0.62), "head": (0.49, 0.51), "norm": (0.30, 0.32)}
    paths = []
    for name in ("a", "b"):
        rows = [row(method, *map(done, values)) for method, values in maps.items()]
        results = [{"row": method, "map": value} for method, values in maps.items() for value in values]
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps({"dataset": {"name": f"{name} 1a2b"}, "rows": rows, "results": results}))
    found = [methods_summary.read(path) for path in paths]
    # each row has the variance 0.0002; two means of two seeds: 2 * sqrt(0.0002 * 2 / 2)
    assert found[0].noise() == pytest.approx(2 * 0.0002**0.5)
    assert methods_summary.beyond_noise(found[1], "full") == (
        "b: noise 0.028; better than `full`: `cst` +0.100; worse: `norm` -0.200"
    )
    order = methods_summary.by_mean(found)
    assert order == ["cst", "full", "head", "norm"]
    assert methods_summary.accuracy(found, order)[1] == ["`cst`", "0.610", "**0.610** (0.014)", "**0.610** (0.014)"]
    one = replace(found[0], maps={name: values[:1] for name, values in maps.items()})
    assert one.noise() is None and "one seed" in methods_summary.beyond_noise(one, "full")


# --- rows and settings -----------------------------------------------------------------------------------------------


def test_a_row_has_its_methods_own_rate_and_options() -> None:
    base = methods.base_recipe({"method": "cst", "options": {"reduction": 4}, "lr": 1.0, "width": 0.5}, {"seed": 3})
    rows = methods.make_rows(base, ["cst", "full:batch_size=8", "cst:reduction=16:mtc_stages=[3,4]:lr=1e-4"])
    assert list(rows) == ["cst", "full batch_size=8", "cst reduction=16 mtc_stages=[3,4] lr=1e-4"]
    plain, full, changed = rows.values()
    assert (plain.method, dict(plain.options), plain.lr, plain.width, plain.seed) == ("cst", {}, None, 0.5, 3)
    assert (full.method, full.batch_size) == ("full", 8)
    assert (dict(changed.options), changed.lr) == ({"reduction": 16, "mtc_stages": [3, 4]}, 1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "method must be one of"),
        ("full:nonsense=1", "no option 'nonsense'"),
        ("cst:lst.reduction=1", "no option 'lst.reduction'"),
        ("cst:reduction=0", "reduction must be"),
        ("full:batch_size=none", "batch_size must be a whole number"),
        ("full:batch_size", "name=value"),
    ],
)
def test_a_wrong_row_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        methods.make_rows(Recipe(), [text])


@pytest.mark.parametrize("setting", ["nonsense=1", "cst.reduction=4"])
def test_a_wrong_field_of_all_rows_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError):
        methods.base_recipe({}, methods.settings([setting]))


@pytest.mark.parametrize("path", sorted((ROOT / "trials").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_read_without_pyyaml(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_yaml = methods.read_recipe(path)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert methods.read_recipe(path) == with_yaml


def test_a_key_is_of_what_changes_a_figure() -> None:
    job = Job("cst", Recipe(weights="/a/b/r50.pt").to_dict(), "shapes 1a2b", "/a/shapes", None, "cpu", 1, epochs=2)
    same = replace(job, row="cst again", folder="../shapes", recipe=job.recipe | {"weights": "/c/r50.pt"})
    without_a_field = {name: value for name, value in job.recipe.items() if name != "neck"}
    assert job.key == same.key == replace(job, recipe=without_a_field).key
    others = [
        replace(job, epochs=3), replace(job, dataset="shapes 9f9f"), replace(job, limit=4), replace(job, threads=2),
        replace(job, device="cuda"), replace(job, start="0a1b"), replace(job, recipe=job.recipe | {"seed": 1}),
        replace(job, recipe=job.recipe | {"options": {"reduction": 4}}), replace(job, epochs=0, rounds=2, steps=1),
    ]  # fmt: skip
    assert len({job.key, *(other.key for other in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--data /a/b/bccd --out c/d.json", "--data bccd --out c/d.json"),
        ("no file '/a/r50.pt'", "no file 'r50.pt'"),
        ("12 images/s, https://example.com/a", "12 images/s, https://example.com/a"),
    ],
)
def test_results_name_no_folders(text: str, shown: str) -> None:
    assert methods_measure.without_folders(text) == shown


# --- the whole script ------------------------------------------------------------------------------------------------


def here(job: Job) -> dict[str, Any]:
    """A job in this process, through JSON as on its way to a child."""
    return json.loads(json.dumps(methods_measure.measure(Job(**json.loads(json.dumps(vars(job)))))))


def never(job: Job) -> dict[str, Any]:
    raise AssertionError(f"{job.row} was to be run again")


@pytest.fixture
def command(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> list[str]:
    recipe = tiny_recipe(image_size_px=32, max_size_px=48)
    write_yaml(tmp_path / "recipe.yaml", recipe.to_dict(), "for the test")
    return ["--recipe", str(tmp_path / "recipe.yaml"), "--data", recipe.data, "--epochs", "1", "--rounds", "2",
            "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "out" / "table.json")]  # fmt: skip


def test_a_run_and_its_second_start(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "table.json"
    two = [*command, "--methods", "cst,full"]
    methods.main([*two, "--seeds", "1"], here)
    printed, content = capsys.readouterr().out, json.loads(out.read_text())
    assert [row["row"] for row in content["rows"]] == ["cst", "full"] and "| cst " in printed
    cst, full = content["rows"]
    assert cst["outcomes"] == {"complete": 1} and cst["speed_outcome"] == "complete"
    assert cst["percent_of_full"]["trainable_params"] == 100 * cst["trainable_params"] / full["trainable_params"]
    assert cst["active_bytes"] < full["active_bytes"] and cst["memory_source"] == "predicted"
    assert cst["train_images_per_second"]["median"] > 0 and full["eval_images_per_second"]["median"] > 0
    assert content["dataset"]["n_images"] == {"train": 8, "val": 4, "test": 2} and content["lr"]["full"] == 1e-3
    assert str(tmp_path) not in out.read_text() and str(tmp_path) not in out.with_suffix(".jsonl").read_text()

    trial = next(r for r in content["results"] if r["row"] == "cst" and r["what"] == "seed 0")
    assert trial["map"] == cst["map_mean"] and trial["trainable_params"] == cst["trainable_params"]
    recipe = Recipe.from_dict(json.loads(json.dumps(content["recipe"])) | {"weights": "none", "method": "cst"})
    save_trained(build_detector(recipe, 3), recipe, ("square", "disc", "bar"), tmp_path / "w.safetensors")
    assert cst["saved_bytes"] == pytest.approx((tmp_path / "w.safetensors").stat().st_size, abs=200)  # the metadata

    with out.with_suffix(".jsonl").open("a") as journal:
        journal.write('{"key": "cut sho')  # a run killed while it wrote
    methods.main([*two, "--seeds", "1"], never)
    assert json.loads(out.read_text())["rows"] == content["rows"]
    asked: list[tuple[str, int]] = []

    def count(job: Job) -> dict[str, Any]:
        asked.append((job.row, job.recipe["seed"]))
        return {"outcome": "nonfinite", "reason": "made up"}

    methods.main([*two, "--seeds", "2", "--also", "cst:reduction=4", "--phase", "accuracy"], count)
    assert asked == [("cst reduction=4", 0), ("cst", 1), ("full", 1), ("cst reduction=4", 1)]
    methods.main([*two, "--seeds", "2", "--also", "cst:reduction=4", "--phase", "accuracy"], never)
    rows = json.loads(out.read_text())["rows"]
    assert rows[0]["outcomes"] == {"complete": 1, "nonfinite": 1} and rows[0]["map_mean"] == cst["map_mean"]
    assert rows[0]["train_images_per_second"] == cst["train_images_per_second"]  # speed of the first run is kept


def test_a_child_that_fails_is_a_row_and_is_tried_again(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The children find torch, torchvision and pycocotools, but nothing else that the project uses."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(NOTHING_ELSE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "bare"))
    options = ["--methods", "", "--also", "head:weights=none", "--also", f"head:weights={tmp_path}/no.pt"]
    options += ["--seeds", "1", "--phase", "accuracy"]
    methods.main([*command, *options, "--jobs", "2"])
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    good, bad = content["rows"]
    assert good["outcomes"] == {"complete": 1}, good["reasons"]
    assert good["saved_bytes"] == 4 * good["trainable_params"]  # float32, without safetensors' header
    assert bad["outcomes"] == {"failed": 1} and bad["map_mean"] is None
    assert "there is no file 'no.pt'" in bad["reasons"][0]
    assert "1 failed" in capsys.readouterr().out
    again: list[str] = []
    methods.main([*command, *options], lambda job: again.append(job.row) or {"outcome": "oom"})
    assert len(again) == 1 and again[0].endswith("no.pt")


def test_a_killed_table_takes_its_measurement_with_it(command: list[str], tmp_path: Path) -> None:
    """SIGTERM, and SIGKILL to which no program can answer."""
    words = [str(ROOT / "benchmarks" / "methods.py"), *command, "--epochs", "9999", "--methods", "head", "--seeds", "1"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        parent = warm.start([*words, "--phase", "accuracy"], dict(os.environ))
        deadline = time.monotonic() + 120
        while not (children := psutil.Process(parent.pid).children()):
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(number)
        assert parent.wait(60) == -number
        gone, alive = psutil.wait_procs(children, 60)
        for child in alive:
            child.kill()
        assert gone and not alive


def test_a_mistake_ends_with_2_before_anything_runs(command: list[str]) -> None:
    for wrong in (["--set", "width=100"], ["--methods", "nonsense"], ["--data", "/nowhere"]):
        with pytest.raises(SystemExit) as ended:
            methods.main([*command, *wrong], never)
        assert ended.value.code == 2


def test_measured_rows_are_predicted_anew(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(memory_benchmark.__file__).parent / "results" / "memory-h100.json"
    memory_benchmark.show_again([path])
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 6 and printed.count("of 40") == 6
    found = memory_benchmark.predicted_again(path)
    rough, simulated = (memory_benchmark.errors(found[rule], "device") for rule in ("rough", "simulated"))
    assert simulated["median"] < rough["median"] < 0.05


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
