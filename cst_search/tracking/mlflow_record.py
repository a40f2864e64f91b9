"""The record in MLflow: a view of the study, never its source. The only module that knows mlflow.

Experiment = study. One parent run per launch, one child run per trial; likewise per confirmation and per repeat. `sync`
brings MLflow to the state of the study; it may be called again and again, and repairs what an earlier launch left out;
`add` brings what is new alone. It all runs on a thread of its own: a slow or absent server delays nothing, and the next
call delivers what it did not take.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

# A server that is down must not hold a search: by default one call tries for four minutes. And a request that is sent
# again may be carried out twice, and make a run twice: `MlflowRecord` looks before it does. Telemetry stays off.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from PIL import Image

from cst_search.errors import RunError
from cst_search.redaction import DATABASES_OF_MLFLOW, shown_address, without_password
from cst_search.study import pareto
from cst_search.study import seed_statistics as seeds
from cst_search.study.fast_reads import check_connection
from cst_search.study.records import LaunchRecord, StudyInfo, Tally, TrialRecord
from cst_search.study.states import LaunchState, TrialState
from cst_search.tracking.descriptions import description, run_name
from cst_search.tracking.runs import METRICS, NOTE, log_training, params
from cst_search.tracking.views import TAG, is_ours, make_views

for noisy in ("mlflow", "alembic"):
    logging.getLogger(noisy).setLevel(logging.ERROR)

_COSTS = ("device_bytes", "active_bytes", "trainable_params", "petl_params")
_PAUSE_SECONDS = 3.0  # before a call that failed is made again
_PICTURE_PX = (880, 550)  # MLflow shows a description's picture in its own size, and its page is not wider
_STATUS = {
    TrialState.COMPLETE: "FINISHED", TrialState.INFEASIBLE: "FINISHED", TrialState.PRUNED: "FINISHED",
    TrialState.FAILED: "FAILED",
}  # fmt: skip


def default_tracking_uri(home: Path) -> str:
    """A SQLite database beside the studies."""
    return f"sqlite:///{os.fspath((home / 'mlflow.db').absolute())}"


def _make_database(uri: str) -> None:
    """Make MLflow's SQLite database whole or not at all.

    MLflow makes its tables one by one, for seconds; a launch that is killed in between would leave a file that MLflow
    never takes again ("table review_queues already exists").
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or "?" in uri or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    part.unlink(missing_ok=True)
    MlflowClient(tracking_uri=f"sqlite:///{part}").search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):  # another launch was quicker
        os.link(part, path)
    part.unlink()


def try_tracking(uri: str) -> str | None:
    """Ask a tracking server or database; a server's version, empty where it has none. None: a file yet to be made.

    Raises RunError: it does not answer.
    """
    path = uri.removeprefix("sqlite:///")
    if path != uri and not Path(path).exists():
        return None
    try:
        if uri.startswith(DATABASES_OF_MLFLOW):
            check_connection(uri)
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
        if not uri.startswith(("http://", "https://")):
            return ""
        said = str(http_request(get_default_host_creds(uri), "/version", "GET").text).strip()
        return said if re.fullmatch(r"\d+\.[\w.]+", said) else ""  # a proxy may say something else
    except Exception as error:  # of the client, of requests, of SQLAlchemy
        raise RunError(f"{shown_address(uri)} does not answer: {_reason(error, uri)}") from None


def _reason(error: BaseException, uri: str) -> str:
    """Why a call failed, in a line without a password. Of a connection what the system says: MLflow's line is long."""
    inner = error
    while (below := inner.__cause__ or inner.__context__) is not None:
        inner = below
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return without_password((str(error).splitlines() or [type(error).__name__])[0], uri)[:300]


def newest_fronts(uri: str, base: str, most: int = 3) -> list[tuple[str, str]]:
    """(study, address of its front in the server at ``base``) of the studies last worked on, the newest first."""
    try:
        found = MlflowClient(tracking_uri=uri).search_experiments(order_by=["last_update_time DESC"], max_results=50)
    except Exception:  # a courtesy: the server says better what is wrong with its database
        return []
    return [
        (one.name, f"{base}/#/experiments/{one.experiment_id}/runs?viewStateShareKey=cst-front")
        for one in found
        if f"{TAG}cst-front" in one.tags
    ][:most]


class _Mirror:
    """The calls, one after the other, on the thread."""

    def __init__(self, uri: str, artifact_root: Path) -> None:
        # a server has a place for artifacts; of a bare database MLflow would put them into ./mlruns
        self.uri, self.artifact_root = uri, artifact_root if uri.startswith(DATABASES_OF_MLFLOW) else None
        self.client: MlflowClient | None = None
        self.experiment: str | None = None
        self.launch: LaunchRecord | None = None  # at work in this process
        self.parents: dict[str, str] = {}  # launch -> run
        self.ended: set[str] = set()  # launches whose run is
        self.bare: set[str] = set()  # launches whose run has no settings yet
        self.runs: dict[int, str] = {}  # trial or repeat -> run
        self.begun: dict[int, str] = {}  # likewise, when the launch or the server ended before all was in it
        self.on_front: set[int] = set()  # whose run says so
        self.verdicts: dict[int, tuple[float, str]] = {}  # trial -> what stands on its run: number of seeds, verdict
        # what it has been given and MLflow has not taken yet
        self.waiting: dict[int, TrialRecord] = {}
        self.volumes: list[tuple[int, float]] = []
        self.last_volume: tuple[int, float] = (-1, 0.0)  # that was given

    @property
    def parent(self) -> str | None:
        """The run of the launch at work."""
        return None if self.launch is None else self.parents.get(self.launch.id)

    def open(self, study: str) -> tuple[MlflowClient, str]:
        """Connect, find or make the experiment, learn which runs it has, and make that of the launch at work."""
        if self.client is None or self.experiment is None:
            self._connect(study)
        assert self.client is not None and self.experiment is not None
        if self.launch is not None:
            self._make_parent(study, self.launch)
        return self.client, self.experiment

    def _connect(self, study: str) -> None:
        _make_database(self.uri)
        if self.artifact_root is not None:
            check_connection(self.uri)  # MLflow asks a database that is down ten times, for two minutes
        client = MlflowClient(tracking_uri=self.uri)
        found = client.get_experiment_by_name(study)
        if found is None:
            location = (self.artifact_root / study).absolute().as_uri() if self.artifact_root else None
            # the UI opens such an experiment on its runs, not on traces of language models
            tags = {"mlflow.experimentKind": "custom_model_development"}
            try:
                experiment = client.create_experiment(study, artifact_location=location, tags=tags)
            except MlflowException:  # another launch of the study was quicker
                found = client.get_experiment_by_name(study)
                if found is None:
                    raise
                experiment = found.experiment_id
        else:
            if found.lifecycle_stage == "deleted":
                raise MlflowException(f"the experiment {study!r} was deleted in MLflow; restore it there")
            experiment = found.experiment_id
        for kind in ("launch", "confirm", "trial", "repeat"):
            token = None
            while True:
                page = client.search_runs(
                    [experiment], filter_string=f"tags.`cst.kind` = '{kind}'", max_results=1000, page_token=token
                )
                for run in page:
                    self._remember(run)
                token = page.token
                if not token:
                    break
        self.client, self.experiment = client, experiment

    def _remember(self, run: Run) -> None:
        tags = run.data.tags
        if tags["cst.kind"] in ("launch", "confirm"):
            self.parents[tags["cst.launch"]] = run.info.run_id
            if run.info.status != "RUNNING":
                self.ended.add(tags["cst.launch"])
            if not run.data.params:
                self.bare.add(tags["cst.launch"])
            return
        number = int(tags["cst.trial"])
        (self.begun if run.info.status == "RUNNING" else self.runs)[number] = run.info.run_id
        if tags.get("cst.pareto") == "true":
            self.on_front.add(number)
        if "cst.verdict" in tags:
            self.verdicts[number] = run.data.metrics.get("n_seeds", 0), tags["cst.verdict"]

    def start(self, info: StudyInfo, launch: LaunchRecord) -> None:
        self.launch = launch  # whatever becomes of the next line: it is done later then
        self.open(info.name)
        self._write_views(info)

    def forget(self) -> None:
        """Look again: what a call that failed has done is not known."""
        self.client = None

    def _make_parent(self, study: str, launch: LaunchRecord) -> None:
        """The run of a launch."""
        assert self.client is not None and self.experiment is not None
        if launch.id not in self.parents:
            begun = datetime.fromisoformat(launch.begun)
            run = self.client.create_run(
                self.experiment,
                start_time=int(begun.timestamp() * 1000),
                run_name=f"{launch.kind} {begun.astimezone():%Y-%m-%d %H:%M}",
                tags={"cst.kind": launch.kind, "cst.study": study, "cst.launch": launch.id},
            )
            self.parents[launch.id] = run.info.run_id
            self.bare.add(launch.id)
        if launch.id in self.bare:
            self.client.log_batch(self.parents[launch.id], params=params(launch.settings))
            self.bare.remove(launch.id)

    def sync(
        self, info: StudyInfo, finished: Sequence[TrialRecord], front: Collection[int],
        volumes: Sequence[tuple[int, float]], artifacts: Mapping[str, list[Path]],
    ) -> None:  # fmt: skip
        """Bring all that MLflow lacks of a study: runs of launches that are over too, and files of the last of them.

        A launch that is at work brings what is its own, whichever it is.
        """
        own = None if self.launch is None else self.launch.id
        at_work = {launch.id for launch in info.launches if launch.state == LaunchState.RUNNING} - {own}
        finished = [record for record in finished if record.launch not in at_work]
        if any(record.launch != own and record.trial not in self.runs for record in finished):
            self.forget()  # their launches may have delivered them since this one looked
        self.open(info.name)
        over = [launch for launch in info.launches if launch.id not in {own, *at_work, *self.ended}]
        for launch in over:
            self._make_parent(info.name, launch)
        self.add(info.name, finished, front, volumes if own is not None else ())
        self._add_seeds(info)
        launch_of = {record.trial: record.launch for record in info.trials}
        for launch in over:
            self._log_volumes(launch.id, [one for one in volumes if launch_of[one[0]] == launch.id])
            if launch is info.launches[-1] and artifacts:
                self._log_report(info, launch, artifacts)
            self._end(launch.id, "FINISHED" if launch.state == "ended" else "KILLED")
        if own is None and artifacts:  # of a record that an earlier version made
            self._write_views(info)

    def add(
        self, study: str, finished: Sequence[TrialRecord], front: Collection[int], volumes: Sequence[tuple[int, float]]
    ) -> None:
        """Deliver what is new, and what could not be delivered before. It may have been given before.

        Args:
            front: trials on the front now, all of them.
            volumes: (trial, hypervolume after it), in the order of numbers; that of the last trial may grow.
        """
        self.waiting |= {r.trial: r for r in finished if r.trial not in self.runs and r.state in _STATUS}
        for one in volumes:
            if one > self.last_volume:
                self.volumes.append(one)
                self.last_volume = one
        client, experiment = self.open(study)
        for number, record in list(self.waiting.items()):
            if number not in self.runs:
                self._log_trial(client, experiment, study, record, number in front)
            del self.waiting[number]
        for number in sorted((set(front) ^ self.on_front) & self.runs.keys()):
            client.set_tag(self.runs[number], "cst.pareto", "true" if number in front else "false")
        self.on_front = set(front)
        now = int(time.time() * 1000)
        if self.launch is not None and self.launch.kind == "confirm":
            return  # see _add_seeds
        while self.parent is not None and self.volumes:
            some = self.volumes[:1000]  # MLflow's bound on metrics of one batch
            client.log_batch(self.parent, metrics=[Metric("hypervolume", value, now, trial) for trial, value in some])
            del self.volumes[: len(some)]

    def _log_volumes(self, launch: str, volumes: Sequence[tuple[int, float]]) -> None:
        """The hypervolume by trial on the run of a launch that is over: what is not there yet."""
        assert self.client is not None
        run_id, now = self.parents[launch], int(time.time() * 1000)
        there = {metric.step for metric in self.client.get_metric_history(run_id, "hypervolume")}
        metrics = [Metric("hypervolume", volume, now, trial) for trial, volume in volumes if trial not in there]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])

    def _end(self, launch: str, status: str) -> None:
        assert self.client is not None
        self.client.set_terminated(self.parents[launch], status)
        self.ended.add(launch)

    def _add_seeds(self, info: StudyInfo) -> None:
        """Mean and spread over seeds, on the runs of the trials that have several; and the hypervolume they lead to."""
        client, _ = self.open(info.name)
        if self.parent is not None and self.launch is not None and self.launch.kind == "confirm":
            client.log_metric(self.parent, "hypervolume", info.hypervolume(), step=len(info.repeats))
        records = [r for r in info.trials if r.trial in self.runs and info.over_seeds(r).n > 1]
        if not records:
            return
        now = int(time.time() * 1000)
        for record, verdict in zip(records, seeds.verdicts(info, [r.trial for r in records]), strict=True):
            run_id, sample = self.runs[record.trial], info.over_seeds(record)
            if self.verdicts.get(record.trial) == (sample.n, verdict.text):
                continue
            values = {"map_mean": sample.mean, "map_std": sample.std, "map_new_mean": sample.new_mean,
                      "n_seeds": sample.n}  # fmt: skip
            client.log_batch(
                run_id, metrics=[Metric(key, float(v), now, sample.n) for key, v in values.items() if v is not None]
            )
            client.set_tag(run_id, "cst.verdict", verdict.text)
            self.verdicts[record.trial] = sample.n, verdict.text

    def _log_trial(
        self, client: MlflowClient, experiment: str, study: str, record: TrialRecord, on_front: bool
    ) -> None:
        tags = {
            "cst.kind": "trial",
            "cst.study": study,
            "cst.trial": str(record.trial),
            "cst.method": str(record.config.get("method")),
            "cst.state": record.state,
            "cst.feasible": str(record.feasible).lower(),
            "cst.pareto": str(on_front).lower(),
            "cst.memory_source": record.memory_source,
            "cst.memory_correction": f"{record.memory_correction:.3f}",
        }
        if record.repeat_of is not None:
            tags |= {"cst.kind": "repeat", "cst.repeat_of": str(record.repeat_of), "cst.seed": str(record.seed),
                     "cst.epochs": str(record.epochs)}  # fmt: skip
        if record.reason:
            tags["cst.reason"] = record.reason[:5000]
        parent = self.parents.get(record.launch or "", self.parent)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        end = int(time.time() * 1000)
        begin = end - round((record.seconds or 0.0) * 1000)
        if record.trial in self.begun:
            client.set_tag(self.begun[record.trial], "cst.pareto", tags["cst.pareto"])
        else:
            run = client.create_run(experiment, start_time=begin, run_name=run_name(record), tags=tags)
            self.begun[record.trial] = run.info.run_id
        run_id = self.begun[record.trial]
        metrics = []
        for entry in record.history:
            step = int(entry["epoch"])
            metrics += [Metric(name, float(entry[name]), end, step) for name in METRICS if entry.get(name) is not None]
        last = len(record.history)
        for name in _COSTS:
            value = getattr(record, name)
            if value is not None:
                metrics.append(Metric(name, float(value), end, last))
        # MLflow takes 1000 of both in one call, of which 100 may be params
        client.log_batch(run_id, metrics=metrics[:900], params=params(record.config))
        for start in range(900, len(metrics), 1000):
            client.log_batch(run_id, metrics=metrics[start : start + 1000])
        client.set_terminated(run_id, _STATUS[record.state])
        self.runs[record.trial] = self.begun.pop(record.trial)
        if on_front:
            self.on_front.add(record.trial)

    def finish(self, info: StudyInfo, artifacts: Mapping[str, list[Path]], status: str) -> None:
        self.open(info.name)
        if self.launch is not None:
            self._log_report(info, self.launch, artifacts)
            self._end(self.launch.id, status)

    def _log_report(self, info: StudyInfo, launch: LaunchRecord, artifacts: Mapping[str, list[Path]]) -> None:
        """A launch's files and description, and the views of the experiment."""
        assert self.client is not None and self.experiment is not None
        run_id = self.parents[launch.id]
        for folder, paths in artifacts.items():
            for path in paths:
                self.client.log_artifact(run_id, str(path), folder)
                if path.name == "front.png":
                    with tempfile.TemporaryDirectory() as scratch, Image.open(path) as picture:
                        small = Path(scratch) / "front-small.png"
                        picture.resize(_PICTURE_PX, Image.Resampling.LANCZOS).save(small, optimize=True)
                        self.client.log_artifact(run_id, str(small), folder)
        self.client.set_tag(run_id, NOTE, description(info, self.experiment, run_id, self.runs))
        self._write_views(info)

    def _write_views(self, info: StudyInfo) -> None:
        """Those of ours that are not there or not as they would be now; not those that a person changed."""
        assert self.client is not None and self.experiment is not None
        tags = self.client.get_experiment(self.experiment).tags
        for key, value in make_views(info).items():
            if key not in tags or (tags[key] != value and is_ours(tags[key])):
                self.client.set_experiment_tag(self.experiment, key, value)

    def training(
        self, study: str, key: str, origin: Mapping[str, Any], result: Mapping[str, Any], files: list[Path]
    ) -> None:
        client, experiment = self.open(study)
        trial = origin.get("trial")
        tags = {"cst.kind": "training", "cst.study": study, "cst.trial": str(trial), "cst.state": result["outcome"],
                "cst.training": key}  # fmt: skip
        if trial in self.runs:
            tags["cst.trial_run"] = self.runs[trial]
            tags["mlflow.parentRunId"] = client.get_run(self.runs[trial]).data.tags.get("mlflow.parentRunId", "")
        log_training(client, experiment, tags, result, params(origin.get("config", {})), files)


class MlflowRecord:
    """The mirror behind a queue: calls return at once, faults become one line on ``warn``.

    Args:
        uri: a tracking server or a database.
        artifact_root: folder for artifacts when ``uri`` is a database; a server has its own.
    """

    def __init__(self, uri: str, artifact_root: Path, warn: Callable[[str], None]) -> None:
        self._mirror = _Mirror(uri, artifact_root)
        self._warn, self._warned = warn, False
        self._n_volumes = 0
        self._launch: str | None = None
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def start(self, info: StudyInfo, launch: LaunchRecord) -> None:
        """Make the parent run and the experiment's views."""
        self._launch = launch.id
        self._jobs.put(lambda: self._mirror.start(info, launch))

    def add(self, study: str, finished: Sequence[TrialRecord], tally: Tally) -> None:
        """Trials of this launch that finished since the last call, and what they make of the front.

        Another launch that is at work brings its own; what one left that is not is brought by `sync`.
        """
        front, volumes = set(tally.front.members), tally.volumes[self._n_volumes :]
        self._n_volumes += len(volumes)
        own = [record for record in finished if record.launch == self._launch]
        self._jobs.put(lambda: self._mirror.add(study, own, front, volumes))

    def sync(self, info: StudyInfo, artifacts: Mapping[str, list[Path]] | None = None) -> None:
        """Bring MLflow to the state of the whole study, but for what other launches are at work on.

        Args:
            artifacts: files by folder, for the run of the last launch where that run was not ended.
        """
        finished, front, volumes = _state(info)
        self._jobs.put(lambda: self._mirror.sync(info, finished, front, volumes, artifacts or {}))

    def finish(self, info: StudyInfo, artifacts: Mapping[str, list[Path]], status: str) -> None:
        """End the parent run, with files by folder and the front as its description."""
        self._jobs.put(lambda: self._mirror.finish(info, artifacts, status))

    def training(self, study: str, origin: Mapping[str, Any], result: Mapping[str, Any], files: list[Path]) -> None:
        key = uuid.uuid4().hex  # by which a second try knows the run of the first
        self._jobs.put(lambda: self._mirror.training(study, key, origin, result, files))

    def close(self, timeout_seconds: float = 60.0) -> bool:
        """Wait for what is queued. False: it was not all delivered in time, or some of it failed."""
        self._jobs.put(None)
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive() and not self._warned

    def _work(self) -> None:
        is_down = False
        while (job := self._jobs.get()) is not None:
            error = self._try(job)
            if error is not None and not is_down:
                time.sleep(_PAUSE_SECONDS)
                error = self._try(job)
            is_down = error is not None
            if error is not None and not self._warned:
                reason = _reason(error, self._mirror.uri)
                self._warn(f"MLflow did not take a record ({type(error).__name__}: {reason}); the study keeps it")
                self._warned = True

    def _try(self, job: Callable[[], None]) -> Exception | None:
        try:
            job()
        except Exception as error:  # whatever it is, the search must go on
            self._mirror.forget()
            return error
        return None


def _state(info: StudyInfo) -> tuple[list[TrialRecord], set[int], list[tuple[int, float]]]:
    """(what has finished, trials on the front, (trial, hypervolume after it))."""
    finished = [r for r in (*info.trials, *info.repeats) if r.state in _STATUS and not r.waits]
    front = {record.trial for record in info.front()}
    # a trial that still runs has no value yet; those after it wait for it, so that each is logged once
    n_settled = next(
        (i for i, record in enumerate(info.trials) if record.state == TrialState.RUNNING), len(info.trials)
    )
    values = info.values()[:n_settled]
    growth = pareto.hypervolume_by_trial(values, info.objectives, info.reference)
    volumes = [(record.trial, volume) for record, volume in zip(info.trials[:n_settled], growth, strict=True)]
    return finished, front, volumes
