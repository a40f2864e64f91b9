"""What a search expects before its first trial: shipped sources, other spaces, and a sampler that starts from them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from scipy.stats import spearmanr

from cst_search.config.loading import load_recipe, load_space_for
from cst_search.config.search_space import Space
from cst_search.search import pareto_sampler as sampler_module
from cst_search.search import surrogate
from cst_search.search.encoding import ParameterLayout
from cst_search.search.optuna_space import layout
from cst_search.search.pareto_sampler import KnownValues, ParetoSampler
from cst_search.search.surrogate import Surrogate
from cst_search.search.transfer_prior import FILE, Prior
from cst_search.study.parameters import params_of

SMALL = Space.from_dict(
    {
        "methods": ["cst", "head"],
        "shared": {"lr": {"float": [1e-3, 1e-1], "log": True}, "batch_size": {"choice": [2, 4, 8]}},
        "cst": {"reduction": {"choice": [2, 4, 8]}, "norm": {"choice": ["gn", "bn"]}},
    }
)


def made_up(config: dict[str, Any]) -> float:
    return 0.3 + 0.2 * (config["method"] == "cst") - 0.05 * np.log10(config["lr"] / 1e-2) ** 2


@pytest.fixture(scope="module")
def small() -> Prior:
    rng = random.Random(0)
    configs = [SMALL.sample(rng) for _ in range(60)]
    return Prior(SMALL, {"here": [(c, made_up(c)) for c in configs], "there": [(c, 3 + made_up(c)) for c in configs]})


def expected(prior: Prior, space: Space, **params: Any) -> float:
    return float(prior.over(space)(layout(space).row(params, partly=True)[None])[0])


# --- shipped ones -----------------------------------------------------------------------------------------------------


def test_sources_rank_an_unseen_dataset() -> None:
    """What the prior is for: the order of configurations on data that it has not seen."""
    with gzip.open(FILE, "rt") as file:
        groups = json.load(file)["groups"]
    found: dict[str, float] = {}
    for group in groups:
        space = Space.from_dict(group["space"])
        for table in group["tables"]:
            others = Prior.load_each(without=[table["data"]]).values()
            configs = [params_of(space, row["config"]) for row in table["rows"]]
            codes = np.stack([layout(space).row(params, partly=True) for params in configs])
            expected = sum(prior.over(space)(codes) / prior.spread for prior in others)
            found[f"{table['data']} {len(codes)}"] = spearmanr(expected, [row["map"] for row in table["rows"]])[0]
    found.pop("rice-pests 16")  # nothing works there, so its order is noise
    assert found.pop("demo 202") > 0.3  # drawings, with a random neck and head: one of the fifteen sources is like it
    assert len(found) == 14 and min(found.values()) > 0.5 and np.median(list(found.values())) > 0.7, found


@pytest.mark.parametrize("name", ["petl", "cst", "lst", "head", "full", "conv_lora"])
def test_shipped_spaces_are_understood(name: str) -> None:
    space, rng = load_space_for(name, load_recipe("small"))[0], random.Random(0)
    codes = np.stack([layout(space).row(params_of(space, space.sample(rng))) for _ in range(50)])
    each = {source: prior.over(space)(codes) / prior.spread for source, prior in Prior.load_each().items()}
    assert all(np.isfinite(expected).all() and np.std(expected) > 0 for expected in each.values())
    assert np.std(sum(each.values())) / len(each) > 0.05


# --- other spaces -----------------------------------------------------------------------------------------------------


def test_datasets_weigh_equally_whatever_their_map_level(small: Prior) -> None:
    cst = expected(small, SMALL, method="cst", lr=1e-2, batch_size=4, **{"cst.reduction": 4, "cst.norm": "gn"})
    head = expected(small, SMALL, method="head", lr=1e-2, batch_size=4)
    assert cst - head == pytest.approx(0.2, abs=0.05)


def test_names_choices_and_ranges_of_another_space(small: Prior) -> None:
    other = Space.from_dict(
        {
            "methods": ["cst"],
            "cst": {"lr": {"float": [1e-5, 1e-1], "log": True}, "reduction": {"choice": [1, 3, 64]},
                    "norm": {"choice": ["gn", "none"]}, "keep": {"choice": ["all", "every_second"]}},
        }
    )  # fmt: skip
    own = {"method": "cst", "batch_size": 4, "cst.norm": "gn"}
    # a method that does not vary, its own lr for the shared one, the nearest number, what is unknown left out
    close = expected(small, other, **{"cst.lr": 1e-3, "cst.reduction": 64, "cst.norm": "gn", "cst.keep": "all"})
    assert close == pytest.approx(expected(small, SMALL, lr=1e-3, **own, **{"cst.reduction": 8}), abs=1e-9)
    below = expected(small, other, **{"cst.lr": 1e-5, "cst.reduction": 64, "cst.norm": "gn"})
    assert below == pytest.approx(close, abs=1e-9)  # beyond the range: its end
    # a value without a number says nothing
    assert np.isfinite(expected(small, other, **{"cst.lr": 1e-3, "cst.norm": "none", "cst.reduction": 3}))


def test_a_method_that_was_never_tried_is_expected_to_be_like_the_rest(small: Prior) -> None:
    other = Space.from_dict({"methods": ["cst", "full"], "shared": {"lr": {"float": [1e-4, 1e-2], "log": True}}})
    worst, best = (expected(small, SMALL, method=m, lr=1e-2, batch_size=4) for m in ("head", "cst"))
    assert worst < expected(small, other, method="full", lr=1e-2) < best


# --- a search that starts from it -------------------------------------------------------------------------------------

XZ = {"x": FloatDistribution(0.0, 1.0), "z": FloatDistribution(0.0, 1.0), "kind": CategoricalDistribution(["a", "b"])}


def truth(params: dict[str, Any]) -> float:
    return 0.3 - (params["z"] - 0.3) ** 2 - 0.3 * (params["kind"] == "b")


def truths(rows: np.ndarray) -> np.ndarray:
    return np.array([truth(ParameterLayout(XZ).params(row)) for row in rows])


def search(n: int, prior: Callable[[np.ndarray], np.ndarray] | None, seed: int) -> list[float]:
    """y of each trial of a search with one more objective, which is known."""
    sampler = ParetoSampler(
        lambda p: KnownValues([p["x"]]), XZ, priors=[prior] if prior else [], n_candidates=300, seed=seed
    )
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    for _ in range(n):
        trial = study.ask(XZ)
        study.tell(trial, [truth(trial.params), trial.params["x"]])
    return [trial.values[0] for trial in study.trials]


def test_a_good_prior_is_used_from_the_second_trial_on() -> None:
    with_prior = [search(4, lambda rows: 5 + truths(rows), seed)[1:] for seed in range(6)]
    assert np.median(with_prior) > 0.27
    assert np.median([search(4, None, seed)[1:] for seed in range(6)]) < 0.2


def test_a_prior_that_is_wrong_does_not_keep_a_search_from_the_best() -> None:
    found = [search(24, lambda rows: -truths(rows), seed) for seed in range(3)]
    assert np.median([max(y) for y in found]) > 0.28
    assert np.median([y[1] for y in found]) < 0.2  # it was believed at first


def beliefs(
    monkeypatch: pytest.MonkeyPatch, prior: Callable[[np.ndarray], np.ndarray], n: int, seed: int
) -> list[bool]:
    """Whether the model with the prior suggested, of each trial whose suggestion was a model's."""
    used: dict[int, bool] = {}
    fitted = Surrogate._fitted

    def noted(self: Surrogate, points: Any, n_told: int, number: int, sign: float, believes: bool) -> Any:
        predict, evidence = fitted(self, points, n_told, number, sign, believes)

        def logged(codes: np.ndarray) -> Any:
            used[number] = believes
            return predict(codes)

        return logged, evidence

    with monkeypatch.context() as patch:
        patch.setattr(Surrogate, "_fitted", noted)
        search(n, prior, seed)
    return list(used.values())


def test_weight_of_the_prior_follows_its_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Always while fewer than three results are known; then it and the model without it are drawn by their evidence."""

    def noise(rows: np.ndarray) -> np.ndarray:
        return np.sin(1e4 * rows.sum(axis=1))

    right, wrong = ([beliefs(monkeypatch, prior, 32, seed) for seed in range(4)] for prior in (truths, noise))
    assert all(seen[:2] == [True, True] for seen in (*right, *wrong))
    shares = [np.mean([believed for seen in each for believed in seen[2:]]) for each in (right, wrong)]
    assert shares[0] > 0.75 and shares[1] < 0.4
    assert shares[0] < 1 and shares[1] > 0  # neither is ever left out


def test_a_large_study_does_without_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sampler_module, surrogate):
        monkeypatch.setattr(module, "MOST_MODELLED", 12)
    seen = beliefs(monkeypatch, truths, 24, 0)
    assert any(seen[:8]) and not any(seen[-6:])


def test_the_first_suggestions_do_not_wait_for_a_result() -> None:
    """With several workers nothing is known yet when the second trial is to begin."""
    sampler = ParetoSampler(lambda p: KnownValues([p["x"]]), XZ, priors=[truths], n_candidates=300, seed=0)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    asked = [study.ask(XZ).params for _ in range(4)]
    assert all(p["kind"] == "a" and abs(p["z"] - 0.3) < 0.3 for p in asked[1:])
    assert len({tuple(p.values()) for p in asked}) == 4
