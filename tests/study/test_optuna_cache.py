"""Many trials at a time: what a suggestion reads does not grow with them, and nothing that changed is missed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import TrialState
from studies import fake_estimate, make_study, scored

from cst_search.study import fast_reads
from cst_search.study.optuna_cache import OptunaCache
from cst_search.study.study import Study
from cst_search.study.trial_attributes import PROGRESS, Suggested


def test_a_suggestion_reads_no_trial_that_only_this_launch_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials that Optuna builds, our reading fetches and anyone parses, for one more while 3 and 30 are at work."""
    session = make_study(tmp_path)
    session.begin_launch()
    built, read, parsed = [], [], []
    build, reading = RDBStorage._build_frozen_trial_from_trial_model, fast_reads.read_trials

    def count_built(self: RDBStorage, trial: Any) -> Any:
        built.append(trial.number)
        return build(self, trial)

    def count_reading(*arguments: Any) -> Any:
        found = reading(*arguments)
        read.extend(trial.number for trial in found)
        return found

    def count_parsed(attributes: Any) -> Any:
        parsed.append(attributes)
        return parse(attributes)

    parse = Suggested.of
    monkeypatch.setattr(Suggested, "of", count_parsed)
    monkeypatch.setattr(RDBStorage, "_build_frozen_trial_from_trial_model", count_built)
    monkeypatch.setattr("cst_search.study.reader.read_trials", count_reading)
    costs = []
    for i in range(31):
        built.clear(), read.clear(), parsed.clear()
        session.enqueue({"method": "cst", "cst.reduction": 8, "batch_size": 2, "lr": 0.001 + 1e-5 * i})
        suggestion = session.ask(fake_estimate)  # type: ignore[arg-type]
        assert suggestion is not None
        session.progress(suggestion.trial, {"epoch": 1, "loss": 2.0})
        session.study.first_running()
        costs.append((len(built), len(read), len(parsed)))
    assert costs[3] == costs[30], costs
    built.clear(), read.clear()
    session.tell(suggestion.trial, scored(0.4))
    assert set(read) == set(built) == {suggestion.trial}


def test_what_changed_is_seen(tmp_path: Path) -> None:
    """What this launch writes into a held trial, and what another does once it is released."""
    session = make_study(tmp_path)
    session.begin_launch()
    optuna_study = session.study.optuna_study()
    numbers = []
    for _ in range(3):
        suggestion = session.ask(fake_estimate)  # type: ignore[arg-type]
        assert suggestion is not None
        numbers.append(suggestion.trial)

    def history(number: int) -> list[Any]:
        trial = optuna_study.get_trials(deepcopy=False)[number]
        return list(trial.user_attrs.get(PROGRESS, {}).get("history", []))

    assert all(optuna_study.get_trials(deepcopy=False)[number].params for number in numbers)
    assert history(numbers[0]) == []
    session.progress(numbers[0], {"epoch": 1, "loss": 2.0})
    assert [entry["epoch"] for entry in history(numbers[0])] == [1]
    session.tell(numbers[0], scored(0.4))
    assert optuna_study.get_trials(deepcopy=False)[numbers[0]].state.name == "COMPLETE"

    other = Study.open(session.study.url, "made").optuna_study()
    theirs = {number: trial._trial_id for number, trial in enumerate(other.get_trials(deepcopy=False))}
    other._storage.set_trial_user_attr(theirs[numbers[1]], PROGRESS, {"history": [{"epoch": 7}]})
    other._storage.set_trial_user_attr(theirs[numbers[2]], PROGRESS, {"history": [{"epoch": 7}]})
    session.give_back(numbers[1])  # its worker ended
    assert [entry["epoch"] for entry in history(numbers[1])] == [7]
    assert history(numbers[2]) == []  # nobody but this launch may
    assert [record.trial for record in session.study.info().trials if record.history] == numbers  # all is read


def test_trials_by_state_are_those_of_optunas_own_cache(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    session.begin_launch()
    for _ in range(3):
        suggestion = session.ask(fake_estimate)  # type: ignore[arg-type]
        assert suggestion is not None
    session.tell(suggestion.trial, scored(0.4))
    session.enqueue({"method": "cst", "cst.reduction": 4, "batch_size": 2, "lr": 0.01})
    study = session.study.optuna_study()
    of_study = study._storage, study._study_id
    for states in ((TrialState.WAITING,), (TrialState.RUNNING,), (TrialState.RUNNING, TrialState.WAITING),
                   (TrialState.COMPLETE, TrialState.RUNNING)):  # fmt: skip
        ours = OptunaCache.get_all_trials(*of_study, False, states)
        assert ours and ours == _CachedStorage.get_all_trials(*of_study, False, states), states


def test_a_trial_that_waited_in_the_queue_counts_while_it_runs(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    session.begin_launch()
    for reduction in (4, 8):
        session.enqueue({"method": "cst", "cst.reduction": reduction, "batch_size": 2, "lr": 0.01})
    session.study.reader.read()  # as it waits
    n_asked = 0
    while session.ask(fake_estimate, 3) is not None:  # type: ignore[arg-type]
        n_asked += 1
    assert n_asked == 3
