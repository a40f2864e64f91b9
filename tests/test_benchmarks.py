"""benchmarks/methods.py: what it computes from results, what it runs again, and that a failing trial is a row."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import warm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import memory as memory_benchmark
import methods
import methods_measure
import methods_summary
import methods_table
from methods_measure import Job

from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.detector.build import build_detector
from cst_search.detector.weights import save_trained
from cst_search.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


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
