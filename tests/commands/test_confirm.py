"""`cst-search confirm`: what is run, by whom, taken up where it ended, recorded and said."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from studies import Ran, make_study, open_session, run_cli, run_one, scored

from cst_search.commands.confirm import choose_epochs, choose_points, missing
from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.report.progress import View
from cst_search.study.records import StudyInfo
from cst_search.study.study import Study
from cst_search.study.trial_attributes import Repeat
from cst_search.tracking.connection import default_tracking_uri

EPOCHS = 2  # of a trial in `searched`
SPACE: dict[str, Any] = {
    "methods": ["head"],
    "shared": {"lr": {"float": [1e-3, 2e-2], "log": True}, "batch_size": {"choice": [2, 4]}},
}


def read(home: Path, name: str = "noisy") -> StudyInfo:
    return Study.open(f"sqlite:///{home / 'studies.db'}", name).info()


def runs(home: Path, kind: str) -> dict[str, Run]:
    """MLflow runs of a kind, by trial."""
    client = MlflowClient(default_tracking_uri(home))
    experiment = client.get_experiment_by_name("noisy")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`cst.kind` = '{kind}'")
    return {run.data.tags.get("cst.trial", run.info.run_id): run for run in found}


def told(home: Path, *repeats: tuple[int, int, dict[str, Any]], epochs: int = EPOCHS) -> None:
    """Record repeats that nobody ran: (trial, seed, result)."""
    session = open_session(f"sqlite:///{home / 'studies.db'}", "noisy")
    session.begin_launch()
    session.plan([Repeat(trial, seed, epochs) for trial, seed, _ in repeats])
    for _, _, result in repeats:
        suggestion = session.ask(None)  # type: ignore[arg-type]
        assert suggestion is not None
        session.tell(suggestion.trial, result)
    session.end_launch()


# --- real runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stories(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]
) -> dict[str, Any]:
    """A search; a confirmation cut off in its second run; to its end with Ray; again; at another length."""
    home = tmp_path_factory.mktemp("home")
    write_yaml(home / "recipe", tiny_recipe(method="head", search_epochs=EPOCHS, epochs=3).to_dict(), "test")
    write_yaml(home / "space", SPACE, "test")
    launch = ["launch", "--in-process", "--data", tiny_folder, "--recipe", home / "recipe", "--space", home / "space",
              "--home", home, "--device", "cpu", "--study", "noisy"]  # fmt: skip
    # map of so few steps is 0, and of equal maps the smallest batch alone would be the front
    flags = ["--objectives", "map,device_bytes"]
    confirm = ["confirm", "noisy", "--home", home, "--device", "cpu", "--picks", "0,1"]
    story: dict[str, Any] = {"home": home, "launch": run_cli(*launch, *flags, "--trials", 2), "searched": read(home)}

    original, n_heard = View.progressed, 0

    def interrupt(self: View, trial: int, entry: Any) -> None:
        nonlocal n_heard
        original(self, trial, entry)
        n_heard += 1
        if n_heard == EPOCHS + 1:
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(View, "progressed", interrupt)
            story["cut"] = run_cli(*confirm, "--in-process")
    finally:
        signal.signal(signal.SIGINT, before)
    story["after_cut"] = read(home)
    story["done"] = run_cli(*confirm, "--workers", 1, "--json")  # with Ray
    story["after_done"] = read(home)
    story["again"] = run_cli(*confirm, "--in-process")
    story["after_again"] = read(home)
    story["full"] = run_cli(*confirm, "--in-process", "--epochs", "full", "--seeds", 2, "--picks", "0", "--json")
    story["after_full"] = read(home)
    story["searched_on"] = run_cli(*launch, *flags, "--trials", 3)
    return story


def seeds_of(info: StudyInfo, epochs: int = EPOCHS) -> list[tuple[int | None, int | None, str]]:
    return sorted((r.repeat_of, r.seed, r.state) for r in info.repeats if r.repeat_epochs == epochs)  # type: ignore[type-var]


def test_ctrl_c_keeps_what_is_finished(stories: dict[str, Any]) -> None:
    assert stories["launch"].code == 0, stories["launch"]
    cut: Ran = stories["cut"]
    assert cut.code == 130, cut
    assert "2 point(s), 3 seeds each at 2 epochs; 4 run(s) to do" in cut.out
    assert "the same command continues; finished runs are kept" in cut.out
    assert seeds_of(stories["after_cut"]) == [(0, 1, "complete"), (1, 1, "interrupted")]


def test_interrupted_confirmation_continues_with_the_other_kind_of_workers(stories: dict[str, Any]) -> None:
    """Ray takes up the run that was cut off under its number, and does the two that are missing."""
    done, before, after = stories["done"], stories["after_cut"], stories["after_done"]
    assert done.code == 0, done
    assert "3 run(s) to do" in done.err
    assert seeds_of(after) == [(0, 1, "complete"), (0, 2, "complete"), (1, 1, "complete"), (1, 2, "complete")]
    (cut,) = [r for r in before.repeats if r.state == "interrupted"]
    assert f"trial {cut.trial} started (again): trial 1 again, seed 1: head" in done.err
    assert next(r for r in after.repeats if r.trial == cut.trial).seed == 1
    stored = Study.open(f"sqlite:///{stories['home']}/studies.db", "noisy").optuna_study().get_trials()[cut.trial]
    assert stored.user_attrs["cst_result"]["resumed_epochs"] == 1  # its first epoch was not run again
    assert not (stories["home"] / "noisy" / "checkpoints" / f"{cut.trial}.pt").exists()
    assert before.repeats[0] == after.repeats[0]


def test_repeats_are_the_configuration_with_another_seed(stories: dict[str, Any]) -> None:
    info = stories["after_done"]
    for repeat in info.repeats:
        trial = info.by_number(repeat.repeat_of)
        assert repeat.config == trial.config and len(repeat.history) == EPOCHS == repeat.repeat_epochs
        assert repeat.trainable_params == trial.trainable_params
        assert repeat.loss != trial.loss  # another order of the images, another start of the head
    assert len({repeat.loss for repeat in info.repeats}) == 4


def test_a_second_time_there_is_nothing_to_do(stories: dict[str, Any]) -> None:
    again = stories["again"]
    assert again.code == 0 and "0 run(s) to do" in again.out, again
    assert stories["after_again"] == stories["after_done"]
    assert len(runs(stories["home"], "confirm")) == 3  # the cut one, Ray's, and that at another length


def test_confirmation_leaves_the_search_unchanged_and_resumable(stories: dict[str, Any]) -> None:
    assert stories["after_full"].trials == stories["searched"].trials
    searched_on: Ran = stories["searched_on"]
    assert searched_on.code == 0, searched_on
    assert "study noisy: 2 of 3 trials done" in searched_on.out
    info = read(stories["home"])
    assert info.n_ran() == 3 and info.repeats == stories["after_full"].repeats


def test_another_length_is_kept_apart(stories: dict[str, Any]) -> None:
    full, info = stories["full"], stories["after_full"]
    assert full.code == 0, full
    # the trial's own seed too: its run was a shorter one
    assert seeds_of(info, 3) == [(0, 0, "complete"), (0, 1, "complete")]
    report = json.loads(full.out)
    assert (report["epochs"], report["search_epochs"]) == (3, EPOCHS)
    (point,) = report["points"]
    assert [run["seed"] for run in point["runs"]] == [0, 1] and point["n_seeds"] == 2
    before = stories["after_done"]
    assert [info.over_seeds(r) for r in info.trials] == [before.over_seeds(r) for r in before.trials]
    assert {run.data.tags["cst.epochs"] for run in runs(stories["home"], "repeat").values()} == {"2", "3"}


def test_the_shape_of_confirm_json(stories: dict[str, Any]) -> None:
    report, info = json.loads(stories["done"].out), stories["after_done"]
    assert set(report) == {
        "study", "objectives", "trials", "hypervolume", "knee", "metric", "epochs", "search_epochs", "noise", "points",
        "front", "front_before", "not_confirmed", "seconds", "interrupted",
    }  # fmt: skip
    assert report["trials"]["repeats"] == 4 and report["trials"]["total"] == 2
    assert set(report["noise"]) == {"std", "dof"} and report["noise"]["dof"] == 4
    assert report["front"] == [record.trial for record in info.front()]
    for point in report["points"]:
        assert set(point) >= {
            "trial", "config", "map", "mean", "std", "n_seeds", "new_mean", "runs", "failed", "verdict", "on_front",
            "rival", "difference", "least_difference", "within_noise",
        }  # fmt: skip
        own, *new = [run["map"] for run in point["runs"]]
        assert own == point["map"] and len(new) == 2
        assert point["mean"] == pytest.approx(sum([own, *new]) / 3) and point["new_mean"] == pytest.approx(sum(new) / 2)
    assert json.loads((stories["home"] / "noisy" / "confirm.json").read_text())["study"] == "noisy"


def test_status_and_list_show_repeats_as_their_own_kind(stories: dict[str, Any]) -> None:
    home = stories["home"]
    status = json.loads(run_cli("status", "noisy", "--home", home, "--json").out)
    assert status["trials"]["repeats"] == 6 == len(status["repeats"])
    assert {(r["repeat_of"], r["seed"], r["epochs"]) for r in status["repeats"]} == {
        (0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2), (0, 0, 3), (0, 1, 3),
    }  # fmt: skip
    assert len(status["all"]) == status["trials"]["total"] == 3
    text = run_cli("status", "noisy", "--home", home).out
    assert "trial 1 again, seed 2: head" in text and "6 repeats" in text
    (listed,) = json.loads(run_cli("list", "--home", home, "--json").out)
    assert listed["trials"]["repeats"] == 6


def test_mlflow_has_the_confirmation(stories: dict[str, Any]) -> None:
    home, info = stories["home"], stories["after_full"]
    trials, repeats, parents = runs(home, "trial"), runs(home, "repeat"), runs(home, "confirm")
    assert set(repeats) == {str(r.trial) for r in info.repeats}
    for repeat in info.repeats:
        run = repeats[str(repeat.trial)]
        assert run.data.tags["cst.repeat_of"] == str(repeat.repeat_of)
        assert run.data.tags["cst.seed"] == str(repeat.seed) and run.data.tags["cst.pareto"] == "false"
        assert run.data.tags["mlflow.parentRunId"] in parents
        assert run.data.metrics["map"] == repeat.map and run.info.status == "FINISHED"
    for trial in info.trials:
        run, sample = trials[str(trial.trial)], info.over_seeds(trial)
        assert run.data.metrics["n_seeds"] == 3
        assert run.data.metrics["map_mean"] == pytest.approx(sample.mean)
        assert run.data.metrics["map_std"] == pytest.approx(sample.std)
        assert run.data.tags["cst.verdict"].startswith(("on the front", "dominated by"))
    assert sorted(run.info.status for run in parents.values()) == ["FINISHED", "FINISHED", "KILLED"]
    done = next(run for run in parents.values() if run.data.params["seeds"] == "3" and run.info.status == "FINISHED")
    assert done.data.metrics["hypervolume"] == pytest.approx(stories["after_done"].hypervolume())
    client = MlflowClient(default_tracking_uri(home))
    for folder, names in (
        ("pareto", {"front.html", "front.png", "front-small.png", "front.json"}),
        ("confirm", {"confirm.json"}),
    ):
        assert {Path(a.path).name for a in client.list_artifacts(done.info.run_id, folder)} == names


# --- made-up results ------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> Path:
    """0 best, 1 in between, 2 smallest, 3 dominated, 4 failed, 5 over the budget; of 1000 bytes."""
    recipe = tiny_recipe(search_epochs=EPOCHS, epochs=18)
    session = make_study(tmp_path, "noisy", recipe=recipe.to_dict(), data=recipe.data)
    session.begin_launch()
    for i, (quality, measured) in enumerate(((0.6, 900), (0.55, 400), (0.1, 300), (0.2, 800), (0.0, 0), (0.9, 1100))):
        result = scored(quality, device_bytes=measured) if i != 4 else {"outcome": "failed", "reason": "a fault"}
        run_one(session, result, cst__reduction=4, batch_size=2, lr=0.01 + i / 1000)
    session.end_launch()
    return tmp_path


@pytest.mark.parametrize(
    ("picks", "trials"),
    [("front", [0, 1, 2]), ("best", [0]), ("knee", [1]), ("3", [3]), ("2, best,0", [2, 0]), ("knee,front", [1, 0, 2])],
)
def test_picks(home: Path, picks: str, trials: list[int]) -> None:
    assert [record.trial for record in choose_points(read(home), picks)] == trials


def test_missing_repeats_come_one_seed_of_each_point_at_a_time(home: Path) -> None:
    info = read(home)
    points = choose_points(info, "front")
    assert missing(info, points, 3, EPOCHS) == [Repeat(t, s, EPOCHS) for s in (1, 2) for t in (0, 1, 2)]
    # at another length the trials themselves are of no use
    assert missing(info, points[:1], 2, 18) == [Repeat(0, 0, 18), Repeat(0, 1, 18)]
    told(
        home,
        (0, 1, scored(0.5)),
        (0, 2, {"outcome": "failed", "reason": "killed"}),  # may be done again
        (1, 1, {"outcome": "oom", "reason": "no memory"}),  # would end so again
        (2, 1, scored(0.1)),
        (2, 2, scored(0.1)),
        (2, 3, scored(0.1)),
    )
    info = read(home)
    assert missing(info, points, 3, EPOCHS) == [Repeat(0, 2, EPOCHS), Repeat(1, 2, EPOCHS)]
    assert missing(info, points, 2, EPOCHS) == []
    assert missing(info, points, 5, EPOCHS)[-1] == Repeat(2, 4, EPOCHS)


def test_a_point_that_left_the_front_still_gets_its_seeds(home: Path) -> None:
    told(home, (1, 1, scored(0.0)), (1, 2, scored(0.0)), (0, 1, scored(0.0)))  # 1: mean 0.18; 0: 0.3
    info = read(home)
    told(home, (0, 2, scored(0.0)))  # 0.2 at 900 bytes: 3 has as much at 800
    info = read(home)
    assert [record.trial for record in info.front()] == [3, 1, 2]
    assert {record.trial for record in choose_points(info, "front")} == {0, 1, 2, 3}
    (first, *_) = missing(info, choose_points(info, "front"), 3, EPOCHS)
    assert first == Repeat(3, 1, EPOCHS)  # who comes onto it is confirmed in its turn


@pytest.mark.parametrize(("text", "epochs"), [("search", EPOCHS), ("full", 18), ("7", 7)])
def test_lengths(home: Path, text: str, epochs: int) -> None:
    assert choose_epochs(read(home), text) == epochs


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--study-name", "other"], "there is no study 'other'"),
        (["--study-name", "empty"], "study 'empty' has no feasible complete trial yet"),
        (["--study-name", "costs"], "which are the same with every seed: there is nothing to confirm"),
        (["--seeds", "1"], "--seeds"),
        (["--picks", "worst"], "--picks takes front, knee, best, or numbers of complete trials within the budget"),
        (["--picks", "4"], "got '4'; complete are [0, 1, 2, 3]"),
        (["--picks", "5"], "got '5'; complete are [0, 1, 2, 3]"),
        (["--picks", ""], "got ''"),
        (["--epochs", "short"], "--epochs takes search, full or a whole number from 1 to 10000; got 'short'"),
        (["--epochs", "0"], "got '0'"),
        (["--device", "tpu"], "--device must be one of auto, cpu, cuda; got 'tpu'"),
        (["--data", "nowhere"], "is no folder; say with --data where it is now"),
        (["--study-name", "elsewhere"], "n_classes 3, in the search 20; give the same data, and --skip-bad if"),
    ],
)
def test_a_persons_mistake(home: Path, flags: list[str], said: str) -> None:
    recipe = read(home).recipe
    make_study(home, "empty")
    costs = make_study(home, "costs", objectives=make_study(home, "empty").study.spec.objectives[1:])
    elsewhere = make_study(home, "elsewhere", recipe=recipe, data=recipe["data"], inputs={"n_classes": 20})
    for session in (costs, elsewhere):
        run_one(session, scored(0.5))
    name = "noisy"
    if flags[0] == "--study-name":
        name, flags = flags[1], flags[2:]
    ran = run_cli("confirm", name, "--home", home, "--in-process", *flags)
    assert (ran.code, said in ran.message) == (2, True), ran
    assert not read(home).repeats and "Traceback" not in ran.err


def test_one_confirmation_at_a_time(home: Path) -> None:
    session = open_session(f"sqlite:///{home / 'studies.db'}", "noisy")
    session.begin_launch()
    ran = run_cli("confirm", "noisy", "--home", home, "--in-process", "--device", "cpu")
    assert (ran.code, "is being worked on by process" in ran.message) == (2, True), ran


@pytest.fixture
def confirmed(home: Path) -> Path:
    """0 falls from 0.6 to a mean of 0.5, at more memory than 1, whose 0.55 holds; one run of 0 failed."""
    told(
        home, (0, 1, scored(0.4, device_bytes=900)), (0, 2, scored(0.5, device_bytes=900)),
        (0, 3, {"outcome": "nonfinite", "reason": "the loss is nan"}), (1, 1, scored(0.54)), (1, 2, scored(0.56)),
        (2, 1, scored(0.1)), (2, 2, scored(0.1)),
    )  # fmt: skip
    return home


def test_the_table_says_who_is_still_on_the_front(confirmed: Path) -> None:
    ran = run_cli("confirm", "noisy", "--home", confirmed, "--picks", "0,1,2")
    assert ran.code == 0, ran
    lines = [line for line in ran.out.splitlines() if line.startswith("│")]
    rows = {number: line for line in lines if (number := line.split("│")[1].strip())}  # the rest: long configurations
    # map, mean, std, n, of the new seeds; squares 0.02 + 0.0002 + 0, dof 6: LSD 0.116
    assert [cell.strip() for cell in rows["0"].split("│")[2:7]] == ["0.600", "0.500", "0.100", "3 + 1 failed", "0.450"]
    assert "dominated by trial 1, within noise" in rows["0"]
    assert "on the front" in rows["1"] and "within noise" not in rows["1"]
    assert list(rows) == ["1", "0", "2"]
    assert "standard deviation 0.0580 (6 degrees of freedom)" in ran.out
    assert "front: 1, 2; knee 1" in ran.out
    # it was all there: a program reads the same
    front = json.loads(run_cli("front", "noisy", "--home", confirmed, "--json").out)
    assert [(e["trial"], e["map"], e["n_seeds"]) for e in front["front"]] == [(1, 0.55, 3), (2, 0.1, 3)]
    assert front["front"][0]["map_mean"] == pytest.approx(0.55)
    table = run_cli("front", "noisy", "--home", confirmed).out
    assert "mean" in table and "seeds" in table and "0.010" in table


def test_the_best_one_is_picked_by_the_mean(confirmed: Path) -> None:
    ran = run_cli("export", "noisy", "--home", confirmed, "--pick", "best", "--no-verify", "-o", confirmed / "b.yaml")
    assert ran.code == 0, ran
    assert "trial 1: map 0.550, map 0.550 +- 0.010 over 3 seeds" in ran.out
    text = (confirmed / "b.yaml").read_text()
    assert "map 0.550 after 2 epochs, map 0.550 +- 0.010 over 3 seeds" in text
    assert "n_seeds: 3" in text and "map_std: 0.01" in text


def test_mlflows_front_follows(confirmed: Path) -> None:
    run_cli("confirm", "noisy", "--home", confirmed, "--picks", "0,1,2")
    trials = runs(confirmed, "trial")
    tagged = {trial for trial, run in trials.items() if run.data.tags["cst.pareto"] == "true"}
    assert tagged == {"1", "2"}
    assert trials["0"].data.tags["cst.verdict"] == "dominated by trial 1, within noise"
    assert trials["0"].data.metrics["map_new_mean"] == pytest.approx(0.45)
    assert "cst.verdict" not in trials["3"].data.tags
    # one seed more, and the run has the new figures
    told(confirmed, (0, 4, scored(0.9)))
    run_cli("confirm", "noisy", "--home", confirmed, "--picks", "0")
    run = runs(confirmed, "trial")["0"]
    assert (run.data.metrics["n_seeds"], run.data.metrics["map_mean"]) == (4, pytest.approx(0.6))
    assert run.data.tags["cst.pareto"] == "true"
    assert run.data.tags["cst.verdict"] == "on the front, within noise of trial 1"
