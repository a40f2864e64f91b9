"""Next steps after a search: the commands that launch, front and export suggest, the same in all three."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from shlex import join, quote

from cst_search.config.catalog import default_home
from cst_search.study.allocation import point_of
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.storage import check_storage
from cst_search.study.wording import format_quality, memory_words
from cst_search.visible import in_line

FOLDER = "trained"  # of the commands that are suggested


def next_steps(info: StudyInfo, flags: str = "", home: str = "") -> list[str]:
    """Return the commands that take a point of the front to its full training, each on a line.

    The first names the suggested point; if that is the knee, a line below says what the point of the best mAP has more.

    Args:
        flags: options with which `export` finds the study.
        home: the part of them that `train` takes.
    """
    front = info.front()
    if not front:
        return []
    pick = info.suggested_pick()
    knee = next((record for record in front if record.trial == info.knee()), front[0])
    chosen = knee if pick == "knee" else front[0]
    lines = [
        f"cst-search export {in_line(quote(info.name))} --pick {pick} -o best.yaml{flags}",
        f"    {_point(info, pick, chosen)}",
    ]
    if chosen is not front[0]:
        lines.append(f"    or {_point(info, 'best', front[0])}: --pick best")
    return [*lines, train_command(info, "best.yaml") + home]


def allocate_command(infos: Sequence[StudyInfo], flags: str = "") -> list[str]:
    """Return the command that divides a budget among studies, one at which each has its knee; none for equal data."""
    knees = [info.by_number(number) for info in infos if (number := info.knee()) is not None]
    if len({info.data for info in infos}) < len(infos) or len(knees) < len(infos):
        return []
    n_bytes = sum(point_of(info.brief(knee)).delta_bytes for info, knee in zip(infos, knees, strict=True) if knee)
    names = in_line(join(info.name for info in infos))
    return [f"cst-search allocate {names} --budget-storage {max(1, math.ceil(n_bytes / 1e6))}MB -o plan{flags}"]


def study_flags(home: Path, storage: str | None = None) -> str:
    """Return the options with which a command finds a study. Passwords are left out; the user has them."""
    flags = "" if home == default_home() else f" --home {quote(str(home))}"
    return flags + (f" --storage {quote(check_storage(storage))}" if storage else "")


def train_command(info: StudyInfo, recipe: str) -> str:
    """Return the command that trains an exported recipe at full length."""
    data = "" if info.data == "demo" else f" --data {in_line(quote(info.data))}"
    return f"cst-search train {quote(recipe)}{data} --out {FOLDER}"


def _point(info: StudyInfo, pick: str, record: TrialRecord) -> str:
    memory = memory_words(record.working_bytes, record.device_bytes)
    return f"{pick}: trial {record.trial}, map {format_quality(info.over_seeds(record).mean)}, {memory}"
