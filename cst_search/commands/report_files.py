"""The files of a study's report: its page, its picture, and the best point as a recipe."""

from __future__ import annotations

from pathlib import Path

from cst_search.report.summary import page_report
from cst_search.study.records import StudyInfo


def write_report(info: StudyInfo, folder: Path) -> dict[str, Path]:
    """front.html, front.png and front.json of a study."""
    from cst_search.report.html import write_front

    return write_front(page_report(info), folder)


def export_best(info: StudyInfo, files: dict[str, Path]) -> list[Path]:
    from cst_search.commands.export import export

    if not info.front():
        return []
    path = files["html"].parent / "best.yaml"
    export(info, "best", path)
    return [path]
