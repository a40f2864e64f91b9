"""Reports of a study as plain values, for ``front --json`` and for the page."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cst_search import __version__
from cst_search.study import pareto
from cst_search.study.importance import importance
from cst_search.study.method_summary import by_method
from cst_search.study.records import StudyInfo
from cst_search.study.states import TrialState


def front_report(info: StudyInfo) -> dict[str, Any]:
    """Return the content of ``cst-search front STUDY --json``. Other tools rely on these keys."""
    counts = info.counts()
    counts[TrialState.RUNNING] += counts.pop(TrialState.INTERRUPTED)
    suggested = info.suggested()
    return {
        "study": info.name,
        "objectives": [{"name": o.name, "goal": o.goal} for o in info.objectives],
        "budget": asdict(info.budget),
        "trials": counts,
        "reference_point": dict(info.reference_point),
        "hypervolume": info.hypervolume(),
        "compared_reference": info.compared_reference,
        "context_bytes": info.context_bytes,
        "knee": info.knee(),
        "suggested_pick": info.suggested_pick(),
        "suggested": None if suggested is None else suggested.trial,
        "front": [info.brief(record) for record in info.front()],
        "methods": by_method(info),
        "importance": importance(info),
    }


def page_report(info: StudyInfo) -> dict[str, Any]:
    """Return `front_report` with the additional content of the page.

    That is every trial with its learning curve, the hypervolume after each, and the study's settings.
    """
    on_front = {record.trial for record in info.front()}
    growth = pareto.hypervolume_by_trial(info.values(), info.objectives, info.reference)
    return front_report(info) | {
        "all": [
            info.brief(record)
            | {
                "state": record.state,
                "reason": record.reason,
                "seconds": record.seconds,
                "feasible": record.feasible,
                "on_front": record.trial in on_front,
                "history": [dict(entry) for entry in record.history],
                "notes": list(record.notes),
            }
            for record in info.trials
        ],
        "hypervolume_by_trial": [[record.trial, v] for record, v in zip(info.trials, growth, strict=True)],
        "space": dict(info.space),
        "recipe": dict(info.recipe),
        "data": info.data,
        "target_device": info.target_device,
        "started": info.started,
        "version": __version__,
    }
