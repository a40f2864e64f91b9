"""Early stopping in a session: who stops at a rung, who is promoted later, and what a dead launch leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sessions import (
    BUDGET,
    CONSTRAINTS,
    as_optuna_has_it,
    ask,
    begin,
    complete,
    objectives,
    reaches,
    run_until_killed,
    with_rungs,
)
from studies import (
    make_study,
    open_session,
    scored,
    shorter_rungs,
)

from cst_search.search.samplers import SAMPLERS
from cst_search.search.suggester import enqueue
from cst_search.study.records import Budget
from cst_search.study.study import Study
from cst_search.study.trial_attributes import Repeat


@pytest.fixture(autouse=True)
def two_rungs_in_four_epochs() -> Iterator[None]:
    with shorter_rungs():
        yield


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
    assert promoted is not None and not reaches(session, second, 2, 0.3)  # again, at the next rung
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
    assert set(session.promotion._table._rungs[1].trials) == {
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
    from sessions import begin, complete, reaches, with_rungs
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
    rungs = session.promotion._table._rungs
    assert {at: dict(zip(rung.trials, rung.quality[:, 0].tolist(), strict=True)) for at, rung in rungs.items()} == {
        1: {0: 0.5, 1: 0.3, 2: 0.1, 3: 0.6}, 2: {0: 0.5, 3: 0.7},
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


def test_stopped_trials_of_a_dead_launch_are_adopted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shorter_rungs():
        dead = make_study(tmp_path, eta=2)
        dead.begin_launch()
        suggestions = [ask(dead) for _ in range(2)]
        epoch = {"epoch": 1, "device_bytes": 500}
        goes_on = [dead.progress(s.trial, epoch | {"map": m}) for s, m in zip(suggestions, (0.5, 0.1), strict=True)]
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
