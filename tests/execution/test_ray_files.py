"""Ray's files are its user's alone, and Ray is left in good order."""

from __future__ import annotations

import gc
import os
import stat
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest

from cst_search.execution import ray_start
from cst_search.execution.ray_files import keep_token_private, private_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder for temporary files whose path leaves room for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as folder:
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_the_folder_is_private_and_stays_the_same(short: Path) -> None:
    made = private_folder()
    assert made == short / f"cst-ray-{os.geteuid()}" and mode(made) == 0o700
    made.chmod(0o777)
    assert private_folder() == made and mode(made) == 0o700


def test_a_name_that_somebody_else_took_is_avoided(short: Path, tmp_path: Path) -> None:
    for theirs in ("link", "file"):
        place = short / f"cst-ray-{os.geteuid()}"
        place.unlink(missing_ok=True)
        place.symlink_to(tmp_path) if theirs == "link" else place.touch()
        made = private_folder()
        assert made.parent == short and made.name.startswith(f"{place.name}-") and mode(made) == 0o700
    assert list(tmp_path.iterdir()) == []


def test_a_long_path_is_replaced(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = short / ("x" * 40)
    long.mkdir()  # it could be used but for its length
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    assert private_folder().parent == short
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert private_folder().parent == Path("/tmp")


def test_the_token_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "new" / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    keep_token_private()
    assert not token.exists()
    monkeypatch.delenv("RAY_AUTH_MODE")
    keep_token_private()
    first = token.read_text()
    assert mode(token) == 0o600 and mode(token.parent) == 0o700 and len(first) == 64
    token.chmod(0o644)
    keep_token_private()
    assert mode(token) == 0o600 and token.read_text() == first


def test_ray_is_started_with_them(short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(ray_start.ray, "init", lambda address, **options: asked.update(options, address=address))
    ray_start.init_ray("local", num_cpus=1)
    assert asked["address"] == "local" and asked["_temp_dir"] == str(private_folder() / "ray")
    assert mode(tmp_path / "token") == 0o600 and not ray_start.has_metrics()
    asked.clear()
    ray_start.init_ray("10.0.0.1:6379")
    assert "_temp_dir" not in asked  # a cluster has its own


class Held:
    """In a cycle, as Tune's objects are."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.parametrize("collects", [True, False])
def test_nothing_that_ray_knows_is_collected_while_it_shuts_down(
    monkeypatch: pytest.MonkeyPatch, collects: bool
) -> None:
    """Ray ends a process that lets go of an object then; a thread may do so at any allocation."""
    held = weakref.ref(Held())

    def shutdown() -> None:
        assert held() is None and not gc.isenabled()
        raise OSError("the raylet is gone")

    monkeypatch.setattr(ray_start.ray, "shutdown", shutdown)
    was_on = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(OSError):
            ray_start.leave_ray()
        assert gc.isenabled() == collects
    finally:
        (gc.enable if was_on else gc.disable)()
