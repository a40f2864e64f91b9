"""Python API: the commands as functions, running the same code. The package itself exports these names.

All errors are `errors.CstSearchError`: `errors.UserError` if the caller must change something, with what to change;
`errors.RunError` if the work failed. Sizes, counts and durations are strings (``"6GB"``, ``"2M"``, ``"30m"``) or
numbers (bytes, parameters, seconds). A recipe is a shipped name, the path of a YAML file, or a `config.recipe.Recipe`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from cst_search.config.catalog import home_of

if TYPE_CHECKING:
    import optuna
    import pandas
    from rich.console import Console
    from torch import nn

    from cst_search.commands.estimate import Estimated
    from cst_search.commands.options import LaunchOptions
    from cst_search.config.loading import RecipeLike, Settings, SpaceLike
    from cst_search.config.recipe import Recipe
    from cst_search.detector.weights import Trained
    from cst_search.study.records import StudyInfo, TrialRecord
    from cst_search.study.study import Study


@overload
def launch(budget_mem: str | None = None, *, data: str | Path | None = None, **options: Any) -> Search: ...
@overload
def launch(budget_mem: str | None = None, *, data: Sequence[str | Path], **options: Any) -> list[Search]: ...
def launch(  # type: ignore[misc]  # the overloads leave out what does not decide the type
    budget_mem: str | None = None, *,
    budget_params: str | float | None = None, budget_delta: str | None = None, budget_flops: str | None = None,
    data: str | Path | Sequence[str | Path] | None = None, recipe: RecipeLike | None = None,
    space: SpaceLike | None = None, settings: Settings | None = None, study: str | None = None,
    objectives: str = "map,device_bytes,trainable_params", sampler: str | None = None, prior: str | None = None,
    trials: int | None = None, until: str | None = None, time_limit: str | float | None = None, seed: int = 0,
    stop_early: bool | None = None, eta: int | None = None,
    workers: int | None = None, device: str = "auto", in_process: bool = False, address: str | None = None,
    limit_mem: str | None = None, cache_size: str | float | None = None, skip_bad: bool = False,
    home: str | Path | None = None, storage: str | None = None, tracking_uri: str | None = None,
    quiet: bool = True,
) -> Search | list[Search]:  # fmt: skip
    """Search for the best configurations within a budget: ``cst-search launch``, with the same options.

    Args:
        budget_mem: GPU memory budget per trial, e.g. ``"6GB"``.
        budget_params: budget of trainable parameters.
        budget_delta: budget of what training adds to storage, e.g. ``"4MB"``.
        budget_flops: budget of the operations of an image, e.g. ``"5GFLOP"`` or ``"2.5GMAC"``.
        data: folder in COCO's, YOLO's or Pascal VOC's format; None: the embedded demo. A list of folders is searched in
            one study each, on the same workers; the result is then a list too.
        recipe: fixed settings; None: ``demo``, with data ``resnet50`` on a GPU and ``small`` on a CPU.
        space: search space: a shipped name, a YAML file, or the mapping that such a file holds (default: quick; with
            data, cst).
        settings: fields of the recipe to change, ``{"search_epochs": 2}`` or ``["search_epochs=2"]``; also how data are
            read, ``{"exif": "shown"}``.
        study: name; an existing study is continued. With a list of folders each study is ``NAME-FOLDER``.
        trials: total trials in the study, including earlier launches; None: 16, and 10 on the demo.
        until: ``"converged"``: end earlier, once further trials would gain less than the noise of seeds.
        in_process: run the trials one after the other in this process, without Ray.
        address: Ray cluster that runs the trials.
        quiet: show nothing of the search. Output of trials is never shown.

    Raises:
        UserError: something must be changed; nothing was started.
        KeyboardInterrupt: Ctrl-C. Finished trials are kept, and `Search.resume` goes on. Trials get 15 seconds to end.

    >>> import cst_search
    >>> search = cst_search.launch(
    ...     "6GB", space="cst", trials=2, settings={"search_epochs": 1}, study="first", in_process=True
    ... )
    >>> search.front()["trial"].tolist() == [record.trial for record in search.info.front()]
    True
    """
    given = {name: value for name, value in locals().items() if name != "quiet"}
    from cst_search.commands.options import launches_of

    names = _launched(launches_of(**given), console(quiet))
    searches = [open_study(name, home=home, storage=storage) for name in names]
    return searches[0] if data is None or isinstance(data, str | Path) else searches


def _launched(each: Sequence[LaunchOptions], shown: Console) -> list[str]:
    """Run a launch and return the names of its studies. Raises KeyboardInterrupt where Ctrl-C ended it."""
    from cst_search.commands.launch import launch_all

    results = launch_all(each, shown)
    if any(result.interrupted for result in results):
        raise KeyboardInterrupt
    return [result.info.name for result in results]


def open_study(name: str | None = None, *, home: str | Path | None = None, storage: str | None = None) -> Search:
    """Open a study of an earlier or running search. Raises StudyError, listing the existing studies, if there is none.

    Args:
        name: None: the study that was made last.
        home: folder of studies and records; None: $CST_SEARCH_HOME, else ``cst-runs`` in the current folder.
        storage: database URL of the studies; None: SQLite in ``home``.

    >>> import cst_search
    >>> search = cst_search.open_study("first")
    >>> len(search.trials())
    2
    """
    from cst_search.study.study import open_study as find

    return Search(find(name, home_of(home), storage), home_of(home), storage)


class Search:
    """A study, and what can be done with it. Every access rereads the study.

    Attributes:
        name: name of the study.
        home: folder of its records.

    >>> import cst_search
    >>> search = cst_search.open_study("first")
    >>> search
    <Search 'first': 2 trials>
    >>> search.recipe("best").method
    'cst'
    >>> search.export("best", "best.yaml", verify=False).name
    'best.yaml'
    """

    def __init__(self, study: Study, home: Path, storage: str | None = None) -> None:
        self._study, self.home, self._storage = study, home, storage
        self.name = study.name

    def __repr__(self) -> str:
        return f"<Search {self.name!r}: {len(self.info.trials)} trials>"

    def _repr_html_(self) -> str:
        """Return the front as a table, for a notebook."""
        from rich.text import Text

        from cst_search.report.notebook import html
        from cst_search.report.tables import front_table

        info = self.info
        said = f"Study {info.shown_name}: {len(info.trials)} trials, hypervolume {info.hypervolume():.3f}"
        return html([Text(said), front_table(info, width=200)])

    @property
    def info(self) -> StudyInfo:
        """Settings of the study, its trials, launches and repeats, as plain values."""
        return self._study.info()

    @property
    def knee(self) -> int | None:
        """Number of the trial at the front's knee; None if the front is empty."""
        return self.info.knee()

    @property
    def hypervolume(self) -> float:
        """Hypervolume of the front, 0..1, as a share of the box from the study's reference point to the ideal."""
        return self.info.hypervolume()

    def front(self) -> pandas.DataFrame:
        """Return the Pareto front, one row per point, best mAP first.

        Columns: ``trial``, ``state``, ``map``, ``map50``, ``device_bytes``, ``working_bytes``, ``memory_source``,
        ``trainable_params``, ``petl_params``, ``delta_bytes``, ``inference_bytes``, ``flops``, ``marginal_flops``, then
        ``config.NAME`` for every parameter that varied. Once a point was confirmed with other seeds, ``map_mean``,
        ``map_std`` and ``n_seeds`` follow ``map50``.
        """
        info = self.info
        return _frame(info, info.front())

    def trials(self) -> pandas.DataFrame:
        """Return all trials, one row each, by trial number.

        Columns: those of `front`, and after ``state`` also ``reason``, ``seconds``, ``feasible`` and ``on_front``.
        """
        info = self.info
        on_front = {record.trial for record in info.front()}
        frame = _frame(info, info.trials)
        more: dict[str, list[Any]] = {
            "reason": [record.reason for record in info.trials],
            "seconds": [record.seconds for record in info.trials],
            "feasible": [record.feasible for record in info.trials],
            "on_front": [record.trial in on_front for record in info.trials],
        }
        for place, (name, values) in enumerate(more.items(), start=2):
            frame.insert(place, name, values)
        return frame

    def recipe(self, pick: str | None = None) -> Recipe:
        """Return the self-contained recipe of a point.

        Args:
            pick: ``knee``, ``best`` (highest mAP) or ``trial=N``; None: the point that ``cst-search front`` suggests.
        """
        from cst_search.commands.export import exported_recipe, pick_trial

        info = self.info
        return exported_recipe(info, pick_trial(info, pick))

    def export(self, pick: str | None = None, path: str | Path = "best.yaml", verify: bool = True) -> Path:
        """Write the recipe of a point, as ``cst-search export``. Returns the path.

        Args:
            pick: as in `recipe`.
            verify: True to train a few steps on the worst batch first, in a separate process, and to refuse a point
                that differs from its record.
        """
        from cst_search.commands.export import export_verified

        export_verified(self.info, pick, Path(path), self.home, verify_first=verify)
        return Path(path)

    def page(self, folder: str | Path) -> Path:
        """Write the report page, with front.png and front.json beside it. Returns the path of the page."""
        from cst_search.commands.report_files import write_report
        from cst_search.config.catalog import check_folder

        check_folder("folder", Path(folder))
        return write_report(self.info, Path(folder))["html"]

    def resume(
        self,
        trials: int | None = None,
        *,
        until: str | None = None,
        time_limit: str | float | None = None,
        workers: int | None = None,
        device: str = "auto",
        tracking_uri: str | None = None,
        in_process: bool = False,
        address: str | None = None,
        quiet: bool = True,
    ) -> Search:
        """Continue a search that ended or died, as ``cst-search resume``. Returns itself.

        Args:
            trials: total trials in the study, including earlier launches; None: unchanged.
            until: ``"converged"`` or ``"trials"``, see `launch`; None: unchanged.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "quiet")}
        from cst_search.commands.launch import launch as run
        from cst_search.commands.options import ResumeOptions, resumed

        asked = ResumeOptions.read(**given, home=self.home, storage=self._storage)
        options = resumed(self._study.info(), self._study.n_wanted(), asked)
        if run(options, console(quiet)).interrupted:
            raise KeyboardInterrupt
        return self

    def confirm(
        self,
        seeds: int = 3,
        *,
        epochs: str | int = "search",
        picks: str = "front",
        workers: int | None = None,
        device: str = "auto",
        tracking_uri: str | None = None,
        in_process: bool = False,
        address: str | None = None,
        quiet: bool = True,
    ) -> dict[str, Any]:
        """Train points again with other seeds, as ``cst-search confirm``. Returns the report of its ``--json``."""
        given = {name: value for name, value in locals().items() if name not in ("self", "quiet")}
        from cst_search.commands.confirm import confirm as run
        from cst_search.commands.options import ConfirmOptions

        options = ConfirmOptions.read(**given | {"epochs": str(epochs)}, home=self.home)
        result = run(self._study, options, console(quiet))
        if result.interrupted:
            raise KeyboardInterrupt
        return result.report

    def optuna_study(self) -> optuna.Study:
        """Return the Optuna study, for Optuna's plots and importances. Read it only; do not write to it."""
        return self._study.optuna_study()


def train(
    recipe: RecipeLike,
    *,
    out: str | Path,
    data: str | Path | None = None,
    device: str = "auto",
    settings: Settings | None = None,
    skip_bad: bool = False,
    home: str | Path | None = None,
    tracking_uri: str | None = None,
    cache_size: str | float | None = None,
    threads: int | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Train a recipe at full length, as ``cst-search train``.

    Args:
        out: folder for weights, metrics and recipe; it must be empty or not exist.
        data: folder in COCO's, YOLO's or Pascal VOC's format; None: the recipe's.
        settings: fields of the recipe to change, as in `launch`.
        threads: CPU threads of this process, also afterwards; None: torch's default.

    Returns:
        Content of ``metrics.json``. ``outcome`` is ``complete``, or ``oom`` or ``nonfinite`` with a ``reason``.

    >>> import cst_search
    >>> metrics = cst_search.train("best.yaml", out="trained", settings={"epochs": 1})
    >>> metrics["outcome"], 0 <= metrics["map"] <= 1
    ('complete', True)
    """
    from cst_search.commands.options import ReadingOptions, parse_cache
    from cst_search.commands.train import train as run

    return run(
        recipe, Path(out), data=None if data is None else str(data), settings=settings or (), device=device,
        skip_bad=skip_bad, home=home_of(home), tracking_uri=tracking_uri, cache_bytes=parse_cache(cache_size),
        reading=ReadingOptions(), threads=threads, console=console(quiet),
    )  # fmt: skip


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    score: float = 0.5,
    max_pixels: str | float | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Detect objects in images, as ``cst-search predict``.

    Args:
        run: folder written by training, or its weights file.
        images: image files, or folders of them.
        score: score threshold, 0..1; detections below it are left out.
        max_pixels: bound of an image's width times height; None: the recipe's.
        out: folder for images with drawn detections; None: nothing is drawn.

    Returns:
        One dict per image: ``image``, ``width``, ``height``, ``picture`` and ``detections``, best first, each with
        ``class``, ``score`` and ``box`` (x1, y1, x2, y2 in pixels of the picture as shown, its EXIF orientation
        applied, unless the recipe says ``exif: stored``).

    >>> import cst_search
    >>> found = cst_search.predict("trained", "cst-runs/demo-data/val", score=0.9)
    >>> sorted(found[0])
    ['detections', 'height', 'image', 'picture', 'width']
    """
    from cst_search.trial.inference import predict as detect
    from cst_search.units import parse_count

    paths = [images] if isinstance(images, str | Path) else images
    drawn = None if out is None else Path(out)
    limit = None if max_pixels is None else parse_count(max_pixels)
    return detect(Path(run), [Path(path) for path in paths], drawn, score=score, device=device, max_pixels=limit)


def predict_video(
    run: str | Path,
    video: str | Path,
    *,
    score: float = 0.5,
    max_pixels: str | float | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Iterator[dict[str, Any]]:
    """Yield what ``cst-search predict`` prints of each frame of a video. Needs the extra ``video``.

    Args:
        run, score, max_pixels, device: as of `predict`.
        out: folder for a copy with drawn detections, MP4; complete when all frames are taken. None: nothing is drawn.

    >>> import cst_search
    >>> frames = cst_search.predict_video("trained", "clip.mp4")  # nothing is read before a frame is asked for
    """
    from cst_search.commands.video import predict_videos
    from cst_search.units import parse_count

    limit = None if max_pixels is None else parse_count(max_pixels)
    drawn = None if out is None else Path(out)
    yield from predict_videos(Path(run), [Path(video)], drawn, score=score, device=device, max_pixels=limit)


class Prediction(dict[str, Any]):
    """Content of ``cst-search estimate --json``, shown in a notebook as the tables that the command prints."""

    def __init__(self, found: Estimated) -> None:
        super().__init__(found.report())
        self._found = found

    def _repr_html_(self) -> str:
        from cst_search.commands.estimate import tables
        from cst_search.report.notebook import html

        return html(tables(self._found))


def estimate(
    recipe: RecipeLike = "resnet50",
    settings: Settings | None = None,
    *,
    n_classes: int = 80,
    max_boxes: int = 100,
    fit: str | None = None,
    device: str | None = None,
    compare: str | None = None,
    tasks: str | None = None,
) -> dict[str, Any]:
    """Predict the memory and parameters of training a recipe; returns the content of ``cst-search estimate --json``.

    A notebook shows the result as the command's tables.

    Args:
        n_classes: number of classes without background.
        max_boxes: most boxes in one image.
        fit: memory size, e.g. ``"6GB"``; adds the largest sizes that fit into it.
        device: name of a card, e.g. ``"RTX 3060 12GB"``; adds the largest sizes that fit on it.
        compare: methods to compare, separated by commas, or ``"all"``.
        tasks: numbers of tasks, e.g. ``"1,5,20"``; adds the cost of as many detectors at inference.

    >>> import cst_search
    >>> small = cst_search.estimate("demo", {"method": "cst", "cst.reduction": 16})
    >>> large = cst_search.estimate("demo", {"method": "full"})
    >>> small["device_bytes"] < large["device_bytes"]
    True
    """
    from cst_search.commands.estimate import estimate as run

    return Prediction(
        run(
            recipe,
            settings or (),
            n_classes=n_classes,
            max_boxes=max_boxes,
            fit=fit,
            device=device,
            compare=compare,
            tasks=tasks,
        )
    )


def allocate(
    studies: Sequence[str | Search],
    *,
    budget_storage: str | None = None,
    budget_flops: str | None = None,
    maximise: str = "mean",
    weights: Mapping[str, float] | None = None,
    out: str | Path | None = None,
    home: str | Path | None = None,
    storage: str | None = None,
) -> dict[str, Any]:
    """Divide a budget among tasks: one point from each study; returns the content of ``cst-search allocate --json``.

    `train` takes the recipes that it writes to ``out``, and ``cst-search pack`` the runs.

    Args:
        studies: one for each task; a name is read from ``home`` or ``storage``.
        budget_storage: what the trained tensors of all tasks may take together, e.g. ``"20MB"``.
        budget_flops: operations on an image for all tasks together, e.g. ``"200GFLOP"``.
        maximise: ``"mean"`` mAP of the tasks, or the ``"worst"``.
        weights: weight of a study in the mean; 1 if not named.
        out: folder for the recipes, one for each study.

    >>> import cst_search
    >>> plan = cst_search.allocate(["first"], budget_storage="50MB")
    >>> list(plan["tasks"])
    ['first']
    """
    from cst_search.commands import allocate as command
    from cst_search.errors import check_choice

    check_choice("maximise", maximise, command.GOALS)
    opened = [one if isinstance(one, Search) else open_study(one, home=home, storage=storage) for one in studies]
    infos = list({search.name: search.info for search in opened}.values())
    names = [info.name for info in infos]
    weighed = command.read_weights([f"{name}={value}" for name, value in (weights or {}).items()], names)
    bounds = command.parse_bounds(budget_storage, budget_flops)
    found = command.allocate_studies(infos, bounds, maximise, weighed)  # type: ignore[arg-type]
    files = {} if out is None else command.write_recipes(infos, found.plan, Path(out))
    return command.plan_report(infos, found, maximise, files)  # type: ignore[arg-type]


def build_detector(recipe: RecipeLike, n_classes: int, class_names: Sequence[str] = ()) -> nn.Module:
    """Build the detector of a recipe with its method applied, ready to train, with torchvision's interface.

    Args:
        n_classes: number of classes without background; labels are 1..n_classes.
        class_names: their names, label 1 first. Class layers take over the rows of classes that the recipe's weights
            know by name (``class_init: match``).

    >>> import cst_search
    >>> model = cst_search.build_detector("demo", n_classes=3)
    >>> type(model).__name__
    'FCOS'
    """
    from cst_search.config.recipe import Recipe
    from cst_search.detector.build import build_detector as build

    if not isinstance(recipe, Recipe):
        from cst_search.config.loading import (
            load_recipe,  # needs pydantic and PyYAML, which a Recipe object does not
        )

        recipe = load_recipe(recipe)
    return build(recipe, n_classes, class_names)


def load_trained(run: str | Path) -> Trained:
    """Return ``(model, recipe, class_names)`` from a folder written by training, or from its weights file.

    The model is in eval mode on the CPU; ``class_names[label - 1]`` is the name of a label.

    >>> import cst_search
    >>> model, recipe, class_names = cst_search.load_trained("trained")
    >>> recipe.method
    'cst'
    """
    from cst_search.detector.weights import load_trained as load

    return load(run)


def console(quiet: bool) -> Console:
    """Return the console for a function's output: a silent one if ``quiet``, else standard output."""
    from cst_search.report.console import PlainConsole

    return PlainConsole(quiet=True, force_terminal=False) if quiet else PlainConsole()


def _frame(info: StudyInfo, records: Sequence[TrialRecord]) -> pandas.DataFrame:
    """Return a table with one row per trial, in the given order; the columns exist even without rows."""
    import pandas

    from cst_search.config.search_space import Space
    from cst_search.study.objectives import OF_INFERENCE

    seeds = ("map_mean", "map_std", "n_seeds") if info.repeats else ()
    figures = ("map", "map50", *seeds, "device_bytes", "working_bytes", "memory_source", "trainable_params",
               "petl_params", *OF_INFERENCE)  # fmt: skip
    keys = Space.from_dict(info.space).keys()

    def row(record: TrialRecord) -> list[Any]:
        brief: Mapping[str, Any] = info.brief(record)
        return [
            record.trial,
            record.state,
            *(brief[name] for name in figures),
            *(record.config.get(key) for key in keys),
        ]

    columns = ["trial", "state", *figures, *(f"config.{key}" for key in keys)]
    return pandas.DataFrame([row(record) for record in records], columns=columns)
