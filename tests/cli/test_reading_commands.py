"""Commands that read: list, status, front, ls, cp and ui."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from read_study import NAME
from studies import make_study, run_cli

from cst_search import cli
from cst_search.config import catalog
from cst_search.config.recipe import DETECTORS
from cst_search.study.study import Study


def test_list(home: Path) -> None:
    make_study(home, "second")
    ran = run_cli("list", "--home", home, "--json")
    first, second = json.loads(ran.out)
    assert set(first) == {"study", "started", "data", "trials", "best_map", "hypervolume"}
    assert (first["study"], first["best_map"], first["trials"]["complete"]) == (NAME, 0.6, 3)
    assert (second["study"], second["best_map"], second["trials"]["total"]) == ("second", None, 0)
    text = run_cli("list", "--home", home)
    assert text.code == 0 and NAME in text.out and "second" in text.out


def test_list_where_there_is_nothing(tmp_path: Path) -> None:
    ran = run_cli("list", "--home", tmp_path / "none")
    assert ran.code == 0 and "no studies in" in ran.out
    assert json.loads(run_cli("list", "--home", tmp_path / "none", "--json").out) == []
    assert not (tmp_path / "none").exists()


def test_status(home: Path) -> None:
    content = json.loads(run_cli("status", NAME, "--home", home, "--json").out)
    assert set(content) == {"study", "trials", "hypervolume", "outlook", "all", "repeats"}
    assert [entry["state"] for entry in content["all"]] == ["complete"] * 3 + ["failed", "running"]
    assert content["all"][3]["reason"] == "ValueError: [/bold] & <b>"
    text = run_cli("status", NAME, "--home", home)
    assert text.code == 0
    assert "[/bold] & <b>" in text.out  # what a trial said is no markup
    assert "5 trials (3 complete, 1 failed, 1 running)" in text.out


def test_status_of_many_trials_shows_the_last_and_what_has_not_finished(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.studies, "_ROWS", 2)
    whole = Study.open(f"sqlite:///{home / 'studies.db'}", NAME).info()
    states = ["interrupted", "complete", "failed", "running", "complete", "infeasible"]
    trials = tuple(replace(whole.trials[0], trial=10 + i, state=state) for i, state in enumerate(states))
    info = replace(whole, trials=trials)
    monkeypatch.setattr(Study, "info", lambda self: info)

    def shown(*arguments: str) -> list[int]:
        text = run_cli("status", NAME, "--home", home, *arguments).out
        assert ("the last 2; --all shows the 2 before them too" in text) == (not arguments)
        assert "6 trials (" in text
        return [int(number) for number in re.findall(r"^│ +(?:best )?(\d+) +│", text, re.MULTILINE)]

    assert shown() == [10, 13, 14, 15]
    assert shown("--all") == [10, 11, 12, 13, 14, 15]


def test_front(home: Path) -> None:
    report = json.loads(run_cli("front", NAME, "--home", home, "--json").out)
    assert set(report) == {
        "study", "objectives", "budget", "trials", "reference_point", "compared_reference", "context_bytes",
        "hypervolume", "knee", "suggested_pick", "suggested", "front", "methods", "importance",
    }  # fmt: skip
    assert [set(objective) for objective in report["objectives"]] == [{"name", "goal"}] * 3
    assert report["budget"] == {"memory_bytes": 1000, "params": None, "delta_bytes": None, "flops": None}
    assert set(report["trials"]) == {"total", "complete", "pruned", "infeasible", "failed", "running", "repeats"}
    assert set(report["reference_point"]) == {"map", "device_bytes", "trainable_params"}
    assert [entry["trial"] for entry in report["front"]] == [0, 1]
    for entry in report["front"]:
        assert list(entry) == [
            "trial", "config", "map", "map50", "device_bytes", "working_bytes", "memory_source", "trainable_params",
            "petl_params", "delta_bytes", "inference_bytes", "flops", "marginal_flops",
            "n_seeds", "map_mean", "map_std", "map50_mean", "map50_std",
        ]  # fmt: skip
        assert set(entry["config"]) == {"method", "cst.reduction", "cst.mtc_stages", "batch_size", "lr", "recompute"}
    assert report["knee"] in (0, 1)
    text = run_cli("front", NAME, "--home", home)
    pick = report["suggested_pick"]
    assert text.code == 0 and NAME in text.out
    assert f"{pick} {report['suggested']} " in text.out, "the suggested point is marked"


def test_front_writes_a_page_in_which_a_hostile_name_is_text(home: Path, tmp_path: Path) -> None:
    ran = run_cli("front", NAME, "--home", home, "-o", tmp_path / "page", "--json")
    assert ran.code == 0 and json.loads(ran.out)["study"] == NAME
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["front.html", "front.json", "front.png"]
    page = (tmp_path / "page" / "front.html").read_text()
    assert NAME not in page and "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "& <b>" not in page  # the reason of the failed trial


def test_front_of_a_study_without_one(home: Path) -> None:
    make_study(home, "second")
    ran = run_cli("front", "second", "--home", home)
    assert ran.code == 0 and "no feasible complete trial yet" in ran.out
    report = json.loads(run_cli("front", "second", "--home", home, "--json").out)
    assert (report["front"], report["knee"], report["hypervolume"]) == ([], None, 0.0)


def test_the_storage_of_a_team(home: Path) -> None:
    ran = run_cli("front", NAME, "--storage", f"sqlite:///{home / 'studies.db'}", "--json")
    assert ran.code == 0 and len(json.loads(ran.out)["front"]) == 2


def test_home_is_taken_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CST_SEARCH_HOME", str(home))
    assert json.loads(run_cli("list", "--json").out)[0]["study"] == NAME


def test_ls_and_cp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(run_cli("ls", "--json").out)
    assert found.pop("plugins") == []
    assert found.pop("detectors") == list(DETECTORS) and all(name in run_cli("ls").out for name in DETECTORS)
    assert found == {kind: catalog.names(kind) for kind in ("trials", "search_spaces")}  # type: ignore[arg-type]
    text = run_cli("ls").out
    assert all(name in text for names in found.values() for name in names)
    monkeypatch.chdir(tmp_path)
    for kind, names in found.items():
        for name in names:
            ran = run_cli("cp", name)
            assert (ran.code, ran.out) == (0, f"{name}.yaml\n")
            assert (tmp_path / f"{name}.yaml").read_bytes() == catalog.shipped(kind, name).read_bytes()
    (tmp_path / "demo.yaml").write_text("changed")
    assert run_cli("cp", "demo").code == 2
    assert (tmp_path / "demo.yaml").read_text() == "changed"
    assert run_cli("cp", "demo", "--force").code == 0
    assert (tmp_path / "demo.yaml").read_text() != "changed"


def test_ui_becomes_mlflow_on_loopback_without_telemetry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mlflow.db").write_text("")
    seen: dict[str, Any] = {}

    def become(path: str, command: list[str], environment: dict[str, str]) -> None:
        seen.update(command=command, environment=environment)

    monkeypatch.setattr(os, "execve", become)
    assert run_cli("ui", "--home", home, "--port", 5055).code == 0
    command = seen["command"]
    assert command[command.index("--host") + 1] == "127.0.0.1" and command[command.index("--port") + 1] == "5055"
    assert seen["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
