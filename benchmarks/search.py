"""Compare samplers by hypervolume over training epochs: ours, with and without early stopping, and the alternatives.

    python benchmarks/search.py --phase table [--seeds 20] [--jobs 2]      replays results/search-table.json.gz
    python benchmarks/search.py --phase problems [--seeds 5] [--jobs 2]    public problems (pip install pymoo)

The table (see `search_table.py`) holds real results of random configurations. A search asks for other configurations,
so a surrogate answers: it is fitted to all rows, over configuration and costs, with one output per epoch. The added
noise is drawn from the residuals of left-out rows, all epochs of a row together. There are two surrogates: a Gaussian
process (the default: it predicts left-out rows best) and extremely randomised trees. The first belongs to the family of
our sampler's own model; the second has steps that no sampler's model has. A search is judged by the hypervolume of the
surrogate's noiseless values, so lucky noise earns nothing. Costs are exact.

The prior of our sampler excludes the table's own dataset.

[Rasmussen2006] C. E. Rasmussen, C. K. I. Williams. Gaussian processes for machine learning. MIT Press, 2006.

Trials run one at a time. Samplers with constraints learn before a trial, at no cost, if it is over the memory budget.
Stock Ray Tune and MOASHA have no constraints: they train such a trial as if memory sufficed, and it does not count.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import multiprocessing
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from cst_search.commands.study_setup import first_configs
from cst_search.config.loading import load_recipe, load_space, make_recipe, parse_settings
from cst_search.config.search_space import Space
from cst_search.memory.estimate import worst_input
from cst_search.search.early_stopping import Rungs, rung_epochs
from cst_search.search.gaussian_process import Model, kernel
from cst_search.search.optuna_space import layout, pick
from cst_search.search.pareto_sampler import KnownValues, ParetoSampler
from cst_search.search.samplers import pareto_sampler
from cst_search.search.transfer_prior import FILE, Prior, expectations
from cst_search.study.objectives import choose_objectives
from cst_search.study.parameters import params_of
from cst_search.study.records import Budget, StudySpec
from cst_search.study.study import ETA
from cst_search.trial.cost import depends_on, predict_step
from cst_search.trial.default_config import default_config

TABLE = Path("benchmarks/results/search-table.json.gz")
OBJECTIVES = choose_objectives("map,device_bytes,trainable_params")
SMALL = 20  # a table with fewer rows has no budget
LEAST_SOURCE = 8  # configurations; as few as of a study that becomes a source

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore")


# --- the surrogate ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Cost from the memory model at the time the tables were made, so that results do not change with the model."""

    device_bytes: int
    active_bytes: int
    trainable_params: int
    petl_params: int


class Table:
    """Real results of configurations on one data set (see `search_table.py`), and the exact cost of any configuration.

    Attributes:
        truth: mAP after each epoch, ``rows x epochs``.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        self.data = table.get("data", "demo")
        named = isinstance(table["recipe"], str)
        recipe = load_recipe(table["recipe"]) if named else make_recipe(table["recipe"], f"table of {self.data}")
        self.recipe = recipe = replace(recipe, **table["settings"])
        self.configs = [row["config"] for row in table["rows"]]
        self.space = _varied(load_space(table["space"], recipe), self.configs)
        rows = table["rows"]
        costs = [(row["device_bytes"], row["trainable_params"]) for row in rows]
        # half of the configurations are within the budget; all of a small table
        median = int(statistics.median(cost[0] for cost in costs))
        self.budget = Budget(memory_bytes=None if len(rows) < SMALL else median)
        self.reference = {
            "map": 0.0,
            "device_bytes": self.budget.memory_bytes or max(c[0] for c in costs) * 1.05,
            "trainable_params": max(c[1] for c in costs) * 1.05,
        }
        self.spec = StudySpec(
            objectives=OBJECTIVES,
            budget=self.budget,
            reference_point=self.reference,
            recipe=recipe.to_dict(),
            space=dict(self.space.source),
            data=self.data,
            seed=0,
            sampler="pareto",
            target_device="cpu",
        )
        self.layout = layout(self.space)

        @lru_cache(maxsize=100_000)
        def cost(text: str) -> Cost:
            configured = recipe.configured(json.loads(text))
            shape = worst_input(configured, tuple(map(tuple, table["sizes"])), table["max_boxes"])
            step = predict_step(configured, table["n_classes"], shape, workspaces=False)
            return Cost(
                round(1.10 * step.active_bytes) + 564_000_000,
                step.active_bytes,
                step.trainable_params,
                step.petl_params,
            )

        def cost_of(config: dict[str, Any]) -> Cost:
            return cost(json.dumps({k: v for k, v in config.items() if depends_on(k)}, sort_keys=True))

        self.cost = cost_of
        self.epochs: int = table["settings"]["search_epochs"]
        every = table["settings"].get("eval_every", 1)
        evaluated = [row["map"][every - 1 :: every] if len(row["map"]) == self.epochs else row["map"] for row in rows]
        self.truth = np.repeat(evaluated, every, axis=1)  # an epoch without an evaluation has the value of the next one

    def codes(self, config: dict[str, Any]) -> np.ndarray:
        """Return a configuration in the sampler's columns, one-hot and scaled."""
        params: dict[str, Any] = {}
        try:
            self.space.configure(lambda d: params.setdefault(d.name, _of(config, d.key)))
        except KeyError as error:
            sys.exit(f"the table lacks {error}: it is of an earlier space; make one with benchmarks/search_table.py")
        labels = {k: json.dumps(list(v)) if isinstance(v, list | tuple) else v for k, v in params.items()}
        return self.layout.encode(self.layout.row(labels)[None])

    def violation(self, config: dict[str, Any]) -> float:
        return max(0.0, self.budget.violations({"device_bytes": self.cost(config).device_bytes})["memory"])


def _varied(space: Space, configs: Sequence[dict[str, Any]]) -> Space:
    """Return a space without the dimensions that configurations lack: those of tables that are older than these."""
    lacking = {d.key for d in space.dimensions() if d.key != Space.METHOD}
    lacking -= {key for config in configs for key in config}
    content: dict[str, Any] = {}
    for name, section in space.source.items():
        prefix = "" if name == "shared" else f"{name}."
        content[name] = section if name == "methods" else {
            key: rule for key, rule in section.items() if not {key, prefix + key} & lacking
        }  # fmt: skip
    return Space.from_dict(content)


def read_table(path: Path) -> dict[str, Any]:
    """Read a table of `search_table.py` (``.json.gz``), or one of `methods.py`: each row's mean over seeds."""
    if path.suffix == ".gz":
        with gzip.open(path, "rt") as file:
            return json.load(file)
    content = json.loads(path.read_text())
    recipe, data = make_recipe(content["recipe"], str(path)), content["dataset"]
    space = load_space("petl", recipe)
    width, height = data["largest_image_px"]
    table: dict[str, Any] = {
        "data": data["name"].split()[0], "recipe": recipe.to_dict(), "space": "petl",
        "settings": {"search_epochs": recipe.search_epochs},
        "n_classes": data["n_classes"], "sizes": [[height, width]], "max_boxes": data["max_boxes"], "rows": [],
    }  # fmt: skip
    for row in content["rows"]:
        found = [r["map"] for r in content["results"] if r["row"] == row["row"] and r.get("map") is not None]
        method, *settings = row["row"].split()
        config = default_config(space, recipe, method) | parse_settings(settings) | {"lr": content["lr"][row["row"]]}
        configured = recipe.configured(config)
        shape = worst_input(configured, ((height, width),), data["max_boxes"])
        step = predict_step(configured, data["n_classes"], shape, workspaces=False)
        table["rows"].append({
            "config": config, "map": [statistics.mean(found)] * recipe.search_epochs,
            "device_bytes": round(1.10 * step.active_bytes) + 564_000_000, "trainable_params": step.trainable_params,
        })  # fmt: skip
    return table


def shipped_priors(table: Table) -> list[Callable[[np.ndarray], np.ndarray]]:
    """Return what the shipped sources expect, as if neither the table's data set nor its configurations were there.

    Lengthscales are fitted to each source alone, since the shipped ones know all sets. A source of which fewer than
    `LEAST_SOURCE` configurations are left is dropped.
    """
    with gzip.open(FILE, "rt") as file:
        groups = json.load(file)["groups"]
    seen, found = {_digits(config) for config in table.configs}, []
    for group in groups:
        space = Space.from_dict(group["space"])
        for source in group["tables"]:
            rows = [(row["config"], row["map"]) for row in source["rows"] if _digits(row["config"]) not in seen]
            if source["data"] != table.data and len(rows) >= LEAST_SOURCE:
                found.append(Prior(space, {source["data"]: rows}))
    return expectations(found, table.space)


def _digits(config: dict[str, Any]) -> str:
    """Return a configuration as text, numbers in the digits of the shipped sources."""
    kept = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in config.items()}
    return json.dumps(kept, sort_keys=True)


class World(Table):
    """A simulated search: a surrogate, fitted to a table, gives the result of any configuration of the space."""

    def __init__(self, table: dict[str, Any], surrogate: str) -> None:
        super().__init__(table)
        self.priors = shipped_priors(self)
        fit = {"gp": _process, "trees": _trees}[surrogate]
        x = np.stack([self._features(config) for config in self.configs])
        self.surrogate, self.residuals = fit(x, self.truth)
        # spread between seeds (benchmarks/results/methods-bccd.json); the rest of a residual is not noise
        self.noise = SEED_STD / float(self.residuals[:, -1].std())
        self._map = lru_cache(maxsize=100_000)(lambda text: self.surrogate(self._features(json.loads(text))[None])[0])

    def _features(self, config: dict[str, Any]) -> np.ndarray:
        estimate = self.cost(config)
        logs = [math.log(getattr(estimate, name) + 1) for name in ("active_bytes", "trainable_params", "petl_params")]
        return np.append(self.codes(config), logs)

    def curve(self, config: dict[str, Any]) -> np.ndarray:
        """Return the mAP after each epoch, without noise."""
        return self._map(json.dumps(config, sort_keys=True))


Surrogate = Callable[[np.ndarray], np.ndarray]


def _trees(x: np.ndarray, y: np.ndarray) -> tuple[Surrogate, np.ndarray]:
    """Fit extremely randomised trees. Returns (function from rows to y, residuals of left-out rows)."""
    from sklearn.ensemble import ExtraTreesRegressor

    trees = ExtraTreesRegressor(300, min_samples_leaf=2, bootstrap=True, oob_score=True, random_state=0)
    trees.fit(x, y)
    return trees.predict, y - trees.oob_prediction_


def _process(x: np.ndarray, y: np.ndarray) -> tuple[Surrogate, np.ndarray]:
    """Fit a Gaussian process. Returns (function from rows to y, residuals of left-out rows).

    Lengthscales and noise are those of the last epoch; leaving one out is exact [Rasmussen2006, 5.4.2].
    """
    low, span = x.min(axis=0), np.maximum(np.ptp(x, axis=0), 1e-12)
    unit, mean, std = (x - low) / span, y.mean(axis=0), y.std(axis=0)
    model = Model()
    model.fit(unit, y[:, -1], np.zeros(len(y)), tune=True)
    theta = model.theta
    assert theta is not None
    inverse = np.linalg.inv(kernel(theta, unit, unit) + (math.exp(theta[-1]) + 1e-8) * np.eye(len(unit)))
    weights = inverse @ ((y - mean) / std)
    residuals = weights / np.diag(inverse)[:, None] * std
    return lambda rows: kernel(theta, (rows - low) / span, unit) @ weights * std + mean, residuals


def _of(config: dict[str, Any], key: str) -> Any:
    return tuple(config[key]) if isinstance(config[key], list) else config[key]


@dataclass
class Ledger:
    """Epochs that a search has spent, and its full-length trials.

    Attributes:
        steps: (epochs spent, noiseless mAP, device bytes, trainable parameters) of each feasible full-length trial.
    """

    world: World
    rng: np.random.Generator
    epochs: int = 0
    steps: list[tuple[float, ...]] = field(default_factory=list)

    def noisy(self, config: dict[str, Any]) -> np.ndarray:
        """Return the mAP after each epoch with noise, as a trial would see it."""
        residual = self.world.residuals[self.rng.integers(len(self.world.residuals))]
        return np.clip(self.world.curve(config) + self.world.noise * residual, 0.0, 1.0)

    def completed(self, config: dict[str, Any]) -> None:
        cost = self.world.cost(config)
        if self.world.violation(config) <= 0:
            self.steps.append((self.epochs, self.world.curve(config)[-1], cost.device_bytes, cost.trainable_params))


SEED_STD = 0.012  # standard deviation of mAP between seeds of a configuration


# --- searches --------------------------------------------------------------------------------------------------------


def optuna_search(
    world: World,
    ledger: Ledger,
    sampler: optuna.samplers.BaseSampler,
    budget: int,
    curves: dict[int, dict[int, float]],
    eta: int = 0,
    first: Sequence[dict[str, Any]] = (),
) -> None:
    """Search with an Optuna sampler by ask and tell; with ``eta``, trials are stopped and promoted at rungs.

    Those in ``first`` run to their end, as the references of a launch do.
    """
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    for params in first:
        study.enqueue_trial(params)
    rungs = Rungs(OBJECTIVES, rung_epochs(world.epochs, eta) if eta else (), eta or ETA)
    open_trials: dict[int, tuple[Any, dict[str, Any], np.ndarray, int]] = {}
    while ledger.epochs < budget:
        number = rungs.promotable(list(open_trials))
        if number is not None:
            trial, config, noisy, at = open_trials.pop(number)
        else:
            trial = study.ask()
            config = world.space.configure(lambda d, trial=trial: pick(trial, d))
            over = world.violation(config)
            trial.set_constraint("memory", over)
            if over > 0:
                cost = world.cost(config)
                study.tell(trial, [-math.inf, cost.device_bytes, cost.trainable_params])
                continue
            noisy, at, number = ledger.noisy(config), 0, trial.number
        cost = world.cost(config)
        while at < world.epochs:
            at += 1
            ledger.epochs += 1
            if at in rungs.epochs:
                curves.setdefault(number, {})[at] = float(noisy[at - 1])
                rungs.report(number, at, [noisy[at - 1], cost.device_bytes, cost.trainable_params], 0.0)
                if number >= len(first) and not rungs.goes_on(number, at):
                    open_trials[number] = trial, config, noisy, at
                    break
        else:
            study.tell(trial, [float(noisy[-1]), cost.device_bytes, cost.trainable_params])
            ledger.completed(config)


def stock_ray(world: World, ledger: Ledger, seed: int, budget: int) -> None:
    """Search with Ray Tune's unchanged OptunaSearch and several metrics, called directly; suggestions are Ray's own."""
    from ray.tune.search.optuna import OptunaSearch

    def space(trial: optuna.Trial) -> None:
        world.space.configure(lambda d: pick(trial, d))

    searcher = OptunaSearch(
        space=space, metric=["map", "device_bytes", "trainable_params"], mode=["max", "min", "min"], seed=seed
    )
    n = 0
    while ledger.epochs < budget:
        n += 1
        params = searcher.suggest(str(n))
        flat = searcher._ot_trials[str(n)].params
        config = world.space.configure(lambda d, flat=flat: _value_of(d, flat[d.name]))
        del params
        cost, noisy = world.cost(config), ledger.noisy(config)
        ledger.epochs += world.epochs
        result = {"map": float(noisy[-1]), "device_bytes": cost.device_bytes, "trainable_params": cost.trainable_params}
        searcher.on_trial_complete(str(n), result)
        ledger.completed(config)


def _value_of(dimension: Any, label: Any) -> Any:
    return tuple(json.loads(label)) if isinstance(label, str) and label.startswith("[") else label


def moasha(world: World, ledger: Ledger, seed: int, budget: int) -> None:
    """Search with Syne Tune's MOASHA: random configurations, stopped at rungs by non-dominated rank. No constraints."""
    import random

    from syne_tune.backend.trial_status import Trial
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

    rng = random.Random(seed)

    class Draw:  # Syne Tune's spaces have no conditions; its scheduler accepts any object with `sample`
        def sample(self) -> Any:
            return world.space.sample(rng)

    scheduler = MOASHA(
        {"config": Draw()},
        ["error", "device_bytes", "trainable_params"],
        time_attr="epoch",
        max_t=world.epochs,
        random_seed=seed,
    )
    n = 0
    from datetime import datetime

    while ledger.epochs < budget:
        config = scheduler.suggest().config["config"]
        n += 1
        trial = Trial(n, {}, datetime.now())
        scheduler.on_trial_add(trial)
        cost, noisy = world.cost(config), ledger.noisy(config)
        for at in range(1, world.epochs + 1):
            ledger.epochs += 1
            result = {
                "epoch": at,
                "error": -float(noisy[at - 1]),
                "device_bytes": cost.device_bytes,
                "trainable_params": cost.trainable_params,
            }
            if scheduler.on_trial_result(trial, result) != "CONTINUE":
                break
        if at == world.epochs:
            ledger.completed(config)


def searches(world: World) -> dict[str, Callable[[Ledger, int, int], None]]:
    """Return the searches by name: functions of (ledger, seed, epochs to spend)."""

    def ours(eta: int, priors: Sequence[Callable[..., Any]]) -> Callable[[Ledger, int, int], None]:
        def run(ledger: Ledger, seed: int, budget: int) -> None:
            curves: dict[int, dict[int, float]] = {}
            sampler = pareto_sampler(
                world.spec, world.space, world.cost, lambda t: curves.get(t.number, {}), seed, priors
            )
            first = [params_of(world.space, config) for config in first_configs(world.space, world.recipe)]
            optuna_search(world, ledger, sampler, budget, curves, eta, first)

        return run

    def stock(make: Callable[[int], optuna.samplers.BaseSampler], eta: int = 0) -> Callable[[Ledger, int, int], None]:
        return lambda ledger, seed, budget: optuna_search(world, ledger, make(seed), budget, {}, eta)

    samplers = optuna.samplers
    return {
        "pareto, early stopping": ours(ETA, world.priors),
        "pareto": ours(0, world.priors),
        "pareto-no-prior, early stopping": ours(ETA, ()),
        "pareto-no-prior": ours(0, ()),
        "Ray Tune + OptunaSearch": lambda ledger, seed, budget: stock_ray(world, ledger, seed, budget),
        "Optuna TPE": stock(
            lambda seed: samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)
        ),
        "Optuna NSGA-II": stock(lambda seed: samplers.NSGAIISampler(population_size=16, seed=seed)),
        "Optuna GP": stock(lambda seed: samplers.GPSampler(seed=seed, warn_independent_sampling=False)),
        "random": stock(lambda seed: samplers.RandomSampler(seed=seed)),
        "random, early stopping": stock(lambda seed: samplers.RandomSampler(seed=seed), ETA),
        "Syne Tune MOASHA": lambda ledger, seed, budget: moasha(world, ledger, seed, budget),
    }


def search(job: tuple[str, int, int, str, str]) -> dict[str, Any]:
    """Run one search with one seed on the table."""
    name, seed, budget, table, surrogate = job
    world = _world(table, surrogate)
    ledger = Ledger(world, np.random.default_rng((seed, 1)))
    begun = time.process_time()
    searches(world)[name](ledger, seed, budget)
    return {"name": name, "seed": seed, "seconds": round(time.process_time() - begun, 1), "steps": ledger.steps}


@lru_cache(maxsize=1)
def _world(table: str, surrogate: str) -> World:
    return World(read_table(Path(table)), surrogate)


# full trials; fewer if a suggestion takes a second
BUDGETS = {
    "pareto, early stopping": 60,
    "pareto": 60,
    "pareto-no-prior, early stopping": 60,
    "pareto-no-prior": 60,
    "Optuna GP": 60,
}
FULL_TRIALS = 200
MOST_SEEDS = {"Optuna GP": 3, "Syne Tune MOASHA": 3}  # one search takes minutes
GOAL = "Ray Tune + OptunaSearch"


def table_report(results: list[dict[str, Any]], epochs: int) -> dict[str, Any]:
    """Return medians over seeds: hypervolume at some epochs, and epochs until stock Ray Tune's final hypervolume.

    The box of the hypervolume extends from the best value of each objective to 1.1 times the distance of the worst,
    both on the joint front of all searches.

    Args:
        epochs: length of a full trial.
    """
    import moocore

    def points(steps: list[list[float]]) -> np.ndarray:
        return np.array([(-y, memory, params) for _, y, memory, params in steps]).reshape(-1, 3)

    everything = np.unique(np.vstack([points(result["steps"]) for result in results]), axis=0)
    best = everything[moocore.is_nondominated(everything)]
    low, high = best.min(axis=0), best.max(axis=0)

    def growth(steps: list[list[float]]) -> list[tuple[float, float]]:
        unit = (points(steps) - low) / (high - low)
        volumes = [float(moocore.hypervolume(unit[: i + 1], ref=np.full(3, 1.1))) for i in range(len(unit))]
        return [(step[0], volume) for step, volume in zip(steps, volumes, strict=True)]

    by: dict[str, list[list[tuple[float, float]]]] = {}
    for result in results:
        by.setdefault(result["name"], []).append(growth(result["steps"]))
    whole = float(moocore.hypervolume((best - low) / (high - low), ref=np.full(3, 1.1)))
    goal = statistics.median(steps[-1][1] for steps in by[GOAL])
    at = [n * epochs for n in (10, 20, 30, 40, 60, 80, 120, 200)]
    rows = {}
    for name, runs in by.items():
        reach = [next((e for e, v in steps if v >= goal), math.inf) for steps in runs]
        volumes = {
            e: statistics.median(max((v for f, v in steps if f <= e), default=0.0) for steps in runs)
            for e in at
            if e <= BUDGETS.get(name, FULL_TRIALS) * epochs
        }
        rows[name] = {
            "seeds": len(runs),
            "hypervolume": volumes,
            "epochs_to_goal": statistics.median(reach),
            "reached": sum(map(math.isfinite, reach)),
        }
    print(f"\nfront of everything: {len(best)} points, hypervolume {whole:.3f}")
    print(f"goal: {goal:.3f}, what {GOAL} has after {FULL_TRIALS} full trials (median of seeds)\n")
    print(
        "| search | seeds | " + " | ".join(f"{e} epochs" for e in at) + " | epochs to goal | full trials | reached by |"
    )
    print("|---" * (len(at) + 5) + "|")
    for name, row in rows.items():
        cells = [f"{row['hypervolume'][e]:.3f}" if e in row["hypervolume"] else "" for e in at]
        ends = [f"{row['epochs_to_goal']:.0f}", f"{row['epochs_to_goal'] / epochs:.1f}", f"{row['reached']}"]
        print("| " + " | ".join([name, str(row["seeds"]), *cells, *ends]) + " |")
    return {"goal": goal, "whole": whole, "rows": rows, "results": results}


# --- public problems --------------------------------------------------------------------------------------------------

PROBLEMS = ("c1dtlz1", "c2dtlz2", "c3dtlz1", "c3dtlz4", "carside", "mw4", "mw8", "mw14")
N_TRIALS = 60


def solve(job: tuple[str, str, int]) -> dict[str, Any]:
    """Solve a pymoo problem of three objectives, the last one expensive; the others and the constraints are known."""
    from pymoo.problems import get_problem

    problem_name, sampler_name, seed = job
    problem = get_problem(problem_name)
    bounds = list(zip(problem.xl.tolist(), problem.xu.tolist(), strict=True))
    space = {f"x{i}": optuna.distributions.FloatDistribution(low, high) for i, (low, high) in enumerate(bounds)}

    def evaluate(params: dict[str, Any]) -> tuple[list[float], list[float]]:
        f, g = problem.evaluate(np.array([[params[name] for name in space]]), return_values_of=["F", "G"])
        return f[0].tolist(), g[0].tolist()

    def known(params: dict[str, Any]) -> KnownValues:
        values, constraints = evaluate(params)
        return KnownValues(values[:-1], sum(max(0.0, c) for c in constraints))

    samplers = optuna.samplers
    make: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "pareto": lambda: ParetoSampler(known, space, costly=2, n_priced=300, n_candidates=3000, seed=seed),
        "tpe": lambda: samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        "nsga2": lambda: samplers.NSGAIISampler(population_size=16, seed=seed),
        "gp": lambda: samplers.GPSampler(seed=seed),
        "random": lambda: samplers.RandomSampler(seed=seed),
    }
    study = optuna.create_study(directions=["minimize"] * 3, sampler=make[sampler_name]())
    feasible = []
    for _ in range(N_TRIALS):
        trial = study.ask(space)
        values, constraints = evaluate(trial.params)
        for i, constraint in enumerate(constraints):
            trial.set_constraint(f"c{i}", constraint)
        study.tell(trial, values)
        if max(constraints) <= 0:
            feasible.append(values)
    return {"problem": problem_name, "sampler": sampler_name, "seed": seed, "feasible": feasible}


def problems_report(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median hypervolume of feasible points, in the box of all feasible points of all samplers."""
    import moocore

    rows: dict[str, dict[str, float]] = {}
    for problem in dict.fromkeys(r["problem"] for r in results):
        points = np.array([p for r in results if r["problem"] == problem for p in r["feasible"]]).reshape(-1, 3)
        if len(points) == 0:  # no sampler found a feasible point
            rows[problem] = {sampler: 0.0 for sampler in dict.fromkeys(r["sampler"] for r in results)}
            continue
        best = points[moocore.is_nondominated(points)]
        low, high = best.min(axis=0), best.max(axis=0)
        rows[problem] = {}
        for sampler in dict.fromkeys(r["sampler"] for r in results):
            volumes = []
            for r in results:
                if (r["problem"], r["sampler"]) == (problem, sampler):
                    unit = (np.array(r["feasible"]).reshape(-1, 3) - low) / np.where(high > low, high - low, 1)
                    volumes.append(float(moocore.hypervolume(unit, ref=np.full(3, 1.1))) if len(unit) else 0.0)
            rows[problem][sampler] = statistics.median(volumes)
    samplers = list(next(iter(rows.values())))
    print("\n| problem | " + " | ".join(samplers) + " |\n" + "|---" * (len(samplers) + 1) + "|")
    for problem, row in rows.items():
        print(f"| {problem} | " + " | ".join(f"{v:.3f}" for v in row.values()) + " |")
    return {"rows": rows, "results": results}


def run_all(function: Callable[[Any], dict[str, Any]], jobs: list[Any], n: int, kept: Path) -> Iterator[dict[str, Any]]:
    """Run every job once, `n` at a time. Results are stored in a file as they come and are not computed again."""
    old = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {json.dumps(item["job"]) for item in old}
    yield from (item["result"] for item in old if item["job"] in [list(job) for job in jobs])
    todo = [job for job in jobs if json.dumps(list(job)) not in done]
    with multiprocessing.get_context("spawn").Pool(n) as pool, kept.open("a") as file:
        waiting = [(job, pool.apply_async(function, (job,))) for job in todo]
        for i, (job, answer) in enumerate(waiting):
            result = answer.get()
            print(json.dumps({"job": job, "result": result}), file=file, flush=True)
            print(f"[{i + 1}/{len(todo)}] {job[0]} {job[1]} {result.get('seconds', '')}", file=sys.stderr, flush=True)
            yield result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phase", choices=("table", "problems"), default="table")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=100, help="the sampler was tuned on those below 100")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="names of searches or samplers, with semicolons")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--surrogate", choices=("gp", "trees"), default="gp")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    phase = f"table-{args.surrogate}" if args.phase == "table" else args.phase
    out = args.out or Path(f"benchmarks/results/search-{phase}-result.json")
    stamp: dict[str, Any] = {"optuna": optuna.__version__, "command": " ".join(sys.argv)}
    if args.phase == "table":
        world = _world(str(args.table), args.surrogate)
        final = world.truth[:, -1]
        r2 = 1 - (world.residuals[:, -1] ** 2).sum() / ((final - final.mean()) ** 2).sum()
        print(
            f"{len(final)} rows; each left out, map at the end: R2 {r2:.2f}, "
            f"residual {world.residuals[:, -1].std():.3f}, spread {final.std():.3f}"
        )
        names = args.only.split(";") if args.only else list(searches(world))
        jobs: list[Any] = [
            (name, seed, BUDGETS.get(name, FULL_TRIALS) * world.epochs, str(args.table), args.surrogate)
            for seed in range(args.first_seed, args.first_seed + args.seeds)
            for name in names
            if seed - args.first_seed < MOST_SEEDS.get(name, args.seeds)
        ]
        report = table_report(list(run_all(search, jobs, args.jobs, out.with_suffix(".jsonl"))), world.epochs)
    else:
        names = args.only.split(";") if args.only else ["pareto", "tpe", "nsga2", "gp", "random"]
        jobs = [
            (problem, name, seed)
            for seed in range(args.first_seed, args.first_seed + args.seeds)
            for problem in PROBLEMS
            for name in names
        ]
        report = problems_report(list(run_all(solve, jobs, args.jobs, out.with_suffix(".jsonl"))))
    out.write_text(json.dumps(stamp | report) + "\n")
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
