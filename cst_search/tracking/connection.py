"""Connect to MLflow: default address, database, experiment of a study, and a queue of calls that survives outages."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import queue
import re
import shlex
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from cst_search.errors import RunError
from cst_search.loopback import reach_loopback_directly
from cst_search.redaction import DATABASES_OF_MLFLOW, shown_address, without_password
from cst_search.study.database_urls import sqlite_file, sqlite_url
from cst_search.study.fast_reads import check_connection
from cst_search.tracking.views import TAG

reach_loopback_directly()
for noisy in ("mlflow", "alembic"):  # MLflow logs each failed call with SQL and traceback; ours is one line
    logging.getLogger(noisy).setLevel(logging.CRITICAL)

_PART_SECONDS = 3600.0  # until a database that another host began to make counts as left behind
_PAUSE_SECONDS = 3.0  # before a failed call is repeated


def default_tracking_uri(home: Path) -> str:
    """Return the address of the SQLite database beside the studies, ``<home>/mlflow.db``."""
    return sqlite_url(home / "mlflow.db")


def try_tracking(uri: str) -> str | None:
    """Query a tracking server or database once.

    Returns:
        The server's version, empty if it gives none or ``uri`` is a database; None for a SQLite file that does not
        exist yet.

    Raises:
        RunError: there is no answer.
    """
    path = sqlite_file(uri) if uri.startswith("sqlite") else None
    if path is not None and not path.exists():
        return None
    try:
        if uri.startswith(DATABASES_OF_MLFLOW):
            check_connection(uri)
        MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
        if not uri.startswith(("http://", "https://")):
            return ""
        said = str(http_request(get_default_host_creds(uri), "/version", "GET").text).strip()
        return said if re.fullmatch(r"\d+\.[\w.]+", said) else ""  # a proxy may answer something else
    except Exception as error:  # from the client, requests or SQLAlchemy
        raise RunError(f"{shown_address(uri)} does not answer: {failure_reason(error, uri)}") from None


def newest_fronts(uri: str, base: str, most: int = 3) -> list[tuple[str, str]]:
    """Return the most recent studies, newest first, each with the address of its front in the UI.

    Args:
        base: address of the MLflow server, e.g. ``http://127.0.0.1:5000``.
        most: maximum number of studies.
    """
    try:
        found = MlflowClient(tracking_uri=uri).search_experiments(order_by=["last_update_time DESC"], max_results=50)
    except Exception:  # the list is optional, and the server itself reports faults of its database better
        return []
    # without the type, MLflow 3.17 opens its view for language models on a browser that has never seen a run
    query = "viewStateShareKey=cst-front&workflowType=machine_learning"
    return [
        (one.name, f"{base}/#/experiments/{one.experiment_id}/runs?{query}")
        for one in found
        if f"{TAG}cst-front" in one.tags
    ][:most]


def failure_reason(error: BaseException, uri: str) -> str:
    """Return the reason for a failed call in one line, without a password.

    For a failed connection it is the operating system's message, because MLflow's own line is long.
    """
    inner = error
    while (below := inner.__cause__ or inner.__context__) is not None:
        inner = below
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return without_password((str(error).splitlines() or [type(error).__name__])[0], uri)[:300]


def open_experiment(uri: str, study: str, artifact_root: Path) -> tuple[MlflowClient, str]:
    """Connect to MLflow and find or create the experiment of a study. Returns the client and the experiment's id.

    Args:
        artifact_root: folder for artifacts if ``uri`` is a database (MLflow would use ``./mlruns``); a server has its
            own.
    """
    _make_database(uri)
    is_database = uri.startswith(DATABASES_OF_MLFLOW)
    if is_database:
        check_connection(uri)  # MLflow would try a database that is down ten times, for two minutes
    client = MlflowClient(tracking_uri=uri)
    found: Experiment | None = client.get_experiment_by_name(study)
    if found is not None:
        if found.lifecycle_stage == "deleted":
            raise MlflowException(f"the experiment {study!r} was deleted in MLflow; restore it there")
        return client, found.experiment_id
    location = (artifact_root / study).absolute().as_uri() if is_database else None
    # the UI then opens the experiment on its runs, not on traces of language models
    tags = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return client, client.create_experiment(study, artifact_location=location, tags=tags)
    except MlflowException:  # another launch of the study was faster
        found = client.get_experiment_by_name(study)
        if found is None:
            raise
        return client, found.experiment_id


def _make_database(uri: str) -> None:
    """Create MLflow's SQLite database atomically.

    MLflow creates its tables one by one, which takes seconds. A launch killed in between would leave a file that MLflow
    never accepts again ("table review_queues already exists").
    """
    path = sqlite_file(uri) if uri.startswith("sqlite") and "?" not in uri else None
    if path is None:
        return
    _remove_left_parts(path)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.part")
    try:
        MlflowClient(tracking_uri=sqlite_url(part)).search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # another launch was faster
            os.link(part, path)
    finally:
        part.unlink(missing_ok=True)


def _remove_left_parts(path: Path) -> None:
    """Remove what launches that were killed while they made the database have left of it."""
    here = re.escape(socket.gethostname())
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part*"):  # with SQLite's journal
        ours = re.search(rf"\.{here}-(\d+)-\d+\.part", left.name)
        with contextlib.suppress(OSError):  # another launch is removing it
            if psutil.pid_exists(int(ours[1])) if ours else time.time() - left.stat().st_mtime < _PART_SECONDS:
                continue
            left.unlink()


class CallQueue:
    """A thread that makes calls to MLflow one after the other, so that a slow or absent server delays nothing.

    A failed call is repeated once after a pause. While the server stays down, later calls are tried once each. Only the
    first failure is reported.

    Args:
        uri: address for the report of a failure.
        warn: receives the line that reports the first failure.

    Attributes:
        studies: names of the studies whose records are queued.
        on_failure: functions that are called after every failed attempt.
    """

    def __init__(self, uri: str, warn: Callable[[str], None]) -> None:
        self._uri, self._warn = uri, warn
        self.studies: set[str] = set()
        self.on_failure: list[Callable[[], None]] = []
        self._warned = False
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Queue a call, and return at once."""
        self._jobs.put(job)

    def close(self, timeout_seconds: float) -> bool:
        """Wait for the queued calls. Returns True if all of them were made in time and none failed."""
        self._jobs.put(None)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            names = shlex.join(sorted(self.studies))
            rest = f"the rest is delivered by:  cst-search sync {names}" if names else "it lacks the rest"
            self._warn(f"MLflow has not taken everything within {timeout_seconds:.0f} s; {rest}")
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
                reason = failure_reason(error, self._uri)
                self._warn(f"MLflow did not take a record ({type(error).__name__}: {reason}); the study keeps it")
                self._warned = True

    def _try(self, job: Callable[[], None]) -> Exception | None:
        try:
            job()
        except Exception as error:  # no error here may end the search
            for forget in self.on_failure:
                forget()
            return error
        return None
