"""New configurations for a study: the sampler, restricted to untried ones whose predicted cost is within the budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, Trial
from optuna.trial import TrialState as OptunaState

from cst_search.config.recipe import Recipe, renamed_fields
from cst_search.search.optuna_space import pick
from cst_search.search.outcomes import Outcomes
from cst_search.search.pareto_sampler import ParetoSampler
from cst_search.search.samplers import make_sampler
from cst_search.search.sources import sources_of
from cst_search.search.suggestion import Suggestion
from cst_search.study.launch_registry import now
from cst_search.study.objectives import spares_memory
from cst_search.study.parameters import params_of
from cst_search.study.records import Budget
from cst_search.study.study import Study
from cst_search.study.trial_attributes import SUGGESTED, Suggested, learning_curve
from cst_search.trial.cost import with_former_recompute, with_recompute
from cst_search.units import format_bytes

if TYPE_CHECKING:
    from cst_search.memory.estimate import Estimate

REFERENCE = "reference"  # user attribute of an enqueued trial
_MOST_KNOWN = 10  # duplicate suggestions in a row before a configuration is drawn at random


class NotAlone(Exception):
    """The study's lock was lost, along with its server, while it was needed."""


class Suggester:
    """Suggests feasible configurations that the study does not have yet.

    Args:
        outcomes: receives rejected configurations, and has the correction of predicted memory.
        bounds: bounds on predicted cost: the study's budget, or less if the GPU has less memory.
    """

    def __init__(self, study: Study, outcomes: Outcomes, bounds: Budget) -> None:
        self._study, self._optuna = study, study.optuna_study()
        self._outcomes, self.bounds = outcomes, bounds
        self._estimate: Callable[[dict[str, Any]], Estimate]  # argument of the last `suggest`
        self._corrected_by = 1.0  # correction factor of the costs cached in the sampler
        self._chosen: set[str] = set()  # configurations that the study has
        self._random: optuna.samplers.RandomSampler | None = None  # one per launch; a new one would repeat its draws

    def sampler(self) -> optuna.samplers.BaseSampler:
        """Return a new sampler as the study names it, seeded by the number of trials read."""
        spec = self._study.spec
        # a continued study must not draw the same random points again
        seed = (spec.seed + 7919 * self._study.reader.n_trials) % 2**31
        name = next((objective.name for objective in spec.objectives if objective.goal == "max"), "map")

        def curve(trial: FrozenTrial) -> dict[int, float]:
            return learning_curve(trial.user_attrs, name)

        return make_sampler(
            replace(spec, budget=self.bounds), self._study.space, self._cost, curve, seed, self._rough_cost,
            sources_of(self._study) if spec.sampler == "pareto" else (),
        )  # fmt: skip

    def begin(self) -> None:
        """Set a new `sampler` on Optuna's study."""
        self._optuna.sampler = self.sampler()

    def note(self, config: Mapping[str, Any]) -> None:
        """Mark a configuration as tried, by any launch."""
        self._chosen.add(_key(with_former_recompute(config, self._recipe) if self._is_auto(config) else config))

    def suggest(
        self, estimate: Callable[[dict[str, Any]], Estimate], max_rejects: int, is_alone: Callable[[], bool]
    ) -> tuple[Trial, Suggestion] | None:
        """Suggest a configuration as a running trial; None: ``max_rejects`` in a row were over the bounds, or not new.

        Args:
            estimate: predicted cost of a configuration, uncorrected. Its method ``roughly``, if any, is a cheaper
                prediction, by which a sampler compares candidates.
            is_alone: returns whether the study's lock is still held.

        Raises:
            NotAlone: the lock is lost, and another launch may have chosen the same configuration meanwhile.
        """
        self._estimate = estimate
        n_known = 0  # in a row
        for _ in range(max_rejects + 1):
            self._forget_costs()
            trial = self._optuna.ask() if n_known < _MOST_KNOWN else self._ask_at_random()
            drawn = self._study.space.configure(lambda dimension, trial=trial: pick(trial, dimension))  # type: ignore[misc]
            config, _ = self._settled(drawn, self._estimate)
            if _key(config) in self._chosen:
                n_known += 1
                self._optuna.tell(trial, state=OptunaState.FAIL)  # without `Suggested` it does not count as a trial
                continue
            n_known = 0
            cost = self._cost(config)
            suggested = Suggested(
                config=config, estimate=asdict(cost), correction=asdict(self._outcomes.correction()),
                launch=self._study.launch_registry.id, at=now(), reference=trial.user_attrs.get(REFERENCE, False),
                outlook=sampler.outlook if isinstance(sampler := self._optuna.sampler, ParetoSampler) else None,
            )  # fmt: skip
            if not is_alone():
                self._optuna.tell(trial, state=OptunaState.FAIL, skip_if_finished=True)
                raise NotAlone
            trial.set_user_attr(SUGGESTED, suggested.to_dict())
            self.note(config)
            violations = self.bounds.violations(vars(cost))
            if all(value <= 0 for value in violations.values()):
                return trial, Suggestion(trial.number, config, asdict(cost))
            self._outcomes.reject(trial, suggested, violations, self._bound_words(violations))
        return None

    def _bound_words(self, violations: Mapping[str, float]) -> str:
        if self.bounds != self._study.spec.budget and violations["memory"] > 0:
            return f"the GPU's {format_bytes(self.bounds.memory_bytes)}"
        return "the budget"

    def _ask_at_random(self) -> Trial:
        """Ask the random sampler instead of one that repeats itself: GP's best point changes only with new results."""
        sampler, seed = self._optuna.sampler, self._study.spec.seed + self._study.reader.n_trials
        self._random = self._random or optuna.samplers.RandomSampler(seed=seed % 2**31)
        self._optuna.sampler = self._random
        try:
            trial = self._optuna.ask()
            self._study.space.configure(lambda dimension: pick(trial, dimension))
            return trial
        finally:
            self._optuna.sampler = sampler

    def _cost(self, config: dict[str, Any]) -> Estimate:
        return self._corrected(self._estimate, config)

    def _rough_cost(self, config: dict[str, Any]) -> Estimate:
        return self._corrected(getattr(self._estimate, "roughly", self._estimate), config)

    def _corrected(self, estimate: Callable[[dict[str, Any]], Estimate], config: dict[str, Any]) -> Estimate:
        settled, known = self._settled(config, estimate)
        return known or estimate(settled).corrected(self._outcomes.correction())

    def _settled(
        self, config: dict[str, Any], estimate: Callable[[dict[str, Any]], Estimate]
    ) -> tuple[dict[str, Any], Estimate | None]:
        """Return a configuration with what its recomputation is, if it is ``auto``, and its cost if that was needed."""
        if not self._is_auto(config):
            return config, None
        correction, costs = self._outcomes.correction(), {}

        def device_bytes(choice: dict[str, Any]) -> int:
            cost = costs[choice["recompute"]] = estimate(choice).corrected(correction)
            return cost.device_bytes

        settled = with_recompute(
            config, self._recipe, device_bytes, self.bounds.memory_bytes,
            spares_memory=spares_memory(self._study.spec.objectives),
        )  # fmt: skip
        return settled, costs.get(settled.get("recompute"))

    def _is_auto(self, config: Mapping[str, Any]) -> bool:
        return config.get("recompute", self._study.spec.recipe.get("recompute")) == "auto"

    @cached_property
    def _recipe(self) -> Recipe:
        return Recipe.from_dict(self._study.spec.recipe)

    def _forget_costs(self) -> None:
        """Clear the sampler's cached costs once the correction of predicted memory has changed by more than 1 %."""
        factor = self._outcomes.correction().factor
        if isinstance(self._optuna.sampler, ParetoSampler) and abs(factor / self._corrected_by - 1) > 0.01:
            self._optuna.sampler.forget_prices()
            self._corrected_by = factor


def enqueue(study: Study, config: Mapping[str, Any], *, reference: bool = False) -> None:
    """Enqueue a configuration to be tried first, as far as the study's space contains it.

    Args:
        reference: it is never stopped early, because others are compared with it.
    """
    params, marks = params_of(study.space, config), {REFERENCE: True} if reference else None
    study.optuna_study().enqueue_trial(params, user_attrs=marks, skip_if_exists=True)


def _key(config: Mapping[str, Any]) -> str:
    """Return a key that is equal for equal configurations."""
    return json.dumps(renamed_fields(config), sort_keys=True)
