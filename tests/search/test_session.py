"""A session: what it suggests within a budget, with every sampler, what comes first, and when it ends."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from sessions import (
    BUDGET,
    CONSTRAINTS,
    as_optuna_has_it,
    ask,
    in_memory,
    objectives,
)
from studies import (
    fake_estimate,
    make_study,
    open_session,
    run_one,
    scored,
)

from cst_search.search.pareto_sampler import ParetoSampler
from cst_search.search.samplers import SAMPLERS
from cst_search.search.session import SearchSession
from cst_search.study.outlook import LEAST_TRIALS, Outlook
from cst_search.study.records import Budget
from cst_search.study.study import Study
from cst_search.study.trial_attributes import Repeat

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
