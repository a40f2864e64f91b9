"""A search from end to end, with real processes where a process is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
import torch
import warm
from mlflow import MlflowClient
from studies import Ran, run_cli, scored

from cst_search.commands import launch as launch_module
from cst_search.commands.budget_survey import Survey, augmentation_note, expected_sharers
from cst_search.commands.dataset import dataset_inputs, image_sizes
from cst_search.commands.study_setup import first_configs, reference_point
from cst_search.commands.worker_setup import memory_limit_of
from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.data.dataset import DetectionData
from cst_search.errors import ConfigError
from cst_search.execution.workers import SearchJob
from cst_search.memory.estimate import CONTEXT_WITH_BLAS_BYTES, worst_input
from cst_search.petl import get_method
from cst_search.report.progress import View
from cst_search.search.samplers import check_sampler, default_sampler
from cst_search.search.session import SearchSession
from cst_search.study import reader
from cst_search.study.objectives import choose_objectives
from cst_search.study.outlook import Outlook
from cst_search.study.records import Budget, StudyInfo
from cst_search.study.study import Study
from cst_search.tracking.connection import default_tracking_uri
from cst_search.trial.cost import predict
from cst_search.trial.default_config import default_config
from cst_search.trial.run import run_trial

GB = 10**9
SPACE: dict[str, Any] = {
    "methods": ["cst", "head"],
    "shared": {"lr": {"float": [1e-3, 2e-2], "log": True}, "batch_size": {"choice": [2, 4]}},
    "cst": {"reduction": {"choice": [1, 2, 4]}, "mtc_stages": {"choice": [[2, 3, 4, 5], [5]]}},
}


@pytest.fixture(scope="module")
def base(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]
) -> Callable[..., list[str]]:
    """``base(home, space="wide", **changes of the recipe)`` -> the flags of a search on the tiny data set."""
    folder = tmp_path_factory.mktemp("launch")
    write_yaml(folder / "wide.yaml", SPACE, "test")
    # every structure that the survey before a search meets costs a trace
    write_yaml(folder / "lr.yaml", {"methods": ["head"], "shared": {"lr": SPACE["shared"]["lr"]}}, "test")

    def flags(home: Path, space: str = "wide", **changes: Any) -> list[str]:
        recipe = folder / "-".join(["recipe", *map(str, changes.values())])
        write_yaml(recipe, tiny_recipe(**changes).to_dict(), "test")
        return ["--data", str(tiny_folder), "--recipe", str(recipe), "--space", str(folder / f"{space}.yaml"),
                "--home", str(home), "--device", "cpu"]  # fmt: skip

    return flags


def read(home: Path, name: str) -> StudyInfo:
    return Study.open(f"sqlite:///{home / 'studies.db'}", name).info()


def children(home: Path, name: str) -> Counter[int]:
    """How many MLflow runs each trial has."""
    client = MlflowClient(default_tracking_uri(home))
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`cst.kind` = 'trial'")
    return Counter(int(run.data.tags["cst.trial"]) for run in found)


# --- one search -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def budget(tiny_recipe: Callable[..., Recipe]) -> int:
    """Trainable parameters between those of reduction 1 and 2."""
    over, within = (predict(tiny_recipe(options={"reduction": r}), n_classes=3).trainable_params for r in (1, 2))
    return (over + within) // 2


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, base: Callable[..., list[str]], budget: int) -> tuple[Path, Ran]:
    home = tmp_path_factory.mktemp("home")
    ran = run_cli(
        "launch", "--in-process", *base(home), "--study", "first", "--trials", 4, "--budget-params", budget, "--json"
    )
    assert ran.code == 0, ran
    return home, ran


def test_a_launch_ends_with_a_front_and_its_files(launched: tuple[Path, Ran], budget: int) -> None:
    home, ran = launched
    report, info = json.loads(ran.out), read(home, "first")
    assert report["study"] == "first" and report["front"] and report["interrupted"] is False
    assert report["budget"] == {"memory_bytes": None, "params": budget, "delta_bytes": None, "flops": None}
    assert info.n_ran() == 4
    assert info.inputs["n_classes"] == 3 and info.limit_bytes is None
    assert all(record.trainable_params <= budget for record in info.trials if record.ran)  # type: ignore[operator]
    assert report["trials"]["complete"] == 4
    assert 0 < report["hypervolume"] <= 1 or all(entry["map"] == 0 for entry in report["front"])
    names = sorted(path.name for path in (home / "first").iterdir())
    assert names == ["best.yaml", "front.html", "front.json", "front.png"]
    # what is said on the way goes to standard error, so that the output is JSON alone
    assert "study first: 0 of 4 trials done" in ran.err and "cst-search export first --pick " in ran.err
    assert "trial 0 started" in ran.err and "4 of 4" in ran.err
    assert "best so far: trial " in ran.err
    assert f"cache {home / 'cache'}: up to " not in ran.err  # that is for --verbose
    assert len(list((home / "cache").glob("pixels-*.slots"))) == 2  # of both splits, shared by four trials


@pytest.mark.parametrize(
    ("budget", "memory", "params"),
    [
        (Budget(), 8 * 10**8 + 105 * 10**6 + 1, 2101),  # 5 % of the working memory, not of the context
        (Budget(850_000_000, 2050), 850_000_000, 2050),
        (Budget(6 * GB, 10**6), 8 * 10**8 + 105 * 10**6 + 1, 2101),  # a budget far above the space
    ],
)
def test_the_reference_point_is_a_little_beyond_the_space_or_the_budget(
    budget: Budget, memory: float, params: float
) -> None:
    costs = {"device_bytes": (870_000_000, 900_000_000), "trainable_params": (1000, 2000), "petl_params": (10, 20)}
    costs |= {"delta_bytes": (4000, 8000), "inference_bytes": (100, 200), "flops": (300, 400)}
    survey = Survey(costs | {"marginal_flops": (30, 40)}, context_bytes=800_000_000)
    assert reference_point(survey, budget) == pytest.approx(
        {"map": 0, "map50": 0, "device_bytes": memory, "trainable_params": params, "petl_params": 22,
         "delta_bytes": 8401, "inference_bytes": 211, "flops": 421, "marginal_flops": 43}
    )  # fmt: skip


def test_the_first_trial_is_the_methods_own_choice(launched: tuple[Path, Ran]) -> None:
    first = read(launched[0], "first").trials[0]
    method = get_method("cst")
    options = method.make_options({})
    assert first.config["method"] == "cst"
    assert first.config["cst.reduction"] == options.reduction
    assert first.config["cst.mtc_stages"] == options.mtc_stages
    assert first.config["lr"] == method.lr
    assert first.config["batch_size"] == 2  # the recipe's


def test_mlflow_has_the_launch(launched: tuple[Path, Ran]) -> None:
    home, _ = launched
    info = read(home, "first")
    client = MlflowClient(default_tracking_uri(home))
    experiment = client.get_experiment_by_name("first")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`cst.kind` = 'launch'")
    assert parent.info.status == "FINISHED"
    assert children(home, "first") == Counter(record.trial for record in info.trials)
    pages = {"front.html", "front.png", "front-small.png", "front.json"}
    for folder, names in (("pareto", pages), ("export", {"best.yaml"})):
        listed = {Path(artifact.path).name for artifact in client.list_artifacts(parent.info.run_id, folder)}
        assert listed == names
    assert (home / "artifacts" / "first").is_dir()
    steps = [m.step for m in client.get_metric_history(parent.info.run_id, "hypervolume")]
    assert steps == [record.trial for record in info.trials]
    front = client.search_runs([experiment.experiment_id], 'tags."cst.pareto" = "true"')
    assert {int(run.data.tags["cst.trial"]) for run in front} == {record.trial for record in info.front()}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--trials", "4"],
            "study 'first' already has 4 trials, so nothing is left to do; give --trials above",
        ),
        (["--trials", "5", "--objectives", "map"], "was made with another --objectives"),
        (["--trials", "5", "--budget-params", "1M"], "was made with another --budget-params"),
        (["--trials", "5", "--set", "epochs=9"], "was made with another --recipe"),
        (["--trials", "5", "--space", "{lr}"], "was made with another --space"),
        (["--trials", "5", "--limit-mem", "1GB"], "was made with another --limit-mem"),
    ],
)
def test_a_study_is_not_continued_by_mistake(
    launched: tuple[Path, Ran], base: Callable[..., list[str]], budget: int, more: list[str], said: str
) -> None:
    home, _ = launched
    before = read(home, "first")
    more = [word.format(lr=base(home, "lr")[5]) for word in more]
    ran = run_cli("launch", "--in-process", *base(home), "--study", "first", "--budget-params", budget, *more)
    assert (ran.code, said in ran.message) == (2, True), ran
    assert read(home, "first") == before


@pytest.mark.parametrize(
    ("why", "device", "budget", "limit", "allowed"),
    [
        ("a GPU is held to the budget", "cuda", 6 * GB, None, 6 * GB),
        ("unless told otherwise", "cuda", 6 * GB, 4 * GB, 4 * GB),
        ("also without a budget", "cuda", None, 4 * GB, 4 * GB),
        ("or to nothing", "cuda", None, None, None),
        ("a budget that lets nothing through", "cuda", 10, None, 10),
        ("the budget is about a GPU's memory, not this CPU's", "cpu", 6 * GB, None, None),
        ("a CPU's is asked for", "cpu", 6 * GB, 300, 300),
    ],
)
def test_memory_limit_of_each_trial(
    why: str, device: str, budget: int | None, limit: int | None, allowed: int | None
) -> None:
    assert memory_limit_of(Budget(budget, None), limit, torch.device(device)) == allowed


def test_a_limit_below_what_cuda_takes_is_the_persons_mistake() -> None:
    with pytest.raises(ConfigError, match=r"--limit-mem must be above the .* that CUDA itself takes of a GPU; got "):
        memory_limit_of(Budget(), CONTEXT_WITH_BLAS_BYTES, torch.device("cuda"))


def test_a_limit_that_is_no_size(tmp_path: Path) -> None:
    ran = run_cli("launch", "--limit-mem", "300 apples", "--home", tmp_path)
    assert (ran.code, "a memory size must be a positive number with a unit" in ran.message) == (2, True), ran
    assert list(tmp_path.iterdir()) == []


def test_three_sizes_stand_for_all_of_a_dataset(tiny_data: DetectionData) -> None:
    """An export where the data is not takes them: the worst batch must be that of all images."""
    rng = random.Random(0)

    def image() -> Any:
        return SimpleNamespace(height=rng.randint(20, 900), width=rng.randint(20, 900))

    for _ in range(300):
        images = [image() for _ in range(rng.choice([1, 2, 3, 10]))]
        data: Any = SimpleNamespace(
            splits={"train": SimpleNamespace(images=images)}, class_names=("a",), summary=lambda: {"max_boxes": 7}
        )
        short = rng.choice([64, 320, 800])
        recipe = Recipe(image_size_px=short, max_size_px=round(short * rng.choice([1, 1.3, 1.7])))
        sizes = tuple((height, width) for height, width in dataset_inputs(data)["sizes"])
        assert len(sizes) <= 3
        few, all_ = (worst_input(recipe, some, 7) for some in (sizes, image_sizes(data)))
        # of the largest single image they give one of three: another ratio may fill more of the bounds
        assert replace(few, image_px=None) == replace(all_, image_px=None)
    assert dataset_inputs(tiny_data) == {"n_classes": 3, "max_boxes": 3, "sizes": [[64, 96], [80, 80], [96, 64]]}


@pytest.mark.parametrize(
    "methods, shared, low, high",
    [
        (["cst"], {"lr": {"float": [1e-3, 1e-2]}}, 24, 24),  # nothing that the body sees
        (["cst", "head"], {"batch_size": {"choice": [2, 4]}}, 11, 15),  # half of them have the same
        (["cst", "full"], {"lr": {"float": [1e-3, 1e-2]}}, 8, 16),  # half of them read any
        (["full"], {"lr": {"float": [1e-3, 1e-2]}}, 1, 1),
    ],
)
def test_number_of_trials_that_share_feature_maps(
    tiny_recipe: Callable[..., Recipe], methods: list[str], shared: dict[str, Any], low: int, high: int
) -> None:
    space = Space.from_dict({"methods": methods, "shared": shared})
    assert low <= expected_sharers(space, tiny_recipe(), 24) <= high


LR = {"lr": {"float": [1e-3, 1e-2]}}
NO_MAPS = "feature maps are cached for no trial: augmentation changes the images in every epoch"


@pytest.mark.parametrize(
    ("methods", "shared", "augment", "n_sharers", "said"),
    [
        (["cst"], LR, "none", 24, None),
        (["cst", "full"], LR, "light", 1, NO_MAPS),
        (["full"], LR, "light", 1, None),  # it would share none anyway
        (["cst"], LR | {"scale_jitter": {"choice": [1.0]}, "photometric": {"choice": [0.0]}}, "light", 24, None),
        (["cst"], {"augment": {"choice": ["none", "strong"]}}, "none", 12, "for trials without augmentation only"),
    ],
)
def test_augmented_trials_share_no_maps(
    tiny_recipe: Callable[..., Recipe], methods: list[str], shared: dict[str, Any], augment: str, n_sharers: int,
    said: str | None,
) -> None:  # fmt: skip
    space, recipe = Space.from_dict({"methods": methods, "shared": shared}), tiny_recipe(augment=augment)
    assert expected_sharers(space, recipe, 24) == pytest.approx(n_sharers, abs=3 if n_sharers == 12 else 0)
    note = augmentation_note(space, recipe)
    assert note == said or (said is not None and note is not None and said in note)


def test_the_line_about_the_cache_says_that_augmented_images_have_no_maps(
    tmp_path: Path, tiny_recipe: Callable[..., Recipe]
) -> None:
    setup: Any = SimpleNamespace(
        space=Space.from_dict({"methods": ["cst"], "shared": LR}), recipe=tiny_recipe(augment="light")
    )
    for cache_size, expected in ((10**8, [NO_MAPS]), (0, [])):  # without a cache there is nothing to say of it
        said: list[str] = []
        options: Any = SimpleNamespace(home=tmp_path, cache_size=cache_size, trials=4)
        launch_module._open_cache(options, setup, 0, said.append, True)
        assert said[0].startswith("cache ") and said[1:] == expected
        said.clear()
        launch_module._open_cache(options, setup, 0, said.append, False)
        assert said == (expected or ["cache off: --cache-size 0"])  # where it is and how large only a developer asks


@pytest.mark.parametrize(
    ("budget", "said", "remedy"),
    [
        (("--budget-params", "1k"), "--budget-params 1k is below", "head: predictor train less"),
        (("--budget-flops", "1MFLOP"), "--budget-flops 1 MFLOP is below", "a smaller image_size_px"),
    ],
)
def test_a_budget_that_excludes_all_is_said_and_ends(
    tmp_path: Path,
    base: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    budget: tuple[str, str],
    said: str,
    remedy: str,
) -> None:
    ask = SearchSession.ask
    monkeypatch.setattr(SearchSession, "ask", lambda self, *some: ask(self, *some, max_rejects=5))
    ran = run_cli("launch", "--in-process", *base(tmp_path), "--trials", 2, *budget)
    assert ran.code == 1  # it ran, and found nothing
    assert f"{said} all of" in ran.out and "few or none will fit" in ran.out and remedy in ran.out
    assert "the sampler found no further configuration within the budget" in ran.out
    assert "no trial completed within the budget" in ran.message
    info = read(tmp_path, "shapes-1")  # a name of its own: the data set's
    assert info.n_ran() == 0 and info.counts()["infeasible"] == len(info.trials) > 0


class MadeUp:
    """Workers that train nothing; what each finish costs is noted in ``costs``: (records made, studies read whole)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.costs: list[tuple[int, int]] = []
        self.counts: Counter[str] = Counter()
        for place, name in ((reader, "trial_record"), (Study, "info")):
            original = getattr(place, name)

            def counted(*arguments: Any, name: str = name, original: Any = original) -> Any:
                self.counts[name] += 1
                return original(*arguments)

            monkeypatch.setattr(place, name, counted)

    def prepare(self) -> None: ...

    def run(self, job: SearchJob) -> None:
        session, n_trials, estimate, events = job.session, job.n_trials, job.estimate, job.events
        for i in range(n_trials - session.study.info().n_ran()):
            suggestion = session.ask(estimate)
            assert suggestion is not None
            events.started(suggestion)
            self.counts.clear()
            events.finished(session.tell(suggestion.trial, scored(0.1 + 0.01 * i)))
            self.costs.append((self.counts["trial_record"], self.counts["info"]))


def test_cost_of_a_finished_trial_does_not_grow(
    tmp_path: Path, base: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = MadeUp(monkeypatch)
    monkeypatch.setattr("cst_search.commands.worker_setup.make_workers", lambda *_: (workers, 1, 1))
    for n_trials in (12, 24):  # the second launch goes on
        ran = run_cli("launch", *base(tmp_path, "lr"), "--study", "many", "--trials", n_trials)
        assert ran.code == 0, ran
    assert workers.costs == [(1, 0)] * 24
    info = read(tmp_path, "many")
    last = next(line for line in ran.out.splitlines() if "24 of 24" in line and "complete" in line)
    assert last.endswith(f"hypervolume {info.hypervolume():.4f}")
    assert children(tmp_path, "many") == Counter(range(24))


@pytest.mark.parametrize(
    ("names", "expected"),
    [("map,device_bytes", "pareto"), ("map50", "pareto"), ("map,map50", "tpe"), ("device_bytes,petl_params", "tpe")],
)
def test_default_sampler_is_the_best_that_supports_the_objectives(names: str, expected: str) -> None:
    assert default_sampler(choose_objectives(names)) == expected
    if expected == "pareto":
        check_sampler("pareto", choose_objectives(names))


@pytest.mark.parametrize(("method", "expected"), [("lst", "lst"), ("full", "head")])
def test_the_recipe_is_tried_first(method: str, expected: str, tiny_recipe: Callable[..., Recipe]) -> None:
    """Of its method, with its own options and lr; where the space has not that method, of its first, as that is."""
    space = Space.from_dict(
        {
            "methods": ["head", "lst"],
            "shared": {"lr": SPACE["shared"]["lr"]},
            "lst": {"reduction": {"choice": [4, 16]}},
        },
        where="test",
    )
    recipe = tiny_recipe(method=method, lr=0.123, options={"reduction": 16} if method == "lst" else {})
    config = default_config(space, recipe)
    assert config["method"] == expected and config["batch_size"] == recipe.batch_size
    if method == "lst":
        assert (config["lst.reduction"], config["lr"]) == (16, 0.123)
    else:
        assert config["lr"] == get_method("head").lr


@pytest.mark.parametrize(
    ("method", "space", "expected"),
    [
        ("cst", ["cst", "head", "conv_lora", "full"], ["cst", "full", "head"]),
        ("head", ["cst", "head", "full"], ["head", "full"]),
        ("cst", ["conv_lora", "cst"], ["cst"]),
    ],
)
def test_references_follow_the_recipe(
    method: str, space: list[str], expected: list[str], tiny_recipe: Callable[..., Recipe]
) -> None:
    dimensions: dict[str, Any] = {"methods": space, "shared": {"lr": SPACE["shared"]["lr"]}}
    configs = first_configs(Space.from_dict(dimensions, where="test"), tiny_recipe(method=method, lr=0.123))
    assert [config["method"] for config in configs] == expected
    assert [config["lr"] for config in configs] == [0.123, *(get_method(name).lr for name in expected[1:])]


# --- searches that are cut off --------------------------------------------------------------------------------------


@contextmanager
def started(*arguments: str) -> Iterator[Any]:
    """A launch in a process of its own; whatever it started is ended with the block."""
    process: Any = warm.start(["-m", "cst_search.cli", "launch", *arguments], dict(os.environ))
    family: dict[int, psutil.Process] = {}
    process.family = family  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        for relative in family.values():
            if relative.is_running():  # false when the number belongs to another process now
                relative.kill()


def until(process: Any, text: str) -> str:
    """Read the output up to a line with the text; note the processes that there are."""
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            process.family.update({p.pid: p for p in psutil.Process(process.pid).children(recursive=True)})
            return seen
    raise AssertionError(f"the launch ended without {text!r}:\n{seen}")


def finished(info: StudyInfo) -> dict[int, Any]:
    return {r.trial: r for r in info.trials if r.state not in ("running", "interrupted")}


def flags_of(base: Callable[..., list[str]], home: Path) -> list[str]:
    changes: dict[str, Any] = {"method": "head", "search_epochs": 6}
    return [*base(home, "lr", **changes), "--study", "cut", "--trials", str(N_TRIALS), "--no-stop-early"]


N_TRIALS = 4


def check_the_end(home: Path, before: StudyInfo, ran: Ran) -> None:
    """The last launch ended well: nothing lost, nothing twice, what was cut off finished."""
    assert ran.code == 0, ran
    done = read(home, "cut")
    assert finished(before).items() <= finished(done).items()  # what was finished stays as it was
    assert done.n_ran() == N_TRIALS == len(done.trials)
    assert [record.trial for record in done.trials] == list(range(N_TRIALS))
    assert {record.state for record in done.trials} == {"complete"}
    for record in before.trials:
        if record.state == "interrupted":
            assert done.by_number(record.trial).config == record.config  # type: ignore[union-attr]
            assert f"trial {record.trial} started (again)" in ran.out
    assert children(home, "cut") == Counter(range(N_TRIALS))


def test_a_search_that_is_killed_loses_nothing(tmp_path: Path, base: Callable[..., list[str]]) -> None:
    """Also of a trial that was at work, though nothing is stopped early."""
    flags = [*flags_of(base, tmp_path), "--in-process"]
    checkpoint = tmp_path / "cut" / "checkpoints" / "1.pt"
    with started(*flags) as process:
        while not checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    killed = read(tmp_path, "cut")
    assert [record.state for record in killed.trials] == ["complete", "interrupted"]
    check_the_end(tmp_path, killed, run_cli("launch", *flags))
    assert resumed_epochs(tmp_path, 1) >= 2 and not checkpoint.parent.exists()


def resumed_epochs(home: Path, trial: int) -> int:
    """That a checkpoint held."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{home / 'studies.db'}")
    result = optuna.load_study(study_name="cut", storage=storage).trials[trial].user_attrs["cst_result"]
    return int(result["resumed_epochs"])


def test_a_killed_trial_goes_on_from_its_checkpoint(
    tmp_path: Path, base: Callable[..., list[str]], mlflow_tables: Path, tiny_data: DetectionData,
    tiny_recipe: Callable[..., Recipe],
) -> None:  # fmt: skip
    """kill -9 in the middle of a trial; then to the end, with trials that are stopped early."""
    shutil.copy(mlflow_tables, tmp_path)
    changes: dict[str, Any] = {"method": "head", "search_epochs": 20}
    flags = [*base(tmp_path, "lr", **changes), "--study", "cut", "--in-process", "--trials", "3"]
    checkpoint = tmp_path / "cut" / "checkpoints" / "0.pt"
    with started(*flags) as process:
        seen = until(process, "trial 0 started")
        assert "of the trials that reach epoch 5, 10, one in 2 goes on" in seen
        while not checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    (killed,) = read(tmp_path, "cut").trials
    assert killed.state == "interrupted"

    ran = run_cli("launch", *flags)
    assert ran.code == 0, ran
    assert "one in 2 goes on" in ran.out and "trial 0 started (again)" in ran.out
    info = read(tmp_path, "cut")
    assert info.n_ran() == len(info.trials) == 3 and info.trials[0].state == "complete"
    assert {record.state for record in info.trials} <= {"complete", "pruned"}
    assert {r.trial for r in info.front()} <= {r.trial for r in info.trials if r.state == "complete"}
    assert resumed_epochs(tmp_path, 0) >= 1
    through = run_trial(
        tiny_recipe(**changes).configured(killed.config), tiny_data, epochs=20, device="cpu", rungs=(5, 10)
    )
    for entry, expected in zip(info.trials[0].history, through.history, strict=True):
        assert [entry[name] for name in ("epoch", "loss", "map")] == [expected[n] for n in ("epoch", "loss", "map")]
    assert not checkpoint.parent.exists()
    assert children(tmp_path, "cut") == Counter(range(3))
    # all were told to optuna; nothing is left to do
    again = run_cli("launch", *flags, "--no-stop-early")
    assert again.code == 2 and "was made with another --stop-early/--eta" in again.message
    again = run_cli("launch", *flags)
    assert again.code == 2 and "already has 3 trials" in again.message


def test_stopping_early_where_there_is_nothing_to_stop(tmp_path: Path, base: Callable[..., list[str]]) -> None:
    ran = run_cli("launch", "--in-process", *base(tmp_path, "lr", method="head"), "--trials", 1, "--stop-early")
    assert ran.code == 0, ran
    assert "note: early stopping has nothing to stop, as trials are 1 epoch(s) long" in ran.out


def test_a_search_that_has_converged_ends(
    tmp_path: Path, base: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    outlook = Outlook(gain=0.0123, noise=0.2)
    monkeypatch.setattr("cst_search.search.session.has_converged", lambda _outlooks, n_trials: n_trials >= 2)
    monkeypatch.setattr(StudyInfo, "outlook", lambda _info: outlook)
    monkeypatch.setattr("cst_search.study.records.LEAST_SAID", 2)
    flags = ["--study", "enough", "--until", "converged", "--trials", 40]
    ran = run_cli("launch", "--in-process", *base(tmp_path, "lr", method="head"), *flags)
    assert ran.code == 0, ran
    assert "study enough has converged; the search ends after 2 of 40 trials" in ran.out
    assert str(outlook) in ran.out and read(tmp_path, "enough").n_ran() == 2


def test_ctrl_c_ends_a_search_and_keeps_it(
    tmp_path: Path, base: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*flags_of(base, tmp_path), "--in-process", "--objectives", "map", "--budget-mem", "80GB",
             "--time-limit", "1d"]  # fmt: skip
    original = View.progressed

    def interrupt(self: View, trial: int, entry: Any) -> None:
        original(self, trial, entry)
        if trial == 1:
            signal.raise_signal(signal.SIGINT)

    # a shell lets the jobs that it starts in the background ignore it, this test among them
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(View, "progressed", interrupt)
            ran = run_cli("launch", *flags)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.code == 130, ran
    assert f"continue with:  cst-search resume cut --home {tmp_path}" in ran.out and "stopped after" in ran.out
    stopped = read(tmp_path, "cut")
    assert [record.state for record in stopped.trials] == ["complete", "interrupted"]
    assert (tmp_path / "cut" / "front.html").exists()  # what there is is reported
    assert "--budget-mem 80 GB is above everything in this space" in ran.out and "so it excludes nothing" in ran.out
    check_the_end(tmp_path, stopped, run_cli("resume", "cut", "--home", tmp_path, "--device", "cpu", "--in-process"))


def test_resume_takes_all_from_the_study(tmp_path: Path, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]) -> None:
    """The files of recipe and space are gone; the data may not be another."""
    home, data = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    shutil.copytree(tiny_folder, data)
    recipe, space = tmp_path / "recipe.yaml", tmp_path / "space.yaml"
    write_yaml(recipe, tiny_recipe(method="head", batch_size=1).to_dict(), "test")
    write_yaml(space, {"methods": ["head"], "shared": {"lr": SPACE["shared"]["lr"]}}, "test")
    flags = ["--home", home, "--device", "cpu", "--in-process"]
    ran = run_cli(
        "launch", *flags, "--data", data, "--recipe", recipe, "--space", space, "--study", "on", "--trials", 2,
        "--seed", 3, "--budget-mem", "5GB", "--objectives", "map,device_bytes", "--sampler", "random",
    )  # fmt: skip
    assert ran.code == 0, ran
    before = read(home, "on")
    recipe.unlink(), space.unlink()

    ran = run_cli("resume", "on", *flags)
    assert ran.code == 2 and "study 'on' already has 2 trials, so nothing is left to do" in ran.message
    ran = run_cli("resume", "on", *flags, "--trials", 3, "--json")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["trials"]["complete"] == 3
    after = read(home, "on")
    assert replace(after, trials=(), launches=()) == replace(before, trials=(), launches=())
    assert after.trials[:2] == before.trials and len(after.launches) == 1 + len(before.launches) == 2
    assert Study.open(f"sqlite:///{home / 'studies.db'}", "on").n_wanted() == 3
    ran = run_cli("resume", "on", *flags)  # the last launch wanted three
    assert ran.code == 2 and "already has 3 trials" in ran.message

    ran = run_cli("resume", "off", *flags)
    assert ran.code == 2 and "there is no study 'off'" in ran.message and "'on'" in ran.message
    for path in data.glob("*.json"):
        coco = json.loads(path.read_text())
        coco["categories"].append({"id": 99, "name": "another"})
        path.write_text(json.dumps(coco))
    ran = run_cli("resume", "on", *flags, "--trials", 4)
    assert ran.code == 2 and "was made with another --data (classes, most boxes or image sizes differ)" in ran.message
    data.rename(tmp_path / "moved")
    ran = run_cli("resume", "on", *flags, "--trials", 4)
    assert ran.code == 2 and str(data) in ran.message


def test_relative_home_is_the_same_folder_for_all_workers(
    tmp_path: Path, base: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers are in folders of their own: what trials share, and their checkpoints, are still in --home."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []

    class Noting(MadeUp):
        def run(self, job: SearchJob) -> None:
            seen.append(job.task)
            super().run(job)

    workers = Noting(monkeypatch)
    monkeypatch.setattr("cst_search.commands.worker_setup.make_workers", lambda *_: (workers, 1, 1))
    flags = [*base(Path("runs"), "lr", search_epochs=20), "--study", "cut", "--trials", "1"]
    assert run_cli("launch", *flags).code == 0
    (task,) = seen
    assert task.cache.folder == tmp_path / "runs" / "cache"
    assert task.checkpoints.folder == tmp_path / "runs" / "cut" / "checkpoints"
