"""Several data sets in one storage budget: searches, three plans with their bundles, and full fine-tuning beside them.

    python benchmarks/seven_tasks.py DATA... --home runs/seven --results benchmarks/results/seven-tasks.json

Everything is done by commands of the product: one `launch` of all data sets, `allocate --train` at three budgets, and a
`train` with method full for each data set. Each of them goes on after a stop, and so does this script: the same command
skips what is whole. The budgets are those at which the best plan has half, 85 % and all of the gain in mean mAP that
storage buys; a point of several plans is trained once. Compared are mAPs on ``val`` after full training, which also
chose the points; the seed is one.

--set changes fields of the recipe for the searches, the plans and the full fine-tuning alike, as in
``--set epochs=8 --set image_size_px=128``. --quick is a dry run of minutes: two trials of one epoch at 64 px.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GAINS = (0.5, 0.85, 1.0)
QUICK = ["epochs=1", "search_epochs=1", "image_size_px=64", "max_size_px=64"]


def run(*words: str, journal: Path) -> str:
    """Run a cst-search command and return its standard output. Its messages are shown; times go to the journal."""
    begun = time.monotonic()
    command = [sys.executable, "-m", "cst_search.cli", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    entry = {"command": words[0], "seconds": round(time.monotonic() - begun, 1), "code": done.returncode}
    with journal.open("a") as file:
        file.write(json.dumps(entry) + "\n")
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}; the same command of this script goes on")
    return done.stdout


def flags(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def chosen_budgets(curve: list[dict[str, Any]]) -> list[int]:
    """Return the bytes at which the best plan has each of `GAINS` of the gain from the smallest to the best plan."""
    low, high = curve[0]["value"], curve[-1]["value"]
    wanted = [low + gain * (high - low) - 1e-9 for gain in GAINS]
    return sorted({next(plan["total_bytes"] for plan in curve if plan["value"] >= value) for value in wanted})


def fully_trained(folder: Path, out: Path, args: argparse.Namespace, journal: Path) -> dict[str, Any]:
    """Fine-tune all of the detector on a data set, unless that was done. Returns its val scores and bytes."""
    if not (out / "metrics.json").exists():
        settings = flags([*args.settings, "method=full", f"lr={args.full_lr}"])
        run("train", args.recipe, "--data", str(folder), "--out", str(out), "--home", str(args.home), *settings,
            "--device", args.device, "--quiet", journal=journal)  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text())
    return metrics["final"]["val"] | {"bytes": (out / "weights.safetensors").stat().st_size}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything that is still missing, and return the results without paths of this machine."""
    args.home.mkdir(parents=True, exist_ok=True)
    journal = args.home / "journal.jsonl"
    names = [f"seven-{folder.name}" for folder in args.data]
    common = ["--home", str(args.home), "--device", args.device]
    searched = args.home / f"searched-{args.trials}"  # written when the searches are complete
    if not searched.exists():
        data = [word for folder in args.data for word in ("--data", str(folder))]
        settings = [*flags(args.settings), *(["--in-process"] if args.in_process else [])]
        run("launch", *data, "--study", "seven", "--recipe", args.recipe, "--space", args.space, *common, *settings,
            "--budget-mem", args.budget_mem, "--trials", str(args.trials), "--json", journal=journal)  # fmt: skip
        searched.touch()
    every = json.loads(run("allocate", *names, "--budget-storage", "1TB", *common, "--json", journal=journal))
    plans = []
    for budget in chosen_budgets(every["curve"]):
        words = ["--budget-storage", f"{budget}B", "-o", str(args.home / "plan"), "--train", "--json"]
        report = json.loads(run("allocate", *names, *common, *words, journal=journal))
        tasks = {
            name: {"trial": report["tasks"][name]["trial"], "config": report["tasks"][name]["config"],
                   "search_map": report["tasks"][name]["map"], "map": one["val"]["map"], "bytes": one["bytes"]}
            for name, one in report["trained"].items()
        }  # fmt: skip
        plans.append({"budget_bytes": budget, "bundle_bytes": report["bundle"]["total_bytes"], "tasks": tasks})
    full = {
        name: fully_trained(folder, args.home / "full" / name, args, journal)
        for name, folder in zip(names, args.data, strict=True)
    }
    return {"recipe": Path(args.recipe).name, "space": Path(args.space).name, "trials": args.trials,
            "settings": args.settings, "curve": every["curve"], "plans": plans, "full": full,
            "journal": [json.loads(line) for line in journal.read_text().splitlines()]}  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table: mAP of each task in each plan, and of its own full fine-tuning."""
    plans, full = results["plans"], results["full"]
    heads = [f"{plan['bundle_bytes'] / 1e6:.2f} MB" for plan in plans]
    whole = sum(one["bytes"] for one in full.values())
    lines = [f"| task | {' | '.join(heads)} | full, {whole / 1e6:.1f} MB |", "|---" * (len(plans) + 2) + "|"]
    for name, own in full.items():
        cells = [f"{plan['tasks'][name]['map']:.3f}" for plan in plans]
        lines.append(f"| {name.removeprefix('seven-')} | {' | '.join(cells)} | {own['map']:.3f} |")
    means = [sum(task["map"] for task in plan["tasks"].values()) / len(full) for plan in plans]
    mean_full = sum(one["map"] for one in full.values()) / len(full)
    lines.append(f"| mean | {' | '.join(f'{mean:.3f}' for mean in means)} | {mean_full:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=lambda text: Path(text).absolute(), nargs="+", metavar="DATA")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--space", default="petl")
    parser.add_argument("--budget-mem", default="6GB")
    parser.add_argument("--trials", type=int, default=16, help="for each data set")
    parser.add_argument("--full-lr", type=float, default=1e-3, help="learning rate of full fine-tuning")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="NAME=VALUE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.trials, args.settings = min(args.trials, 2), [*QUICK, *args.settings]
    results = measure(args)
    if args.results is not None:
        args.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
