"""Options of the commands that run trials, declared once.

`cli.options` makes the command line from these declarations. A test compares the signatures of the Python API with them
field by field. `study_setup.recorded_settings` finds here which settings a study and MLflow keep.

`--help` imports this module, so nothing here may load torch, Optuna or pydantic.
"""

# ruff: noqa: RUF009  a field is declared by a call of `_option`

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cst_search.config.catalog import home_of
from cst_search.config.recipe import (
    BOX_FORMS,
    CROWD_CHOICES,
    DEVICES,
    EXIF_CHOICES,
    READING_FIELDS,
    ROTATED_CHOICES,
    SIZES_CHOICES,
    TRUNCATED_CHOICES,
)
from cst_search.errors import ConfigError, StudyError, UnitError, check_choice
from cst_search.units import parse_bytes, parse_count, parse_flops, parse_seconds

if TYPE_CHECKING:
    from cst_search.config.loading import RecipeLike, Settings, SpaceLike
    from cst_search.study.records import Budget, StudyInfo

# groups of options in --help, in this order
SEARCH, READING, BUDGET, TRIALS, RECORD = (
    "What is searched", "How data are read", "Budget and length", "Where trials run", "Where results go"
)  # fmt: skip
PANELS = (BUDGET, SEARCH, TRIALS, RECORD, READING)
CONVERGED = "converged"
UNTIL = ("trials", CONVERGED)
N_TRIALS = 16
N_DEMO_TRIALS = 10  # of at most 85 s, on two cores within five minutes
_LEAST_PARAMS = 1000  # the smallest head, of the demo's detector with one class, has some hundred thousand


@dataclass(frozen=True)
class Option:
    """The declaration of one option.

    Attributes:
        flag: name on the command line, ``--yes/--no`` for a choice of two.
        help: text in `--help`. It ends with "(default: ...)" if the default is not a fixed value.
        panel: group of options in `--help`.
        kind: type of the value on the command line; an option of kind `list` can be repeated.
        metavar: what stands for the value in `--help`; None for a number: N.
        default: value if the option is not given, on the command line and in Python alike.
        parse: function that reads a text, a number or None; None: the value is used as it is.
        least, most: bounds of a number, both inclusive.
        completion: words that a shell offers, or the name of the function in `cli.completion` that finds them.
        is_address: the value is a URL, or `@FILE` of a file that holds it.
        recorded: the study and MLflow keep the value as a setting of the launch.
    """

    flag: str
    help: str
    panel: str
    kind: Any = str
    metavar: str | None = None
    default: Any = None
    parse: Callable[[Any], Any] | None = None
    least: int | None = None
    most: int | None = None
    completion: str | tuple[str, ...] = ()
    is_address: bool = False
    recorded: bool = False


def _option(flag: str, help: str, panel: str, **more: Any) -> Any:
    """Declare a field of an options class together with its option."""
    option = Option(flag, help, panel, **more)
    if option.parse is not None:  # the default is parsed too: that of --home is in the environment
        return field(default_factory=partial(option.parse, option.default), metadata={"option": option})
    return field(default=option.default, metadata={"option": option})


def declared(owner: type[Options]) -> dict[str, Option]:
    """Return the options of a class by field name, sorted by group, then by order of declaration."""
    found = {f.name: f.metadata["option"] for f in fields(owner) if "option" in f.metadata}
    return dict(sorted(found.items(), key=lambda item: PANELS.index(item[1].panel)))


def _parsed(option: Option, value: Any) -> Any:
    """Return the value of an option that has a parser. Raises UserError; one about a unit names the option."""
    assert option.parse is not None
    try:
        return option.parse(value)
    except UnitError as error:
        raise UnitError(f"{option.flag}: {error}") from None


def _bytes(value: str | float | None) -> int | None:
    return None if value is None else parse_bytes(value)


def _count(value: str | float | None) -> int | None:
    return None if value is None else parse_count(value)


def _params(value: str | float | None) -> int | None:
    """Return a budget of trainable parameters. Raises UnitError, also if it is below that of any head: 2 means 2M."""
    n = _count(value)
    if n is not None and n < _LEAST_PARAMS:
        raise UnitError(
            f"a budget of parameters must be at least {_LEAST_PARAMS:,}, as every head has more; got {value!r}; "
            f"write {n}M for {n} million"
        )
    return n


def _flops(value: str | float | None) -> int | None:
    return None if value is None else parse_flops(value)


def _seconds(value: str | float | None) -> float | None:
    return None if value is None else parse_seconds(value)


def parse_cache(size: str | float | None) -> int | None:
    """Return the bytes of ``--cache-size``; 0 turns sharing off. Raises UnitError."""
    return 0 if str(size).strip() == "0" else _bytes(size)


def _choice(flag: str, name: str | None, names: tuple[str, ...]) -> str | None:
    if name is not None:
        check_choice(flag, name, names)
    return name


def _one_folder(value: str | Path | Sequence[str | Path] | None) -> str | None:
    """Return the folder of one study; `launches_of` divides several."""
    folders = [value] if isinstance(value, str | Path) else list(value or ())
    if len(folders) > 1:
        raise ConfigError(f"one --data is read here; got {', '.join(map(str, folders))}")
    return str(folders[0]) if folders else None


def _sampler(name: str | None) -> str | None:
    if name is None:
        return None
    from cst_search.search.samplers import SAMPLERS  # loads Optuna; --help does without it

    return _choice("--sampler", name, SAMPLERS)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of the classes that declare options."""

    @classmethod
    def read(cls, **given: Any) -> Self:
        """Parse options from the command line or from Python; sizes and times may be text or numbers.

        Options that are not given have their default. Raises UserError if a value is not valid.
        """
        options = declared(cls)
        if unknown := given.keys() - options.keys():
            raise TypeError(f"no such options of {cls.__name__}: {', '.join(sorted(unknown))}")
        values = {name: given.get(name, option.default) for name, option in options.items()}
        parsed = {name: _parsed(option, values[name]) for name, option in options.items() if option.parse is not None}
        return cls(**values | parsed)


def _chosen(flag: str, help: str, panel: str, names: tuple[str, ...]) -> Any:
    """Declare an option that takes one of ``names``, which the shell completes."""
    return _option(flag, help, panel, metavar="MODE", parse=partial(_choice, flag, names=names), completion=names)


@dataclass(frozen=True, kw_only=True)
class ReadingOptions(Options):
    """Options of every command that reads a data set from its folder; each sets the recipe field of the same name.

    A study has them in its recipe, so commands that continue one do not take them.
    """

    exif: str | None = _chosen(
        "--exif",
        "How boxes lie on images with an EXIF orientation: on the image as shown, as stored, or auto, whichever the "
        "sizes in the annotation file match (default: the recipe's, auto).",
        READING,
        EXIF_CHOICES,
    )
    max_pixels: int | None = _option(
        "--max-pixels",
        "Maximum width times height of an image, e.g. 200M (default: the recipe's, 89478485).",
        READING,
        metavar="COUNT",
        parse=_count,
    )
    truncated: str | None = _chosen(
        "--truncated",
        "Truncated image files: refuse them, or use what is there (default: the recipe's, refuse).",
        READING,
        TRUNCATED_CHOICES,
    )
    white_level: float | None = _option(
        "--white-level",
        "Pixel value of white in greyscale images of more than 8 bits, e.g. 4095 for a 12-bit camera (default: the "
        "recipe's, else 65535; 1 or 255 for floats).",
        READING,
        metavar="VALUE",
        kind=float,
    )
    val_fraction: float | None = _option(
        "--val-fraction",
        "Share of the training images to hold out for validation, e.g. 0.2, if the data set has no validation split "
        "(default: the recipe's, none).",
        READING,
        metavar="SHARE",
        kind=float,
    )
    val_seed: int | None = _option(
        "--val-seed", "Seed that picks the held-out images (default: the recipe's, 0).", READING, kind=int, least=0,
        most=2**31 - 1,
    )  # fmt: skip
    sizes: str | None = _chosen(
        "--sizes",
        "Source of the image sizes: file (the annotation file, whose sizes must be right) or image (the images "
        "themselves) (default: the recipe's, file).",
        READING,
        SIZES_CHOICES,
    )
    boxes: str | None = _chosen(
        "--boxes",
        f"Box format in the annotation file: {', '.join(BOX_FORMS)} (default: the recipe's, auto: COCO's xywh).",
        READING,
        BOX_FORMS,
    )
    crowd: str | None = _chosen(
        "--crowd",
        "Objects with iscrowd 1: auto, ignore or as-objects (default: the recipe's, auto: ignored unless they are the "
        "majority).",
        READING,
        CROWD_CHOICES,
    )
    rotated: str | None = _chosen(
        "--rotated",
        "Rotated boxes: refuse, enclose (use the upright box around each) or ignore (drop the rotation) (default: the "
        "recipe's, refuse).",
        READING,
        ROTATED_CHOICES,
    )

    def reading_fields(self) -> dict[str, Any]:
        """Return the fields of the recipe that were given, by name."""
        return {name: value for name in READING_FIELDS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """Options of every command that runs trials: `launch`, `resume` and `confirm`."""

    workers: int | None = _option(
        "--workers", "Concurrent trials (default: one per core; on a GPU, as many as fit).", TRIALS, kind=int, least=1,
        recorded=True,
    )  # fmt: skip
    device: str = _option(
        "--device", "Device to run on; auto takes a GPU if there is one.", TRIALS, default="auto",
        metavar="auto|cpu|cuda", parse=partial(_choice, "--device", names=DEVICES),
        completion=("auto", "cpu", "cuda"), recorded=True,
    )  # fmt: skip
    in_process: bool = _option(
        "--in-process", "Run trials one after the other in this process, without Ray.", TRIALS, kind=bool, default=False
    )
    address: str | None = _option(
        "--address",
        "Ray cluster that runs the trials: auto, HOST:PORT or ray://HOST:PORT (default: this machine).",
        TRIALS,
        metavar="ADDRESS",
    )
    skip_bad: bool = _option(
        "--skip-bad", "Drop broken images and boxes instead of stopping.", READING, kind=bool, default=False
    )
    home: Path = _option(
        "--home",
        "Folder of studies and records (default: $CST_SEARCH_HOME, else ./cst-runs).",
        RECORD,
        metavar="DIR",
        kind=Path,
        parse=home_of,
    )
    storage: str | None = _option(
        "--storage",
        "Database URL of the studies, or @FILE that holds it (default: SQLite in --home).",
        RECORD,
        metavar="URL",
        is_address=True,
    )
    tracking_uri: str | None = _option(
        "--tracking-uri",
        "MLflow server or database, or @FILE that holds its address (default: SQLite in --home).",
        RECORD,
        metavar="URL",
        is_address=True,
    )


@dataclass(frozen=True, kw_only=True)
class ResumeOptions(RunOptions):
    """Options of `resume`: those that a study leaves open.

    Attributes:
        time_limit: seconds after which no trial is started.
        cache_size: bytes of images and feature maps that trials share in ``home / "cache"``; 0: nothing is shared.
    """

    trials: int | None = _option(
        "--trials", "Total trials in the study, including earlier launches (default: as before).", BUDGET, kind=int,
        least=1, recorded=True,
    )  # fmt: skip
    until: str | None = _option(
        "--until",
        "When to stop: trials (after --trials), or converged (also once further trials would gain less than the noise "
        "between seeds) (default: trials; for resume as in the last launch).",
        BUDGET,
        metavar="trials|converged",
        parse=partial(_choice, "--until", names=UNTIL),
        completion=UNTIL,
        recorded=True,
    )
    time_limit: float | None = _option(
        "--time-limit", "Start no trial after this time, e.g. 30m or 8h.", BUDGET, metavar="TIME", parse=_seconds
    )
    cache_size: int | None = _option(
        "--cache-size",
        "Disk space in --home for what trials share (images, feature maps of the frozen backbone), e.g. 20GB; 0: off "
        "(default: 10GB or a tenth of the free disk).",
        TRIALS,
        metavar="SIZE",
        parse=parse_cache,
    )


@dataclass(frozen=True, kw_only=True)
class LaunchOptions(ResumeOptions, ReadingOptions):
    """Options of `launch`. None means that `launch` chooses.

    Attributes:
        budget_mem: budget of device memory in bytes.
        budget_delta: budget of what training adds to storage, in bytes.
        budget_flops: budget of the floating-point operations of an image.
        limit_mem: memory limit of a trial's process in bytes. On a GPU it bounds device memory, and None means the
            budget. On a CPU it bounds the growth of the process, and None means no limit: the budget is GPU memory.
        eta: reduction factor of early stopping; see `early_stopping_eta`.
        of_study: the study to continue, whose recipe and space replace those given here; see `resumed`.
    """

    budget_mem: int | None = _option(
        "--budget-mem", "GPU memory budget per trial, e.g. 6GB or 6GiB.", BUDGET, metavar="SIZE", parse=_bytes
    )
    budget_params: int | None = _option(
        "--budget-params", "Budget for trainable parameters, e.g. 2M.", BUDGET, metavar="COUNT", parse=_params
    )
    budget_delta: int | None = _option(
        "--budget-delta",
        "Budget for the storage that each trained detector adds to its base, e.g. 4MB.",
        BUDGET,
        metavar="SIZE",
        parse=_bytes,
    )
    budget_flops: int | None = _option(
        "--budget-flops",
        "Budget for the operations on one image, e.g. 5GFLOP, or 2.5GMAC (multiply-adds).",
        BUDGET,
        metavar="FLOPS",
        parse=_flops,
    )
    data: str | None = _option(
        "--data",
        "Folder in COCO's, YOLO's or Pascal VOC's format. Repeatable: a study for each, on the same workers (default: "
        "the embedded demo).",
        SEARCH,
        metavar="DIR",
        kind=list,
        parse=_one_folder,
        recorded=True,
    )
    recipe: RecipeLike | None = _option(
        "--recipe",
        "Settings that all trials share: a shipped name or a YAML file (default: demo; with --data, resnet50 on a GPU, "
        "small on a CPU).",
        SEARCH,
        metavar="RECIPE",
        completion="recipes",
    )
    space: SpaceLike | None = _option(
        "--space",
        "Search space: a shipped name or a YAML file (default: quick; with --data, cst).",
        SEARCH,
        metavar="SPACE",
        completion="spaces",
        recorded=True,
    )
    settings: Settings | None = _option(
        "--set",
        "Change a field of the recipe: name=value. Repeatable.",
        SEARCH,
        metavar="NAME=VALUE",
        kind=list,
        completion="settings",
    )
    study: str | None = _option(
        "--study",
        "Name of the study; an existing one is continued. With several --data, each study is NAME-FOLDER.",
        SEARCH,
        metavar="STUDY",
        completion="studies",
    )
    objectives: str = _option(
        "--objectives",
        "Comma-separated: map, device_bytes, trainable_params, map50, petl_params, delta_bytes, inference_bytes, "
        "flops, marginal_flops.",
        SEARCH, metavar="NAME,...",
        default="map,device_bytes,trainable_params", recorded=True,
    )  # fmt: skip
    sampler: str | None = _option(
        "--sampler",
        "Sampler: pareto, pareto-no-prior, tpe, nsga2, gp or random (default: pareto, or tpe if pareto cannot optimise "
        "--objectives).",
        SEARCH,
        metavar="NAME",
        parse=_sampler,
        completion=("pareto", "pareto-no-prior", "tpe", "nsga2", "gp", "random"),
        recorded=True,
    )
    prior: str | None = _option(
        "--prior",
        "What a new study learns from: auto (shipped results and earlier studies in the same storage), none, or "
        "studies, separated by commas (default: auto).",
        SEARCH,
        metavar="NAME,...",
        completion="studies",
        recorded=True,
    )
    seed: int = _option(
        "--seed", "Seed of the sampler and of every trial.", SEARCH, kind=int, default=0, least=0, most=2**31 - 1,
        recorded=True,
    )  # fmt: skip
    trials: int = _option(
        "--trials",
        f"Total trials in the study, including earlier launches (default: {N_TRIALS}; on the demo {N_DEMO_TRIALS}).",
        BUDGET, kind=int, least=1, recorded=True,
    )  # fmt: skip
    limit_mem: int | None = _option(
        "--limit-mem",
        "Memory limit of each trial: device memory on a GPU (default: --budget-mem), growth of its process on a CPU "
        "(default: no limit).",
        BUDGET,
        metavar="SIZE",
        parse=_bytes,
        recorded=True,
    )
    stop_early: bool | None = _option(
        "--stop-early/--no-stop-early",
        "Stop a trial early if others that cost no more are clearly ahead of it (default: as in the study, else yes).",
        BUDGET,
        kind=bool,
    )
    eta: int | None = _option(
        "--eta", "Early stopping: at least one in eta trials continues (default: as in the study, else 2).", BUDGET,
        kind=int, least=2, recorded=True,
    )  # fmt: skip
    of_study: StudyInfo | None = None

    @classmethod
    def read(cls, **given: Any) -> Self:
        eta = given.get("eta")
        if eta is not None and given.get("stop_early") is False:
            raise ConfigError(
                f"--eta {eta} says how trials are stopped early, and --no-stop-early that none is; give one"
            )
        options = super().read(**given)
        if options.trials is not None:
            return options
        return replace(options, trials=N_DEMO_TRIALS if options.data in (None, "demo") else N_TRIALS)

    @property
    def budget(self) -> Budget:
        from cst_search.study.records import Budget

        return Budget(self.budget_mem, self.budget_params, self.budget_delta, self.budget_flops)

    @property
    def early_stopping_eta(self) -> int | None:
        """Reduction factor of early stopping. 0: off. None: as in the study, or the default for a new one."""
        from cst_search.study.study import ETA

        return 0 if self.stop_early is False else self.eta or (ETA if self.stop_early else None)


@dataclass(frozen=True, kw_only=True)
class ConfirmOptions(RunOptions):
    """Options of `confirm`.

    Attributes:
        seeds: total seeds per point; at the search's length the original trial is one of them.
        epochs: ``search``, ``full`` or a number.
        picks: ``front``, ``knee``, ``best``, or trial numbers separated by commas.
        data: current folder of the study's dataset; None: the folder that the study names.
    """

    seeds: int = _option(
        "--seeds",
        "Total seeds per point. The search's own trial is one of them, so 3 means two more runs; with another "
        "--epochs it does not count.",
        SEARCH,
        kind=int,
        default=3,
        least=2,
        most=100,
    )
    epochs: str = _option(
        "--epochs",
        "Epochs of a run: search (as many as the trials of the front), full (as many as `train`) or a number. Only "
        "runs of the search's length update the front; others are compared with one another.",
        SEARCH,
        metavar="EPOCHS",
        default="search",
    )
    picks: str = _option(
        "--picks",
        "Points to confirm: front, knee, best, or numbers of complete trials, e.g. 3,7.",
        SEARCH,
        metavar="POINTS",
        default="front",
    )
    data: str | None = _option(
        "--data", "Current folder of the study's dataset (default: as in the study).", SEARCH, metavar="DIR"
    )


def launches_of(**given: Any) -> list[LaunchOptions]:
    """Return the options of the launch for each data set that is given; for the demo if there is none."""
    data = given.pop("data", None)
    folders = [data] if data is None or isinstance(data, str | Path) else list(data) or [None]
    return [LaunchOptions.read(**given, data=folder) for folder in folders]


def resumed(info: StudyInfo, n_wanted: int | None, options: ResumeOptions) -> LaunchOptions:
    """Return the options of a launch that continues a study with the settings it was made with.

    Args:
        n_wanted: total trials that the study's last launch aimed at; ``options.trials`` overrides it.

    Raises:
        StudyError: neither number is known.
    """
    n_trials = options.trials or n_wanted
    if n_trials is None:
        raise StudyError(f"study {info.name!r} does not say how many trials it shall have; give --trials N")
    untils = [each.settings.get("until") for each in info.launches if each.kind == "launch"]
    given: dict[str, Any] = vars(options) | {
        "trials": n_trials,
        "until": options.until or (untils[-1] if untils and untils[-1] in UNTIL else None),
        "study": info.name,
        "budget_mem": info.budget.memory_bytes,
        "budget_params": info.budget.params,
        "budget_delta": info.budget.delta_bytes,
        "budget_flops": info.budget.flops,
        "data": None if info.data == "demo" else info.data,
        "objectives": ",".join(objective.name for objective in info.objectives),
        "seed": info.seed,
        "limit_mem": info.limit_bytes,
    }
    return LaunchOptions(**given, of_study=info)
