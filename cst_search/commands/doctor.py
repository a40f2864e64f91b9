"""Check this machine and the given services, with a remedy for each fault. Reads top to bottom.

Every check tries the real thing: it writes to the database and cleans up, computes on the GPU, starts and stops Ray. A
failed check becomes one line, never a traceback, and the other checks still run.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cst_search.cores import busy_words, n_cores
from cst_search.errors import CstSearchError, RunError
from cst_search.loopback import proxy_in_the_way
from cst_search.redaction import shown_address, without_password
from cst_search.units import format_bytes

_FREE_BYTES = 5 * 10**9  # room for a study, its MLflow record and a small cache
_SHARED_BYTES = 2 * 10**9  # Ray and loader processes use this much of /dev/shm before they fall back to the disk
_OPEN_FILES = 4096  # Ray opens a few hundred per worker
# remedy for a service that does not work, whatever the reason that its line gives
_REMEDIES = {
    "home": "choose another with --home",
    "storage": "correct --storage, or start its server; its user must be able to make tables",
    "MLflow": "correct --tracking-uri, or start its server; a search goes on without it, `cst-search sync` delivers",
    "Ray": "launch with --in-process, or see docs/operations.md",
}
# MLflow's message on a database that an older version made, and what it takes to upgrade: the tables change while
# nobody may write to them
_OUT_OF_DATE = "out-of-date database schema"
_UPGRADE = (
    "stop every launch, `cst-search ui` and MLflow server that uses it, copy it, then: mlflow db upgrade ADDRESS; "
    "or give another --tracking-uri and fill it with `cst-search sync`"
)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        state: ``ok``, ``note`` (works, with the limit that ``text`` names) or ``fault`` (a launch would fail).
        remedy: the way to fix it; empty if there is nothing to fix.
    """

    name: str
    state: str
    text: str
    remedy: str = ""


def examine(
    home: Path, storage: str, tracking_uri: str, *, with_ray: bool = True, address: str | None = None
) -> Iterator[Finding]:
    """Run the checks one by one and yield their findings.

    Args:
        with_ray: start Ray on this machine; ignored if ``address`` is given.
        address: address of a Ray cluster, as `launch` takes it.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("machine", _machine),
        ("torch", _torch),
        ("evaluation", _evaluation),
        ("plug-ins", _plugins),
        ("home", lambda: _home(home)),
        ("storage", lambda: _storage(storage)),
        ("MLflow", lambda: _mlflow(tracking_uri, storage)),
    ]
    if address is not None:
        checks.append(("cluster", lambda: _cluster(address, storage)))
    elif with_ray:
        checks.append(("Ray", _ray))
    for name, check in checks:
        try:
            yield from check()
        except CstSearchError as error:
            remedy = _UPGRADE if _OUT_OF_DATE in str(error) else _REMEDIES.get(name, "")
            yield Finding(name, "fault", str(error), remedy)
        except Exception as error:
            lines = str(error).splitlines() or [""]
            text = without_password(f"{type(error).__name__}: {lines[0]}", storage)
            yield Finding(name, "fault", without_password(text, tracking_uri), _REMEDIES.get(name, ""))


def _plugins() -> Iterator[Finding]:
    """Load every method, detector and data format that other packages provide."""
    from cst_search import plugins
    from cst_search.data.formats import get_format
    from cst_search.detector.registry import get_detector
    from cst_search.petl import get_method

    get: dict[plugins.Kind, Callable[[str], object]] = {
        "methods": get_method, "detectors": get_detector, "formats": get_format
    }  # fmt: skip
    for kind in plugins.KINDS:
        for name in plugins.names(kind):
            try:
                get[kind](name)
            except CstSearchError as error:
                yield Finding("plug-ins", "fault", str(error))
                continue
            plugin = next(plugin for plugin in plugins.found(kind) if plugin.name == name)
            yield Finding("plug-ins", "ok", f"{kind.removesuffix('s')} {name} of {plugin.source} ({plugin.value})")


# --- the machine ------------------------------------------------------------------------------------------------------


def _machine() -> Iterator[Finding]:
    import psutil

    total = psutil.virtual_memory().total
    text = f"Python {platform.python_version()}, {n_cores()} core(s), {format_bytes(total)} of memory"
    yield Finding("machine", "ok", text)
    if busy := busy_words():
        yield Finding("load", "note", f"other programs keep this machine busy ({busy})", "a search takes longer")
    if (proxy := proxy_in_the_way()) is not None:
        yield Finding(
            "proxy",
            "note",
            f"{shown_address(proxy)} would be asked for 127.0.0.1; what cst-search starts is told not to, by NO_PROXY",
            "for your other programs: export NO_PROXY=127.0.0.1,localhost,::1",
        )
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        yield Finding(
            "shared memory",
            "ok" if free >= _SHARED_BYTES else "note",
            f"{format_bytes(free)} free in {shared}",
            "" if free >= _SHARED_BYTES else "in a container give more: docker run --shm-size=4g",
        )
    if sys.platform != "win32":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        enough = limit >= _OPEN_FILES or limit == resource.RLIM_INFINITY
        remedy = "" if enough else f"raise it before many workers: ulimit -n {_OPEN_FILES}"
        yield Finding("open files", "ok" if enough else "note", f"at most {limit} a process", remedy)


def _torch() -> Iterator[Finding]:
    import torch
    from torchvision.ops import nms

    boxes, scores = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]]), torch.tensor([0.5, 0.9])
    versions = f"torch {torch.__version__}, torchvision {version('torchvision')}"
    try:
        fits = nms(boxes, scores, 0.5).tolist() == [1]
    except RuntimeError:  # the operator is of another build of torch
        fits = False
    if not fits:
        yield Finding("torch", "fault", f"{versions} do not fit each other", "install both again, in one command")
        return
    yield Finding("torch", "ok", versions)
    driver = _driver()
    if not torch.cuda.is_available():
        if driver is None:
            yield Finding("GPU", "note", "none: no NVIDIA driver here; trials run on the CPU")
        elif torch.version.cuda is None:
            yield Finding(
                "GPU",
                "fault",
                f"{driver} is here, and this torch is built without CUDA",
                "install a CUDA build of torch",
            )
        else:
            yield Finding(
                "GPU",
                "fault",
                f"{driver} is here, and torch for CUDA {torch.version.cuda} cannot use it",
                "update the driver, or install a torch for an older CUDA; in a container start it with --gpus all",
            )
        return
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        kept = nms(boxes.cuda(index), scores.cuda(index), 0.5).tolist()
        if kept != [1]:
            yield Finding(f"GPU {index}", "fault", "it computes wrong boxes", "install torch and torchvision again")
            continue
        name, taken = torch.cuda.get_device_name(index), total - free
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        busy = taken > total // 10
        yield Finding(
            f"GPU {index}",
            "note" if busy else "ok",
            f"{name}, {format_bytes(free)} of {format_bytes(total)} free, {bf16}",
            "other processes hold the rest; nvidia-smi names them" if busy else "",
        )


def _evaluation() -> Iterator[Finding]:
    from cst_search.trial.coco_eval import chosen_library

    library = chosen_library()
    slow = library == "pycocotools"
    yield Finding(
        "evaluation",
        "note" if slow else "ok",
        f"mAP by {library} {version(library)}" + (", several times slower than faster-coco-eval" if slow else ""),
        "pip install faster-coco-eval; the figures stay the same" if slow else "",
    )


def _driver() -> str | None:
    """Return the driver's name and version, e.g. ``NVIDIA driver 550.54``, or None."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"NVIDIA driver {ran.stdout.split()[0]}" if ran.returncode == 0 and ran.stdout.strip() else None


# --- what is kept -----------------------------------------------------------------------------------------------------


def _folder_for(path: Path) -> Path:
    """Return the existing folder in which a path is or would be created. Raises RunError if it is not writable."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    try:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".cst-search-"):
            pass
    except OSError as error:
        raise RunError(f"{there} cannot be written: {error.strerror}") from None
    return there


def _home(home: Path) -> Iterator[Finding]:
    there = _folder_for(home)
    free = shutil.disk_usage(there).free
    yield Finding(
        "home",
        "ok" if free >= _FREE_BYTES else "note",
        f"{home}: {format_bytes(free)} free" + ("" if there == home.absolute() else ", made by the first launch"),
        "" if free >= _FREE_BYTES else "little: choose another with --home, or launch with --cache-size 0",
    )


def _storage(url: str) -> Iterator[Finding]:
    from cst_search.study.database_urls import sqlite_file
    from cst_search.study.storage import try_storage

    begun = time.perf_counter()
    n_studies = try_storage(url)
    seconds = time.perf_counter() - begun
    if n_studies is None:
        _folder_for(sqlite_file(url) or Path())
        yield Finding("storage", "ok", f"{shown_address(url)}: made by the first launch")
        return
    text = f"{shown_address(url)}: {n_studies} studies, writable ({1000 * seconds:.0f} ms)"
    several = "" if not url.startswith("sqlite") else "for one machine; several need PostgreSQL"
    yield Finding("storage", "ok", text, several)


def _mlflow(uri: str, storage: str) -> Iterator[Finding]:
    from cst_search.study.database_urls import check_apart, sqlite_file
    from cst_search.tracking.connection import try_tracking

    check_apart(storage, uri)
    begun = time.perf_counter()
    found = try_tracking(uri)
    seconds = time.perf_counter() - begun
    own, shown = version("mlflow"), shown_address(uri)
    if found is None:
        _folder_for(sqlite_file(uri) or Path())
        yield Finding("MLflow", "ok", f"MLflow {own}, {shown}: made by the first launch")
        return
    answers = (
        f"it answers ({1000 * seconds:.0f} ms)" if found == "" else f"MLflow {found} answers ({1000 * seconds:.0f} ms)"
    )
    if found and found.partition(".")[0] != own.partition(".")[0]:
        yield Finding("MLflow", "note", f"MLflow {own}, {shown}: {answers}", "have one major version on both sides")
        return
    yield Finding("MLflow", "ok", f"MLflow {own}, {shown}: {answers}")


# --- who works --------------------------------------------------------------------------------------------------------


def _ray() -> Iterator[Finding]:
    try:
        text = f"Ray {version('ray')}"
    except PackageNotFoundError:
        yield Finding("Ray", "fault", "not installed", "pip install 'ray[tune]', or launch with --in-process")
        return
    from cst_search.execution.ray_files import is_open_to_others, private_folder, token_file
    from cst_search.execution.ray_start import has_metrics, try_ray

    begun, was_open = time.perf_counter(), is_open_to_others(token_file())
    try_ray()
    files = f"its files in {private_folder()}, which nobody else may enter"
    yield Finding("Ray", "ok", f"{text} starts and runs a task ({time.perf_counter() - begun:.1f} s); {files}")
    if was_open:
        text = f"{token_file()} could be read by others until now, and lets in whoever has it"
        yield Finding("Ray's token", "note", text, "delete it while nothing runs; the next launch makes another")
    if has_metrics():
        text = "RAY_enable_metrics_collection is on: the load of this machine is open to the network, without a token"
        yield Finding("Ray's metrics", "note", text, "unset it where nothing reads them")


def _cluster(address: str, storage: str) -> Iterator[Finding]:
    """Connect to a cluster and list its resources. A search checks by itself what its nodes lack."""
    from cst_search.execution.ray_cluster import Cluster

    begun = time.perf_counter()
    cluster = Cluster(address, lambda line: None)
    try:
        nodes = cluster.describe_nodes()
        text = f"Ray {version('ray')}, {address}: {nodes} ({time.perf_counter() - begun:.1f} s)"
        yield Finding("cluster", "ok", text)
        cluster.check_storage(storage)
    finally:
        cluster.close()
