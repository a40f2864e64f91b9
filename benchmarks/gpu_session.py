"""Make a quarter of an hour on a GPU count: everything that only a GPU can tell, in order of value.

    python benchmarks/gpu_session.py --minutes 12 --out benchmarks/results/session-NAME --data BCCD
    python benchmarks/gpu_session.py --device cpu --minutes 1 --out DIR     (dry run: tiny shapes, no figures)

Needs torch, torchvision, Pillow, numpy and pycocotools; part f also pytest, and the recipe of part g safetensors. Each
result is a line of ``results.jsonl`` (traces: ``traces.jsonl``) as soon as it is there; ``session.json`` has the device
and the state of every part, ``summary.txt`` what was found. The same command goes on where it ended: only what is
missing or failed runs. A part that is out of its share of the minutes leaves the rest to a later run; time that it did
not need is the next part's. Every job runs in a fresh process, which has imported torch but not used the GPU.

The search of part g draws at random, since there is neither Optuna nor Ray here.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import wait
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import memory as memory_benchmark
from methods import base_recipe, make_rows, read_journal, read_recipe
from methods_measure import Job as SpeedJob
from methods_measure import first_images
from methods_measure import measure as measure_speed

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import load_data
from cst_search.data.demo import write_demo
from cst_search.data.disk_cache import Cache
from cst_search.memory.allocator import CONFIG_VARIABLES, CachingAllocator
from cst_search.memory.estimate import InputShape, worst_input
from cst_search.memory.gpu_costs import GENERIC
from cst_search.petl import METHODS
from cst_search.trial.cost import predict
from cst_search.trial.device import choose_device
from cst_search.trial.measure import measure, synthetic_batch
from cst_search.trial.run import run_trial

ROOT = Path(__file__).resolve().parent.parent
ENDED = ("complete", "oom", "nonfinite", "skipped")  # outcomes that another run would not change
SEED = 20  # of the fresh configurations: no file of benchmarks/results/ has it
# cuBLAS's workspaces as PyTorch makes them before Hopper: two of 4096 KiB and eight of 16 KiB, for each of two threads
AMPERE_WORKSPACE, AMPERE_WORKSPACE_BYTES = ":4096:2:16:8", 2 * (2 * 4096 + 8 * 16) * 1024
NATIVE = {name: "expandable_segments:False" for name in CONFIG_VARIABLES}
N_SEARCHED, EPOCHS = 6, 3
# a dry run's recipes
TINY = {"detector": "fcos", "backbone": "resnet18", "width": 0.125, "fpn_channels": 64, "weights": "none",
        "image_size_px": 64, "max_size_px": 96, "batch_size": 2, "loader_workers": 0}  # fmt: skip
# the worst predicted ones that are known come first: (method, detector, backbone, precision, batch size)
TRACED = (
    ("side_tuning", "fcos", "resnet50", "bf16", 4),
    ("norm", "fasterrcnn", "resnet18", "fp32", 2),
    ("conv_adapter", "retinanet", "resnet50", "fp32", 8),
    ("cst", "fasterrcnn", "resnet50", "fp32", 4),
    ("cst", "fcos", "resnet50", "bf16", 4),
    ("full", "fasterrcnn", "resnet50", "fp32", 2),
    ("full", "retinanet", "resnet50", "bf16", 4),
    ("lst", "fasterrcnn", "resnet101", "bf16", 2),
    ("bitfit", "fcos", "resnet50", "fp32", 4),
    ("conv_lora", "retinanet", "resnet34", "bf16", 4),
    ("serial_adapter", "fcos", "resnet18", "fp32", 8),
    ("ssf", "fasterrcnn_v2", "resnet50", "fp32", 2),
    ("partial", "retinanet_v2", "resnet50", "bf16", 2),
    ("head", "fasterrcnn", "resnet50", "bf16", 8),
)


class Job(NamedTuple):
    """``work(**arguments)`` in a fresh process with ``environment``; ``key`` is unique in the session."""

    key: str
    work: Callable[..., dict[str, Any]]
    arguments: Mapping[str, Any] = {}
    environment: Mapping[str, str] = {}


@dataclass(frozen=True)
class Session:
    """What is asked for: folders of results and of files for a run alone, device, data, and how small."""

    out: Path
    scratch: Path
    device: str
    data: str | None
    n_at_once: int
    small: bool

    def few(self, n: int, n_small: int = 1) -> int:
        return n_small if self.small else n


# --- work: each function runs in a process of its own ---------------------------------------------------------------


def memory_row(
    recipe: Mapping[str, Any], shape: Mapping[str, int], steps: int, hold: bool, device: str,
    tf32: bool = True, blas_workspace_bytes: int = GENERIC.blas_workspace_bytes,
) -> dict[str, Any]:  # fmt: skip
    """Return a row of `benchmarks/memory.py`; predicted with the workspace that cuBLAS was told to have."""
    torch.backends.cudnn.allow_tf32 = tf32
    gpu = replace(GENERIC, blas_workspace_bytes=blas_workspace_bytes)
    return memory_benchmark.row_of(Recipe.from_dict(recipe), InputShape(**shape), steps, hold, device, gpu)


def traced_row(recipe: Mapping[str, Any], shape: Mapping[str, int], device: str) -> dict[str, Any]:
    """Train three steps; on a GPU with the allocator's events, and what the simulated allocator makes of them."""
    asked, size, n_classes = Recipe.from_dict(recipe), InputShape(**shape), memory_benchmark.N_CLASSES
    target = choose_device(device)
    if target.type == "cuda":
        torch.cuda.memory._record_memory_history(context=None, max_entries=2_000_000)
    batch = synthetic_batch(asked, size, n_classes)
    found = asdict(measure(asked, n_classes, batch, steps=3, device=target, read_weights=False))
    row = {"recipe": recipe, "shape": shape, "outcome": found["outcome"], "reason": found["reason"]}
    if target.type != "cuda":
        return row | {"outcome": "skipped", "reason": "the allocator's events are CUDA's"}
    events = allocations(torch.cuda.memory._snapshot()["device_traces"][0])
    guess = predict(asked, n_classes, size, evaluates=False)
    return row | {
        "reserved": found["reserved_bytes"],
        "active": found["active_bytes"],
        "predicted_reserved": guess.reserved_bytes,
        "simulated_reserved": replayed(events, expandable=True),
        "events": events,
    }


def allocations(entries: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the allocator's events as in `memory.reserved.Process`: bytes allocated, or ~position of what is freed."""
    events: list[int] = []
    positions: dict[int, int] = {}
    for entry in entries:
        if entry["action"] == "alloc":
            positions[entry["addr"]] = len(events)
            events.append(entry["size"])
        elif entry["action"] == "free_requested" and entry["addr"] in positions:
            events.append(~positions.pop(entry["addr"]))
    return events


def replayed(events: Sequence[int], *, expandable: bool) -> int:
    """Return the bytes that the simulated allocator reserves for real events."""
    allocator, blocks = CachingAllocator(expandable=expandable), {}
    for position, event in enumerate(events):
        if event >= 0:
            blocks[position] = allocator.allocate(event)
        else:
            allocator.free(blocks.pop(~event))
    return allocator.reserved_bytes


def gpu_tests() -> dict[str, Any]:
    """Run tests/test_gpu.py in this process, with the fixtures of trials alone."""
    import pytest

    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-c", os.devnull, "--rootdir", str(ROOT), "--noconftest", "-q", "-p", "trial_fixtures"]
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        code = pytest.main([*options, "-p", "no:cacheprovider", str(ROOT / "tests" / "test_gpu.py")])
    lines = printed.getvalue().strip().splitlines()
    if code == 0:
        return {"outcome": "complete", "found": lines[-1]}
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"outcome": "failed", "reason": lines[-1] if lines else "no output", "failed": failed, "tail": lines[-60:]}


def trials(
    recipes: Sequence[Mapping[str, Any]], data: str, limit: int | None, device: str, cached: bool
) -> dict[str, Any]:
    """Run trials one after the other in this process, with one cache for all or without."""
    content = first_images(load_data(data)[0], limit)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder), 20 * 10**9) if cached else None
        begun = time.perf_counter()
        for values in recipes:
            recipe = Recipe.from_dict(values)
            result = run_trial(recipe, content, epochs=recipe.search_epochs, device=device, cache=cache)
            kept = ("outcome", "reason", "map", "loss", "seconds", "images_per_second", "active_bytes", "notes")
            rows.append({name: getattr(result, name) for name in kept})
        seconds = time.perf_counter() - begun
    bad = [row for row in rows if row["outcome"] != "complete"]
    ending = {"outcome": bad[0]["outcome"], "reason": bad[0]["reason"]} if bad else {"outcome": "complete"}
    return {**ending, "seconds": seconds, "trials": rows}


def trials_at_once(n_at_once: int, recipes: Sequence[Mapping[str, Any]], **arguments: Any) -> dict[str, Any]:
    """Run trials in several processes on one GPU, each process its share of them. Returns the wall time."""
    jobs = [
        Job(f"share {n}", trials, {"recipes": recipes[n::n_at_once], "cached": False, **arguments})
        for n in range(n_at_once)
    ]
    begun, ended = time.perf_counter(), []
    run_jobs(jobs, n_at_once, float("inf"), lambda _, row: ended.append(row), start="fork")
    bad = [row for row in ended if row["outcome"] != "complete"]
    return (bad[0] if bad else {"outcome": "complete"}) | {"seconds": time.perf_counter() - begun, "at_once": n_at_once}


def speed(job: Mapping[str, Any]) -> dict[str, Any]:
    return measure_speed(SpeedJob(**job))


# --- parts -----------------------------------------------------------------------------------------------------------


def traces(session: Session) -> list[Job]:
    jobs = []
    for method, detector, backbone, precision, batch_size in TRACED[: session.few(len(TRACED))]:
        size: dict[str, Any] = {"image_size_px": 800, "max_size_px": 1066, "batch_size": batch_size}
        if session.small:
            size = {"image_size_px": 96, "max_size_px": 128, "batch_size": 1, "width": 0.25, "fpn_channels": 64}
        recipe = Recipe(method=method, detector=detector, backbone=backbone, precision=precision, **size)
        shape = worst_input(recipe, max_boxes=50)
        jobs.append(Job(f"a {method} {detector} {backbone} {precision} x{batch_size}", traced_row,
                        {"recipe": recipe.to_dict(), "shape": vars(shape), "device": session.device}))  # fmt: skip
    return jobs


def configurations(
    session: Session, part: str, n: int, seed: int, environment: Mapping[str, str] = {}, hold: bool = False, **more: Any
) -> list[Job]:
    rng = random.Random(seed)
    drawn = [memory_benchmark.draw(rng, small=session.small) for _ in range(session.few(n))]
    fixed = {"steps": session.few(4), "hold": hold and not session.small, "device": session.device, **more}
    return [
        Job(f"{part} {i}", memory_row, {"recipe": recipe.to_dict(), "shape": vars(shape), **fixed}, environment)
        for i, (recipe, shape) in enumerate(drawn)
    ]


def fresh(session: Session) -> list[Job]:
    return configurations(session, "b", 40, SEED)


def native(session: Session) -> list[Job]:
    return configurations(session, "c", 24, SEED + 1, NATIVE)


def older(session: Session) -> list[Job]:
    environment = {"CUBLAS_WORKSPACE_CONFIG": AMPERE_WORKSPACE}
    return configurations(
        session, "d", 12, SEED + 2, environment, tf32=False, blas_workspace_bytes=AMPERE_WORKSPACE_BYTES
    )


def held(session: Session) -> list[Job]:
    return configurations(session, "e", 24, SEED + 3, hold=True)


def tests(session: Session) -> list[Job]:
    return [Job("f tests/test_gpu.py", gpu_tests)]


def search(session: Session) -> list[Job]:
    """The same random configurations without a cache, with one, and several at a time."""
    rng = random.Random(SEED)
    changes: dict[str, Any] = {"search_epochs": EPOCHS}
    if session.small:
        changes |= TINY | {"search_epochs": 1}
    base = base_recipe(read_recipe(ROOT / "trials" / "small.yaml"), changes)
    methods = [rng.choice(("cst", "head", "lst", "side_tuning", "bitfit")) for _ in range(session.few(N_SEARCHED))]
    recipes = [
        replace(base, method=method, lr=10 ** rng.uniform(-3.5, -2), seed=n).to_dict()
        for n, method in enumerate(methods)
    ]
    data = session.data or str(write_demo(session.scratch / "demo-data"))
    common = {"recipes": recipes, "data": data, "limit": 4 if session.small else None, "device": session.device}
    alone = [Job(f"g one after the other, {name}", trials, {**common, "cached": name != "no cache"})
             for name in ("no cache", "a cache")]  # fmt: skip
    return alone + [Job(f"g {n} at a time", trials_at_once, {"n_at_once": n, **common})
                    for n in ((1,) if session.small else (2, 3, 6))]  # fmt: skip


def speeds(session: Session) -> list[Job]:
    """The methods on torchvision's trained detector: its shapes and frozen norms, with random values."""
    shipped = read_recipe(ROOT / "trials" / "resnet50.yaml") | {"data": "random"}
    if session.small:
        changes: dict[str, Any] = TINY | {"neck": "train", "head": "train"}
    else:
        changes = {"weights": str(random_detector(session.scratch))}
    base = base_recipe(shipped, changes)
    jobs = []
    for name, recipe in make_rows(base, sorted(METHODS)[: session.few(len(METHODS))]).items():
        job = SpeedJob(
            name, recipe.to_dict(), "random", None, None, session.device, 1, rounds=session.few(5),
            steps=session.few(3), reference=replace(base, method="full", options={}).to_dict(),
        )  # fmt: skip
        jobs.append(Job(f"h {name}", speed, {"job": asdict(job)}))
    return jobs


def random_detector(folder: Path) -> Path:
    """Write a Faster R-CNN ResNet-50 of 91 labels with random values; its download cannot be had everywhere."""
    net = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    torch.save(net.state_dict(), path := folder / "random-detector.pt")
    return path


class Part(NamedTuple):
    """Jobs with a share of the time; ``alone``: one at a time, since it measures speed."""

    name: str
    title: str
    seconds: int
    jobs: Callable[[Session], list[Job]]
    alone: bool = False


PARTS = (
    Part("a", "allocation traces", 120, traces),
    Part("b", "fresh configurations, expandable segments", 180, fresh),
    Part("c", "native segments", 110, native),
    Part("d", "TF32 off, Ampere's cuBLAS workspace", 60, older),
    Part("e", "held to exactly the prediction", 110, held),
    Part("f", "tests/test_gpu.py", 90, tests, alone=True),
    Part("g", "a search: cache, several at a time", 60, search, alone=True),
    Part("h", "methods on the trained ResNet-50 detector", 90, speeds, alone=True),
)


# --- running ---------------------------------------------------------------------------------------------------------


def _in_child(job: Job, answer: Any) -> None:
    os.setpgid(0, 0)  # so that `run_jobs` can end it with all that it starts
    os.environ.update(job.environment)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    try:
        result = job.work(**job.arguments)
    except Exception as error:
        result = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"[:500]}
    answer.send(result)


def run_jobs(
    jobs: Sequence[Job], n_at_once: int, until: float, write: Callable[[Job, dict[str, Any]], object],
    start: str = "forkserver",
) -> list[Job]:  # fmt: skip
    """Run jobs in fresh processes and write each result as it ends. Returns those cut off or not begun at ``until``.

    Args:
        until: of `time.monotonic`; what still runs then is killed.
        write: is given a job and its result; a process that died is a result too.
        start: of `multiprocessing`; ``fork`` in a job that starts others, which end with it.
    """
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(["torchvision", "cst_search.trial.measure"])
    waiting, running = list(jobs), {}
    try:
        while (waiting or running) and time.monotonic() < until:
            while waiting and len(running) < n_at_once:
                job, (mine, theirs) = waiting.pop(0), context.Pipe(duplex=False)
                process = context.Process(target=_in_child, args=(job, theirs))
                process.start()
                theirs.close()
                running[mine] = (job, process)
            for answer in wait(list(running), timeout=min(3600.0, max(0.0, until - time.monotonic()))):
                job, process = running.pop(answer)
                write(job, _received(answer, process))
    finally:
        for _, process in running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
    return [job for job, _ in running.values()] + waiting


def _received(answer: Any, process: Any) -> dict[str, Any]:
    try:
        result: dict[str, Any] = answer.recv()
    except EOFError:
        process.join()
        result = {"outcome": "failed", "reason": f"the process ended with exit code {process.exitcode}"}
    process.join()
    return result


def run_part(part: Part, session: Session, until: float) -> str:
    """Run what is missing of a part. Returns its state in words."""
    file = session.out / ("traces.jsonl" if part.name == "a" else "results.jsonl")
    known = read_journal(file)
    jobs = part.jobs(session)
    todo = [job for job in jobs if known.get(job.key, {}).get("outcome") not in ENDED]

    def write(job: Job, result: dict[str, Any]) -> None:
        with file.open("a", encoding="utf-8") as journal:
            # the first line break ends what a killed run left unfinished
            journal.write("\n" + json.dumps({"key": job.key, **result}) + "\n")
        reason = f": {result['reason']}" if result.get("reason") else ""
        print(f"{job.key}: {result['outcome']}{reason}", flush=True)

    left = run_jobs(todo, 1 if part.alone else session.n_at_once, until, write)
    now = read_journal(file)
    outcomes = [now.get(job.key, {}).get("outcome") for job in jobs]
    counts = {name: outcomes.count(name) for name in dict.fromkeys(outcomes) if name}
    state = ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing"
    return state + (f"; {len(left)} left for another run" if left else "")


def run_parts(session: Session, minutes: float) -> dict[str, str]:
    """Run all parts in order. Returns the state of each; every part's share ends with the sum of those up to it."""
    begun, total, used, states = time.monotonic(), sum(part.seconds for part in PARTS), 0, {}
    for part in PARTS:
        used += part.seconds
        until = begun + minutes * 60 * used / total
        print(f"--- {part.name}: {part.title}, until {until - begun:.0f} s", flush=True)
        states[part.name] = run_part(part, session, until)
        stamp(session, states)
    return states


def stamp(session: Session, states: Mapping[str, str]) -> None:
    """Write device, driver, versions and the parts' states."""
    on_gpu = session.device == "cuda"
    driver = _driver() if on_gpu else None
    content = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "driver": driver,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("torch", "torchvision", "numpy", "pycocotools")},
        "jobs_at_once": session.n_at_once,
        "parts": dict(states),
    }
    (session.out / "session.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


# --- what was found --------------------------------------------------------------------------------------------------


def summary(session: Session, states: Mapping[str, str]) -> str:
    """Return what was found, a paragraph a part."""
    rows = {**read_journal(session.out / "traces.jsonl"), **read_journal(session.out / "results.jsonl")}
    lines = []
    for part in PARTS:
        own = {key[2:]: row for key, row in rows.items() if key.startswith(f"{part.name} ")}
        lines += [f"{part.name}. {part.title}: {states.get(part.name, 'not run')}"]
        lines += [f"   {line}" for line in _SUMMARIES[part.name](own)]
    return "\n".join(lines) + "\n"


def _of_traces(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = [row for row in rows.values() if row.get("reserved")]
    if not found:
        return []
    kinds = (("simulator's error, on the real events", "simulated_reserved"), ("whole error", "predicted_reserved"))
    return [
        f"{title}: " + ", ".join(f"{100 * (row[name] / row['reserved'] - 1):+.1f}" for row in found) + " %"
        for title, name in kinds
    ]


def _of_memory(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    found = [dict(row) for row in rows.values() if row.get("reserved") and row["outcome"] == "complete"]
    lines = []
    for name in ("active", "reserved", "device"):
        if any(row[name] for row in found):
            errors = {key: f"{100 * value:+.1f} %" for key, value in memory_benchmark.errors(found, name).items()}
            lines.append(f"{name}: {errors}")
    out = [key for key, row in rows.items() if row["outcome"] == "oom"]
    return lines + ([f"ran out of memory: {', '.join(out)}"] if out else [])


def _of_tests(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        line for row in rows.values() for line in [row.get("found") or row.get("reason") or "", *row.get("failed", [])]
    ]


def _of_search(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for key, row in rows.items():
        maps = [f"{each['map']:.3f}" for each in row.get("trials", []) if each["map"] is not None]
        lines.append(f"{key}: {row.get('seconds', 0):.1f} s" + (f", map {' '.join(maps)}" if maps else ""))
    return lines


def _of_speeds(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for key, row in rows.items():
        rates = row.get("train") or []
        if rates:
            share = median(own / full for own, full in rates)
            active = f", {row['active_bytes'] / 1e9:.2f} GB active" if row.get("active_bytes") else ""
            lines.append(f"{key}: {median(own for own, _ in rates):.1f} images/s, {share:.2f} x full{active}")
    return lines


_SUMMARIES: dict[str, Callable[[Mapping[str, Mapping[str, Any]]], list[str]]] = {
    "a": _of_traces, "b": _of_memory, "c": _of_memory, "d": _of_memory, "e": _of_memory,
    "f": _of_tests, "g": _of_search, "h": _of_speeds,
}  # fmt: skip


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12, help="of wall time; what is left runs another time [12]")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="of the results")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run [cuda]")
    parser.add_argument("--data", help="data set of part g [the demo, which is drawn]")
    parser.add_argument("--jobs", type=int, help="memory measurements at a time [7, on a CPU 1]")
    args = parser.parse_args(argv)
    small = args.device == "cpu"
    if not small and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu shows that the script works")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-session-") as scratch:
        n_at_once = args.jobs or (1 if small else 7)
        session = Session(args.out.absolute(), Path(scratch), args.device, args.data, n_at_once, small)
        states = run_parts(session, args.minutes)
    text = summary(session, states)
    (session.out / "summary.txt").write_text(text, encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":
    main(sys.argv[1:])
