"""Several launches and confirmations on one study: each trial once, and none lost with a process."""

from __future__ import annotations

import json
import os
import textwrap
from pathlib import Path
from typing import Any

import optuna
import pytest
import warm
from optuna.trial import TrialState
from sessions import (
    as_optuna_has_it,
    ask,
    in_memory,
    run_until_killed,
)
from studies import (
    make_study,
    move,
    open_session,
    run_one,
    scored,
    stop_the_heart,
)

from cst_search.errors import StudyError
from cst_search.search.samplers import SAMPLERS
from cst_search.search.session import SearchSession
from cst_search.study.records import Budget
from cst_search.study.study import Study
from cst_search.study.trial_attributes import Repeat


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


def test_a_study_object_has_one_session(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    run_one(session, scored(0.4))
    with pytest.raises(RuntimeError, match="'made' has a search session already; open the study again"):
        SearchSession(session.study)
    run_one(session, scored(0.5))
    other = open_session(session.study.url, "made")
    other.study.reader.read()
    assert session.study.reader.n_ran == other.study.reader.n_ran == 2
