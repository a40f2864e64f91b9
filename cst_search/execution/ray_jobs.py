"""Submit a search to a cluster as a Ray job, which continues when this machine is switched off.

This package, the user's own recipe and search space, and addresses with a password are sent along. Addresses travel in
files, because the cluster's dashboard shows a job's command and environment.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cst_search.config.catalog import Kind, shipped_folder
from cst_search.errors import ConfigError, RunError
from cst_search.redaction import read_address, shown_address
from cst_search.visible import visible

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

COMMANDS = ("launch", "resume", "confirm")
_FILES = {"--recipe": "recipe", "--space": "space"}
_ADDRESSES = {"--storage": "storage", "--tracking-uri": "tracking"}
# By default Ray kills a job three seconds after it was told to end; a search needs longer to write its page and record
_STOP_SECONDS = 60
_START_SECONDS = 60
_FORM = "--address takes the address of a Ray job server, such as http://HEAD:8265"


@dataclass(frozen=True)
class JobState:
    """State of a job; ``state`` is PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED. Times are UTC."""

    job: str
    state: str
    message: str
    begun: str | None
    ended: str | None
    exit_code: int | None
    command: str

    @property
    def is_over(self) -> bool:
        return self.state in ("STOPPED", "SUCCEEDED", "FAILED")


class Jobs:
    """Client of a cluster's job server. Raises ConfigError if there is no server, or it refuses access."""

    def __init__(self, address: str) -> None:
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"{_FORM}; got {address!r}")
        self.address = address.rstrip("/")
        try:
            import aiohttp  # noqa: F401  Ray's client follows logs with it
            from ray.job_submission import JobSubmissionClient

            self._client: JobSubmissionClient = JobSubmissionClient(self.address)
            # otherwise it logs every package that it packs and sends
            for name in (
                "dashboard.modules.job.sdk",
                "dashboard.modules.dashboard_sdk",
                "_private.runtime_env.packaging",
            ):
                logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        except ImportError as error:
            raise ConfigError(f"submitting needs more of Ray: pip install 'cst-search[cluster]' ({error})") from None
        except Exception as error:
            if "ray[default]" in str(error):
                raise ConfigError("submitting needs more of Ray: pip install 'cst-search[cluster]'") from None
            raise ConfigError(
                f"--address {self.address}: no Ray job server lets us in there: {_first_line(error)}; {_FORM}. If it "
                f"asks for a token, this machine needs the same: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            ) from None

    def submit(self, words: Sequence[str]) -> str:
        """Submit a cst-search command with its files. Returns the job's id. Raises RunError if the server refuses."""
        with tempfile.TemporaryDirectory(prefix="cst-search-job-") as scratch:
            folder, package = Path(scratch) / "files", Path(scratch) / "cst_search"
            folder.mkdir()
            sent = travelling(words, folder)
            _copy_package(package)
            runtime_env = {
                "working_dir": str(folder),
                "py_modules": [str(package)],
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)},
            }
            command = shlex.join(["python", "-m", "cst_search.cli", *sent])
            end = time.monotonic() + _START_SECONDS
            while True:
                try:
                    return self._client.submit_job(entrypoint=command, runtime_env=runtime_env)
                except Exception as error:
                    # a head that has just started: its job agent comes a little later
                    if "No available agent" not in str(error) or time.monotonic() > end:
                        raise RunError(f"the job server did not take the search: {_first_line(error)}") from error
                time.sleep(1)

    def state(self, job: str) -> JobState:
        """Return the current state of a job. Raises ConfigError if there is no such job."""
        found = self._ask(job, self._client.get_job_info)
        return JobState(
            job, str(found.status.value), found.message or "", _time(found.start_time), _time(found.end_time),
            found.driver_exit_code, shown_address(found.entrypoint),
        )  # fmt: skip

    def logs(self, job: str) -> str:
        """Return a job's output so far, as it is; `visible` makes it safe to print."""
        return self._ask(job, self._client.get_job_logs)

    def follow(self, job: str, write: Callable[[str], object]) -> None:
        """Write a job's output until the job ends; what would steer a terminal is made visible."""

        async def read() -> None:
            async for lines in self._client.tail_job_logs(job):
                write(visible(lines))

        self._ask(job, lambda _: asyncio.run(read()))

    def stop(self, job: str) -> bool:
        """Ask a job to end as Ctrl-C would. Returns False if it had already ended."""
        return bool(self._ask(job, self._client.stop_job))

    def _ask(self, job: str, question: Callable[[str], Any]) -> Any:
        try:
            return question(job)
        except Exception as error:
            text = str(error)
            if "does not exist" in text or "404" in text:
                raise ConfigError(f"there is no job {job!r} on {self.address}") from None
            raise RunError(f"{self.address} does not answer about job {job!r}: {_first_line(error)}") from error


def check_words(command: str, given: Mapping[str, Any]) -> None:
    """Check a command for mistakes that can be found before it is sent.

    Args:
        given: its parsed options; None: not given.

    Raises:
        ConfigError: a path has no meaning on the cluster, or the recipe or search space is invalid.
    """
    faults = []
    home = given.get("home")
    if home is None or not Path(home).is_absolute():
        faults.append(
            "--home must be a whole path on the cluster, best of a folder that all nodes share: the folder that a job "
            f"runs in goes with it; got {home or 'none'}"
        )
    data = given.get("data") or ()
    for folder in [data] if isinstance(data, str) else data:
        if folder != "demo" and not Path(folder).is_absolute():
            faults.append(f"--data must be a whole path on the cluster, the same on all nodes; got {folder}")
    storage = given.get("storage")
    if storage and storage.startswith("sqlite:///") and not storage.startswith(("sqlite:////", "sqlite:///file:/")):
        faults.append(f"--storage must have a whole path, as the job's folder goes with it; got {storage}")
    if given.get("in_process"):
        faults.append("--in-process runs the trials where the command runs; leave it out")
    if given.get("address", None) not in (None, "auto"):
        faults.append(f"a job's own cluster is auto; leave out its --address {given['address']}")
    if faults:
        raise ConfigError("; ".join(faults))
    if command == "launch":
        from cst_search.config.loading import apply_settings, load_recipe, load_space
        from cst_search.config.recipe import WEIGHT_NAMES

        name = given["recipe"] or "demo"
        recipe = apply_settings(load_recipe(name), given["settings"] or (), name)
        if given["space"] is not None:
            load_space(given["space"], recipe)
        if recipe.weights not in WEIGHT_NAMES and not Path(recipe.weights).is_absolute():
            raise ConfigError(f"recipe {name!r}: weights must be a whole path on the cluster; got {recipe.weights}")


def travelling(words: Sequence[str], folder: Path) -> list[str]:
    """Rewrite a command for a job: copy the user's own files into the job's folder and refer to the copies.

    An address with a password becomes a file too, and so does ``@FILE``.
    """
    sent, left = [], list(words)
    while left:
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in (*_FILES, *_ADDRESSES) or not (equals or left):
            sent.append(word)
            continue
        value = value if equals else left.pop(0)
        path = Path(value).expanduser()
        if flag in _FILES and path.is_file():
            value = f"{_FILES[flag]}-{path.name}"
            shutil.copyfile(path, folder / value)
        elif flag in _ADDRESSES and (value.startswith("@") or shown_address(value) != value):
            target = folder / f"{_ADDRESSES[flag]}.address"
            target.write_text(read_address(value))
            target.chmod(0o600)
            value = f"@{target.name}"
        sent += [flag, value]
    return sent if any(word.partition("=")[0] == "--address" for word in sent) else [*sent, "--address", "auto"]


def _copy_package(target: Path) -> None:
    """Copy this package as a wheel holds it: with the shipped recipes, spaces and pages inside."""
    source = Path(__file__).parents[1]
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    for kind in get_args(Kind):
        if not (target / kind).is_dir():
            shutil.copytree(shipped_folder(kind), target / kind, ignore=shutil.ignore_patterns("__pycache__"))


def write_out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _time(milliseconds: int | None) -> str | None:
    return None if not milliseconds else datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
