"""Run the same search as a plain script: Ray Tune, its OptunaSearch and its MLflow callback, as their guides show.

    python benchmarks/stock.py --home DIR --trials 24    (draws DIR/demo-data where it is not there; JSON at the end)

`wall.py` and `real.py` compare a launch with this script: same trial function, recipe, data, space
(search_spaces/cst.yaml), workers and threads. OptunaSearch gets several metrics and a define-by-run space; its study
stays in memory and its sampler is Optuna's default, as in Ray's example. MLflow writes to a SQLite file. Tune keeps its
own files and tables. Actors are not reused: that is Tune's default, and its reference recommends reuse for experiments
that start and stop actors often. `--reuse-actors` serves for comparison. There is no budget: OptunaSearch has no
constraints, so every trial runs to its end.
"""

import argparse
import json
from pathlib import Path

import ray
import torch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.search.optuna import OptunaSearch

from cst_search.commands.dataset import image_sizes
from cst_search.config.loading import apply_settings, load_recipe
from cst_search.data.dataset import load_data
from cst_search.data.demo import write_demo
from cst_search.memory.estimate import worst_input
from cst_search.trial.cost import predict
from cst_search.trial.run import run_trial

METRICS = {"map": "max", "device_bytes": "min", "trainable_params": "min"}


def space(trial):
    trial.suggest_categorical("cst.reduction", [1, 2, 4, 8, 16])
    trial.suggest_categorical("cst.granularity", ["stage", "block"])
    trial.suggest_categorical("cst.block", ["3x3", "depthwise", "bottleneck", "1x1"])
    trial.suggest_categorical("cst.norm", ["gn", "bn", "none"])
    trial.suggest_categorical("cst.mtc_stages", ["2345", "345", "45", "5", "3", "2"])
    trial.suggest_categorical("cst.operator", ["max", "lst", "tanh"])
    trial.suggest_categorical("cst.gate", ["scalar", "channel"])
    trial.suggest_float("cst.gate_init", -1.39, 1.39)
    trial.suggest_float("cst.temperature", 0.05, 1.0, log=True)
    trial.suggest_categorical("batch_size", [2, 4, 8])
    trial.suggest_categorical("image_size_px", [64, 96, 128])
    trial.suggest_categorical("recompute", ["none", "neck"])
    trial.suggest_categorical("neck", ["train", "norm", "lora", "frozen"])
    trial.suggest_categorical("head", ["train", "norm", "lora", "predictor"])
    trial.suggest_categorical("augment", ["none", "light"])
    trial.suggest_float("lr", 1e-3, 2e-2, log=True)
    return {"method": "cst"}


def train(config, recipe, data, threads):
    torch.set_num_threads(threads)
    recipe = recipe.configured(config | {"cst.mtc_stages": tuple(map(int, config["cst.mtc_stages"]))})
    cost = predict(recipe, len(data.class_names), worst_input(recipe, image_sizes(data), data.summary()["max_boxes"]))
    result = run_trial(recipe, data, epochs=recipe.search_epochs, device="cpu")
    costs = {"device_bytes": cost.device_bytes, "trainable_params": cost.trainable_params}
    tune.report({"map": result.map, **costs, "train_seconds": result.train_seconds})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=lambda text: Path(text).absolute(), required=True)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the recipe")
    parser.add_argument("--data", type=Path, help="folder of a data set instead of the demo")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--seconds", type=float, help="after which Tune ends, whatever runs")
    parser.add_argument("--points", type=Path, help="JSON list of configurations to try first")
    parser.add_argument("--reuse-actors", action="store_true")
    args = parser.parse_args()
    data, _ = load_data(args.data or write_demo(args.home / "demo-data"))
    recipe = apply_settings(load_recipe(args.recipe), args.set, args.recipe)
    points = json.loads(args.points.read_text()) if args.points else None
    ray.init("local", num_cpus=args.workers * args.threads)
    results = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(train, recipe=recipe, data=data, threads=args.threads), {"cpu": args.threads}
        ),
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(
                space, metric=list(METRICS), mode=list(METRICS.values()), seed=args.seed, points_to_evaluate=points
            ),
            num_samples=args.trials,
            time_budget_s=args.seconds,
            max_concurrent_trials=args.workers,
            reuse_actors=args.reuse_actors,
        ),
        run_config=tune.RunConfig(
            storage_path=str(args.home / "ray"),
            callbacks=[MLflowLoggerCallback(f"sqlite:///{args.home}/mlflow.db", experiment_name="stock")],
        ),
    ).fit()
    kept = ("map", "device_bytes", "trainable_params", "train_seconds")
    print(
        json.dumps([{"config": result.config} | {k: (result.metrics or {}).get(k) for k in kept} for result in results])
    )


if __name__ == "__main__":
    main()
