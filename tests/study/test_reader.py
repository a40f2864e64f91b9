"""What a reader reads again, and what it does not."""

from __future__ import annotations

from pathlib import Path

from studies import fake_estimate, make_study, scored

from cst_search.study.fast_reads import StoredTrial
from cst_search.study.study import Study
from cst_search.study.trial_attributes import Progress, Repeat


def test_a_held_trial_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    suggestion = session.ask(fake_estimate)  # type: ignore[arg-type]
    assert suggestion is not None
    other = Study.open(session.study.url, "made")
    other.reader.read()
    other.reader.hold(suggestion.trial)
    session.progress(suggestion.trial, {"epoch": 1, "loss": 2.0})

    def n_epochs() -> int:
        return len(Progress.of(other.reader.unfinished[suggestion.trial].user_attrs).history)

    other.reader.read()
    assert n_epochs() == 0
    other.reader.read(suggestion.trial)
    assert n_epochs() == 1
    session.progress(suggestion.trial, {"epoch": 2, "loss": 1.0})
    other.reader.release(suggestion.trial)
    other.reader.read()
    assert n_epochs() == 2


def test_a_finished_trial_is_read_once_and_its_record_is_the_last(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    suggestion = session.ask(fake_estimate)  # type: ignore[arg-type]
    assert suggestion is not None
    seen: list[str] = []
    other = Study.open(session.study.url, "made")

    def note(trial: StoredTrial) -> None:
        if trial.number == suggestion.trial:  # before it, one over the budget may have been drawn and rejected
            seen.append(trial.state)

    other.reader.restart(on_read=note)
    other.reader.read()
    session.tell(suggestion.trial, scored(0.4))
    for _ in range(3):
        other.reader.read()
    assert seen == ["RUNNING", "COMPLETE"] and other.reader.n_ran == 1
    assert other.record(suggestion.trial).map == 0.4


def test_a_running_repeat_does_not_hold_back_what_has_ended(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    first = session.ask(fake_estimate)  # type: ignore[arg-type]
    assert first is not None
    session.tell(first.trial, scored(0.4))
    session.plan([Repeat(repeat_of=first.trial, seed=1, epochs=3)])
    repeat = session.ask(fake_estimate)  # type: ignore[arg-type]
    assert repeat is not None and repeat.repeat_of == first.trial
    reader = Study.open(session.study.url, "made").reader
    reader.read()
    assert repeat.trial in reader.unfinished
    assert reader.first_running() == reader.n_trials > repeat.trial


def test_no_trial_is_running_below_the_first_one_that_has_not_ended(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    first, second = (session.ask(fake_estimate) for _ in range(2))  # type: ignore[arg-type]
    assert first is not None and second is not None
    reader = Study.open(session.study.url, "made").reader
    reader.read()
    assert reader.first_running() == first.trial
    session.tell(first.trial, scored(0.4))
    reader.read()
    assert reader.first_running() == second.trial
    session.tell(second.trial, scored(0.5))
    reader.read()
    assert reader.first_running() == reader.n_trials > second.trial
