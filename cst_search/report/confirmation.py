"""Report of a confirmation: points of the front with the mean over their seeds, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cst_search.report.summary import front_report
from cst_search.study.records import StudyInfo
from cst_search.study.states import TrialState
from cst_search.study.verdicts import Verdict, noise, quality, verdicts
from cst_search.study.wording import describe, format_quality
from cst_search.units import format_seconds


def confirm_report(info: StudyInfo, points: Sequence[int], epochs: int, before: Sequence[int]) -> dict[str, Any]:
    """Return the content of ``cst-search confirm STUDY --json``.

    ``points``: entries as in `front_report`, with the results over seeds at ``epochs``, the confirmed length.
    ``front``: the study's front, by the means at the search's length.

    Args:
        points: confirmed trials.
        before: trials on the front before the confirmation.
    """
    spread = noise(info, epochs)
    study = front_report(info)
    entries = [_point_entry(info, verdict, epochs) for verdict in verdicts(info, points, epochs)]
    return {
        **{key: study[key] for key in ("study", "objectives", "trials", "hypervolume", "knee")},
        "metric": quality(info),
        "epochs": epochs,
        "search_epochs": info.full_epochs,
        "noise": None if spread is None else asdict(spread),
        "points": sorted(entries, key=lambda entry: -(entry["mean"] or 0.0)),
        "front": [entry["trial"] for entry in study["front"]],
        "front_before": list(before),
        "not_confirmed": [entry["trial"] for entry in study["front"] if entry["n_seeds"] < 2],
    }


def _point_entry(info: StudyInfo, verdict: Verdict, epochs: int) -> dict[str, Any]:
    name = quality(info)
    record = info.by_number(verdict.trial)
    assert record is not None
    sample = info.over_seeds(record, name, epochs)
    repeats = [r for r in info.repeats if r.repeat_of == record.trial and r.repeat_epochs == epochs]
    own = [{"seed": int(info.recipe["seed"]), "trial": record.trial, name: getattr(record, name)}]
    return (
        info.brief(record)
        | {"mean": sample.mean, "std": sample.std, "n_seeds": sample.n, "new_mean": sample.new_mean}
        | {
            "runs": (own if epochs == info.full_epochs else [])
            + [
                {"seed": r.seed, "trial": r.trial, name: getattr(r, name)}
                for r in repeats
                if r.state == TrialState.COMPLETE
            ],
            "failed": [
                {"seed": r.seed, "trial": r.trial, "reason": r.reason}
                for r in repeats
                if r.state in (TrialState.FAILED, TrialState.INFEASIBLE)
            ],
            "verdict": verdict.text,
            "on_front": verdict.on_front,
            "rival": verdict.rival,
            "difference": verdict.difference,
            "least_difference": verdict.least,
            "within_noise": verdict.in_noise,
        }
    )


def confirm_table(report: dict[str, Any]) -> Table:
    """Return a table with one row per point, the best mean first."""
    name, epochs = report["metric"], report["epochs"]
    table = Table(title=f"{report['study']}, {epochs} epochs", title_justify="left", title_style="bold")
    for column in ("trial", f"{name} of the search", "mean", "std", "n", "new seeds only", "verdict", "configuration"):
        table.add_column(column, justify="left" if column in ("verdict", "configuration") else "right")
    for entry in report["points"]:
        failed = f" + {len(entry['failed'])} failed" if entry["failed"] else ""
        table.add_row(
            str(entry["trial"]),
            *(format_quality(entry[key]) for key in (name, "mean", "std")),
            f"{entry['n_seeds']}{failed}",
            format_quality(entry["new_mean"]),
            Text(entry["verdict"]),
            Text(describe(entry["config"])),
        )
    return table


def say_confirmation(report: dict[str, Any], page: Path, console: Console) -> None:
    """Print the table of a confirmation, its noise, and how the front changed."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    say("")
    if report["interrupted"]:
        say(f"stopped after {format_seconds(report['seconds'])}; the same command continues; finished runs are kept")
    console.print(confirm_table(report))
    if report["noise"] is not None:
        say(
            f"runs that differ in their seed alone: standard deviation {report['noise']['std']:.4f} "
            f"({report['noise']['dof']} degrees of freedom); within noise: less than Fisher's least significant "
            f"difference"
        )
    if report["epochs"] != report["search_epochs"]:
        say(f"compared among runs of {report['epochs']} epochs; the front, of {report['search_epochs']}, is as it was")
        return
    was, now = report["front_before"], report["front"]
    gone, come = [t for t in was if t not in now], [t for t in now if t not in was]
    say(
        f"front: {', '.join(map(str, now))}; knee {report['knee']}; hypervolume {report['hypervolume']:.4f}"
        + (f"; no longer on it: {', '.join(map(str, gone))}" if gone else "")
        + (f"; now on it: {', '.join(map(str, come))}" if come else "")
        + f"; page {page}"
    )
    if report["not_confirmed"] and not report["interrupted"]:
        say(f"on the front with one seed: {', '.join(map(str, report['not_confirmed']))}; the same command does them")
