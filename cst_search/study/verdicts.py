"""Verdicts on confirmed trials: on the front or dominated, and whether by more than noise. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cst_search.errors import StudyError
from cst_search.study.records import StudyInfo
from cst_search.study.seed_statistics import NOISY, Noise


@dataclass(frozen=True)
class Verdict:
    """A trial's standing by its mean over seeds.

    Attributes:
        on_front: True if the trial is non-dominated by the means.
        rival: the trial with the best mean among those that are no worse in every other objective; None: there is none.
        rival_seeds: number of values in the rival's mean.
        difference: the trial's mean minus the rival's; below 0 if the rival dominates it.
        least: the least significant difference; None if the noise is not known.
    """

    trial: int
    n_seeds: int
    on_front: bool
    rival: int | None = None
    rival_seeds: int = 0
    difference: float | None = None
    least: float | None = None

    @property
    def in_noise(self) -> bool:
        return self.difference is not None and self.least is not None and abs(self.difference) < self.least

    @property
    def text(self) -> str:
        if self.n_seeds == 0:
            return "no run completed"
        rival = f"trial {self.rival}" + (" (one seed)" if self.rival_seeds == 1 else "")
        if self.on_front:
            words = f"on the front, within noise of {rival}" if self.in_noise else "on the front"
        else:
            words = f"dominated by {rival}" + (", within noise" if self.in_noise else "")
        return words + (", not confirmed" if self.n_seeds == 1 else "")


def quality(info: StudyInfo) -> str:
    """Return the study's first maximised objective that varies with the seed. Raises StudyError: it has none."""
    for objective in info.objectives:
        if objective.name in NOISY:
            return objective.name
    raise StudyError(
        f"study {info.name!r} has the objectives {', '.join(o.name for o in info.objectives)}, which are the same with "
        f"every seed: there is nothing to confirm"
    )


def noise(info: StudyInfo, epochs: int | None = None) -> Noise | None:
    """Return the noise over all trials with several seeds at a length in epochs (None: the search's); None: unknown."""
    name = quality(info)
    return Noise.of(info.over_seeds(record, name, epochs) for record in info.trials if record.trial in info.repeated)


def verdicts(info: StudyInfo, trials: Iterable[int], epochs: int | None = None) -> list[Verdict]:
    """Return verdicts on some trials, against all trials with a mean at a length in epochs; None: the search's."""
    name, spread = quality(info), noise(info, epochs)
    place = next(i for i, objective in enumerate(info.objectives) if objective.name == name)
    signs = [-1.0 if objective.goal == "max" else 1.0 for objective in info.objectives]
    rows = {
        record.trial: [sign * value for sign, value in zip(signs, row, strict=True)]
        for record, row in zip(info.trials, info.values(epochs), strict=True)
        if not any(map(math.isnan, row))
    }
    records = {record.trial: record for record in info.trials}
    on_front = {record.trial for record in info.front(epochs)}
    found = []
    for trial in trials:
        n = info.over_seeds(records[trial], name, epochs).n
        others = [
            other
            for other, row in rows.items()
            if other != trial
            and trial in rows
            and all(row[i] <= rows[trial][i] for i in range(len(signs)) if i != place)
        ]
        if not others:
            found.append(Verdict(trial, n, trial in on_front))
            continue
        rival = min(others, key=lambda other: (rows[other][place], other))
        n_rival = info.over_seeds(records[rival], name, epochs).n
        least = None if spread is None else spread.least_difference(n, n_rival)
        difference = rows[rival][place] - rows[trial][place]
        found.append(Verdict(trial, n, trial in on_front, rival, n_rival, difference, least))
    return found
