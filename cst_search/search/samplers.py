"""Samplers that a study can name, and their construction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.errors import StudyError
from cst_search.search.optuna_space import conditions, distributions
from cst_search.search.pareto_sampler import KnownValues, ParetoSampler
from cst_search.search.sources import Source
from cst_search.study.objectives import Objective
from cst_search.study.parameters import params_of, value_of
from cst_search.study.pareto import Floats
from cst_search.study.records import StudySpec
from cst_search.study.storage import experimental

if TYPE_CHECKING:
    from cst_search.memory.estimate import Estimate

Cost = Callable[[dict[str, Any]], "Estimate"]  # predicted cost of a configuration

NO_PRIOR = "pareto-no-prior"
SAMPLERS = ("pareto", NO_PRIOR, "tpe", "nsga2", "gp", "random")
WITH_OUTLOOK = SAMPLERS[:2]  # those that say what further trials would bring


def default_sampler(objectives: Sequence[Objective]) -> str:
    """Return the best of `SAMPLERS` that supports these objectives, according to benchmarks/search.py."""
    return "pareto" if [objective.goal for objective in objectives].count("max") == 1 else "tpe"


def check_sampler(name: str, objectives: Sequence[Objective]) -> None:
    """Raise StudyError if the sampler does not support these objectives."""
    trained_for = [objective.name for objective in objectives if objective.goal == "max"]
    if name in ("pareto", NO_PRIOR) and len(trained_for) != 1:
        raise StudyError(
            f"--sampler {name} models exactly one of map and map50; --objectives has "
            f"{' and '.join(trained_for) or 'none'}; take one, or another --sampler: {', '.join(SAMPLERS[2:])}"
        )


def make_sampler(
    spec: StudySpec,
    space: Space,
    cost: Cost,
    curve: Callable[[FrozenTrial], Mapping[int, float]],
    seed: int,
    rough_cost: Cost | None = None,
    sources: Sequence[Source] = (),
) -> optuna.samplers.BaseSampler:
    """Return the sampler that a study names. Raises StudyError, as `check_sampler`.

    Args:
        sources: what other data sets say, for the sampler ``pareto``.
        rough_cost: cheaper prediction of the same, to compare candidates by; None: ``cost`` itself.
    """
    if spec.sampler in ("pareto", NO_PRIOR):
        return pareto_sampler(spec, space, cost, curve, seed, [source.expected for source in sources], rough_cost)
    if spec.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=16, seed=seed)
    if spec.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with experimental():
        if spec.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


def pareto_sampler(
    spec: StudySpec,
    space: Space,
    cost: Cost,
    curve: Callable[[FrozenTrial], Mapping[int, float]],
    seed: int,
    priors: Sequence[Callable[[Floats], Floats]] = (),
    rough_cost: Cost | None = None,
) -> ParetoSampler:
    """Return a `ParetoSampler` for a space within a budget. Raises StudyError, as `check_sampler`."""
    # not before they are needed: reading a study needs neither
    from cst_search.trial.cost import depends_on
    from cst_search.trial.default_config import default_config

    objectives = spec.objectives
    check_sampler("pareto", objectives)
    costly = [objective.goal for objective in objectives].index("max")
    dimensions = {dimension.name: dimension for dimension in space.dimensions()}
    recipe = Recipe.from_dict(spec.recipe)
    defaults = [params_of(space, default_config(space, recipe, method)) for method in space.methods]

    def known(cost: Cost, params: dict[str, Any]) -> KnownValues:
        predicted = cost(space.configure(lambda d: value_of(d, params[d.name])))
        over = spec.budget.violations(vars(predicted))
        values = [float(getattr(predicted, o.name)) for o in objectives if o.goal == "min"]
        return KnownValues(values, sum(max(0.0, violation) for violation in over.values()))

    return ParetoSampler(
        partial(known, cost),
        distributions(space),
        costly=costly,
        conditions=conditions(space),
        free={d.name for d in dimensions.values() if not depends_on(d.key)},
        reference=[spec.reference_point[o.name] for o in objectives],
        curve=curve,
        priors=priors,
        defaults=defaults,
        rough=None if rough_cost is None else partial(known, rough_cost),
        seed=seed,
    )
