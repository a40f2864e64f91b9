"""The study: what it suggests, what it remembers, how it is taken up again, and what optuna sees of it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import warm
from optuna.trial import TrialState
from studies import (
    fake_estimate,
    make_spec,
    make_study,
    move,
    open_session,
    run_one,
    scored,
    shorter_rungs,
    stop_the_heart,
)

from cst_search.config.recipe import Recipe
from cst_search.errors import StudyError
from cst_search.search.pareto_sampler import ParetoSampler
from cst_search.search.samplers import SAMPLERS
from cst_search.search.session import SearchSession
from cst_search.search.suggester import enqueue
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.outlook import LEAST_TRIALS, Outlook
from cst_search.study.records import Budget
from cst_search.study.study import Study
from cst_search.study.trial_attributes import Repeat

BUDGET = 1000  # bytes; see fake_estimate
CONSTRAINTS = ("memory", "params", "finite")  # of every trial; others where they are bounded


def objectives(*names: str) -> Any:
    return tuple(OBJECTIVES[name] for name in names)


def in_memory(**changes: Any) -> SearchSession:
    """A quick study that nobody else can open: optuna's storage without a database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cst_search.study.study.open_storage", lambda url, make=False: optuna.storages.InMemoryStorage())
        session = SearchSession(Study.create("", "quick", make_spec(**changes)))
    session.suggester.begin()  # as a launch does: seeded, so that a test is the same every time
    return session


def ask(session: SearchSession, estimate: Any = fake_estimate, **options: Any) -> Any:
    return session.ask(estimate, **options)


def as_optuna_has_it(session: SearchSession) -> list[Any]:
    return optuna.load_study(study_name=session.study.name, storage=session.study.url).get_trials()


# --- the budget -----------------------------------------------------------------------------------------------------


def test_configurations_over_the_budget_are_never_handed_out() -> None:
    session = in_memory()
    session.begin_launch()
    for _ in range(200):
        suggestion = ask(session)
        assert fake_estimate(suggestion.config).device_bytes <= BUDGET
        assert suggestion.estimate["device_bytes"] == fake_estimate(suggestion.config).device_bytes
    rejected = [record for record in session.study.info().trials if not record.ran]
    assert len(rejected) > 20  # or the budget did not bite
    for record in rejected:
        assert (record.state, record.feasible, record.map) == ("infeasible", False, None)
        assert fake_estimate(record.config).device_bytes > BUDGET
        assert record.reason == f"predicted over the budget: memory {record.device_bytes / BUDGET - 1:+.0%}"  # type: ignore[operator]
    assert session.study.info().n_ran() == 0  # none of the 200 has ended


def test_optuna_learns_from_a_rejected_one(tmp_path: Path) -> None:
    """As data, in both of its formats: told as FAIL it would learn nothing, without a constraint the opposite."""
    session = make_study(tmp_path)
    session.enqueue({"method": "cst", "cst.reduction": 1, "batch_size": 8, "lr": 0.01})
    ask(session)
    rejected = as_optuna_has_it(session)[0]
    assert rejected.state == TrialState.COMPLETE
    assert rejected.values == [-math.inf, 1600.0, 1800.0]  # mAP was never reached; the costs are the true ones
    named = {name: rejected.constraints[name] for name in CONSTRAINTS}
    assert named == {"memory": pytest.approx(0.6), "params": 0.0, "finite": 0.0}
    assert rejected.system_attrs["constraints"] == [pytest.approx(0.6)]  # what optuna-dashboard reads


def test_the_budget_of_parameters_counts_too() -> None:
    session = in_memory(budget=Budget(None, 1100))
    for _ in range(10):
        suggestion = ask(session)
        assert suggestion.estimate["trainable_params"] <= 1100
    assert any((r.reason or "").startswith("predicted over the budget: params +") for r in session.study.info().trials)


@pytest.mark.parametrize(
    ("bounds", "cost", "most", "name"),
    [
        (Budget(delta_bytes=4400), "delta_bytes", 4400, "delta"),
        (Budget(flops=1_100_000_000), "flops", 1_100_000_000, "flops"),
    ],
)
def test_costs_of_inference_can_be_bounded(bounds: Budget, cost: str, most: int, name: str) -> None:
    session = in_memory(budget=bounds, objectives=objectives("map", cost))
    for _ in range(10):
        assert ask(session).estimate[cost] <= most
    rejected = [record for record in session.study.info().trials if not record.ran]
    assert rejected and not any(record.feasible for record in rejected if record.state == "infeasible")
    over = [record for record in rejected if record.state == "infeasible"]
    assert over and all(getattr(record, cost) > most for record in over)
    assert all((record.reason or "").startswith(f"predicted over the budget: {name} +") for record in over)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_searches_by_costs_of_inference(tmp_path: Path, sampler: str) -> None:
    chosen = objectives("map", "delta_bytes", "marginal_flops")
    session = make_study(tmp_path, sampler=sampler, budget=Budget(delta_bytes=6000), objectives=chosen)
    session.begin_launch()
    for i in range(7):
        record = run_one(session, scored(0.1 * i))
        assert (record.state, record.delta_bytes) == ("complete", 4 * record.trainable_params)
        assert record.delta_bytes <= 6000
    told = [trial for trial in as_optuna_has_it(session) if trial.values and trial.values[0] > -1]
    assert [trial.values[1] for trial in told] == [r.delta_bytes for r in session.study.info().trials if r.ran]
    assert session.study.info().hypervolume() > 0
    again = open_session(session.study.url, session.study.name)
    assert again.study.spec.budget == Budget(delta_bytes=6000) and again.study.spec.objectives == chosen


def test_exactly_on_the_budget_is_within_it() -> None:
    session = in_memory(budget=Budget(1000, None))
    session.enqueue({"method": "cst", "cst.reduction": 1, "batch_size": 2, "lr": 0.01})
    assert ask(session).estimate["device_bytes"] == 1000


def test_search_ends_if_nothing_fits_the_budget() -> None:
    session = in_memory(budget=Budget(10, None))
    assert ask(session, max_rejects=7) is None
    assert [record.state for record in session.study.info().trials] == ["infeasible"] * 8
    assert session.study.info().n_ran() == 0


# --- the first suggestion -------------------------------------------------------------------------------------------


def test_enqueued_configurations_within_the_space_come_first() -> None:
    session = in_memory()
    session.enqueue(
        {
            "method": "cst",
            "cst.reduction": 4,
            "cst.mtc_stages": (5,),
            "lr": 3e-3,
            "batch_size": 3,  # not a choice: drawn
            "cst.block": "3x3",  # not a dimension
        }
    )
    config = ask(session).config
    assert {key: config[key] for key in ("method", "cst.reduction", "cst.mtc_stages", "lr")} == {
        "method": "cst", "cst.reduction": 4, "cst.mtc_stages": (5,), "lr": 3e-3,
    }  # fmt: skip
    assert config["batch_size"] in (2, 4, 8)
    assert "cst.block" not in config


# --- outcomes -------------------------------------------------------------------------------------------------------

OUTCOMES: list[tuple[str, dict[str, Any], str, TrialState, list[float] | None, tuple[float, float]]] = [
    # why, result, our state, optuna's, its values, constraints (memory, finite)
    ("complete, memory predicted", scored(0.4), "complete", TrialState.COMPLETE, [0.4, 300, 1100], (-0.7, 0)),
    (
        "complete, memory measured",
        scored(0.4, device_bytes=900, trainable_params=1100),
        "complete",
        TrialState.COMPLETE,
        [0.4, 900, 1100],
        (-0.1, 0),
    ),
    (
        "measured over the budget",
        scored(0.9, device_bytes=1100),
        "infeasible",
        TrialState.COMPLETE,
        [0.9, 1100, 1100],
        (0.1, 0),
    ),
    (
        "out of memory, said to be within the budget",
        {"outcome": "oom", "reason": "CUDA out of memory"},
        "infeasible",
        TrialState.COMPLETE,
        [-math.inf, 300, 1100],
        (0.1, 0),
    ),
    (
        "out of memory with a measured peak",
        {"outcome": "oom", "reason": "CUDA out of memory", "device_bytes": 1500},
        "infeasible",
        TrialState.COMPLETE,
        [-math.inf, 1500, 1100],
        (0.5, 0),
    ),
    (
        "out of memory, held and refused add up to less than the budget",  # another process had the rest of the GPU
        {
            "outcome": "oom",
            "reason": "CUDA out of memory",
            "device_bytes": 400,
            "limit_bytes": 900,
            "held_bytes": 200,
            "asked_bytes": 100,
            "stage": "training, epoch 1",
        },
        "infeasible",
        TrialState.COMPLETE,
        [-math.inf, 400, 1100],
        (0.1, 0),
    ),
    (
        "out of a limit below the budget",  # by what it needed above the limit at least
        {
            "outcome": "oom",
            "reason": "CUDA out of memory",
            "device_bytes": 700,
            "limit_bytes": 400,
            "held_bytes": 380,
            "asked_bytes": 220,
            "stage": "training, epoch 1",
        },
        "infeasible",
        TrialState.COMPLETE,
        [-math.inf, 700, 1100],
        (0.5, 0),
    ),
    (
        "a process on a CPU out of its limit",  # its bytes are not the GPU's: those stay predicted
        {"outcome": "oom", "reason": "std::bad_alloc", "limit_bytes": 400, "held_bytes": 399, "stage": "building"},
        "infeasible",
        TrialState.COMPLETE,
        [-math.inf, 300, 1100],
        (0.1, 0),
    ),
    (
        "the loss is not finite",
        {"outcome": "nonfinite", "reason": "loss is nan at step 3", "map": 0.8, "map50": 0.9},
        "failed",
        TrialState.COMPLETE,
        [-math.inf, 300, 1100],
        (-0.7, 1),
    ),
    ("a fault", {"outcome": "failed", "reason": "ValueError: x"}, "failed", TrialState.FAIL, None, (0, 0)),
    ("complete without a score", scored(0.4, map=None), "failed", TrialState.FAIL, None, (0, 0)),
]


@pytest.mark.parametrize(
    ("why", "result", "state", "told", "values", "constraints"), OUTCOMES, ids=[row[0] for row in OUTCOMES]
)
def test_how_an_outcome_is_recorded(
    tmp_path: Path,
    why: str,
    result: dict[str, Any],
    state: str,
    told: TrialState,
    values: list[float] | None,
    constraints: tuple[float, float],
) -> None:
    session = make_study(tmp_path)
    record = run_one(session, result, cst__reduction=8, batch_size=2)
    assert (record.state, record.ran) == (state, True)
    assert record.feasible == (state == "complete")
    assert record == Study.open(session.study.url, session.study.name).info().trials[0]
    assert record.memory_source == ("measured" if "device_bytes" in result else "predicted")
    if state != "complete" and result.get("reason"):
        assert result["reason"] in record.reason  # type: ignore[operator]
    stored = as_optuna_has_it(session)[0]
    assert (stored.state, stored.values) == (told, values)
    if told == TrialState.COMPLETE:
        found = stored.constraints
        assert (found["memory"], found["finite"]) == (pytest.approx(constraints[0]), constraints[1])
    assert [record.trial for record in session.study.info().front()] == ([0] if state == "complete" else [])


def test_oom_reason_states_held_memory_stage_and_limit(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    figures = {"limit_bytes": 5_500_000_000, "held_bytes": 5_310_000_000, "asked_bytes": 10**9}
    record = run_one(session, {"outcome": "oom", "reason": "no memory", "stage": "training, epoch 2", **figures})
    assert record.reason == "out of memory (training, epoch 2): no memory; it held 5.31 GB of 5.5 GB"


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_sampler_learns_from_running_out(sampler: str) -> None:
    """What is let through by the prediction and runs out is suggested less and less: here batches of 8."""
    session = in_memory(sampler=sampler, budget=Budget(10_000, None), objectives=objectives("map"))
    session.begin_launch()
    ran_out = []
    for _ in range(60):
        suggestion = ask(session)
        ran_out.append(suggestion.config["batch_size"] == 8)
        # the larger batch would be the better one, were there the memory
        result = {"outcome": "oom", "reason": "x"} if ran_out[-1] else scored(0.1 * suggestion.config["batch_size"])
        session.tell(suggestion.trial, result)
    assert sum(ran_out[:20]) >= 4 and sum(ran_out[-20:]) < sum(ran_out[:20])


def test_every_finished_trial_has_the_same_constraints(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    for _, result, *_ in OUTCOMES:
        run_one(session, result)
    finished = [trial for trial in as_optuna_has_it(session) if trial.state == TrialState.COMPLETE]
    assert len(finished) >= 6
    for trial in finished:
        assert list(trial.constraints) == sorted(["0", *CONSTRAINTS])  # the GP sampler takes them by position
        assert trial.constraints["0"] == max(trial.constraints.values())


@pytest.mark.parametrize(
    "names", [("map", "device_bytes"), ("map", "device_bytes", "trainable_params"), ("device_bytes", "map50")]
)
def test_optuna_and_we_agree_on_the_front(names: tuple[str, ...], tmp_path: Path) -> None:
    session = make_study(tmp_path, objectives=objectives(*names), seed=3)
    for quality in (0.2, 0.5, 0.5, 0.1, 0.45, 0.3, 0.5):
        run_one(session, scored(quality))
    run_one(session, scored(0.31, device_bytes=150))
    run_one(session, scored(0.95, device_bytes=1001))  # the best, and over the budget
    run_one(session, {"outcome": "nonfinite", "reason": "nan", "device_bytes": 1})
    run_one(session, {"outcome": "oom", "reason": "no memory"})
    run_one(session, {"outcome": "failed", "reason": "a fault"})
    run_one(session, scored(0.6), cst__reduction=8, batch_size=2, lr=0.01)  # two equal points
    run_one(session, scored(0.6), cst__reduction=8, batch_size=2, lr=0.02)
    ask(session)  # still running
    theirs = optuna.load_study(study_name=session.study.name, storage=session.study.url).best_trials
    assert {trial.number for trial in theirs} == {record.trial for record in session.study.info().front()}
    assert len(theirs) >= 3


# --- samplers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("map", "device_bytes", "trainable_params"), ("map",)], ids=["three", "one"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_copes_with_conditions_and_a_budget(sampler: str, names: tuple[str, ...]) -> None:
    session = in_memory(sampler=sampler, objectives=objectives(*names))
    session.begin_launch()
    for i in range(15):  # GP draws the first ten at random
        suggestion = ask(session)
        assert suggestion.estimate["device_bytes"] <= BUDGET
        result: dict[str, Any] = scored(0.2 + 0.01 * suggestion.config["batch_size"])
        if i == 5:
            result = {"outcome": "failed", "reason": "a fault"}
        if i == 8:
            result = {"outcome": "oom", "reason": "no memory"}
        session.tell(suggestion.trial, result)
    info = session.study.info()
    assert info.n_ran() == 15
    assert info.counts()["complete"] == info.n_ran() - 2
    assert {record.config["method"] for record in info.trials} == {"cst", "head"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_sees_repeats(sampler: str) -> None:
    """Finished ones of every outcome, and one that was cut off: what comes after is as without them."""
    drawn = []
    # NSGA-II goes by generations of 16, a Gaussian process takes a second a suggestion after the first ten
    n_before, n_after = (11, 1) if sampler == "gp" else (18, 3)
    for with_repeats in (True, False):
        session = in_memory(sampler=sampler)
        for i in range(n_before):
            run_one(session, scored(0.2 + 0.017 * i))
        session.begin_launch()
        if with_repeats:
            best = session.study.info().front()[0].trial
            outcomes: list[Any] = [
                scored(0.99), scored(0.9, device_bytes=1100), {"outcome": "nonfinite", "reason": "nan"},
                {"outcome": "oom", "reason": "x"}, {"outcome": "failed", "reason": "x"}, None,
            ]  # fmt: skip
            session.plan([Repeat(best, seed, 4) for seed in range(1, len(outcomes) + 1)])
            for outcome in outcomes:
                repeat = ask(session, None)
                if outcome is not None:
                    session.tell(repeat.trial, outcome)
            assert ask(session, None) is None  # no more than was planned
        session.end_launch()
        session = SearchSession(Study(session.study.optuna_study(), "", session.study.optuna_study()._storage))
        # the seed of a launch's sampler goes by the number of trials; here by none
        session.study.spec = dataclasses.replace(
            session.study.spec, seed=11 - 7919 * len(session.study.optuna_study().get_trials())
        )
        session.begin_launch()
        drawn.append(
            [(s.config, session.tell(s.trial, scored(0.4)).state) for s in (ask(session) for _ in range(n_after))]
        )
    assert drawn[0] == drawn[1]


# --- repeats --------------------------------------------------------------------------------------------------------


def test_a_repeat_is_a_trial_with_its_seed_and_the_configuration(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    first = run_one(session, scored(0.4), cst__reduction=4, batch_size=4)
    session.begin_launch()
    session.plan([Repeat(0, 7, 2)])
    suggestion = ask(session, None)
    assert suggestion.config == {**first.config, "seed": 7}
    assert (suggestion.trial, suggestion.repeat_of, suggestion.again) == (1, 0, False)
    (running,) = session.study.info().repeats
    assert (running.state, running.repeat_of, running.seed, running.repeat_epochs) == ("running", 0, 7, 2)
    session.tell(1, scored(0.3, device_bytes=700))
    info = Study.open(session.study.url, session.study.name).info()
    (repeat,) = info.repeats
    assert info.trials == (first,) and repeat.config == first.config
    assert (repeat.state, repeat.map, repeat.device_bytes, repeat.memory_source) == ("complete", 0.3, 700, "measured")
    assert info.n_ran() == 1 and info.counts()["repeats"] == 1
    stored = as_optuna_has_it(session)[1]
    assert (stored.state, stored.params, stored.values) == (TrialState.FAIL, {}, None)


def test_searches_and_confirmations_do_not_resume_each_others_trials(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    number = run_one(session, scored(0.4)).trial
    session.begin_launch()
    mine = ask(session)  # a trial of the search, cut off
    session.end_launch()

    session = open_session(session.study.url, session.study.name)
    session.begin_launch()
    session.plan([Repeat(number, 1, 2), Repeat(number, 2, 2)])
    cut = ask(session, None)
    session.end_launch()
    assert [r.state for r in session.study.info().repeats] == ["interrupted"]

    session = open_session(session.study.url, session.study.name)
    session.begin_launch()
    again = ask(session)
    assert (again.trial, again.again, again.repeat_of) == (mine.trial, True, None)
    session.tell(again.trial, scored(0.3))
    assert ask(session).trial not in (mine.trial, cut.trial)
    session.end_launch()

    session = open_session(session.study.url, session.study.name)
    session.begin_launch()
    session.plan([Repeat(number, 2, 2), Repeat(number, 1, 2)])
    fresh, taken_up = ask(session, None), ask(session, None)
    assert (fresh.again, taken_up.again, taken_up.trial, taken_up.config) == (False, True, cut.trial, cut.config)
    session.tell(taken_up.trial, scored(0.3))
    assert session.study.record(cut.trial).state == "complete"


def test_a_continued_study_does_not_draw_the_same_points_again(tmp_path: Path) -> None:
    configs = []
    for _ in range(2):
        session = make_study(tmp_path)
        session.begin_launch()
        configs += [run_one(session, scored(0.5)).config for _ in range(4)]
        session.end_launch()
    assert len({json.dumps(config) for config in configs}) == 8


def test_the_same_seed_draws_the_same_points() -> None:
    def draw(seed: int) -> list[dict[str, Any]]:
        session = in_memory(seed=seed, sampler="tpe")
        session.begin_launch()
        return [dict(run_one(session, scored(0.5)).config) for _ in range(5)]

    assert draw(1) == draw(1) != draw(2)


# --- launches side by side ------------------------------------------------------------------------------------------


def test_a_trial_that_another_launch_finished_is_counted_once(tmp_path: Path) -> None:
    """The one that was taken for dead looks, finds the trial its own, and then the other tells first."""
    first, second = make_study(tmp_path), make_study(tmp_path)
    first.begin_launch()
    mine = ask(first)
    move(first)
    second.begin_launch()
    stop_the_heart(first)
    again = ask(second)
    second.tell(again.trial, scored(0.4))
    first.study.is_ours = lambda number: True  # type: ignore[method-assign]
    assert first.tell(mine.trial, scored(0.9)) is None
    assert [(r.trial, r.map) for r in first.study.info().trials] == [(mine.trial, 0.4)]


def test_launches_together_run_as_many_trials_as_the_study_shall_have(tmp_path: Path) -> None:
    studies = [make_study(tmp_path) for _ in range(3)]
    for session in studies:
        session.begin_launch(shares_machine=True)
    handed_out = []
    for turn in range(9):
        session = studies[turn % 3]
        suggestion = ask(session, n_trials=7)
        if suggestion is not None:
            handed_out.append((session, suggestion))
        if turn == 3:  # one that ended counts as one that runs
            owner, done = handed_out.pop(0)
            owner.tell(done.trial, scored(0.4))
    assert len(handed_out) == 6
    assert ask(studies[0], n_trials=8) is not None
    assert studies[1].study.others_at_work() == 7 - sum(owner is studies[1] for owner, _ in handed_out)


TOGETHER = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from studies import fake_estimate, make_spec, scored
    from cst_search.search.session import SearchSession
    from cst_search.study.study import Study
    session = SearchSession(Study.create(sys.argv[2], "made", make_spec(space=eval(sys.argv[3]), sampler="random")))
    session.begin_launch(shares_machine=True)
    print("ready", flush=True)
    while not Path(sys.argv[4]).exists():
        time.sleep(0.005)
    while (suggestion := session.ask(fake_estimate, 20)) is not None:
        time.sleep(0.05)
        session.tell(suggestion.trial, scored(0.4))
    session.end_launch()
"""


def test_processes_together_run_each_configuration_once(storage_url: str, tmp_path: Path) -> None:
    """At the same moment, in a space of 24: the bound of 20 is exact."""
    space = {"methods": ["cst"], "cst": {"reduction": {"choice": [2, 4, 8]}, "mtc_stages": {"choice": [[5], [4]]}},
             "shared": {"accumulate": {"choice": [1, 2, 3, 4]}}}  # fmt: skip
    script, go = tmp_path / "together.py", tmp_path / "go"
    script.write_text(textwrap.dedent(TOGETHER))
    words = [str(script), str(Path(__file__).parents[1]), storage_url, repr(space), str(go)]
    running = [warm.start(words, dict(os.environ)) for _ in range(3)]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    go.touch()
    for process in running:
        assert process.wait(120) == 0
    trials = [r for r in Study.open(storage_url, "made").info().trials if r.ran]
    assert len(trials) == 20
    assert len({json.dumps(r.config, sort_keys=True) for r in trials}) == len(trials)
    assert {r.state for r in trials} == {"complete"} and len({r.launch for r in trials}) > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_suggests_a_configuration_twice(sampler: str) -> None:
    """Six configurations: all are handed out, the last ones while others run, and then there is none."""
    space = {"methods": ["cst"], "cst": {"reduction": {"choice": [2, 4, 8]}, "mtc_stages": {"choice": [[5], [4]]}}}
    session = in_memory(space=space, sampler=sampler, budget=Budget())
    session.begin_launch()
    handed_out = []
    for turn in range(6):
        suggestion = ask(session)
        handed_out.append(json.dumps(suggestion.config, sort_keys=True))
        if turn < 4:
            session.tell(suggestion.trial, scored(0.1 * turn))
    assert len(set(handed_out)) == 6
    assert ask(session, max_rejects=30) is None
    assert [r.state for r in session.study.info().trials] == ["complete"] * 4 + ["running"] * 2


def test_a_sampler_that_repeats_itself_still_covers_the_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """It suggests the same every time; the others are drawn at random, each another one."""

    class Stubborn(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, *_: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, *_: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, session: Any, trial: Any, name: str, distribution: Any) -> Any:
            return distribution.choices[0]

    space = {"methods": ["cst"], "cst": {"reduction": {"choice": [2, 4, 8]}, "mtc_stages": {"choice": [[5], [4]]}}}
    session = in_memory(space=space, budget=Budget())
    session.begin_launch()
    session.study.optuna_study().sampler = Stubborn()
    handed_out = [json.dumps(ask(session, max_rejects=400).config, sort_keys=True) for _ in range(6)]
    assert len(set(handed_out)) == 6
    assert isinstance(session.study.optuna_study().sampler, Stubborn)


def test_trials_that_lose_their_workers_together_are_all_rerun(tmp_path: Path) -> None:
    """A node that goes takes several with it; another launch's that died is there too."""
    dead, session = make_study(tmp_path), make_study(tmp_path)
    dead.begin_launch()
    left = ask(dead)
    dead.end_launch()
    session.begin_launch()
    taken = ask(session)
    assert taken.trial == left.trial
    lost = [taken, ask(session), ask(session)]
    assert [session.give_back(suggestion.trial) for suggestion in lost] == [True] * 3
    again = [ask(session, n_trials=3) for _ in lost]
    assert [(s.trial, s.config, s.again) for s in again] == [(s.trial, s.config, True) for s in lost]
    assert not session.has_returned() and ask(session, n_trials=3) is None
    assert not session.give_back(again[0].trial)


def test_stopped_trials_of_a_dead_launch_are_adopted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shorter_rungs():
        dead = make_study(tmp_path, eta=2)
        dead.begin_launch()
        suggestions = [ask(dead) for _ in range(2)]
        goes_on = [dead.progress(s.trial, {"epoch": 1, "map": m}) for s, m in zip(suggestions, (0.5, 0.1), strict=True)]
        stopped = [s for s, on in zip(suggestions, goes_on, strict=True) if not on]
        assert stopped
        for suggestion in stopped:
            dead.tell(suggestion.trial, {"outcome": "stopped"})
        dead.end_launch()
        session = open_session(dead.study.url, dead.study.name)
        session.begin_launch()
        mine = dict(session.promotion.stopped)
        assert set(mine) == {s.trial for s in stopped}
        ask(session), ask(session)
        assert session.promotion.stopped == mine  # the very objects


def test_rungs_compare_the_trials_of_all_launches(tmp_path: Path) -> None:
    """The second launch's trial is worse than the first's, which it never saw run."""
    with shorter_rungs():
        first = make_study(tmp_path, eta=2)
        first.begin_launch(shares_machine=True)
        second = open_session(first.study.url, first.study.name)
        second.begin_launch(shares_machine=True)
        at = first.rungs[0]
        better = [ask(first) for _ in range(2)]
        for suggestion in better:
            assert first.progress(suggestion.trial, {"epoch": at, "map": 0.5}) in (True, False)
        worse = ask(second)
        assert second.progress(worse.trial, {"epoch": at, "map": 0.01, "device_bytes": 999}) is False


def test_a_confirmation_works_alone(tmp_path: Path) -> None:
    first, second = make_study(tmp_path), make_study(tmp_path)
    for kinds in (("launch", "confirm"), ("confirm", "launch"), ("confirm", "confirm")):
        first.begin_launch(kind=kinds[0])
        move(first)
        with pytest.raises(StudyError, match="on elsewhere, and a confirmation works alone; wait"):
            second.begin_launch(kind=kinds[1], shares_machine=True)
        first.end_launch()


DIES = """
    import os, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from studies import fake_estimate, make_study, run_one, scored
    session = make_study(Path(sys.argv[2]))
    session.begin_launch()
    run_one(session, scored(0.4))
    session.ask(fake_estimate)
    session.ask(fake_estimate)
    session.study.optuna_study().ask()  # suggested, and killed before the configuration was known
    os.kill(os.getpid(), 9)
"""


def run_until_killed(script: str, home: Path) -> None:
    """Run a script that kills itself, in a process of its own, with the folder of tests and the home as arguments."""
    path = home / "dies.py"
    path.write_text(textwrap.dedent(script))
    process = warm.start([str(path), str(Path(__file__).parents[1]), str(home)], dict(os.environ))
    assert process.wait(120) == -9


def test_running_trials_of_a_killed_launch_are_handed_out_again(tmp_path: Path) -> None:
    run_until_killed(DIES, tmp_path)
    session = make_study(tmp_path)
    before = session.study.info()
    open_before = [record for record in before.trials if record.state == "interrupted"]
    assert before.counts()["complete"] == 1 and len(open_before) == 2 and before.n_ran() == 1
    session.begin_launch()
    again = [ask(session) for _ in range(3)]
    assert [(s.trial, s.config, s.again) for s in again[:2]] == [(r.trial, r.config, True) for r in open_before]
    assert not again[2].again
    # while they run again they run, and a third launch would not take them
    assert [session.study.info().by_number(record.trial).state for record in open_before] == ["running"] * 2  # type: ignore[union-attr]
    for suggestion in again:
        session.tell(suggestion.trial, scored(0.5))
    after = session.study.info()
    assert after.counts() | {"infeasible": 0, "total": 0} == before.counts() | {
        "complete": 4, "interrupted": 0, "infeasible": 0, "total": 0,
    }  # fmt: skip
    assert after.n_ran() == 4
    assert TrialState.RUNNING not in {trial.state for trial in as_optuna_has_it(session)}


# --- early stopping -------------------------------------------------------------------------------------------------

STOPS = Recipe(detector="fcos", backbone="resnet18", weights="none", search_epochs=4).to_dict()


@pytest.fixture(autouse=True)
def two_rungs_in_four_epochs() -> Iterator[None]:
    with shorter_rungs():
        yield


def with_rungs(make: Callable[..., Study] = in_memory, *arguments: Any, **changes: Any) -> SearchSession:
    """A study whose trials of 4 epochs are compared after epochs 1 and 2, where one in two goes on."""
    values = {"eta": 2, "recipe": STOPS, "objectives": objectives("map"), "budget": Budget(10_000, None)} | changes
    with shorter_rungs():  # for who has no fixture
        session = make(*arguments, **values)
    session.begin_launch()
    assert session.rungs == (1, 2)
    return session


def reaches(session: SearchSession, number: int, epoch: int, quality: float, **more: Any) -> bool:
    """Report an epoch; when the study stops the trial there, tell that it ended."""
    entry = {"epoch": epoch, "loss": 1 / epoch, "images_per_second": 9.0, "map": quality, "map50": quality, **more}
    goes_on = session.progress(number, entry)
    if not goes_on:
        session.tell(number, {"outcome": "stopped"})
    return goes_on


def begin(session: SearchSession, quality: float, **more: Any) -> tuple[int, bool]:
    """The number of a new trial that has reached epoch 1, and whether it goes on."""
    number = ask(session).trial
    return number, reaches(session, number, 1, quality, **more)


def complete(session: SearchSession, number: int, *quality: float) -> Any:
    """Report the rest of the epochs and the end."""
    for epoch, value in enumerate(quality, 5 - len(quality)):
        assert reaches(session, number, epoch, value)
    return session.tell(number, scored(quality[-1], history=list(session.study.record(number).history)))


def test_a_reference_is_never_stopped_early() -> None:
    session = with_rungs()
    enqueue(session.study, {"method": "head", "lr": 0.003}, reference=True)
    reference = ask(session).trial
    assert begin(session, 0.5) == (reference + 1, True) and begin(session, 0.3) == (reference + 2, False)
    assert reaches(session, reference, 1, 0.1) and reaches(session, reference, 2, 0.1)
    assert complete(session, reference, 0.1, 0.1).state == "complete"


def test_stopped_trials_are_promoted_once_they_rank_among_the_best() -> None:
    session = with_rungs()
    first, goes_on = begin(session, 0.5)
    assert goes_on  # there is no other yet
    second, goes_on = begin(session, 0.3)
    assert not goes_on
    record = session.study.record(second)
    assert (record.state, record.waits, record.feasible, record.ran) == ("pruned", True, True, True)
    assert (record.map, record.loss, len(record.history)) == (0.3, 1.0, 1)
    assert record.reason == "stopped after epoch 1 of 4"
    assert session.study.record(first).state == "running" and session.study.record(first).map == 0.5
    assert session.study.info().n_ran() == 1 and session.promote() is None

    third, _ = begin(session, 0.1)
    fourth, goes_on = begin(session, 0.2)
    assert not goes_on and session.n_stopped() == 3  # two of four go on: the first, and now the second
    promoted = session.promote()
    assert promoted is not None
    assert (promoted.trial, promoted.promoted_from, promoted.again) == (second, 1, False)
    assert promoted.config == record.config
    assert session.promote() is None
    record = session.study.record(second)
    assert (record.state, record.waits, record.reason, record.map) == ("running", False, None, 0.3)
    # it goes on, whether it comes from its checkpoint or from its beginning
    assert reaches(session, second, 1, 0.3) and reaches(session, second, 2, 0.9) and reaches(session, second, 3, 0.9)
    assert [entry["epoch"] for entry in session.study.record(second).history] == [1, 2, 3]
    assert {r.trial: r.state for r in session.study.info().trials} == {
        first: "running", second: "running", third: "pruned", fourth: "pruned",
    }  # fmt: skip


def test_pruned_trials_have_constraints_and_are_never_on_the_front(tmp_path: Path) -> None:
    session = with_rungs(make_study, tmp_path)
    better_later, _ = begin(session, 0.3)
    stopped, goes_on = begin(session, 0.2, device_bytes=10_500, reserved_bytes=9_000, seconds=7.5)
    assert not goes_on
    assert session.close_stopped() == []  # one is still at work
    complete(session, better_later, 0.3, 0.1, 0.1)
    assert session.n_stopped() == 1 and session.close_stopped() == [stopped]
    assert session.n_stopped() == 0 and session.close_stopped() == []

    info = session.study.info()
    record = info.by_number(stopped)
    assert record is not None and record == Study.open(session.study.url, session.study.name).info().by_number(stopped)
    assert (record.state, record.waits, record.feasible, record.map, record.seconds) == (
        "pruned", False, False, 0.2, 7.5,
    )  # fmt: skip
    assert (record.device_bytes, record.memory_source) == (10_500, "measured")
    assert record.reason == "stopped after epoch 1 of 4" and len(record.history) == 1
    assert [r.trial for r in info.front()] == [better_later]  # though 0.1 < 0.2
    assert info.hypervolume() == pytest.approx(0.1)
    assert info.n_ran() == 2 and info.counts()["pruned"] == 1

    theirs = as_optuna_has_it(session)[stopped]
    assert (theirs.state, theirs.values, theirs.intermediate_values) == (TrialState.PRUNED, None, {})
    assert {name: theirs.constraints[name] for name in CONSTRAINTS} == {
        "memory": pytest.approx(0.05), "params": 0.0, "finite": 0.0,
    }  # fmt: skip
    assert theirs.system_attrs["constraints"] == [pytest.approx(0.05)]
    assert [trial.number for trial in optuna.load_study(study_name="made", storage=session.study.url).best_trials] == [
        better_later
    ]


def test_a_trial_due_for_promotion_is_not_closed() -> None:
    session = with_rungs()
    first, _ = begin(session, 0.5)
    second, _ = begin(session, 0.3)
    for quality in (0.2, 0.1):
        begin(session, quality)
    complete(session, first, 0.5, 0.5, 0.5)
    assert session.due() == second and session.close_stopped() == []
    promoted = session.promote()
    assert promoted is not None and not reaches(session, second, 2, 0.4)  # again, at the next rung
    assert session.study.record(second).reason == "stopped after epoch 2 of 4"
    assert len(session.close_stopped()) == 3


def test_repeats_are_not_compared_at_rungs_and_promote_no_trial(tmp_path: Path) -> None:
    session = with_rungs(make_study, tmp_path)
    first, _ = begin(session, 0.5)
    second, _ = begin(session, 0.3)
    begin(session, 0.1), begin(session, 0.2)
    complete(session, first, 0.5, 0.5, 0.5)
    session.end_launch()

    session = open_session(session.study.url, session.study.name)
    session.begin_launch()
    assert (session.due(), session.n_stopped()) == (second, 3)
    session.plan([Repeat(first, 1, 4)])
    assert session.promote() is None and session.due() is None
    again = ask(session, None).trial
    for epoch in (1, 2, 3, 4):
        assert reaches(session, again, epoch, 0.0)  # far below all others, and it goes on
    session.tell(again, scored(0.0))
    assert session.close_stopped() == []
    session.end_launch()

    session = open_session(session.study.url, session.study.name)
    session.begin_launch()
    assert (session.due(), session.n_stopped()) == (second, 3)
    assert set(session.promotion._table._reached[1]) == {
        r.trial for r in session.study.info().trials
    }  # the repeat is not among them


def test_trials_over_the_budget_rank_last_at_a_rung() -> None:
    session = with_rungs(objectives=objectives("map", "device_bytes"))
    _, goes_on = begin(session, 0.9, device_bytes=10_100)
    assert goes_on
    _, goes_on = begin(session, 0.1, device_bytes=10_050)  # less over it
    assert goes_on
    _, goes_on = begin(session, 0.05, device_bytes=9_000)
    assert goes_on
    _, goes_on = begin(session, 0.95, device_bytes=11_000)
    assert not goes_on


def test_measured_memory_of_a_stopped_trial_counts_once() -> None:
    session = with_rungs()
    first, _ = begin(session, 0.5)
    second, _ = begin(session, 0.3, device_bytes=700, reserved_bytes=660)  # predicted: 600
    begin(session, 0.1), begin(session, 0.1)
    complete(session, first, 0.5, 0.5, 0.5)
    assert session.outcomes.memory_ratios == [pytest.approx(1.1)]
    assert session.promote() is not None
    session.tell(second, scored(0.4, device_bytes=700, reserved_bytes=660))
    assert session.outcomes.memory_ratios == [pytest.approx(1.1)]


STOPPED_AND_KILLED = """
    import os, sys
    from pathlib import Path
    sys.path[:0] = [sys.argv[1], sys.argv[1] + "/search"]
    from studies import make_study
    from test_session import begin, complete, reaches, with_rungs
    session = with_rungs(make_study, Path(sys.argv[2]))
    complete(session, begin(session, 0.5)[0], 0.5, 0.5, 0.5)
    begin(session, 0.3)
    begin(session, 0.1)
    reaches(session, begin(session, 0.6)[0], 2, 0.7)
    os.kill(os.getpid(), 9)
"""


def test_rungs_are_rebuilt_after_a_kill(tmp_path: Path) -> None:
    """Who had stopped may still be promoted, and who ran goes on with what it had."""
    run_until_killed(STOPPED_AND_KILLED, tmp_path)
    session = open_session(f"sqlite:///{tmp_path / 'studies.db'}", "made")
    assert [(r.state, r.waits) for r in session.study.info().trials] == [
        ("complete", False), ("pruned", True), ("pruned", True), ("interrupted", False),
    ]  # fmt: skip
    assert session.study.info().n_ran() == 3
    session.begin_launch()
    reached = session.promotion._table._reached
    assert {at: {t: values for t, (values, _) in seen.items()} for at, seen in reached.items()} == {
        1: {0: [0.5], 1: [0.3], 2: [0.1], 3: [0.6]}, 2: {0: [0.5], 3: [0.7]},
    }  # fmt: skip
    again = ask(session)
    assert (again.trial, again.again) == (3, True)
    # of its checkpoint the last epoch is reported again; what it had is not lost
    assert reaches(session, 3, 2, 0.7) and reaches(session, 3, 3, 0.8)
    assert [entry["epoch"] for entry in session.study.record(3).history] == [1, 2, 3]
    session.tell(3, scored(0.8))
    assert session.promote() is None
    begin(session, 0.05), begin(session, 0.05)
    promoted = session.promote()
    assert promoted is not None and (promoted.trial, promoted.promoted_from) == (1, 1)
    assert session.study.record(1).state == "running"  # of this launch now


@pytest.mark.parametrize("names", [("map", "device_bytes", "trainable_params"), ("map",)], ids=["three", "one"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_copes_with_stopped_trials(sampler: str, names: tuple[str, ...]) -> None:
    session = with_rungs(sampler=sampler, objectives=objectives(*names), budget=Budget(BUDGET, None))
    n = 8 if sampler == "gp" else 12  # a Gaussian process takes half a second a suggestion after the first ten
    for again in (0, 1):  # stopped ones run in optuna's eyes at first, then they are pruned
        for i in range(n):
            number, goes_on = begin(session, 0.1 + 0.07 * (i * 7 % 12) + 0.01 * again)
            if goes_on and reaches(session, number, 2, 0.4 + 0.01 * i):
                session.tell(number, scored(0.5 + 0.01 * i))
        while (promoted := session.promote()) is not None:
            session.tell(promoted.trial, scored(0.5))
        assert session.n_stopped() > 2
        session.close_stopped()
        states = {trial.state for trial in session.study.optuna_study().get_trials(deepcopy=False)}
        assert {TrialState.COMPLETE, TrialState.PRUNED} <= states and TrialState.RUNNING not in states
    assert session.study.info().n_ran() == 2 * n


def test_progress_is_kept_without_early_stopping(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    session.begin_launch()
    number = ask(session).trial
    assert session.rungs == () and all(reaches(session, number, epoch, 0.1 * epoch) for epoch in (1, 2, 3))
    record = Study.open(session.study.url, session.study.name).info().trials[number]
    assert (record.state, record.map, len(record.history), record.feasible) == (
        "running", pytest.approx(0.3), 3, False,
    )  # fmt: skip
    assert session.study.info().front() == []


def test_a_study_object_has_one_session(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    run_one(session, scored(0.4))
    with pytest.raises(RuntimeError, match="'made' has a search session already; open the study again"):
        SearchSession(session.study)
    run_one(session, scored(0.5))
    other = open_session(session.study.url, "made")
    other.study.reader.read()
    assert session.study.reader.n_ran == other.study.reader.n_ran == 2


# --- knowing when to stop -------------------------------------------------------------------------------------------


def with_outlook(monkeypatch: pytest.MonkeyPatch, outlook: Outlook) -> SearchSession:
    """A session whose sampler suggests at random, and always expects the same."""

    def suggest(self: ParetoSampler, *_: Any) -> dict[str, Any]:
        self.outlook = outlook
        return self._layout.params(self._layout.draw(1, self._rng)[0])

    monkeypatch.setattr(ParetoSampler, "sample_relative", suggest)
    return in_memory(sampler="pareto-no-prior", budget=Budget())


def test_a_search_that_has_converged_suggests_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_outlook(monkeypatch, Outlook(gain=0.0001, noise=0.01))
    for _ in range(LEAST_TRIALS):
        session.until_converged = True
        run_one(session, scored(0.5))
    assert session.study.info().outlook() == Outlook(0.0001, 0.01)
    assert ask(session) is None and session.has_converged()
    study = session.study.optuna_study()
    later = SearchSession(Study(study, "", study._storage))  # as another launch reads it
    later.suggester.begin()
    later.until_converged = True
    assert ask(later) is None
    later.until_converged = False
    assert ask(later) is not None


def test_a_search_goes_on_while_trials_gain_more_than_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    session = with_outlook(monkeypatch, Outlook(gain=0.01, noise=0.01))
    session.until_converged = True
    for _ in range(LEAST_TRIALS + 1):
        run_one(session, scored(0.5))
    assert not session.has_converged()
