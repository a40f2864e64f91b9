"""Set up the subject of a search: recipe, space, data, the study it writes to, and its recorded settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cst_search.commands.budget_survey import Survey, estimator, show_budget, survey_costs
from cst_search.commands.checks import Request, check_space, new_name
from cst_search.commands.dataset import dataset_inputs, load_dataset, settle_detections
from cst_search.commands.options import LaunchOptions, declared
from cst_search.commands.output import Say
from cst_search.commands.references import METHODS as REFERENCES
from cst_search.commands.references import trained_parts
from cst_search.commands.worker_setup import Machines, WorkerSetup
from cst_search.config.catalog import own_path
from cst_search.config.loading import (
    SpaceLike,
    apply_settings,
    load_recipe,
    load_space_for,
    make_recipe,
    shown_name,
)
from cst_search.config.recipe import WEIGHT_NAMES, WEIGHTS_RULE, Recipe
from cst_search.config.search_space import Space
from cst_search.data.dataset import DetectionData
from cst_search.detector.build import check_weights
from cst_search.errors import ConfigError, DataError, UserError
from cst_search.memory.estimate import Estimate
from cst_search.memory.gpu_profile import choose_profile, local_costs
from cst_search.petl import get_method
from cst_search.search.samplers import default_sampler
from cst_search.search.sources import choose_prior
from cst_search.search.suggester import enqueue
from cst_search.study.objectives import BOUNDS, OF_INFERENCE, choose_objectives, spares_memory
from cst_search.study.records import Budget, StudySpec
from cst_search.study.study import Study, list_studies
from cst_search.trial.cost import with_recompute
from cst_search.trial.default_config import default_config


@dataclass(frozen=True)
class SearchSetup:
    """The subject of a search: recipe, space, data and predicted costs.

    Attributes:
        recipe: settings that all trials share.
        estimate: function from a configuration to its predicted cost.
        survey: predicted costs of random configurations of the space.
    """

    recipe: Recipe
    space: Space
    data: DetectionData
    estimate: Callable[[dict[str, Any]], Estimate]
    survey: Survey


def set_up_search(options: LaunchOptions, machines: Machines, say: Say) -> SearchSetup:
    """Load recipe, space and data, and print how much of the space the budget allows. Raises UserError."""
    profile = choose_profile(options.home, on_cluster=options.address is not None)
    if profile is not None:
        say(f"memory: predicted for {profile.costs.target} as calibrated on {profile.made}")
    known = options.of_study
    recipe = (
        base_recipe(options, machines.device) if known is None else make_recipe(known.recipe, f"study {known.name!r}")
    )
    space, notes = _space(options, recipe)
    data = load_dataset(options, recipe, say)
    recipe = settle_detections(recipe, data, say, is_study=known is not None)
    start, starts_trained = check_weights(recipe, data.class_names)  # downloads once, and fails before any trial
    if not starts_trained:
        space, notes = _space(options, recipe, starts_trained)
    for line in (start, *notes):
        say(line)
    bounded = [bound.objective for bound in BOUNDS if getattr(options.budget, bound.field) is not None]
    objectives = choose_objectives(options.objectives)
    wanted = {objective.name for objective in objectives}.union(bounded)
    estimate = estimator(recipe, data, inference=not wanted.isdisjoint(OF_INFERENCE))
    settled = partial(
        with_recompute, recipe=recipe, device_bytes=lambda config: estimate(config).device_bytes,
        budget_bytes=options.budget.memory_bytes, spares_memory=spares_memory(objectives),
    )  # fmt: skip
    survey = survey_costs(space, recipe, lambda config: estimate(settled(config)))
    show_budget(options.budget, survey, say)
    return SearchSetup(recipe, space, data, estimate, survey)


def set_up_searches(each: Sequence[LaunchOptions], machines: Machines, say: Say) -> list[SearchSetup]:
    """Set up the search of each data set. Raises UserError, which names every data set that cannot be used."""
    if len(each) == 1:
        return [set_up_search(each[0], machines, say)]
    setups, faults = [], []
    for options in each:
        try:
            setups.append(set_up_search(options, machines, say))
        except UserError as error:
            faults.append(f"study {options.study!r}: {error}")
    if faults:
        raise DataError(f"nothing was started: {len(faults)} of {len(each)} cannot be searched\n" + "\n".join(faults))
    return setups


def _space(options: LaunchOptions, recipe: Recipe, starts_trained: bool = True) -> tuple[Space, list[str]]:
    """Return the checked search space of a launch, and notes on dimensions that it leaves out. Raises ConfigError."""
    if options.of_study is not None:
        return Space.from_dict(options.of_study.space, where=f"study {options.of_study.name!r}"), []
    chosen = chosen_space(options)
    space, notes = load_space_for(chosen, recipe, starts_trained)
    for method in space.methods:
        get_method(method)
    check_space(space, recipe, shown_name(chosen))
    return space, notes


def chosen_space(options: LaunchOptions) -> SpaceLike:
    """Return the search space of a launch: the one given, or the default for its data."""
    return options.space or ("quick" if options.data is None else "cst")


def base_recipe(options: LaunchOptions, device: Any) -> Recipe:
    """Return the recipe that all trials share, with absolute paths of dataset and weights."""
    chosen = options.recipe or ("demo" if options.data is None else "small" if device.type == "cpu" else "resnet50")
    name = shown_name(chosen)
    recipe = apply_settings(load_recipe(chosen), options.settings or (), name)
    recipe = replace(recipe, **options.reading_fields())
    get_method(recipe.method).make_options(recipe.options)
    folder, weights = options.data or recipe.data, recipe.weights
    if folder != "demo":
        folder = str(own_path(folder).absolute())
    if weights not in WEIGHT_NAMES:
        weights = str(own_path(weights).absolute())
        if not Path(weights).exists():  # fail once here instead of in every trial
            raise ConfigError(f"recipe {name!r}: weights must be {WEIGHTS_RULE}; there is no {weights}")
    return replace(recipe, data=folder, weights=weights, seed=options.seed)


def open_or_make_study(options: LaunchOptions, request: Request, setup: SearchSetup) -> Study:
    """Open the study of a launch, or create it with its first configurations. Raises StudyError."""
    recipe = setup.recipe
    name = options.study or new_name(request.storage, "demo" if options.data is None else Path(recipe.data).name)
    reference = reference_point(setup.survey, options.budget)
    spec = StudySpec(
        objectives=request.objectives,
        budget=options.budget,
        reference_point={o.name: reference[o.name] for o in request.objectives},
        recipe=recipe.to_dict(),
        space=json.loads(json.dumps(setup.space.source)),
        data=recipe.data,
        seed=options.seed,
        sampler=options.sampler or default_sampler(request.objectives),
        target_device=local_costs().target,
        limit_bytes=options.limit_mem,
        inputs=dataset_inputs(setup.data),
        eta=options.early_stopping_eta,
        prior=_prior(options, request, name),
    )
    study = Study.create(request.storage, name, spec)
    if not study.info().trials:
        for config in first_configs(setup.space, recipe):
            enqueue(study, config, reference=True)
    return study


def _prior(options: LaunchOptions, request: Request, name: str) -> tuple[str, ...] | None:
    sampler = options.sampler or default_sampler(request.objectives)
    if sampler == "pareto":
        if options.prior in (None, "auto") and name in list_studies(request.storage, make=True):
            return None  # as in the study
        return choose_prior(options.prior, request.storage, name)
    if options.prior is not None:
        raise ConfigError(f"--prior is for --sampler pareto; got --sampler {sampler}")
    return None


def open_or_make_studies(
    each: Sequence[LaunchOptions], requests: Sequence[Request], setups: Sequence[SearchSetup]
) -> list[Study]:
    """Open or create the study of each search; those that exist first, so that a refused one leaves no new ones.

    Raises:
        StudyError: a study differs from what is asked for.
    """
    taken = list_studies(requests[0].storage, make=True) if len(each) > 1 else []
    order = sorted(range(len(each)), key=lambda i: each[i].study not in taken)
    made = {i: open_or_make_study(each[i], requests[i], setups[i]) for i in order}
    return [made[i] for i in range(len(each))]


def reference_point(survey: Survey, budget: Budget) -> dict[str, float]:
    """Return the reference point of the hypervolume: the budget, or 105 % of the space's highest cost if that is lower.

    With a reference point far above the space, all hypervolumes would look alike. So the 105 % are of the working
    memory; 5 % of the CUDA context may be more than the whole space spans.
    """
    context = survey.context_bytes
    reference = {
        "map": 0.0,
        "map50": 0.0,
        **{name: values[-1] * 1.05 + 1 for name, values in survey.costs.items()},
        "device_bytes": context + (survey.device_bytes[-1] - context) * 1.05 + 1,
    }
    for bound in BOUNDS:
        cost, most = bound.objective, getattr(budget, bound.field)
        reference[cost] = min(reference[cost], most or reference[cost])
    return reference


def first_configs(space: Space, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the configurations that a search tries first, as far as its space has their methods.

    The recipe comes first, so that a search does not end below it. The two ends of fine-tuning follow, which every
    other method is compared with: the most thorough, `full` with neck and head on the largest images, and the cheapest,
    the last layers of the `head` alone in the smallest batches. They also test what the sampler knows from other data.
    One that is over the budget is refused as any other.
    """
    own = recipe.method if recipe.method in space.methods else space.methods[0]
    ends = [name for name in REFERENCES if name in space.methods and name != own]
    return [
        default_config(space, recipe, own),
        *(default_config(space, recipe, name) | _end(space, name) for name in ends),
    ]


def _end(space: Space, method: str) -> dict[str, Any]:
    """Return what makes a reference an end of fine-tuning, as far as it can be chosen in the space."""
    found = trained_parts(space, method)
    key, end = ("image_size_px", max) if method == "full" else ("batch_size", min)
    found |= {d.key: round(end(d.choices or (d.low, d.high))) for d in space.by_method[method] if d.key == key}
    return found


def recorded_settings(study: Study, options: LaunchOptions, workers: WorkerSetup) -> dict[str, Any]:
    """Return the settings of a launch that its study and MLflow keep, with the values actually in force."""
    spec = study.spec
    actual = replace(
        options,
        space=shown_name(chosen_space(options)),
        data=spec.data,
        limit_mem=spec.limit_bytes,
        objectives=",".join(o.name for o in spec.objectives),
        sampler=spec.sampler,
        eta=spec.eta,
        seed=spec.seed,
        workers=workers.n_workers,
        device=str(workers.machines.device),
    )
    return {
        "recipe": {key: value for key, value in spec.recipe.items() if key not in ("options", "origin")},
        "options": spec.recipe.get("options", {}),
        "budget": asdict(spec.budget),
    } | {name: getattr(actual, name) for name, option in declared(LaunchOptions).items() if option.recorded}
