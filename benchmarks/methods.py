"""Measure the table of ResNet detector x PETL method x memory x mAP, with seeds.

    python benchmarks/methods.py --data DIR --seeds 3 --jobs 2 --out benchmarks/results/methods-NAME.json
    python benchmarks/methods.py --size gpu --set weights=FILE --also full:batch_size=8 --out FILE.json
    python benchmarks/methods.py --dry-run                              (one step of every method: does it all work?)

Every method runs with its default options and its default learning rate, on one recipe. Accuracy is that of a trial of
`cst_search.trial` per row and seed, each in a process of its own. Speed is measured for training steps and detection in
rounds that alternate with method `full`; the row `full`, against itself, shows the noise. Memory is measured on a GPU,
and predicted without one. Each result is appended to a .jsonl beside --out as it ends, and the same command runs only
missing and failed ones. torch, torchvision and pycocotools suffice, but the weights `demo` and .safetensors files need
safetensors. `methods_measure.py` defines the measurements.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from methods_measure import N_RANDOM_BOXES, N_RANDOM_CLASSES, Job, first_images, start_digest, without_folders
from methods_table import relate, summarise, table

from cst_search import __version__
from cst_search.config import catalog
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.demo import write_demo
from cst_search.errors import ConfigError, UserError
from cst_search.memory.estimate import InputShape, worst_input
from cst_search.petl import METHODS, get_method
from cst_search.trial.cost import predict
from cst_search.trial.device import choose_device

ROOT = Path(__file__).resolve().parent.parent
# --size -> a recipe of trials/ and its overrides (torchvision's weights would be downloaded)
_RANDOM = {"weights": "none", "neck": "train", "head": "train"}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {"small": ("small", {}), "gpu": ("resnet50", _RANDOM)}
ENDED = ("complete", "oom", "nonfinite")  # outcomes that are results
Start = Callable[[Job], dict[str, Any]]


# --- all jobs --------------------------------------------------------------------------------------------------------


def in_child(job: Job) -> dict[str, Any]:
    """Run `measure` in a fresh process. Whatever happens to it, the result has an ``outcome``.

    The child ends when this process does, however that ends: its standard input stays open for as long as both live.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(job.threads)} if job.device == "cpu" else {})
    command = [sys.executable, str(ROOT / "benchmarks" / "methods_measure.py"), "--with-parent"]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as child,
    ):
        assert child.stdin is not None and child.stdout is not None
        with suppress(BrokenPipeError):  # it ended before it read: the exit code says so
            os.write(child.stdin.fileno(), f"{json.dumps(asdict(job))}\n".encode())
        printed, code = child.stdout.read(), child.wait()
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:] or ["no message"]
    if code == 0:
        return json.loads(printed.splitlines()[-1])
    return {"outcome": "failed", "reason": f"exit code {code}: {last[0]}"}


def read_journal(journal: Path) -> dict[str, dict[str, Any]]:
    """Return the last record of each key. An unfinished line of a killed run is skipped."""
    records = {}
    for line in filter(None, journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []):
        try:
            record = json.loads(line)
            records[record["key"]] = record
        except (ValueError, KeyError, TypeError):
            print(f"{journal.name}: passed over a line that is no record: {line[:60]!r}")
    return records


def run_missing(jobs: Iterable[Job], journal: Path, n_at_once: int, start: Start) -> dict[str, dict[str, Any]]:
    """Run the jobs without a result in the journal, appending each as it ends. Returns all records by key."""
    records = read_journal(journal)
    todo = {job.key: job for job in jobs if records.get(job.key, {}).get("outcome") not in ENDED}
    journal.parent.mkdir(parents=True, exist_ok=True)
    begun = perf_counter()
    with ThreadPoolExecutor(n_at_once) as pool, journal.open("a", encoding="utf-8") as file:
        file.write("\n" if journal.stat().st_size else "")  # ends an unfinished line of a killed run
        futures = {pool.submit(start, job): key for key, job in todo.items()}
        try:
            for n, future in enumerate(as_completed(futures), start=1):
                key = futures[future]
                result, row = future.result(), todo[key].row
                what = "speed" if todo[key].reference else f"seed {todo[key].recipe['seed']}"
                result["reason"] = without_folders(result.get("reason") or "") or None
                records[key] = {"key": key, "row": row, "what": what, **result}
                file.write(json.dumps(records[key]) + "\n")
                file.flush()
                score = f", map {result['map']:.3f}" if result.get("map") is not None else ""
                end = result["outcome"] + score + (f": {result['reason']}" if result["reason"] else "")
                print(f"[{n}/{len(todo)}, {perf_counter() - begun:.0f} s] {row}, {what}: {end}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return records


# --- the command -----------------------------------------------------------------------------------------------------


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``name=value`` pairs; a value is JSON, or else text. Raises ConfigError."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"a setting must be name=value; got {pair!r}")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe's YAML; without PyYAML only plain ``name: value`` lines, as in trials/."""
    try:
        import yaml
    except ImportError:
        lines = [line.partition("#")[0].partition(":") for line in path.read_text(encoding="utf-8").splitlines()]
        return settings([f"{name.strip()}={value.strip()}" for name, colon, value in lines if colon])
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def base_recipe(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Recipe:
    """Return the recipe of all rows, without learning rate and options, which each method has. Raises ConfigError."""
    if options := [name for name in changes if "." in name]:
        raise ConfigError(f"--set is for fields of all rows; for an option, --also METHOD:NAME=VALUE; got {options}")
    own = {name: value for name, value in values.items() if name not in ("method", "options", "lr", "origin")}
    return Recipe().configured({**own, **changes})


def make_rows(base: Recipe, texts: Sequence[str]) -> dict[str, Recipe]:
    """Return the recipe of each row by name.

    Args:
        texts: rows as ``METHOD[:name=value ...]``, with fields of a recipe or options of the method.

    Raises:
        ConfigError: there is no such method, field or option, or a value is out of range.
    """
    own = {field.name for field in fields(Recipe)}
    rows = {}
    for text in texts:
        method, *pairs = text.split(":")
        changes = {name if name in own else f"{method}.{name}": value for name, value in settings(pairs).items()}
        recipe = replace(base, method=method, options={}).configured(changes)
        get_method(method).make_options(recipe.options)
        rows[" ".join((method, *pairs))] = recipe
    return rows


def open_data(args: argparse.Namespace, needed: bool) -> tuple[DetectionData | None, str, str | None]:
    """Return (data, its name and hash, its folder), or (None, "random", None) if it is neither given nor needed."""
    folder = args.data or ("demo" if needed else None)
    if folder is None:
        return None, "random", None
    if folder == "demo":
        folder = str(write_demo(catalog.default_home() / "demo-data"))
    data = first_images(load_data(folder)[0], args.limit)
    files = b"".join(split.annotation_file.read_bytes() for split in data.splits.values())
    return data, f"{data.folder.name} {hashlib.sha256(files).hexdigest()[:12]}", folder


def make_jobs(
    args: argparse.Namespace, rows: dict[str, Recipe], full: Recipe, accuracy_on: tuple[str, str | None],
    speed_on: tuple[str, str | None], device: str,
) -> tuple[dict[str, list[Job]], dict[str, Job]]:  # fmt: skip
    """Return by row the accuracy trials, one per seed (none without a folder), and by row the speed job."""
    common: dict[str, Any] = {"limit": args.limit, "device": device, "threads": args.threads}
    trials, speeds = {}, {}
    for name, recipe in rows.items():
        seeds = range(recipe.seed, recipe.seed + (args.seeds if accuracy_on[1] else 0))
        epochs = args.epochs or recipe.search_epochs
        common["start"] = start_digest(recipe)
        trials[name] = [
            Job(name, replace(recipe, seed=seed).to_dict(), *accuracy_on, epochs=epochs, **common) for seed in seeds
        ]
        speeds[name] = Job(
            name, recipe.to_dict(), *speed_on, rounds=args.rounds, steps=args.steps, reference=full.to_dict(), **common
        )
    return trials, speeds


def worst_shape(recipe: Recipe, data: DetectionData | None) -> InputShape:
    """Return the shape of the largest training batch; without data, of random images."""
    if data is None:
        return worst_input(recipe, max_boxes=N_RANDOM_BOXES)
    sizes = {(image.height, image.width) for split in data.splits.values() for image in split.images}
    return worst_input(recipe, tuple(sorted(sizes)), data.summary()["max_boxes"])


def device_name(records: Iterable[dict[str, Any]]) -> str:
    """Return the name of the GPU in the results, else of the processor."""
    gpus = {record["gpu"] for record in records if record.get("gpu")}
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    processor = f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"
    return ", ".join(sorted(gpus)) or processor


def benchmark(args: argparse.Namespace, argv: Sequence[str], start: Start) -> dict[str, Any]:
    """Run the missing jobs. Returns the content of the JSON file. Raises UserError before anything runs."""
    device = choose_device(args.device).type
    size = args.size or ("gpu" if device == "cuda" else "small")
    shipped, changes = SIZES[size]
    values = read_recipe(args.recipe) if args.recipe else read_recipe(ROOT / "trials" / f"{shipped}.yaml") | changes
    on_random = size == "gpu" and not args.recipe
    data, dataset, folder = open_data(args, needed=not on_random)
    if data is None and args.phase == "accuracy":
        raise ConfigError("--phase accuracy needs --data")
    if device == "cuda" and args.jobs > 1:
        raise ConfigError(f"--jobs must be 1 on a GPU, whose memory is measured; got {args.jobs}")
    base = base_recipe(values | {"data": data.folder.name if data else "random"}, settings(args.set))
    rows = make_rows(base, [*filter(None, args.methods.split(",")), *args.also])
    clocked, n_classes = (None, N_RANDOM_CLASSES) if on_random or data is None else (data, len(data.class_names))
    # predict first: a detector that cannot be built fails here, not after hours
    estimates = {name: predict(recipe, n_classes, worst_shape(recipe, clocked)) for name, recipe in rows.items()}
    trials, speeds = make_jobs(
        args, rows, replace(base, method="full"), (dataset, folder),
        ("random", None) if clocked is None else (dataset, folder), device,
    )  # fmt: skip

    journal = args.out.with_suffix(".jsonl")
    if args.phase != "speed":  # seed by seed, so that an interrupted run has compared all methods
        turns = [jobs[n] for n in range(args.seeds) for jobs in trials.values() if jobs]
        run_missing(turns, journal, args.jobs, start)
    if args.phase != "accuracy":
        run_missing(speeds.values(), journal, 1, start)

    records = read_journal(journal)
    found = {name: [records[job.key] for job in jobs if job.key in records] for name, jobs in trials.items()}
    clocks = {name: records.get(job.key, {}) for name, job in speeds.items()}
    table_rows = [summarise(name, asdict(estimates[name]), found[name], clocks[name]) for name in rows]
    for row, recipe in zip(table_rows, rows.values(), strict=True):
        spared = predict(replace(recipe, recompute="neck"), n_classes, worst_shape(recipe, clocked))
        row["active_bytes_neck_recomputed"] = spared.active_bytes
    relate(table_rows)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"python benchmarks/methods.py {without_folders(shlex.join(argv))}",
        "versions": {"cst_search": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__,
                     "python": platform.python_version()},
        "device": device_name([*clocks.values(), *(record for each in found.values() for record in each)]),
        "threads": args.threads if device == "cpu" else None,
        "jobs": args.jobs,
        "dataset": data and {"name": dataset, **data.summary()},
        "speed_and_memory_on": {"images": speeds[next(iter(rows))].dataset, **asdict(worst_shape(base, clocked))},
        "epochs": args.epochs or base.search_epochs,
        "n_seeds": args.seeds,
        "rounds": args.rounds,
        "steps": args.steps,
        "lr": {name: get_method(recipe.method).lr if recipe.lr is None else recipe.lr for name, recipe in rows.items()},
        "recipe": json.loads(without_folders(json.dumps(base.to_dict()))),
        "rows": table_rows,
        "results": [record for name in rows for record in (*found[name], clocks[name]) if record],
    }  # fmt: skip


def parse(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description="Methods side by side: mAP, memory, parameters, size on disk, speed.")
    add = parser.add_argument
    add("--data", metavar="DIR", help="COCO-format folder, or demo [default: demo; with --size gpu none]")
    add("--size", choices=SIZES, help="small: ResNet-18, 240 px; gpu: ResNet-50, 800 px, clocked on random images")
    add("--recipe", type=Path, metavar="YAML", help="another recipe, clocked on images of --data")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a recipe field of all rows")
    add("--methods", default=",".join(METHODS), metavar="A,B", help="[default: all]")
    add("--also", action="append", default=[], metavar="METHOD:NAME=VALUE", help="a row more; :NAME=VALUE may repeat")
    add("--seeds", type=int, default=3, metavar="N", help="accuracy trials of a row [default: 3]")
    add("--epochs", type=int, metavar="N", help="[default: the recipe's search_epochs]")
    add("--phase", choices=("accuracy", "speed", "both"), default="both")
    add("--rounds", type=int, default=7, metavar="N", help="of speed, each with the row and with full [default: 7]")
    add("--steps", type=int, default=3, metavar="N", help="of a round [default: 3]")
    add("--jobs", type=int, default=1, metavar="N", help="accuracy trials at a time, on a CPU [default: 1]")
    add("--threads", type=int, default=1, metavar="N", help="of one process, on a CPU [default: 1]")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--out", type=Path, default=ROOT / "benchmarks" / "results" / "methods.json", metavar="JSON")
    add("--limit", type=int, metavar="N", help="the first N images of each split only: to try something")
    add("--dry-run", action="store_true", help="one seed, epoch, round and step, four images, into a temporary folder")
    args = parser.parse_args(argv)
    if args.dry_run:
        args.seeds = args.epochs = args.rounds = args.steps = 1
        args.limit, args.out = 4, Path(tempfile.mkdtemp()) / "dry-run.json"
    return parser, args


def main(argv: Sequence[str], start: Start = in_child) -> None:
    parser, args = parse(argv)
    try:
        content = benchmark(args, argv, start)
    except UserError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    on = f"{content['dataset']['name']}, epochs: {content['epochs']}" if content["dataset"] else "random images"
    print(f"\n{content['device']}; {on}\n")
    print(table(content["rows"]))
    for row in content["rows"]:
        for reason in row["reasons"]:
            print(f"{row['row']}: {reason}")
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
