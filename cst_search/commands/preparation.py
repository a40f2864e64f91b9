"""What comes before a search: checks, and the choice of device, recipe, data, workers and study."""

from __future__ import annotations

import json
import math
import os
import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cst_search.config.catalog import home_of, own_path
from cst_search.config.loading import RecipeLike, Settings, SpaceLike, apply_settings, load_recipe, shown_name
from cst_search.config.recipe import DEVICES, Recipe
from cst_search.config.search_space import Space
from cst_search.data.coco import DetectionData, load_data
from cst_search.data.demo import write_demo
from cst_search.errors import ConfigError, StudyError, check_choice
from cst_search.execution.gpu_sharing import Fleet, Placement, cpus_of_each
from cst_search.execution.workers import InProcess, Workers
from cst_search.memory.estimate import CONTEXT_BYTES, Estimate, InputShape, predict, worst_input
from cst_search.petl import get_method
from cst_search.redaction import DATABASES_OF_MLFLOW, shown_address
from cst_search.search.samplers import SAMPLERS, default_sampler
from cst_search.search.session import ETA, Study, list_studies
from cst_search.study.records import Budget, StudyInfo, StudySpec
from cst_search.study.storage import check_storage
from cst_search.trial.run import allowance, check_device
from cst_search.units import format_bytes, format_count, parse_bytes, parse_count, parse_seconds

if TYPE_CHECKING:
    from cst_search.execution.ray_cluster import Cluster

_STORES = "mlflow.tracking_store"  # entry points of MLflow's plugins, named as their scheme
_SURVEY = 24  # random configurations whose predicted cost tells how a budget lies in the space


@dataclass(frozen=True)
class LaunchOptions:
    """What the command line says. ``None``: chosen by `launch`.

    Attributes:
        limit_bytes: what the process of a trial is held to. On a GPU device bytes, and the budget's where None; on a
            CPU what it may grow by, and None is no limit: its memory is not the GPU's that the budget is about.
        cache_bytes: of images and maps that trials share, in ``home / "cache"``; 0: nothing is shared.
        eta: of early stopping; see `results.StudySpec`.
        of_study: the study to go on with, whose recipe and space are taken rather than these; see `resumed`.
        address: of the Ray cluster that runs the trials, as `cluster.Cluster` takes it; None: this machine does.
    """

    budget: Budget
    home: Path
    data: str | None = None
    recipe: RecipeLike | None = None
    space: SpaceLike = "cst"
    settings: Settings = ()
    study: str | None = None
    trials: int = 16
    time_limit_seconds: float | None = None
    seed: int = 0
    workers: int | None = None
    device: str = "auto"
    objectives: str = "map,device_bytes,trainable_params"
    sampler: str | None = None
    storage: str | None = None
    tracking_uri: str | None = None
    skip_bad: bool = False
    in_process: bool = False
    limit_bytes: int | None = None
    cache_bytes: int | None = None
    eta: int | None = None
    of_study: StudyInfo | None = None
    address: str | None = None


def launch_options(
    *,
    home: Path | str | None,
    budget_mem: str | float | None,
    budget_params: str | float | None,
    time_limit: str | float | None,
    limit_mem: str | float | None,
    cache_size: str | float | None,
    stop_early: bool | None,
    eta: int | None,
    settings: Settings | None,
    **others: Any,
) -> LaunchOptions:
    """Options as a person or a program gives them, units as text or as numbers. Raises UserError: one is misspelt.

    Args:
        others: fields of `LaunchOptions` as they are.
    """
    if eta is not None and stop_early is False:
        raise ConfigError(f"--eta {eta} says how trials are stopped early, and --no-stop-early that none is; give one")
    check_choice("--device", others["device"], DEVICES)
    if others["sampler"] is not None:
        check_choice("--sampler", others["sampler"], SAMPLERS)
    return LaunchOptions(
        budget=Budget(
            None if budget_mem is None else parse_bytes(budget_mem),
            None if budget_params is None else parse_count(budget_params),
        ),
        home=home_of(home),
        settings=settings or (),
        time_limit_seconds=None if time_limit is None else parse_seconds(time_limit),
        limit_bytes=None if limit_mem is None else parse_bytes(limit_mem),
        cache_bytes=parse_cache(cache_size),
        eta=0 if stop_early is False else eta or (ETA if stop_early else None),
        **others,
    )


def parse_cache(size: str | float | None) -> int | None:
    """Bytes of ``--cache-size``; 0: nothing is shared. Raises UnitError."""
    if size is None:
        return None
    return 0 if str(size).strip() == "0" else parse_bytes(size)


def resumed(study: Study, home: Path, n_trials: int | None, **others: Any) -> LaunchOptions:
    """Options of a launch that goes on with a study: of what it was made with nothing may change.

    Args:
        n_trials: that the study shall have in the end; None: as many as its last launch was to reach.
        others: of `launch_options`, as far as a study does not fix them; what is left out has its default.

    Raises:
        StudyError: nobody said how many.
        UserError: as `launch_options`.
    """
    unsaid = dict.fromkeys(
        ("budget_mem", "budget_params", "time_limit", "limit_mem", "cache_size", "stop_early", "eta", "settings",
         "sampler")
    )  # fmt: skip
    options = launch_options(**(unsaid | {"device": "auto", "home": home} | others))
    info = study.info()
    n_trials = n_trials or study.n_wanted()
    if n_trials is None:
        raise StudyError(f"study {info.name!r} does not say how many trials it shall have; give --trials N")
    return replace(
        options,
        trials=n_trials,
        of_study=info,
        study=info.name,
        budget=info.budget,
        data=None if info.data == "demo" else info.data,
        objectives=",".join(objective.name for objective in info.objectives),
        seed=info.seed,
        limit_bytes=info.limit_bytes,
    )


@dataclass(frozen=True)
class Survey:
    """Predicted costs of random configurations: device bytes and trainable parameters, ascending."""

    device_bytes: tuple[int, ...]
    trainable_params: tuple[int, ...]
    petl_params: tuple[int, ...]


# --- what the person gave -----------------------------------------------------------------------------------------


def check_tracking(uri: str | None) -> None:
    """Raise UserError: no address that MLflow takes. Whether it answers is not asked, as a study is kept without it."""
    if uri is None:
        return
    try:
        parts = urlsplit(uri)
        kind, server = parts.scheme.partition("+")[0], bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        kind, server = "http", False
    if kind in DATABASES_OF_MLFLOW:
        check_storage(uri, "--tracking-uri", DATABASES_OF_MLFLOW)
        return
    others = {"", "file", "databricks", "databricks-uc", "uc"} | {e.name for e in entry_points(group=_STORES)}
    if not uri.strip() or not (server if kind in ("http", "https") else kind in others):
        raise ConfigError(
            f"--tracking-uri takes a server such as http://host:5000, or a database URL such as sqlite:///mlflow.db; "
            f"got {shown_address(uri)!r}"
        )


def check_space(space: Space, recipe: Recipe, where: str) -> None:
    """Raise ConfigError when the recipe or the method does not take a value of the space: now, not in trial 40."""
    for config in space.ends():
        try:
            configured = recipe.configured(config)
            get_method(configured.method).make_options(configured.options)
        except ConfigError as error:
            raise ConfigError(f"search space {where!r}, method {config['method']}: {error}") from error


def connect(options: LaunchOptions, storage: str, say: Callable[[str], None]) -> Cluster | None:
    """The cluster of ``--address``, if it is given. Raises UserError: it cannot be had, or not with these options."""
    if options.address is None:
        return None
    if options.in_process:
        raise ConfigError("--in-process runs the trials in this process, and --address on a cluster; give one of them")
    from cst_search.execution.ray_cluster import Cluster

    cluster = Cluster(options.address, say)
    cluster.check_storage(storage)
    return cluster


def check_nodes(cluster: Cluster, home: Path, recipe: Recipe, data: DetectionData, device: Any) -> None:
    """Have every node looked at. Raises ConfigError: what each lacks.

    Args:
        home: that nodes should share, as checkpoints are in it.
    """
    from cst_search.execution import node_check

    with node_check.token(home) as token:
        cluster.check(node_check.wanted_of(recipe, data, on_gpus=device.type == "cuda", token=token))


def device_of(name: str, cluster: Cluster | None) -> Any:
    """The torch device of ``--device``, here or on a cluster. Raises ConfigError: there is no GPU."""
    check_choice("--device", name, DEVICES)
    return check_device(name) if cluster is None else cluster.device(name)


def memory_limit_of(options: LaunchOptions, device: Any) -> int | None:
    """What each trial is held to, as `run_trial` takes it. Raises ConfigError: --limit-mem leaves nothing."""
    if options.limit_bytes is not None:
        return allowance(options.limit_bytes, device, "--limit-mem")
    if device.type != "cuda" or options.budget.memory_bytes is None:
        return None
    # a budget below the context lets no suggestion through, which is said where the space is surveyed
    return max(1, options.budget.memory_bytes - CONTEXT_BYTES)


def base_recipe(options: LaunchOptions, device: Any) -> Recipe:
    """The recipe that all trials share, with the dataset's absolute path in it."""
    chosen = options.recipe or ("demo" if options.data is None else "small" if device.type == "cpu" else "resnet50")
    name = shown_name(chosen)
    recipe = apply_settings(load_recipe(chosen), options.settings, name)
    get_method(recipe.method).make_options(recipe.options)
    folder, weights = options.data or recipe.data, recipe.weights
    if folder != "demo":
        folder = str(own_path(folder).absolute())
    if weights not in ("DEFAULT", "none", "demo"):
        weights = str(own_path(weights).absolute())
        if not Path(weights).is_file():  # or every trial would find out by itself
            raise ConfigError(f"recipe {name!r}: weights must be DEFAULT, none, demo or a file; there is no {weights}")
    return replace(recipe, data=folder, weights=weights, seed=options.seed)


def open_data(
    folder: str, home: Path, *, skip_bad: bool, say: Callable[[str], None], need: tuple[str, ...] = ("train", "val")
) -> DetectionData:
    """Load and check the dataset of a recipe; ``demo`` is drawn first. Raises DataError with every fault."""
    path = write_demo(home / "demo-data") if folder == "demo" else Path(folder)
    data, report = load_data(path, skip_bad=skip_bad, cache=home / "checked-images.json", need=need)
    home.mkdir(parents=True, exist_ok=True)
    if report.faults or report.notes:
        say(report.render())
    return data


def load_dataset(options: LaunchOptions, recipe: Recipe, say: Callable[[str], None]) -> DetectionData:
    data = open_data(recipe.data, options.home, skip_bad=options.skip_bad, say=say)
    summary = data.summary()
    parts = ", ".join(
        f"{split} {n} images / {summary['n_boxes'][split]} boxes" for split, n in summary["n_images"].items()
    )
    say(f"data {recipe.data}: {parts}; {len(data.class_names)} classes")
    return data


def image_sizes(data: DetectionData) -> tuple[tuple[int, int], ...]:
    """Distinct (height, width) of all images, in pixels."""
    return tuple(sorted({(image.height, image.width) for split in data.splits.values() for image in split.images}))


def dataset_inputs(data: DetectionData) -> dict[str, Any]:
    """What `worst_input` and `predict` take of a dataset, for who has the study and not the data.

    Of the image sizes three give the same worst input as all: resizing goes by the ratio of the sides, and the largest
    height and width come of the tallest, the widest, or the squarest.
    """
    ratios = {height / width: (height, width) for height, width in image_sizes(data)}
    chosen = {ratios[r] for r in (min(ratios), max(ratios), min(ratios, key=lambda r: abs(math.log(r))))}
    return {
        "n_classes": len(data.class_names),
        "max_boxes": data.summary()["max_boxes"],
        "sizes": sorted(map(list, chosen)),
    }


def estimator(recipe: Recipe, data: DetectionData) -> Callable[[dict[str, Any]], Estimate]:
    sizes, max_boxes = image_sizes(data), data.summary()["max_boxes"]
    n_classes = len(data.class_names)

    def estimate(config: dict[str, Any]) -> Estimate:
        configured = recipe.configured(config)
        shape: InputShape = worst_input(configured, sizes, max_boxes)
        return predict(configured, n_classes, shape)

    return estimate


def survey_costs(space: Space, recipe: Recipe, estimate: Callable[[dict[str, Any]], Estimate]) -> Survey:
    rng = random.Random(0)
    found = [estimate(space.sample(rng)) for _ in range(_SURVEY)]
    return Survey(
        tuple(sorted(e.device_bytes for e in found)),
        tuple(sorted(e.trainable_params for e in found)),
        tuple(sorted(e.petl_params for e in found)),
    )


def expected_sharers(space: Space, recipe: Recipe, n_trials: int) -> int:
    """How many of so many random configurations read the same maps of a frozen body as one of them, on average."""
    rng = random.Random(0)
    found: Counter[tuple[Any, ...]] = Counter()
    for _ in range(_SURVEY):
        r = recipe.configured(space.sample(rng))
        if get_method(r.method).side:
            body = (r.backbone, r.width, r.weights, r.precision, r.memsave)
            found[*body, r.image_size_px, r.max_size_px, r.batch_size] += 1
    n = sum(found.values())
    return max(1, round(n_trials * sum(count * count for count in found.values()) / (n * _SURVEY))) if n else 1


def show_budget(budget: Budget, survey: Survey, say: Callable[[str], None]) -> None:
    """Say where the budget lies in the space."""
    for flag, bound, values, show in (
        ("--budget-mem", budget.memory_bytes, survey.device_bytes, format_bytes),
        ("--budget-params", budget.params, survey.trainable_params, format_count),
    ):
        if bound is None:
            continue
        within = sum(value <= bound for value in values)
        span = f"{show(values[0])} to {show(values[-1])}"
        if within == len(values):
            bite = show(statistics.median(values)).replace(" ", "")
            say(
                f"note: {flag} {show(bound)} is above everything in this space ({span} in {len(values)} random "
                f"configurations), so it excludes nothing; {flag} {bite} would exclude about half"
            )
        elif within == 0:
            say(
                f"note: {flag} {show(bound)} is below all of {len(values)} random configurations ({span}); "
                f"few or none will fit"
            )
        else:
            say(f"{flag} {show(bound)}: {within} of {len(values)} random configurations fit ({span})")


def gpu_placement(limit: int | None, cluster: Cluster | None = None) -> Placement | Fleet:
    """The GPUs at hand, for trials to share."""
    if cluster is not None:
        fleet = Fleet(on_gpus=True, context_bytes=CONTEXT_BYTES, most_bytes=limit)
        fleet.set_nodes(cluster.nodes.values())
        return fleet
    import torch

    n_gpus = torch.cuda.device_count()
    gpu_bytes = min(torch.cuda.get_device_properties(i).total_memory for i in range(n_gpus))
    return Placement(n_gpus, gpu_bytes, CONTEXT_BYTES, limit)


def make_workers(
    options: LaunchOptions,
    placement: Placement | Fleet | None,
    recipe: Recipe,
    survey: Survey,
    cluster: Cluster | None = None,
) -> tuple[Workers, int, int]:
    """(workers, how many trials at a time at most, CPU threads of each; 0: torch's default)."""
    if cluster is not None:
        return _cluster_workers(options, placement, recipe, survey, cluster)
    assert not isinstance(placement, Fleet)
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_workers = options.workers or max(1, min(n_cores, options.trials))
    if placement is not None and not options.workers:
        # as many as fit of the smallest, and a core for each of their processes; but every GPU is used
        most = min(placement.n_at_once(survey.device_bytes[0]), n_cores // (1 + recipe.loader_workers))
        n_workers = min(max(most, placement.n_gpus), options.trials)
    threads = max(1, n_cores // n_workers)
    if options.in_process:
        return InProcess(), 1, threads if placement is None else 0
    from cst_search.execution.ray_tune import Ray

    cpus = float(threads) if placement is None else 1.0
    return Ray(n_workers, cpus, placement), n_workers, threads


def _cluster_workers(
    options: LaunchOptions, placement: Placement | Fleet | None, recipe: Recipe, survey: Survey, cluster: Cluster
) -> tuple[Workers, int, int]:
    """Likewise on a cluster, where ``--workers`` alone bounds what its nodes have room for, now and later."""
    nodes = list(cluster.nodes.values())
    if isinstance(placement, Fleet):
        fleet = placement
        fleet.cpus = 1.0 + recipe.loader_workers  # a core for each process of a trial
        n_on = {node: fleet.n_on(node, survey.device_bytes[0]) for node in nodes}
        threads = min((max(1, int(node.n_cpus) // n) for node, n in n_on.items() if n), default=1)
    else:
        threads = cpus_of_each(nodes, options.workers or options.trials)
        fleet = Fleet(cpus=float(threads))
    fleet.n_most = options.workers
    fleet.set_nodes(nodes)
    cluster.fleet = fleet
    n_workers = max(1, min(fleet.n_at_once(survey.device_bytes[0]), options.trials))
    from cst_search.execution.ray_tune import Ray

    return Ray(n_workers, fleet.cpus, cluster=cluster), n_workers, threads


_NAME = re.compile(r"^[^/\\]{1,100}$")


# what else lies in --home, beside one folder per study
_TAKEN = ("studies.db", "mlflow.db", "artifacts", "demo-data", "checked-images.json", "cache")


def check_name(name: str) -> None:
    shows = name.isprintable() and len(name.encode()) <= 100  # a folder has it too: 255 bytes with an ending at most
    if not shows or not _NAME.match(name) or name.strip(". ") == "" or name in _TAKEN:
        raise ConfigError(
            f"--study must be a name of 1 to 100 characters without slashes, and none of {', '.join(_TAKEN)}; "
            f"got {name!r}"
        )


def new_name(storage: str, base: str) -> str:
    base = re.sub(r"[^\w.-]+", "-", base).strip("-.") or "study"
    taken = set(list_studies(storage, make=True))
    return next(name for i in range(1, len(taken) + 2) if (name := f"{base}-{i}") not in taken)


def make_study(
    storage: str, name: str, space: Space, recipe: Recipe, options: LaunchOptions, objectives: Sequence[Any],
    reference: dict[str, float], inputs: dict[str, Any],
) -> Study:  # fmt: skip
    spec = StudySpec(
        objectives=tuple(objectives),
        budget=options.budget,
        reference_point={o.name: reference[o.name] for o in objectives},
        recipe=recipe.to_dict(),
        space=json.loads(json.dumps(space.source)),
        data=recipe.data,
        seed=options.seed,
        sampler=options.sampler or default_sampler(objectives),
        target_device="CUDA GPU (generic)",
        limit_bytes=options.limit_bytes,
        inputs=inputs,
        eta=options.eta,
    )
    study = Study.create(storage, name, spec)
    if not study.info().trials:
        study.enqueue(default_config(space, recipe))
    return study


def default_config(space: Space, recipe: Recipe) -> dict[str, Any]:
    """The recipe as a configuration, of its method or the first of the space: a search should not end below it.

    Of one method alone: those of all twelve as first trials were worse than what a search found in their place.
    """
    method = get_method(recipe.method if recipe.method in space.methods else space.methods[0])
    own = method.name == recipe.method
    made = method.make_options(recipe.options if own else {})
    config = {key: value for key, value in vars(recipe).items() if key not in ("options", "origin")}
    config |= {"method": method.name, "lr": (recipe.lr if own else None) or method.lr}
    return config | {f"{method.name}.{key}": value for key, value in vars(made).items()}


def settings_of(study: Study, options: LaunchOptions, n_workers: int, device: Any) -> dict[str, Any]:
    spec = study.spec
    return {
        "recipe": {key: value for key, value in spec.recipe.items() if key not in ("options", "origin")},
        "options": spec.recipe.get("options", {}),
        "space": shown_name(options.space),
        "data": spec.data,
        "budget": {"memory_bytes": spec.budget.memory_bytes, "params": spec.budget.params},
        "limit_mem": spec.limit_bytes,
        "objectives": ",".join(o.name for o in spec.objectives),
        "sampler": spec.sampler,
        "eta": spec.eta,
        "seed": spec.seed,
        "trials": options.trials,
        "workers": n_workers,
        "device": str(device),
    }
