"""Outcomes of trials, reported to Optuna's samplers and to the correction of predicted memory.

The mapping to Optuna's states; docs/searching.md has the measured reasons:

    complete             COMPLETE with its values; budget constraints from measured bytes, else from predicted
    over the budget      COMPLETE with the known costs and map = -inf, constraint > 0; no worker was used
    out of memory        as above, memory constraint > 0 whatever was measured, because the refused allocation would
                         have exceeded the limit. As FAIL, samplers would learn nothing from it
    loss not finite      as above, constraint `finite` = 1
    stopped early        nothing while it may be promoted; then PRUNED with the constraints of a complete trial.
                         Optuna's intermediate values are not used: its multi-objective TPE sampler fails on them
    anything else        FAIL with the reason
    a repeat             FAIL, and never any parameters: no sampler sees it (see docs/searching.md)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from optuna.trial import Trial
from optuna.trial import TrialState as OptunaState

from cst_search.memory.correction import Correction
from cst_search.study.states import TrialState
from cst_search.study.storage import set_dashboard_constraint
from cst_search.study.study import Study
from cst_search.study.trial_attributes import RESULT, Progress, Result, Suggested
from cst_search.trial.result import Outcome

# Least budget violation of an out-of-memory trial. Its figures show that it needed more, but not how much: the rest of
# the step was still to come at the first refused allocation.
_OOM_VIOLATION = 0.1


class Outcomes:
    """Reports trial outcomes to Optuna, and learns the correction of predicted memory from them.

    Attributes:
        memory_ratios: measured over predicted reserved bytes, once for each measured trial; see
            `Suggested.memory_ratio`.
    """

    def __init__(self, study: Study) -> None:
        self._study, self._optuna = study, study.optuna_study()
        self.memory_ratios: list[float] = []
        self._measured: set[int] = set()  # trials that are in memory_ratios

    def correction(self) -> Correction:
        """Return the correction learned from the measured trials."""
        return Correction.learned(self.memory_ratios)

    def learn(self, number: int, suggested: Suggested, result: Result) -> None:
        """Add a trial's measured memory to the correction, only once: a trial that was stopped may end again."""
        ratio = None if number in self._measured else suggested.memory_ratio(result)
        if ratio is not None:
            self._measured.add(number)
            self.memory_ratios.append(ratio)

    def tell(self, trial: Trial, suggested: Suggested, result: Result) -> None:
        """Store the result of a trial, of any outcome except ``stopped``."""
        measured = result.get("device_bytes") is not None
        device_bytes = result.get("device_bytes") if measured else suggested.device_bytes
        violations = self._study.spec.budget.violations({**suggested.estimate, "device_bytes": device_bytes})
        result = result.with_(ran=True, memory_source="measured" if measured else "predicted")
        self.learn(trial.number, suggested, result)
        finite = 0.0
        if result.outcome == Outcome.COMPLETE and result.get("map") is not None:
            over = [f"{name} {value:+.1%}" for name, value in violations.items() if value > 0]
            result = result.with_(state=TrialState.INFEASIBLE if over else TrialState.COMPLETE)
            if over:
                result = result.with_(reason=f"measured over the budget: {', '.join(over)}")
        elif result.outcome == Outcome.OOM:
            violations["memory"] = max(violations["memory"], result.over_limit(), _OOM_VIOLATION)
            result = result.with_(state=TrialState.INFEASIBLE, reason=result.oom_reason())
        elif result.outcome == Outcome.NONFINITE:
            result, finite = result.with_(state=TrialState.FAILED), 1.0
        else:
            trial.set_user_attr(RESULT, result.with_(state=TrialState.FAILED).to_dict())
            self._optuna.tell(trial, state=OptunaState.FAIL)
            return
        self._finish(trial, suggested, result, violations, finite)

    def reject(self, trial: Trial, suggested: Suggested, violations: Mapping[str, float], bound: str) -> None:
        """Store a configuration whose predicted cost exceeds its bounds as infeasible. No worker was used.

        Args:
            violations: see `Budget.violations`.
            bound: name of the exceeded bound, for the reason.
        """
        over = ", ".join(f"{name} {value:+.0%}" for name, value in violations.items() if value > 0)
        result = Result({"state": TrialState.INFEASIBLE, "reason": f"predicted over {bound}: {over}"})
        self._finish(trial, suggested, result, violations)

    def prune(self, trial: Trial, suggested: Suggested, progress: Progress) -> None:
        """Store a trial that was stopped early as pruned for good."""
        result = progress.so_far()
        reason = result.stopped_reason(self._study.spec.full_epochs)
        result = result.with_(outcome=Outcome.STOPPED, state=TrialState.PRUNED, ran=True, reason=reason)
        device_bytes = ({**suggested.estimate, **result.plain})["device_bytes"]
        costs = {**suggested.estimate, "device_bytes": device_bytes}
        self._constrain(trial, self._study.spec.budget.violations(costs))
        trial.set_user_attr(RESULT, result.to_dict())
        self._optuna.tell(trial, state=OptunaState.PRUNED)

    def _finish(
        self, trial: Trial, suggested: Suggested, result: Result, violations: Mapping[str, float], finite: float = 0.0
    ) -> None:
        self._constrain(trial, violations, finite)
        trial.set_user_attr(RESULT, result.to_dict())
        if suggested.repeat is not None:
            self._optuna.tell(trial, state=OptunaState.FAIL)
            return
        figures = {**suggested.estimate, **result.figures()}
        reached = result.state != TrialState.FAILED and figures.get("map") is not None
        values = []
        for objective in self._study.spec.objectives:
            known = objective.name in figures and (reached or objective.goal == "min")
            values.append(float(figures[objective.name]) if known else -math.inf)
        self._optuna.tell(trial, values)

    def _constrain(self, trial: Trial, violations: Mapping[str, float], finite: float = 0.0) -> None:
        # the same in all trials of a study, in one order: the GP sampler needs that
        constraints = dict(violations) | {"finite": finite}
        for name, value in constraints.items():
            trial.set_constraint(name, value)
        set_dashboard_constraint(self._optuna, trial, max(constraints.values()))
