"""What the doctor finds: each fault made for real, but for a GPU, which is made up."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from studies import make_study, run_cli

from cst_search.commands import doctor
from cst_search.commands.doctor import Finding, examine
from cst_search.study.study import Study, default_storage
from cst_search.tracking.connection import default_tracking_uri


def found(home: Path, **changes: Any) -> dict[str, Finding]:
    values = {"storage": default_storage(home), "tracking_uri": default_tracking_uri(home), "with_ray": False} | changes
    return {finding.name: finding for finding in examine(home, **values)}


def test_a_machine_on_which_nothing_was_made_yet(tmp_path: Path) -> None:
    ran = run_cli("doctor", "--home", tmp_path / "new", "--no-ray", "--json")
    assert ran.code == 0, ran
    findings = {finding["name"]: finding for finding in json.loads(ran.out)}
    assert {f["state"] for f in findings.values()} <= {"ok", "note"}
    assert {"machine", "torch", "home", "storage", "MLflow"} <= set(findings)
    assert f"torch {torch.__version__}" in findings["torch"]["text"]
    for name in ("home", "storage", "MLflow"):
        assert findings[name]["text"].endswith("made by the first launch")
    assert list(tmp_path.iterdir()) == []  # to look makes nothing


def test_existing_services_are_tested_and_left_unchanged(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    findings = found(tmp_path)
    assert findings["storage"].text.split(": ")[1].startswith("1 studies, writable")
    assert Study.open(session.study.url, session.study.name).info().trials == ()
    text = run_cli("doctor", "--home", tmp_path, "--no-ray").out
    assert "several need PostgreSQL" in text


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("storage", {"storage": "nosuch://me:hunter2@host/x"}, "there is no kind of database"),
        ("storage", {"storage": "sqlite:////proc/nobody/may.db"}, "/proc cannot be written"),
        ("MLflow", {"tracking_uri": "http://me:hunter2@127.0.0.1:9"}, "does not answer: Connection refused"),
        ("MLflow", {"tracking_uri": "postgresql+psycopg://me:hunter2@127.0.0.1:9/x"}, "Connection refused"),
        ("MLflow", {"tracking_uri": "sqlite:////proc/nobody/may.db"}, "/proc cannot be written"),
        ("home", {"home": Path("/proc/nobody/may")}, "cannot be written"),
    ],
)
def test_a_fault_is_a_line_and_the_others_are_still_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    home = changes.pop("home", tmp_path)
    elsewhere = {"storage": default_storage(tmp_path), "tracking_uri": default_tracking_uri(tmp_path)}
    findings = found(home, **(elsewhere | changes))
    assert findings[name].state == "fault" and words in findings[name].text and findings[name].remedy
    assert "hunter2" not in str(findings)
    assert [n for n, finding in findings.items() if finding.state == "fault"] == [name]


@pytest.mark.parametrize(
    ("said", "state", "words"),
    [
        (b"3.99.0", "ok", "MLflow 3.99.0 answers"),
        (b"2.22.1", "note", "MLflow 2.22.1 answers"),
        (b"<html>no such page</html>", "ok", "it answers"),
    ],
)
def test_a_server_of_mlflow_and_its_version(tmp_path: Path, said: bytes, state: str, words: str) -> None:
    """A server that knows two requests: its version, and which experiments it has."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(said)

        def do_POST(self) -> None:
            self.answer(b'{"experiments": []}')

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        finding = found(tmp_path, tracking_uri=f"http://127.0.0.1:{server.server_port}")["MLflow"]
        server.shutdown()
    assert finding.state == state and words in finding.text and bool(finding.remedy) == (state == "note")


def test_a_database_that_may_not_be_written(tmp_path: Path) -> None:
    make_study(tmp_path)
    with sqlite3.connect(tmp_path / "studies.db") as database:  # of modes root takes no notice
        database.execute("CREATE TRIGGER no BEFORE INSERT ON studies BEGIN SELECT RAISE(ABORT, 'read only'); END")
    storage = found(tmp_path)["storage"]
    assert storage.state == "fault" and "read only" in storage.text


def test_a_record_of_an_older_mlflow_is_upgraded_while_nobody_writes(tmp_path: Path) -> None:
    made = tmp_path / "made.db"
    MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments(max_results=1)
    with sqlite3.connect(made) as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # of MLflow 1.0
    made.rename(tmp_path / "mlflow.db")  # MLflow checks an address once in a process
    finding = found(tmp_path)["MLflow"]
    assert finding.state == "fault" and "out-of-date database schema" in finding.text
    assert finding.remedy.startswith("stop every launch") and "mlflow db upgrade" in finding.remedy


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_text("no database, but long enough to be taken for one " * 100)
    assert "cannot be used: " in found(tmp_path)["storage"].text


def test_a_fault_ends_with_1(tmp_path: Path) -> None:
    ran = run_cli("doctor", "--home", tmp_path, "--no-ray", "--storage", "nosuch://host/x")
    assert ran.code == 1 and "fault  storage" in ran.out and "Traceback" not in ran.out + ran.err


def test_little_disk_and_few_files_are_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    monkeypatch.setattr("resource.getrlimit", lambda which: (256, 256))
    findings = found(tmp_path)
    assert findings["home"].state == "note" and "--cache-size 0" in findings["home"].remedy
    assert findings["open files"].state == "note" and "ulimit" in findings["open files"].remedy
    if "shared memory" in findings:
        assert findings["shared memory"].state == "note" and "--shm-size" in findings["shared memory"].remedy


def torch_findings() -> list[Finding]:
    return list(doctor._torch())


@pytest.mark.parametrize(
    ("driver", "cuda", "state", "words"),
    [
        (None, "13.2", "note", "no NVIDIA driver"),
        ("NVIDIA driver 535.1", "13.2", "fault", "torch for CUDA 13.2 cannot use it"),
        ("NVIDIA driver 535.1", None, "fault", "this torch is built without CUDA"),
    ],
)
def test_a_gpu_that_torch_does_not_see(
    monkeypatch: pytest.MonkeyPatch, driver: str | None, cuda: str | None, state: str, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    gpu = torch_findings()[-1]
    assert (gpu.name, gpu.state) == ("GPU", state) and words in gpu.text
    assert bool(gpu.remedy) == (state == "fault")


@pytest.mark.parametrize(("free", "state"), [(23 * 10**9, "ok"), (10 * 10**9, "note")])
def test_a_gpu(monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    for name, answer in {
        "is_available": True, "device_count": 1, "mem_get_info": (free, 24 * 10**9), "get_device_name": "A card",
        "is_bf16_supported": True,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, index: self)
    gpu = torch_findings()[-1]
    assert (gpu.name, gpu.state) == ("GPU 0", state)
    assert gpu.text == f"A card, {free // 10**9} GB of 24 GB free, bf16"


def test_the_library_that_evaluates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cst_search.trial.coco_eval.chosen_library", lambda: "pycocotools")
    (slow,) = doctor._evaluation()
    assert slow.state == "note" and slow.text.startswith("mAP by pycocotools 2") and "pip install" in slow.remedy
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
    monkeypatch.setattr("cst_search.trial.coco_eval.chosen_library", lambda: "faster-coco-eval")
    (fast,) = doctor._evaluation()
    assert fast.state == "ok" and fast.text.startswith("mAP by faster-coco-eval 1") and not fast.remedy


def test_torch_and_torchvision_of_other_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("torchvision.ops.nms", missing)
    (fault,) = torch_findings()
    assert fault.state == "fault" and "do not fit each other" in fault.text


@pytest.mark.parametrize(("code", "out", "expected"), [(0, "550.54\n550.54\n", "NVIDIA driver 550.54"), (9, "", None)])
def test_the_driver_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, out: str, expected: str | None
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{out}'\nexit {code}\n".replace("\n550", "\\n550", 1))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert doctor._driver() == expected


def test_ray_that_works_and_ray_that_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a token that others could read, and ports that are open because somebody wants them to be."""
    works, *_ = doctor._ray()
    assert works.state == "ok" and "runs a task" in works.text and "nobody else may enter" in works.text
    import ray

    from cst_search.execution import ray_start

    # Ray reads the token once in the life of a process: with another, the next Ray started here refuses this process
    monkeypatch.setattr(ray_start, "try_ray", lambda: None)
    token = tmp_path / "token"
    token.write_text("x" * 64)
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    works, was_open = doctor._ray()
    assert works.state == "ok" and was_open.state == "note"
    assert str(token) in was_open.text and "delete it" in was_open.remedy
    token.chmod(0o600)
    monkeypatch.setenv("RAY_enable_metrics_collection", "1")
    works, open_ports = doctor._ray()
    assert open_ports.state == "note" and "without a token" in open_ports.text
    monkeypatch.undo()

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("no port")

    monkeypatch.setattr(ray, "init", refuse)
    begun = time.monotonic()
    monkeypatch.setattr(doctor, "_torch", lambda: iter(()))
    findings = {f.name: f for f in examine(Path(), "sqlite:///none.db", "sqlite:///none.db")}
    assert findings["Ray"].state == "fault" and "no port" in findings["Ray"].text
    assert time.monotonic() - begun < 60
