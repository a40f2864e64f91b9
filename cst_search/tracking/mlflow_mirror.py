"""Synchronise a study into MLflow: find the missing runs and create them.

`MlflowMirror.sync` brings MLflow to the state of the study. It can be repeated, and adds what an earlier launch left
out. `MlflowMirror.add` adds only what is new.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from cst_search.study import pareto
from cst_search.study.records import LaunchRecord, StudyInfo, TrialRecord
from cst_search.study.states import LaunchState, TrialState
from cst_search.study.verdicts import verdicts
from cst_search.tracking.connection import open_experiment
from cst_search.tracking.descriptions import description
from cst_search.tracking.runs import (
    NOTE,
    RUN_STATUS,
    create_launch_run,
    create_trial_run,
    fill_trial_run,
    hypervolume_metrics,
    in_mb,
    log_metrics,
    log_training,
    params,
    seed_metrics,
    training_tags,
)  # fmt: skip
from cst_search.tracking.views import IN_MB, is_ours, make_views

_PICTURE_PX = (880, 550)  # MLflow shows a description's picture at full size, and its page is no wider


def study_state(info: StudyInfo) -> tuple[list[TrialRecord], set[int], list[tuple[int, float]]]:
    """Return finished trials and repeats, the trials on the front, and (trial, hypervolume after it) in order."""
    finished = [r for r in (*info.trials, *info.repeats) if r.state in RUN_STATUS and not r.waits]
    front = {record.trial for record in info.front()}
    # a running trial has no value yet, and those after it wait for it, so that each is logged once
    n_settled = next(
        (i for i, record in enumerate(info.trials) if record.state == TrialState.RUNNING), len(info.trials)
    )
    values = info.values()[:n_settled]
    growth = pareto.hypervolume_by_trial(values, info.objectives, info.reference)
    volumes = [(record.trial, volume) for record, volume in zip(info.trials[:n_settled], growth, strict=True)]
    return finished, front, volumes


@dataclass
class ExistingRuns:
    """Existing runs in the experiment of a study, as read from MLflow and as created since.

    Attributes:
        launches: launch -> its run.
        ended_launches: launches whose run has ended.
        launches_without_settings: launches whose run has no parameters yet.
        trials: trial or repeat -> its complete run.
        begun_trials: trial or repeat -> its incomplete run, if the launch or the server died meanwhile.
        on_front: trials whose run is tagged as being on the front.
        verdicts: trial -> number of seeds and verdict in the tags of its run.
        without_working_memory: trials whose run an earlier version made, without this metric.
    """

    launches: dict[str, str] = field(default_factory=dict)
    ended_launches: set[str] = field(default_factory=set)
    launches_without_settings: set[str] = field(default_factory=set)
    trials: dict[int, str] = field(default_factory=dict)
    begun_trials: dict[int, str] = field(default_factory=dict)
    on_front: set[int] = field(default_factory=set)
    verdicts: dict[int, tuple[float, str]] = field(default_factory=dict)
    without_working_memory: set[int] = field(default_factory=set)

    def read(self, client: MlflowClient, experiment: str) -> None:
        """Read all runs of the experiment, 1,000 at a time."""
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

    def _remember(self, run: Run) -> None:
        tags = run.data.tags
        if tags["cst.kind"] in ("launch", "confirm"):
            self.launches[tags["cst.launch"]] = run.info.run_id
            if run.info.status != "RUNNING":
                self.ended_launches.add(tags["cst.launch"])
            if not run.data.params:
                self.launches_without_settings.add(tags["cst.launch"])
            return
        number = int(tags["cst.trial"])
        (self.begun_trials if run.info.status == "RUNNING" else self.trials)[number] = run.info.run_id
        if tags.get("cst.pareto") == "true":
            self.on_front.add(number)
        if number in self.trials and "device_bytes" in run.data.metrics and not run.data.metrics.keys() >= _WORKING:
            self.without_working_memory.add(number)
        if "cst.verdict" in tags:
            self.verdicts[number] = run.data.metrics.get("n_seeds", 0), tags["cst.verdict"]


_WORKING = {"working_bytes", IN_MB}  # which runs of earlier versions lack


class MlflowMirror:
    """Writes the runs of one study to MLflow. Not thread-safe: calls must be made one after the other.

    Args:
        uri: address of a tracking server or a database.
        artifact_root: folder for artifacts if ``uri`` is a database.
    """

    def __init__(self, uri: str, artifact_root: Path) -> None:
        self.uri, self.artifact_root = uri, artifact_root
        self.client: MlflowClient | None = None
        self.experiment: str | None = None
        self.launch: LaunchRecord | None = None  # the launch running in this process
        self.charted: tuple[str, ...] = ()  # costs of detection that the study compares
        self.existing = ExistingRuns()
        # passed to `add` but not delivered yet
        self.waiting: dict[int, TrialRecord] = {}
        self.volumes: list[tuple[int, float]] = []
        self.last_volume: tuple[int, float] = (-1, 0.0)  # the last one passed to `add`

    @property
    def parent(self) -> str | None:
        """Run of the launch in this process; None before it is created."""
        return None if self.launch is None else self.existing.launches.get(self.launch.id)

    def open(self, study: str) -> tuple[MlflowClient, str]:
        """Connect, read the existing runs, and create the run of this process's launch.

        Returns the client and the experiment's id.
        """
        if self.client is None or self.experiment is None:
            client, experiment = open_experiment(self.uri, study, self.artifact_root)
            self.existing.read(client, experiment)
            self.client, self.experiment = client, experiment
        if self.launch is not None:
            self._make_parent(study, self.launch)
        return self.client, self.experiment

    def forget(self) -> None:
        """Forget the runs, so that the next call reads them again: the effect of a failed call is unknown."""
        self.client = None

    def start(self, info: StudyInfo, launch: LaunchRecord) -> None:
        """Create the run of this process's launch, and the views."""
        self.launch = launch  # if a line below fails, a later call creates the run
        self.charted = tuple(o.name for o in info.further_costs)
        self.open(info.name)
        self._write_views(info)

    def sync(
        self, info: StudyInfo, finished: Sequence[TrialRecord], front: Collection[int],
        volumes: Sequence[tuple[int, float]], artifacts: Mapping[str, list[Path]],
    ) -> None:  # fmt: skip
        """Backfill everything that MLflow lacks of a study: also runs of ended launches, and files of the last one.

        Launches running in other processes deliver their own trials. ``finished``, ``front`` and ``volumes`` are as
        `study_state` returns them.
        """
        existing = self.existing
        self.charted = tuple(o.name for o in info.further_costs)
        own = None if self.launch is None else self.launch.id
        running = {launch.id for launch in info.launches if launch.state == LaunchState.RUNNING} - {own}
        finished = [record for record in finished if record.launch not in running]
        if any(record.launch != own and record.trial not in existing.trials for record in finished):
            self.forget()  # their launches may have delivered them in the meantime
        self.open(info.name)
        over = [launch for launch in info.launches if launch.id not in {own, *running, *existing.ended_launches}]
        for launch in over:
            self._make_parent(info.name, launch)
        self.add(info.name, finished, front, volumes if own is not None else ())
        self._add_seeds(info)
        self._add_working_memory(info)
        launch_of = {record.trial: record.launch for record in info.trials}
        for launch in over:
            self._log_volumes(launch.id, [one for one in volumes if launch_of[one[0]] == launch.id])
            if launch is info.launches[-1] and artifacts:
                self._log_report(info, launch, artifacts)
            self._end(launch.id, "FINISHED" if launch.state == LaunchState.ENDED else "KILLED")
        if own is None and artifacts:  # an experiment of an earlier version may lack views
            self._write_views(info)

    def add(
        self, study: str, finished: Sequence[TrialRecord], front: Collection[int], volumes: Sequence[tuple[int, float]]
    ) -> None:
        """Deliver new trials, and those whose delivery failed before. Passing a trial twice is harmless.

        Args:
            front: all trials on the present front.
            volumes: (trial, hypervolume after it), ordered by trial; the hypervolume of the last trial may grow.
        """
        existing = self.existing
        self.waiting |= {r.trial: r for r in finished if r.trial not in existing.trials and r.state in RUN_STATUS}
        for one in volumes:
            if one > self.last_volume:
                self.volumes.append(one)
                self.last_volume = one
        client, experiment = self.open(study)
        for number, record in list(self.waiting.items()):
            if number not in existing.trials:
                self._log_trial(client, experiment, study, record, number in front)
            del self.waiting[number]
        for number in sorted((set(front) ^ existing.on_front) & existing.trials.keys()):
            client.set_tag(existing.trials[number], "cst.pareto", "true" if number in front else "false")
        existing.on_front = set(front)
        if self.launch is not None and self.launch.kind == "confirm":
            return  # see _add_seeds
        while self.parent is not None and self.volumes:
            some = self.volumes[:1000]  # MLflow's limit on metrics per batch
            client.log_batch(self.parent, metrics=hypervolume_metrics(some))
            del self.volumes[: len(some)]

    def finish(self, info: StudyInfo, artifacts: Mapping[str, list[Path]], status: str) -> None:
        """End the run of this process's launch, with its files and description."""
        self.open(info.name)
        if self.launch is not None:
            self._log_report(info, self.launch, artifacts)
            self._end(self.launch.id, status)

    def training(
        self, study: str, key: str, origin: Mapping[str, Any], result: Mapping[str, Any], files: list[Path]
    ) -> None:
        """Create the run of a full training, beside the run of its trial. ``key`` identifies the training."""
        client, experiment = self.open(study)
        trial_run = self.existing.trials.get(origin.get("trial"))  # type: ignore[arg-type]
        parent = "" if trial_run is None else client.get_run(trial_run).data.tags.get("mlflow.parentRunId", "")
        tags = training_tags(study, key, origin, result, trial_run, parent)
        log_training(client, experiment, tags, result, params(origin.get("config", {})), files)

    # --- single steps ------------------------------------------------------------------------------------------------

    def _make_parent(self, study: str, launch: LaunchRecord) -> None:
        """Create the run of a launch with its settings."""
        assert self.client is not None and self.experiment is not None
        existing = self.existing
        if launch.id not in existing.launches:
            existing.launches[launch.id] = create_launch_run(self.client, self.experiment, study, launch)
            existing.launches_without_settings.add(launch.id)
        if launch.id in existing.launches_without_settings:
            self.client.log_batch(existing.launches[launch.id], params=params(launch.settings))
            existing.launches_without_settings.remove(launch.id)

    def _log_trial(
        self, client: MlflowClient, experiment: str, study: str, record: TrialRecord, on_front: bool
    ) -> None:
        """Create a trial's run, or continue an incomplete one, and complete it."""
        existing = self.existing
        if record.trial in existing.begun_trials:
            client.set_tag(existing.begun_trials[record.trial], "cst.pareto", str(on_front).lower())
        else:
            parent = existing.launches.get(record.launch or "", self.parent)
            run = create_trial_run(client, experiment, study, record, on_front, parent, self.charted)
            existing.begun_trials[record.trial] = run
        fill_trial_run(client, existing.begun_trials[record.trial], record, self.charted)
        existing.trials[record.trial] = existing.begun_trials.pop(record.trial)
        if on_front:
            existing.on_front.add(record.trial)

    def _log_volumes(self, launch: str, volumes: Sequence[tuple[int, float]]) -> None:
        """Add missing hypervolumes by trial to the run of an ended launch."""
        assert self.client is not None
        run_id = self.existing.launches[launch]
        there = {metric.step for metric in self.client.get_metric_history(run_id, "hypervolume")}
        log_metrics(self.client, run_id, hypervolume_metrics([one for one in volumes if one[0] not in there]))

    def _add_seeds(self, info: StudyInfo) -> None:
        """Add mean and spread over seeds to the runs of confirmed trials, and the resulting hypervolume."""
        client, _ = self.open(info.name)
        existing = self.existing
        if self.parent is not None and self.launch is not None and self.launch.kind == "confirm":
            client.log_metric(self.parent, "hypervolume", info.hypervolume(), step=len(info.repeats))
        records = [r for r in info.trials if r.trial in existing.trials and info.over_seeds(r).n > 1]
        if not records:
            return
        for record, verdict in zip(records, verdicts(info, [r.trial for r in records]), strict=True):
            run_id, sample = existing.trials[record.trial], info.over_seeds(record)
            if existing.verdicts.get(record.trial) == (sample.n, verdict.text):
                continue
            client.log_batch(run_id, metrics=seed_metrics(sample))
            client.set_tag(run_id, "cst.verdict", verdict.text)
            existing.verdicts[record.trial] = sample.n, verdict.text

    def _add_working_memory(self, info: StudyInfo) -> None:
        """Add it to the runs of earlier versions: the charts of our views draw it, and a run without it nowhere."""
        client, _ = self.open(info.name)
        for record in (*info.trials, *info.repeats):
            if record.trial in self.existing.without_working_memory and record.working_bytes is not None:
                run_id = self.existing.trials[record.trial]
                for name, value in {"working_bytes": record.working_bytes, **in_mb(record)}.items():
                    client.log_metric(run_id, name, value, step=len(record.history))
                self.existing.without_working_memory.remove(record.trial)

    def _end(self, launch: str, status: str) -> None:
        assert self.client is not None
        self.client.set_terminated(self.existing.launches[launch], status)
        self.existing.ended_launches.add(launch)

    def _log_report(self, info: StudyInfo, launch: LaunchRecord, artifacts: Mapping[str, list[Path]]) -> None:
        """Add a launch's files and description, and the views of the experiment."""
        assert self.client is not None and self.experiment is not None
        run_id = self.existing.launches[launch.id]
        for folder, paths in artifacts.items():
            for path in paths:
                self.client.log_artifact(run_id, str(path), folder)
                if path.name == "front.png":
                    with tempfile.TemporaryDirectory() as scratch, Image.open(path) as picture:
                        small = Path(scratch) / "front-small.png"
                        picture.resize(_PICTURE_PX, Image.Resampling.LANCZOS).save(small, optimize=True)
                        self.client.log_artifact(run_id, str(small), folder)
        self.client.set_tag(run_id, NOTE, description(info, self.experiment, run_id, self.existing.trials))
        self._write_views(info)

    def _write_views(self, info: StudyInfo) -> None:
        """Write our views that are missing or outdated; leave views that a user has changed."""
        assert self.client is not None and self.experiment is not None
        tags = self.client.get_experiment(self.experiment).tags
        for key, value in make_views(info).items():
            if key not in tags or (tags[key] != value and is_ours(tags[key])):
                self.client.set_experiment_tag(self.experiment, key, value)
