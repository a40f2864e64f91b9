"""Sources of a prior: which studies a new one learns from, and how far each is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import make_spec, make_study, run_cli, run_one, scored

from cst_search.errors import StudyError
from cst_search.search import sources
from cst_search.search.optuna_space import layout
from cst_search.search.session import SearchSession
from cst_search.search.sources import SHIPPED, choose_prior, sources_of, table_of, verdicts
from cst_search.search.surrogate import misranked, source_weights
from cst_search.search.transfer_prior import Prior
from cst_search.study.parameters import params_of
from cst_search.study.study import default_storage

LRS = [1e-4, 1.5e-4, 2e-4, 2.5e-4, 3e-4, 3.5e-4, 4e-4, 5e-4]


def study_of(home: Path, name: str, slope: float, n: int = 8, **changes: Any) -> SearchSession:
    """A study of n trials whose mAP rises with the learning rate, or falls."""
    session = make_study(home, name, **changes)
    for lr in LRS[:n]:
        run_one(session, scored(0.5 + slope * np.log10(lr / 3e-4)), method="head", lr=lr, batch_size=2)
    return session


def codes(session: SearchSession, lrs: list[float]) -> np.ndarray:
    space = session.study.space
    rows = [params_of(space, {"method": "head", "lr": lr, "batch_size": 2}) for lr in lrs]
    return np.stack([layout(space).row(row) for row in rows])


# --- weights ---------------------------------------------------------------------------------------------------------


def test_sources_weigh_by_the_pairs_that_they_misrank() -> None:
    y = np.array([0.1, 0.2, 0.3, 0.4])
    expected = np.array([y, -y, [0.0, 0.0, 0.0, 0.0], [0.2, 0.1, 0.3, 0.4]])
    # of 6 pairs and 6 granted ones, of which 1.5 are wrong
    assert misranked(expected, y) == pytest.approx([1.5 / 12, 7.5 / 12, 4.5 / 12, 2.5 / 12])
    kernel = np.array([1 - (2 * share) ** 2 for share in (1.5 / 12, 0.5, 4.5 / 12, 2.5 / 12)])
    assert source_weights(expected, y) == pytest.approx(kernel / kernel.sum())


@pytest.mark.parametrize("n", [0, 1])
def test_sources_weigh_alike_before_there_is_a_pair(n: int) -> None:
    assert source_weights(np.zeros((4, n)), np.zeros(n)) == pytest.approx([0.25] * 4)


def test_no_source_weighs_anything_if_all_are_wrong() -> None:
    y = np.linspace(0, 1, 12)
    assert list(source_weights(np.array([-y, -y]), y)) == [0.0, 0.0]


# --- which studies ----------------------------------------------------------------------------------------------------


def test_a_new_study_learns_from_those_with_enough_results(tmp_path: Path) -> None:
    url = default_storage(tmp_path)
    for name, n in (("cells", 8), ("few", 7), ("cards", 8)):
        study_of(tmp_path, name, 0.1, n)
    assert choose_prior(None, url, "new") == choose_prior("auto", url, "new") == (SHIPPED, "cards", "cells")
    assert choose_prior("auto", url, "cards") == (SHIPPED, "cells")
    assert choose_prior("none", url, "new") == () and choose_prior("cells", url, "new") == ("cells",)
    with pytest.raises(StudyError, match="--prior few: the study has 7 trials with a result; a source has 8"):
        choose_prior("cells, few", url, "new")
    with pytest.raises(StudyError, match=r"there is no study 'cell'.*did you mean 'cells'"):
        choose_prior("cell", url, "new")


def test_the_newest_studies_are_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MOST_STUDIES", 1)
    for name in ("cells", "cards"):
        study_of(tmp_path, name, 0.1)
    assert choose_prior("auto", default_storage(tmp_path), "new") == (SHIPPED, "cards")


def test_results_of_trials_that_stopped_early_are_extrapolated(tmp_path: Path) -> None:
    session = study_of(tmp_path, "cells", 0.1, 3)
    info = session.study.info()
    early = [{"epoch": 1, "map": 0.2}, {"epoch": 2, "map": 0.3}]
    changed = [
        *info.trials[:2],
        *(type(info.trials[2])(**{**vars(info.trials[2]), "state": state, "map": None, "history": early, "config": {}})
          for state in ("pruned", "failed")),
    ]  # fmt: skip
    table = table_of(type(info)(**{**vars(info), "trials": tuple(changed)}), "map")
    assert len(table) == 3 and [y for _, y in table[:2]] == [record.map for record in info.trials[:2]]
    assert 0.2 < table[2][1] < 0.5


# --- what they say ----------------------------------------------------------------------------------------------------


def test_an_earlier_study_is_believed_as_far_as_it_ranks(tmp_path: Path) -> None:
    study_of(tmp_path, "alike", 0.1)
    study_of(tmp_path, "other way", -0.1)
    mine = study_of(tmp_path, "mine", 0.05, prior=("alike", "other way"))
    alike, other = sources_of(mine.study)
    assert (alike.name, alike.n, other.name) == ("alike", 8, "other way")
    low, high = alike.expected(codes(mine, [2e-4, 4e-4]))
    assert low < high
    n, (first, second) = verdicts(mine.study)
    assert n == 8 and first.weight == 1 and first.misranked < 0.1
    assert (second.name, second.weight) == ("other way", 0.0) and second.misranked > 0.8

    ran = run_cli("prior", "mine", "--home", tmp_path, "--json")
    assert [source["name"] for source in json.loads(ran.out)["sources"]] == ["alike", "other way"]
    text = run_cli("prior", "--home", tmp_path).out
    assert "alike" in text and "1.00" in text and "study mine has 8 trials with a result" in text


def test_sources_have_one_spread(tmp_path: Path) -> None:
    study_of(tmp_path, "wide", 0.4)
    study_of(tmp_path, "narrow", 0.04)
    mine = make_study(tmp_path, "mine", prior=("wide", "narrow"))
    wide, narrow = (np.std(source.expected(codes(mine, LRS))) for source in sources_of(mine.study))
    assert wide == pytest.approx(narrow, rel=0.3)


def test_another_prior_for_an_existing_study_is_refused(tmp_path: Path) -> None:
    make_study(tmp_path, "mine", prior=(SHIPPED,))
    make_study(tmp_path, "mine")  # as it is
    with pytest.raises(StudyError, match="was made with another --prior"):
        make_study(tmp_path, "mine", prior=())


def test_a_study_that_is_gone_is_left_out(tmp_path: Path) -> None:
    study_of(tmp_path, "here", 0.1)
    mine = make_study(tmp_path, "mine", prior=("gone", "here"))
    assert [source.name for source in sources_of(mine.study)] == ["here"]


@pytest.mark.parametrize(("prior", "knows"), [(None, True), ((SHIPPED,), True), ((), False)])
def test_a_study_of_an_earlier_version_knows_the_shipped_data(tmp_path: Path, prior: Any, knows: bool) -> None:
    """And the demo's search knows nothing of the demo."""
    mine = make_study(tmp_path, "mine", prior=prior, data="demo")
    names = {source.name for source in sources_of(mine.study)}
    assert names == ({SHIPPED + name for name in Prior.load_each(without=["demo"])} if knows else set())
    assert (SHIPPED + "bccd" in names) == knows and SHIPPED + "demo" not in names
    assert make_spec(prior=prior).to_dict()["prior"] == (None if prior is None else list(prior))
