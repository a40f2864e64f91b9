"""Flags, files and data sets drawn at random: the command works, or says why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from studies import FakeEstimate, Ran, run_cli
from wrong_commands import check

from cst_search.commands import budget_survey, study_setup, worker_setup
from cst_search.commands import train as training
from cst_search.config.recipe import Recipe
from cst_search.errors import UserError
from cst_search.trial import cost

Document = dict[str, Any]


# --- generated ------------------------------------------------------------------------------------------------------


class Reached(UserError):
    """All was taken, and the work would begin."""


def reached(*_: Any, **__: Any) -> None:
    raise Reached("reached")


def bounded(n_examples: int) -> Callable[[Any], Any]:
    """The same examples every time, without a data base of them, and no matter how slow the machine is."""
    slow = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)
    return settings(max_examples=n_examples, derandomize=True, database=None, deadline=None, suppress_health_check=slow)


def works_or_says_why(ran: Ran) -> None:
    """The property: it works, or it is one message; an exception of another kind comes through `run_cli`."""
    if ran.code:
        check(ran, (), {})


@pytest.fixture
def nothing_slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Costs by a formula, and an end where workers or a trial would begin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CST_SEARCH_HOME", str(tmp_path / "home"))
    fake = FakeEstimate(10**9, trainable_params=10**6)
    for owner in (budget_survey, cost):
        monkeypatch.setattr(owner, "predict", lambda *_, **__: fake)
    monkeypatch.setattr(worker_setup, "make_workers", reached)
    monkeypatch.setattr(study_setup, "check_weights", lambda *_, **__: ("weights", True))
    monkeypatch.setattr(training, "check_weights", reached)


numbers = st.one_of(
    st.integers(-10, 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(["", "0", "007", "1_000", "1e3", "\u0663", "\xb2"]),
)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
amounts = st.one_of(
    texts, st.tuples(numbers, st.sampled_from(["", "B", "kb", "GB", "GiB", "M", "k", "s", "h", "x"])).map("".join)
)


@bounded(150)
@given(st.dictionaries(
    st.sampled_from(["--budget-mem", "--budget-params", "--limit-mem", "--cache-size", "--time-limit", "--trials",
                     "--seed", "--workers", "--eta", "--objectives", "--sampler", "--device", "--study", "--set"]),
    amounts, min_size=1, max_size=3,
))  # fmt: skip
@example({"--budget-mem": "9" * 300, "--budget-params": "9" * 300})
@example({"--limit-mem": "9" * 300 + "TB", "--cache-size": "9" * 300})
def test_generated_flags(nothing_slow: None, places: Mapping[str, str], flags: dict[str, str]) -> None:
    fixed = ["--data", places["data"], "--recipe", places["recipe"], "--space", places["space"], "--in-process"]
    works_or_says_why(run_cli("launch", *fixed, *(f"{name}={value}" for name, value in flags.items())))


@bounded(30)
@given(fit=amounts, n_classes=numbers, max_boxes=numbers, device=texts, compare=texts)
@example(fit="9" * 300, n_classes="1", max_boxes="1", device="T4", compare="all")
def test_generated_estimates(
    nothing_slow: None, places: Mapping[str, str], fit: str, n_classes: str, max_boxes: str, device: str, compare: str
) -> None:
    given = {"--fit": fit, "--classes": n_classes, "--max-boxes": max_boxes, "--device": device, "--compare": compare}
    for name, value in given.items():
        works_or_says_why(run_cli("estimate", "--recipe", places["recipe"], f"{name}={value}"))


fields = st.sampled_from([*vars(Recipe()), "imagesize", "<<", "~"])
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(10**400), st.dates(), st.binary(max_size=4),
    st.sampled_from(["demo", "none", "cst", "fcos", "resnet18", "auto"]),
)  # fmt: skip
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts | st.integers(), v, max_size=3), max_leaves=6
)
marks = [*"[]{}:,-?&*!|>%@`#'\"\n \t", "a", "lr", "epochs", ": ", "- ", "&a ", "*a", "<<: ", "---\n", "\ufeff"]
odd = ["!!int ", "!!set ", "!!omap ", "!!python/tuple ", "0x", "0b", "2024-13-40", "12:61:61", ".nan", "1e999"]
fragments = st.lists(st.sampled_from([*marks, *odd]), max_size=14).map("".join)
recipes = st.dictionaries(fields, values, max_size=4).map(lambda d: yaml.dump(d, allow_unicode=True)) | fragments


@bounded(150)
@given(text=recipes)
@example("!!set 3")
@example("options: {a: !!python/object/apply:os.system [ls]}")
def test_generated_recipes(nothing_slow: None, places: Mapping[str, str], tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    works_or_says_why(run_cli("train", tmp_path / "mine.yaml", "--out", tmp_path / "out", "--data", places["data"]))
    works_or_says_why(run_cli("estimate", "--recipe", places["recipe"], "--set", f"lr={text}"))


rules = st.one_of(
    values,
    st.fixed_dictionaries({"choice": st.lists(leaves, max_size=3)}),
    st.fixed_dictionaries({"float": st.lists(st.floats(), min_size=2, max_size=2)}, optional={"log": leaves}),
    st.fixed_dictionaries({"int": st.lists(st.integers(), min_size=2, max_size=2)}, optional={"log": leaves}),
)
sections = st.dictionaries(fields | st.sampled_from(["reduction", "temperature"]), rules, max_size=3) | values
spaces = st.fixed_dictionaries(
    {"methods": st.lists(st.sampled_from(["cst", "head", "full", "lora9"]), max_size=3) | values},
    optional={"shared": sections, "cst": sections, "head": sections, "nosuch": sections},
).map(lambda d: yaml.dump(d, allow_unicode=True))


@bounded(200)
@given(text=spaces | fragments)
def test_generated_spaces(nothing_slow: None, places: Mapping[str, str], tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    ran = run_cli("launch", "--data", places["data"], "--recipe", places["recipe"], "--space", tmp_path / "mine.yaml")
    works_or_says_why(ran)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just(10**400)
    | st.just("../0.png"),
    lambda v: (
        st.lists(v, max_size=4)
        | st.dictionaries(st.sampled_from(["id", "name", "bbox"]) | st.text(max_size=4), v, max_size=3)
    ),
    max_leaves=6,
)


@bounded(200)
@given(data=st.data())
def test_generated_data_sets(
    nothing_slow: None, places: Mapping[str, str], tmp_path: Path, data: st.DataObject
) -> None:
    """A sound annotation file with one to three places changed, or bytes cut away."""
    folder = tmp_path / "generated"
    if not folder.exists():
        shutil.copytree(places["data"], folder)
    document = json.loads((Path(places["data"]) / "train.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        here: Any = document
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            key = data.draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(here[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
                break
            here = here[key]
        if key is not None:
            here[key] = data.draw(json_values)
    text = json.dumps(document).encode()
    (folder / "train.json").write_bytes(
        text[: data.draw(st.integers(0, len(text)))] if data.draw(st.integers(0, 9)) == 0 else text
    )
    skip = data.draw(st.sampled_from([(), ("--skip-bad",)]))
    ran = run_cli("train", places["recipe"], "--out", tmp_path / "out", "--data", folder, *skip)
    works_or_says_why(ran)
    assert not (tmp_path / "out").exists()
