"""Registry of the launches and confirmations of a study: running, ended or died. Several may run at a time.

Each has an entry in the study's attributes and writes a heartbeat, because its process is not visible from other hosts.
"""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import optuna
import psutil

from cst_search.errors import CstSearchError, StudyError
from cst_search.study import storage
from cst_search.study.fast_reads import log_ahead
from cst_search.study.records import LaunchRecord
from cst_search.study.states import LaunchState
from cst_search.study.storage import BEAT, Storage
from cst_search.study.stored_form import NUMBER, check_object, read_of
from cst_search.study.study_lock import is_stopped

_LAUNCH = "cst_launch:"
BEAT_SECONDS = 10.0


class Launches:
    """Launches of one study, including this process's own.

    Attributes:
        id: ID of this process's launch, or None before `enter`.
    """

    def __init__(self, study: optuna.Study, storage: Storage | None) -> None:
        self._study, self._storage = study, storage
        self.id: str | None = None
        self._beat: threading.Thread | None = None
        self._ended = threading.Event()

    def enter(self, kind: str) -> None:
        """Register this process: ``launch`` or ``confirm``."""
        self.id = uuid.uuid4().hex[:12]
        process = psutil.Process()
        launch = {
            "host": socket.gethostname(), "pid": process.pid, "created": process.create_time(), "begun": now(),
            "kind": kind,
        }  # fmt: skip
        if self._storage is not None:
            self._storage.launch = self.id
            log_ahead(self._storage.engine, on=True)
            self._study.set_user_attr(BEAT + self.id, self._storage.now())
            self._storage.watch()
            self._ended.clear()
            self._beat = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)
            self._beat.start()
        self._study.set_user_attr(_LAUNCH + self.id, launch)

    def leave(self) -> None:
        """Mark this process's launch as ended, if it entered."""
        if self.id is None:
            return
        self._ended.set()
        if self._beat is not None:
            self._beat.join(timeout=5)
        launch = self._study.user_attrs[_LAUNCH + self.id]
        self._study.set_user_attr(_LAUNCH + self.id, launch | {"ended": now()})
        if self._storage is not None:
            is_last = not self.live()
            self._storage.unwatch()
            if is_last and self._storage.rescued is None:
                log_ahead(self._storage.engine, on=False)

    def _keep_beating(self) -> None:
        assert self._storage is not None
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(CstSearchError):  # an unreachable storage ends the search elsewhere
                self._study.set_user_attr(BEAT + str(self.id), self._storage.now())

    def check_others(self, kind: str, shares_machine: bool) -> None:
        """Raise StudyError if a running launch rules out this one; see `SearchSession.begin_launch`."""
        launches, live = self._all(), self.live()
        study = self._study.study_name
        for name in live:
            other = launches[name]
            here = other["host"] == socket.gethostname()
            if "confirm" in (kind, other.get("kind")):
                raise StudyError(
                    f"study {study!r} is being worked on by process {other['pid']} on {other['host']}, and a "
                    f"confirmation works alone; wait for the one before the other"
                )
            if here and not shares_machine:
                raise StudyError(
                    f"study {study!r} is being worked on by process {other['pid']} on this host, which it has for "
                    f"itself; wait for it, stop it, choose another --study name, or have both use one Ray with "
                    f"--address"
                )

    def describe(self, settings: Mapping[str, Any]) -> LaunchRecord:
        """Store the settings of this launch; see `records.LaunchRecord`."""
        assert self.id is not None
        key = _LAUNCH + self.id
        launch = self._study.user_attrs[key] | {"settings": json.loads(json.dumps(dict(settings)))}
        self._study.set_user_attr(key, launch)
        return LaunchRecord(self.id, launch["kind"], launch["begun"], launch["settings"])

    def described(self) -> tuple[LaunchRecord, ...]:
        """Return launches and confirmations that stored their settings, by start time."""
        live = self.live()
        found = []
        for name, launch in self._all().items():
            if "settings" in launch:
                with read_of(f"study {self._study.study_name!r}"):
                    check_object(launch, _LAUNCH + name, kind=str, begun=str, settings=dict)
                gone = LaunchState.ENDED if "ended" in launch else LaunchState.DIED
                state = LaunchState.RUNNING if name in live and gone is LaunchState.DIED else gone
                found.append(LaunchRecord(name, launch["kind"], launch["begun"], launch["settings"], state))
        return tuple(sorted(found, key=lambda launch: launch.begun))

    def _all(self) -> dict[str, Any]:
        with read_of(f"study {self._study.study_name!r}"):
            return {
                key.removeprefix(_LAUNCH): check_object(value, key, host=str, pid=int, created=NUMBER)
                for key, value in self._study.user_attrs.items()
                if key.startswith(_LAUNCH)
            }

    def live(self) -> set[str]:
        """Return IDs of running launches: on this host by process, on other hosts by a recent heartbeat.

        A process on this host that is stopped needs a recent heartbeat, too. One that runs does not: the clock may have
        jumped.
        """
        attrs = self._study.user_attrs
        found, clock = set(), None
        for name, launch in self._all().items():
            if "ended" in launch:
                continue
            if launch["host"] == socket.gethostname():
                is_alive = _process_lives(launch)
                needs_beat = is_alive and is_stopped(launch["pid"])
            else:
                is_alive = needs_beat = self._storage is not None
            if needs_beat and self._storage is not None:
                clock = self._storage.now() if clock is None else clock  # one shared clock instead of the hosts' own
                beat = attrs.get(BEAT + name)
                is_alive = isinstance(beat, int | float) and clock - beat < storage.DEAD_SECONDS
            if is_alive:
                found.add(name)
        return found


def _process_lives(launch: Mapping[str, Any]) -> bool:
    """Return whether the process of a launch on this host still exists."""
    try:
        process = psutil.Process(launch["pid"])
        # the pid may have been reused since
        return abs(process.create_time() - launch["created"]) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
