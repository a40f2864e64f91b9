"""Run one trial from a plain shell; see `cst_search.trial.run`.

python -m cst_search.trial trials/demo.yaml --data DIR
"""

from __future__ import annotations

# ruff: noqa: E402  # what is set here must be set before torch is imported
import argparse
import json
import sys
from pathlib import Path

from cst_search.cores import wait_passively

wait_passively()

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import load_data
from cst_search.data.density import with_detections
from cst_search.data.disk_cache import Cache, default_bound
from cst_search.data.options import ReadOptions
from cst_search.errors import UserError
from cst_search.import_path import leave_working_folder
from cst_search.trial.device import check_bound, choose_device
from cst_search.trial.run import run_trial
from cst_search.units import parse_bytes


def main() -> None:
    """Run the trial that the command line describes; print a line of JSON per epoch, then the result."""
    leave_working_folder()
    import yaml  # only this command needs PyYAML

    parser = argparse.ArgumentParser(description="Run one trial without ray, optuna or mlflow and print its result.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit-mem", help="memory limit as in cst-search launch, e.g. 6GB")
    parser.add_argument(
        "--cache", type=Path, help="folder for resized images and feature maps of the frozen backbone, up to 10 GB"
    )
    args = parser.parse_args()
    try:
        limit = args.limit_mem and check_bound(parse_bytes(args.limit_mem), choose_device(), "--limit-mem")
        recipe = Recipe.from_dict(yaml.safe_load(args.recipe.read_text()), by_hand=True)
        data, report = load_data(args.data, ReadOptions.of(recipe))
        recipe = with_detections(recipe, data)
    except UserError as error:
        parser.exit(error.exit_code, f"{error}\n")
    if report.notes:
        print(report.render(), file=sys.stderr)
    result = run_trial(
        recipe, data, epochs=args.epochs, memory_limit_bytes=limit,
        cache=args.cache and Cache(args.cache, default_bound(args.cache)),
        report=lambda entry: print(json.dumps(entry), flush=True),
    )  # fmt: skip
    print(json.dumps(result.to_dict(), indent=2))


if __name__ == "__main__":
    main()
