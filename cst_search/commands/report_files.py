"""Write the files of a study's report: page, figure, and the best point as a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cst_search.execution.interrupt import GRACE_SECONDS
from cst_search.report.summary import page_report
from cst_search.study.records import StudyInfo

if TYPE_CHECKING:
    from cst_search.tracking.mlflow_record import MlflowRecord


def write_report(info: StudyInfo, folder: Path) -> dict[str, Path]:
    """Write front.html, front.png and front.json of a study. Returns their paths by suffix."""
    from cst_search.commands.references import references
    from cst_search.report.html import write_front

    return write_front(page_report(info) | {"references": references(info)}, folder)


def export_best(info: StudyInfo, files: dict[str, Path]) -> list[Path]:
    """Write best.yaml beside the page, or nothing if the front is empty. Returns the written files."""
    from cst_search.commands.export import export

    if not info.front():
        return []
    path = files["html"].parent / "best.yaml"
    export(info, "best", path)
    return [path]


def close_record(
    record: MlflowRecord, info: StudyInfo, files: Mapping[str, Path], interrupted: bool,
    more: Mapping[str, Sequence[Path]] | None = None,
) -> None:  # fmt: skip
    """Bring MLflow up to date with a study, add the files of its report, and end the launch's run; then close it.

    Args:
        more: further files by artifact folder in MLflow.
    """
    end_run(record, info, files, interrupted, more)
    close_in_time(record, interrupted)


def end_run(
    record: MlflowRecord, info: StudyInfo, files: Mapping[str, Path], interrupted: bool,
    more: Mapping[str, Sequence[Path]] | None = None,
) -> None:  # fmt: skip
    """Do as `close_record`, but leave the record open for other studies."""
    pages = [files[kind] for kind in ("html", "png", "json")]
    record.sync(info)
    record.finish(
        info,
        {"pareto": pages, **{folder: list(paths) for folder, paths in (more or {}).items()},
         "export": export_best(info, dict(files))},
        "KILLED" if interrupted else "FINISHED",
    )  # fmt: skip


def close_in_time(record: MlflowRecord, interrupted: bool) -> None:
    """Wait for what MLflow has still to take; after Ctrl-C only for a part of the time that is left."""
    record.close(GRACE_SECONDS / 2 if interrupted else 60.0)
