"""What each method of a search came to."""

from __future__ import annotations

from dataclasses import replace

from pages import METHODS, made_info

from cst_search.study.method_summary import by_method
from cst_search.study.states import TrialState


def test_the_best_trial_of_each_method_within_the_budget() -> None:
    info = made_info(200)
    rows = by_method(info)
    assert sorted(row["method"] for row in rows) == sorted(info.space["methods"])
    front = {record.trial for record in info.front()}
    for row in rows:
        own = [record for record in info.trials if record.config["method"] == row["method"]]
        assert row["trials"] == len(own) and row["on_front"] == len(front & {record.trial for record in own})
        complete = [r for r in own if r.state == TrialState.COMPLETE and r.feasible]
        if complete:
            best = max(complete, key=lambda record: info.over_seeds(record).mean or 0)
            assert (row["trial"], row["state"], row["map"]) == (best.trial, "complete", info.over_seeds(best).mean)
            assert (row["working_bytes"], row["trainable_params"]) == (best.working_bytes, best.trainable_params)
    known = [row["map"] for row in rows if row["state"] == "complete"]
    assert len(known) > 3 and known == sorted(known, reverse=True)
    assert rows[0]["map"] == info.best_map()
    assert {row["method"] for row in rows if not row["trials"]} == set(info.space["methods"]) - set(METHODS)


def test_stopped_trials_come_behind_complete_ones_and_what_did_not_fit_last() -> None:
    info = made_info(200)
    first = {method: next(r for r in info.trials if r.config["method"] == method) for method in ("cst", "lst", "full")}
    trials = (
        replace(first["cst"], trial=0, state=TrialState.COMPLETE, feasible=True, map=0.1),
        replace(first["lst"], trial=1, state=TrialState.PRUNED, feasible=True, map=0.3),
        replace(first["full"], trial=2, state=TrialState.INFEASIBLE, feasible=False, map=0.5),
    )
    rows = by_method(replace(info, trials=trials, repeats=(), space={}))
    assert [(row["method"], row["trial"], row["map"]) for row in rows] == [
        ("cst", 0, 0.1), ("lst", 1, 0.3), ("full", None, None),
    ]  # fmt: skip
    assert by_method(replace(info, trials=trials[:1], repeats=(), space={"methods": ["cst"]})) == []
