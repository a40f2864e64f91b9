"""The sampler that models one objective and knows the others: its arithmetic, and that it works in a plain study."""

from __future__ import annotations

import math
from typing import Any

import moocore
import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from threadpoolctl import ThreadpoolController

from cst_search.search import pareto_sampler as sampler_module
from cst_search.search import surrogate
from cst_search.search.ehvi import ehvi, outlook, uncovered
from cst_search.search.gaussian_process import Model, _Data
from cst_search.search.observations import at_full_length, fit_line
from cst_search.search.pareto_sampler import KnownValues, ParetoSampler

# --- expected hypervolume improvement ---------------------------------------------------------------------------------


def volume(points: np.ndarray, reference: np.ndarray) -> float:
    """Of rows (y, costs), y to be maximised: moocore's, and for y alone the best of it."""
    signed = np.column_stack([-points[:, 0], points[:, 1:]])
    bound = np.append(-reference[0], reference[1:])
    inside = signed[(signed < bound).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    return float(bound[0] - inside.min()) if len(bound) == 1 else float(moocore.hypervolume(inside, ref=bound))


@pytest.mark.parametrize("floor", [0.0, 0.25])  # at 0.25 some points of the front are below it
@pytest.mark.parametrize("m", [0, 1, 2, 3])
def test_ehvi_is_the_mean_of_the_improvement(m: int, floor: float) -> None:
    rng = np.random.default_rng(m)
    front_y, front_costs = rng.random(6) * 0.6, rng.random((6, m)) * 1.1  # some beyond the reference, some dominated
    reference = np.append(floor, np.ones(m))
    assert floor == 0 or (front_y < floor).any()
    mean, std, costs = np.array([0.2, 0.5, 0.6]), np.array([0.02, 0.1, 0.3]), rng.random((3, m))
    found = ehvi(mean, std, costs, front_y, front_costs, reference)
    front = np.column_stack([front_y, front_costs])
    before = volume(front, reference)
    # by quantiles rather than at random: no noise in the expectation
    at = (np.arange(4000) + 0.5) / 4000
    from scipy.special import ndtri

    for i in range(3):
        drawn = mean[i] + std[i] * ndtri(at)
        gains = [volume(np.vstack([front, np.append(y, costs[i])]), reference) - before for y in drawn]
        assert found[i] == pytest.approx(np.mean(gains), rel=2e-3, abs=1e-7)  # quantiles miss the far tail


def test_a_fixed_cost_changes_no_improvement() -> None:
    """The sampler need not know of working memory: a shift of costs and bound leaves every volume as it is."""
    rng = np.random.default_rng(0)
    mean, std, costs = rng.random(20), np.full(20, 0.1), rng.random((20, 2))
    front_y, front_costs, reference = rng.random(6) * 0.6, rng.random((6, 2)), np.array([0.0, 1.0, 1.0])
    fixed = np.array([11.0, 0.0])
    found = ehvi(mean, std, costs, front_y, front_costs, reference)
    shifted = ehvi(mean, std, costs + fixed, front_y, front_costs + fixed, reference + np.append(0.0, fixed))
    assert shifted == pytest.approx(found) and found.max() > 0.1


def test_ehvi_is_zero_for_dominated_or_out_of_bounds_costs() -> None:
    front_y, front_costs, reference = np.array([0.9]), np.array([[0.1, 0.1]]), np.array([0.0, 1.0, 1.0])
    sure = np.array([1e-9])
    assert ehvi(np.array([0.5]), sure, np.array([[0.5, 0.5]]), front_y, front_costs, reference)[0] == 0.0
    assert ehvi(np.array([0.5]), sure, np.array([[2.0, 0.05]]), front_y, front_costs, reference)[0] == 0.0
    cheaper = ehvi(np.array([0.5]), sure, np.array([[0.05, 0.5]]), front_y, front_costs, reference)[0]
    assert cheaper == pytest.approx(0.5 * 0.05 * 0.5)


@pytest.mark.parametrize("m", [0, 1, 2])
def test_outlook_is_relative_to_the_volume_and_its_noise_is_that_of_small_changes(m: int) -> None:
    rng = np.random.default_rng(m)
    y, costs = rng.random(6), rng.random((6, m)) * 1.1  # some beyond the reference, some dominated
    reference, noise = np.append(0.0, np.ones(m)), 1e-4
    mean, std, of = np.array([0.5, 0.6]), np.array([0.1, 0.3]), rng.random((2, m))
    found = outlook(mean, std, of, y, costs, reference, noise)
    assert found is not None
    whole = volume(np.column_stack([y, costs]), reference)
    assert found.gain * whole == pytest.approx(ehvi(mean, std, of, y, costs, reference).max())
    changed = [volume(np.column_stack([y + noise * rng.normal(size=6), costs]), reference) for _ in range(3000)]
    assert found.noise * whole == pytest.approx(np.std(changed), rel=0.05)
    assert outlook(mean, std, of, y - 2, costs, reference, noise) is None  # nothing is inside the reference


def test_uncovered_by_hand() -> None:
    costs, bound = np.array([[0.0, 0.0], [0.5, 0.5]]), np.ones(2)
    taken = np.array([[0.5, 0.25], [0.25, 0.75]])
    assert uncovered(costs, taken, bound).tolist() == [
        [1.0, 1 - 0.5 * 0.75, 1 - (0.5 * 0.75 + 0.25 * 0.25)],
        [0.25, 0.0, 0.0],
    ]


# --- the model --------------------------------------------------------------------------------------------------------


def test_the_model_interpolates_and_is_unsure_elsewhere() -> None:
    rows = np.linspace(0, 1, 12)[:, None] * np.ones((1, 2))
    y = np.sin(3 * rows[:, 0])
    model = Model()
    model.fit(rows, y, np.zeros(12), tune=True)
    mean, std = model.predict(np.array([[0.5, 0.5], [0.0, 1.0]]))
    assert mean[0] == pytest.approx(math.sin(1.5), abs=0.05)
    assert std[1] > 3 * std[0]


def test_the_gradient_of_the_likelihood_is_that_of_small_steps() -> None:
    rng = np.random.default_rng(0)
    rows, theta = rng.random((12, 3)), np.log([1.3, 0.5, 0.9, 2.0, 0.05])
    data = _Data(rows, rng.normal(size=12), rng.random(12) * 0.1)
    _, gradient = data.likelihood_and_gradient(theta)
    steps = 1e-5 * np.eye(5)
    found = [
        (data.likelihood_and_gradient(theta + step)[0] - data.likelihood_and_gradient(theta - step)[0]) / 2e-5
        for step in steps
    ]
    assert gradient == pytest.approx(found, rel=1e-5, abs=1e-7)


def test_evidence_is_that_of_unscaled_observations() -> None:
    """A likelihood is a density: of ten times the y it is a tenth, for each."""
    rows = np.linspace(0, 1, 6)[:, None]
    one, other = Model(), Model()
    one.fit(rows, np.sin(6 * rows[:, 0]), np.zeros(6), tune=True)
    other.fit(rows, 10 * np.sin(6 * rows[:, 0]), np.zeros(6), tune=True)
    assert one.evidence - other.evidence == pytest.approx(6 * np.log(10), abs=1e-3)


def test_a_doubtful_observation_weighs_less() -> None:
    rows, y = np.array([[0.0], [0.5], [1.0]]), np.array([0.0, 3.0, 0.0])
    sure, unsure = Model(), Model()
    sure.fit(rows, y, np.zeros(3), tune=True)
    unsure.theta = sure.theta
    unsure.fit(rows, y, np.array([0.0, 100.0, 0.0]), tune=False)
    assert unsure.predict(rows[1:2])[0] < sure.predict(rows[1:2])[0] - 0.5


@pytest.mark.parametrize(
    ("n", "of", "slope"),
    [
        (0, 1.0, 1.0),  # nothing known: as expected
        (1, -1.0, 1.0),  # one point has no slope
        (3, -1.0, 0.0),  # three against the three that are taken for granted
        (60, -1.0, -0.9),  # a wrong prior is used the other way round
        (60, 2.4, 2.33),
        (60, 0.0, 0.05),  # one that says nothing, hardly
    ],
)
def test_prior_slope_weighs_as_much_as_three_points(n: int, of: float, slope: float) -> None:
    x = np.linspace(0.2, 0.5, n)
    start, found, rest = fit_line(x, 0.7 + of * x, 0.1)
    assert found == pytest.approx(slope, abs=0.02)
    if n == 60:
        assert start + found * x.mean() == pytest.approx(0.7 + of * x.mean()) and math.sqrt(rest) < 0.03


# --- in a study -------------------------------------------------------------------------------------------------------

SPACE = {
    "x": FloatDistribution(0.0, 1.0),
    "z": FloatDistribution(0.0, 1.0),
    "kind": CategoricalDistribution(["a", "b"]),
}


def known(params: dict[str, Any]) -> KnownValues:
    return KnownValues([params["x"]], params["x"] - 0.8)


def truth(params: dict[str, Any]) -> float:
    return params["x"] - (params["z"] - 0.3) ** 2 - 0.3 * (params["kind"] == "b")


def run(sampler: optuna.samplers.BaseSampler, n: int) -> optuna.Study:
    return run_more(optuna.create_study(directions=["maximize", "minimize"], sampler=sampler), n)


def run_more(study: optuna.Study, n: int) -> optuna.Study:
    for _ in range(n):
        trial = study.ask(SPACE)
        trial.set_constraint("c", trial.params["x"] - 0.8)
        study.tell(trial, [truth(trial.params), trial.params["x"]])
    return study


def hypervolume(study: optuna.Study) -> float:
    points = np.array([(-t.values[0], t.values[1]) for t in study.trials if t.values and t.params["x"] <= 0.8])
    return float(moocore.hypervolume(points, ref=[0.5, 0.8]))


def test_it_beats_random_search_and_never_suggests_an_infeasible_point() -> None:
    ours = run(ParetoSampler(known, SPACE, n_startup=6, n_priced=60, n_candidates=120, seed=1), 25)
    assert all(trial.params["x"] <= 0.8 for trial in ours.trials)
    chance = [hypervolume(run(optuna.samplers.RandomSampler(seed), 25)) for seed in range(5)]
    assert hypervolume(ours) > max(chance)


@pytest.mark.parametrize("off", [0.9, 1.1])
def test_rough_values_compare_candidates_and_exact_ones_decide(off: float) -> None:
    """The rough ones are too low, so that they let through what is over the bound, or too high."""
    asked: dict[str, list[float]] = {"exact": [], "rough": []}

    def exact(params: dict[str, Any]) -> KnownValues:
        asked["exact"].append(params["x"])
        return known(params)

    def rough(params: dict[str, Any]) -> KnownValues:
        asked["rough"].append(params["x"])
        return known({**params, "x": params["x"] * off})

    sampler = ParetoSampler(exact, SPACE, rough=rough, n_startup=6, n_priced=60, n_candidates=120, seed=1)
    study = run(sampler, 16)
    assert all(known(trial.params).violation <= 0 for trial in study.trials)
    assert max(trial.params["x"] for trial in study.trials) > 0.6  # up to near the bound of either
    n_exact = len(asked["exact"])
    assert n_exact < 16 * 8 < len(asked["rough"])
    assert any(known({**t.params, "x": x}).violation > 0 for t in study.trials for x in asked["exact"]) == (off < 1)


def test_it_works_with_optimize_and_a_single_objective() -> None:
    sampler = ParetoSampler(lambda params: KnownValues([]), {"z": SPACE["z"]}, n_startup=4, n_priced=30, seed=0)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    study.optimize(lambda trial: (trial.suggest_float("z", 0.0, 1.0) - 0.3) ** 2, n_trials=14)
    assert study.best_params["z"] == pytest.approx(0.3, abs=0.05)


def test_the_same_seed_gives_the_same_trials() -> None:
    runs = [run(ParetoSampler(known, SPACE, n_startup=3, n_priced=12, n_candidates=30, seed=5), 6) for _ in range(2)]
    assert [t.params for t in runs[0].trials] == [t.params for t in runs[1].trials]


def test_suggestions_at_a_time_differ() -> None:
    """Those that run count as if they had what is expected: otherwise the best would be suggested again."""
    sampler = ParetoSampler(known, SPACE, n_startup=6, n_priced=60, n_candidates=120, seed=2)
    study = run(sampler, 8)
    asked = [study.ask(SPACE).params for _ in range(4)]
    distances = [
        max(abs(a["x"] - b["x"]), abs(a["z"] - b["z"]), a["kind"] != b["kind"])
        for i, a in enumerate(asked)
        for b in asked[:i]
    ]
    assert min(distances) > 0.02


def test_some_suggestions_are_after_the_costly_objective_alone() -> None:
    """Its best is at the bound of the cost, where the hypervolume up to that bound hardly grows."""
    sampler = ParetoSampler(known, SPACE, reference=(-1.0, 0.82), n_startup=4, n_priced=60, n_candidates=120, seed=2)
    study = run(sampler, 16)
    assert max(trial.values[0] for trial in study.trials if trial.number % 4 == 3) > 0.75
    assert max(trial.values[0] for trial in study.trials if trial.number % 4 != 3) < 0.75


def test_a_discrete_space_is_not_tried_twice() -> None:
    space = {"x": IntDistribution(0, 3), "kind": CategoricalDistribution(["a", "b"])}
    sampler = ParetoSampler(lambda p: KnownValues([p["x"]]), space, n_startup=2, n_priced=24, n_candidates=30, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for i in range(6):
        trial = study.ask(space)
        if i >= 2 and (i % 4):  # not among those that are drawn at random
            assert trial.params not in [t.params for t in study.trials if t.number != trial.number]
        study.tell(trial, [trial.params["x"] * 0.1 + (trial.params["kind"] == "a"), trial.params["x"]])


def test_with_hardly_any_feasible_point_it_searches_near_the_smallest_violation() -> None:
    """One draw in a million is feasible: at random it would not be found."""
    space = {name: FloatDistribution(0.0, 1.0) for name in "abcdef"}

    def tight(params: dict[str, Any]) -> KnownValues:
        return KnownValues([params["a"]], sum(max(0.0, abs(value - 0.5) - 0.05) for value in params.values()))

    sampler = ParetoSampler(tight, space, n_priced=60, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    over = []
    for _ in range(12):
        trial = study.ask(space)
        over.append(tight(trial.params).violation)
        trial.set_constraint("tight", over[-1])
        study.tell(trial, [0.0, trial.params["a"]])
    assert over[0] > 0 and over[-1] == 0.0


def test_it_draws_more_candidates_the_fewer_are_feasible() -> None:
    """One draw in ten million million, and what is feasible in most of it is over by the rest."""
    space = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(12)}

    def tight(params: dict[str, Any]) -> KnownValues:
        return KnownValues([params["x0"]], sum(max(0.0, abs(value - 0.5) - 0.04) for value in params.values()))

    sampler = ParetoSampler(tight, space, n_priced=100, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(5):
        trial = study.ask(space)
        trial.set_constraint("tight", tight(trial.params).violation)
        study.tell(trial, [0.0, trial.params["x0"]])
    assert tight(trial.params).violation == 0.0


def test_known_costs_are_reused_for_other_values_of_free_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    improvement = sampler_module.ehvi

    def counted(mean: Any, *arguments: Any) -> Any:
        seen.append(len(mean))
        return improvement(mean, *arguments)

    monkeypatch.setattr(sampler_module, "ehvi", counted)
    run(ParetoSampler(known, SPACE, free={"z"}, n_startup=3, n_priced=12, n_candidates=60, seed=0), 5)
    # anything; what is like the best, to be screened; the 4 that are priced of it, and as many with the same price
    assert seen[-5:] == [20, 20, 24, 20, 24]


def test_a_suggestion_leaves_the_processor_to_the_trials() -> None:
    threads: list[int] = []

    def prior(rows: np.ndarray) -> np.ndarray:
        found = ThreadpoolController().select(user_api="blas").info()
        threads.extend(library["num_threads"] for library in found)
        return rows[:, 0]

    before = [library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()]
    run(ParetoSampler(known, SPACE, priors=[prior], n_priced=12, n_candidates=30, seed=0), 3)
    assert threads and set(threads) == {1}
    assert [library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()] == before


def test_forgotten_costs_are_predicted_again_for_stopped_trials_too() -> None:
    """As where a study has learned that its device needs more than was predicted."""
    factor = 1.0
    sampler = ParetoSampler(
        lambda p: KnownValues([factor * p["x"]]), SPACE, curve=lambda trial: {1: 0.3}, n_startup=2, n_priced=12, seed=0
    )
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(4):
        study.tell(study.ask(SPACE), state=TrialState.PRUNED)
    factor = 2.0
    sampler.forget_prices()
    study.ask(SPACE)
    points = sampler._seen.read(study.get_trials(), -1, np.array([1.0, -1.0]))[:4]
    assert [p.costs[0] for p in points if p.costs is not None] == [2 * t.params["x"] for t in study.trials[:4]]


def test_costs_are_predicted_for_candidates_the_model_favours() -> None:
    """Half of what is like the best has the poor kind; before the first choice many are priced, whatever they are."""
    asked: list[str] = []
    later: list[str] = []

    def priced(params: dict[str, Any]) -> KnownValues:
        asked.append(params["kind"])
        return known(params)

    for seed in range(4):
        study = run(ParetoSampler(priced, SPACE, n_startup=8, n_priced=12, n_candidates=300, seed=seed), 8)
        asked.clear()
        run_more(study, 1)  # the ninth, at random
        before = len(asked)
        run_more(study, 1)
        first = len(asked) - before
        assert 40 <= first <= 6 * 12  # 60 with those before; later ones 12
        asked.clear()
        run_more(study, 6)
        later += asked
    # a third of what is priced for a suggestion is anything; half in all if the model had no say
    assert later.count("b") / len(later) < 0.4


def test_conditional_parameters() -> None:
    space = {
        "kind": CategoricalDistribution(["a", "b"]),
        "a.x": FloatDistribution(0.0, 1.0),
        "b.n": IntDistribution(1, 9),
    }

    conditions = {"a.x": ("kind", ["a"]), "b.n": ("kind", ["b"])}
    sampler = ParetoSampler(
        lambda p: KnownValues([p.get("a.x", 0.5)]),
        space,
        conditions=conditions,
        n_startup=3,
        n_priced=12,
        n_candidates=30,
        seed=0,
    )
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(12):
        trial = study.ask()
        kind = trial.suggest_categorical("kind", ["a", "b"])
        trial.suggest_float("a.x", 0.0, 1.0) if kind == "a" else trial.suggest_int("b.n", 1, 9)
        assert set(trial.params) in ({"kind", "a.x"}, {"kind", "b.n"})
        study.tell(trial, [trial.params.get("a.x", 0.1), trial.params.get("a.x", 0.5)])


def test_random_suggestions_take_the_default_of_every_feasible_method_first() -> None:
    methods = ["a", "b", "c", "d", "over"]
    space = {
        "method": CategoricalDistribution(methods),
        "x": FloatDistribution(0.0, 1.0),
        "a.y": FloatDistribution(0.0, 1.0),
    }
    defaults = [{"method": "a", "x": 0.25, "a.y": 0.75}, {"method": "c", "x": 0.25}, {"method": "unknown", "x": 0.0}]
    sampler = ParetoSampler(
        lambda p: KnownValues([0.5], violation=1.0 if p["method"] == "over" else 0.0),
        space,
        conditions={"a.y": ("method", ["a"])},
        defaults=defaults,
        n_startup=8,
        n_priced=12,
        seed=0,
    )
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(8):
        trial = study.ask()
        method = trial.suggest_categorical("method", methods)
        trial.suggest_float("x", 0.0, 1.0), trial.suggest_float("a.y", 0.0, 1.0) if method == "a" else None
        study.tell(trial, [0.5, 0.5])
    asked = [trial.params for trial in study.trials]
    assert sorted(p["method"] for p in asked[:4]) == sorted(p["method"] for p in asked[4:]) == methods[:4]
    assert [p in defaults for p in asked] == [p["method"] in "ac" for p in asked[:4]] + [False] * 4


def test_costs_are_not_predicted_again_for_free_parameters() -> None:
    asked: list[Any] = []

    def priced(params: dict[str, Any]) -> KnownValues:
        asked.append((params["x"], params["kind"]))
        return known(params)

    run(ParetoSampler(priced, SPACE, free={"z"}, n_startup=3, n_priced=12, n_candidates=60, seed=0), 8)
    assert len(asked) == len(set(asked))
    assert len(asked) <= 5 * 12 + 8 * 13  # five times as many for the first choice


def test_failed_points_are_avoided_and_rejected_ones_are_not_learnt_from() -> None:
    sampler = ParetoSampler(known, SPACE, n_startup=3, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for params, value in (
        ({"x": 0.5, "z": 0.5, "kind": "a"}, 0.4),
        ({"x": 0.5, "z": 0.1, "kind": "a"}, 0.2),
        ({"x": 0.5, "z": 0.9, "kind": "b"}, -math.inf),  # the loss was not finite
        ({"x": 0.9, "z": 0.9, "kind": "b"}, -math.inf),  # over the bound: it never ran
    ):
        study.enqueue_trial(params)
        trial = study.ask(SPACE)
        study.tell(trial, [value, params["x"]])
    points = sampler._seen.read(study.get_trials(), -1, np.array([1.0, -1.0]))
    assert [point.codes[1] for point in points] == [0.5, 0.1, 0.9]  # z
    assert at_full_length(points)[0].tolist() == [0.4, 0.2, 0.2]


def test_learning_curves_are_extrapolated_to_full_length() -> None:
    """At half way these have 0.1 less, so a stopped one with 0.2 is expected to end near 0.3."""
    curves: dict[int, dict[int, float]] = {}
    sampler = ParetoSampler(known, SPACE, curve=lambda trial: curves.get(trial.number, {}), seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(0))
    for y in (0.2, 0.3, 0.4, 0.5, 0.6):
        trial = study.ask(SPACE)
        curves[trial.number] = {3: y - 0.1}
        study.tell(trial, [y, trial.params["x"]])
    stopped = study.ask(SPACE)
    curves[stopped.number] = {3: 0.2}
    study.tell(stopped, state=TrialState.PRUNED)
    points = sampler._seen.read(study.get_trials(), -1, np.array([1.0, -1.0]))
    y, variance = at_full_length(points)
    assert y[-1] == pytest.approx(0.3, abs=0.01)
    assert variance[-1] > 0 and not variance[:-1].any()
    assert not points[-1].counts  # a stopped one is no result


def test_results_that_are_all_equal() -> None:
    sampler = ParetoSampler(known, SPACE, curve=lambda trial: {3: 0.2}, n_startup=2, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(6):
        trial = study.ask(SPACE)
        study.tell(trial, [0.5, 0.1])
    study.tell(study.ask(SPACE), state=TrialState.PRUNED)
    points = sampler._seen.read(study.get_trials(), -1, np.array([1.0, -1.0]))
    assert at_full_length(points)[0] == pytest.approx([0.5] * 7)


@pytest.mark.parametrize(
    ("n", "prior", "ratio"), [(5, None, 2.0), (16, None, 1 + 4 / 15), (4, lambda rows: rows[:, 0], 2.0)]
)
def test_acquisition_uses_an_inflated_standard_deviation(
    monkeypatch: pytest.MonkeyPatch, n: int, prior: Any, ratio: float
) -> None:
    """Why is measured (benchmarks/search.py); that it is so, the less the more trials a column has, shows here."""
    seen: dict[str, Any] = {}
    predict, improvement = Model.predict, sampler_module.ehvi

    def predicted(self: Any, rows: Any) -> Any:
        seen["model"] = predict(self, rows)[1]
        return predict(self, rows)

    def chosen(mean: Any, std: Any, *arguments: Any) -> Any:
        seen["ratio"] = std / seen["model"]
        return improvement(mean, std, *arguments)

    monkeypatch.setattr(Model, "predict", predicted)
    monkeypatch.setattr(sampler_module, "ehvi", chosen)
    priors = [] if prior is None else [prior]
    run(ParetoSampler(known, SPACE, priors=priors, n_startup=3, n_priced=12, n_candidates=30, seed=0), n)
    assert seen["ratio"] == pytest.approx(ratio)  # four columns


def test_a_large_study_costs_less_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sampler_module, surrogate):
        monkeypatch.setattr(module, "MOST_MODELLED", 20)
    asked: list[float] = []

    def priced(params: dict[str, Any]) -> KnownValues:
        asked.append(params["x"])
        return known(params)

    counts = []
    run(ParetoSampler(known, SPACE, n_startup=3, n_priced=6, n_candidates=60, seed=0), 24)  # one is the least
    study = run(ParetoSampler(priced, SPACE, n_startup=3, n_priced=24, n_candidates=60, seed=0), 14)
    for _ in range(12):
        asked.clear()
        run_more(study, 1)
        counts.append(len(asked))
    assert max(counts[:6]) > 12 and 1 <= max(counts[8:]) <= 5
    sampler = study.sampler
    assert isinstance(sampler, ParetoSampler)
    points = sampler._seen.read(study.get_trials(), -1, np.array([1.0, -1.0]))
    assert len(sampler._seen.some(points, 20, sampler._rng)) == 20


def test_of_a_large_study_the_front_and_the_latest_results_are_modelled() -> None:
    """Also when trials end one at a time: the front is not computed anew."""
    rng = np.random.default_rng(0)
    study = run(ParetoSampler(known, SPACE, n_startup=100, seed=0), 60)
    sampler = study.sampler
    assert isinstance(sampler, ParetoSampler)
    signs = np.array([1.0, -1.0])
    sampler.forget_prices()
    for n in (40, 50, 60):
        points = sampler._seen.read(study.get_trials()[:n], -1, signs)
        kept = sampler._seen.some(points, 39, rng)
        counting = [i for i, p in enumerate(points) if p.counts]
        values = np.array([[-points[i].last, *points[i].costs] for i in counting])
        front = {counting[i] for i in np.flatnonzero(moocore.is_nondominated(values))}
        assert 0 < len(front) <= 39 // 2 and len(kept) == 39
        assert {id(points[i]) for i in front | set(range(n - 39 // 4, n))} <= {id(p) for p in kept}
