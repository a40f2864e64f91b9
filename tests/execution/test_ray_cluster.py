"""Searches on a real Ray cluster of two nodes, started by the lines of deploy/README.md on loopback addresses.

The tests of one node stand first: the second one joins when the first test asks for it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import warm
from ray_machines import APART, HEAD, NODE, NODE_OPTIONS, ROOT, Machine, wait_for
from rich.console import Console
from studies import Ran, run_cli

from cst_search.commands import launch as launching
from cst_search.commands.launch import launch
from cst_search.commands.options import LaunchOptions
from cst_search.config.recipe import Recipe
from cst_search.errors import ConfigError
from cst_search.execution import node_check
from cst_search.execution import ray_cluster as cluster
from cst_search.execution import ray_tune as search
from cst_search.execution.gpu_sharing import Node
from cst_search.execution.node_check import NodeReport, NodeRequirements, requirements_of
from cst_search.execution.ray_jobs import Jobs
from cst_search.redaction import read_address
from cst_search.study.study import Study
from cst_search.tracking import mlflow_record as record

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not importlib.util.find_spec("aiohttp_cors"),
    reason="two nodes on one machine need Linux's loopback addresses, and a head ray[default]: the extra `test`",
)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One node. What is set for it in this process is set back at the end."""
    from ray._private.authentication_test_utils import reset_auth_token_state  # Ray reads the token once

    # Ray's sockets have names of at most 107 bytes
    machine = Machine(Path(subprocess.check_output(["mktemp", "-d", "/tmp/cst-XXXXXX"], text=True).strip()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", machine.token)
        reset_auth_token_state()
        try:
            machine.start("head", f"--num-cpus=2 --num-gpus=0 --temp-dir={machine.folder}/ray")
            yield machine
            assert machine.processes[0].poll() is None, (machine.folder / "head-0.log").read_text()[-3000:]
        finally:
            machine.end(*machine.processes)
            shutil.rmtree(machine.folder, ignore_errors=True)
    reset_auth_token_state()


@pytest.fixture(scope="module")
def both(head: Machine) -> Machine:
    """Two nodes, from here on."""
    if len(head.processes) < 2:
        head.start("node", NODE_OPTIONS)
    return head


@pytest.fixture(autouse=True)
def _leave() -> Iterator[None]:
    yield
    from cst_search.execution.ray_start import leave_ray

    leave_ray()


def quick_trial(joined: Path | None = None) -> Callable[..., None]:
    """A trial that only says where it was. Nested: Ray then carries it itself.

    Args:
        joined: on the head it waits for this file, which one on another node makes.
    """

    def trainable(config: dict[str, Any], tasks: Any) -> None:
        import json
        import os
        import time

        import ray
        from ray import tune

        import cst_search

        if joined is not None and ray.util.get_node_ip_address() != HEAD:
            joined.touch()
        end = time.monotonic() + 60
        while joined is not None and not joined.exists() and time.monotonic() < end:
            time.sleep(0.1)

        notes = [
            f"node {ray.util.get_node_ip_address()}",
            f"package {cst_search.__file__}",
            f"setting {os.environ.get('TUNE_FUNCTION_THREAD_TIMEOUT_S')}",
            f"cpus {ray.get_runtime_context().get_assigned_resources().get('CPU')}",
            f"gpu {config.get('gpu')} {config.get('limit_bytes')} {ray.get_gpu_ids()}",
        ]
        result = {"outcome": "complete", "map": 0.1, "map50": 0.2, "history": [], "notes": notes}
        tune.report({"cst_result": json.dumps(result)})

    return trainable


def without_versions(*arguments: Any, **options: Any) -> NodeRequirements:
    return replace(requirements_of(*arguments, **options), versions=())


class NoRecord:
    """In place of MLflow, which takes seconds."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials that do nothing, no page, and a study in SQLite although there are two nodes: only this process writes.

    Nor need the nodes import torch, 2 s each: they do for the trial of the search that is submitted.
    """
    monkeypatch.setattr(record, "MlflowRecord", NoRecord)
    monkeypatch.setattr(launching, "write_report", lambda _, folder: dict.fromkeys(("html", "png", "json"), folder))
    monkeypatch.setattr(search, "_trainable", quick_trial())
    monkeypatch.setattr(node_check, "requirements_of", without_versions)
    monkeypatch.setattr(cluster.Cluster, "check_storage", lambda *_: None)


def options(home: Path, recipe: Recipe, **changes: Any) -> LaunchOptions:
    (home / "recipe.yaml").write_text(json.dumps(recipe.to_dict()))
    values: dict[str, Any] = {
        "budget_mem": 6 * 10**9, "home": home, "data": recipe.data, "recipe": str(home / "recipe.yaml"),
        "study": "s", "sampler": "random", "stop_early": False, "device": "cpu",
    }  # fmt: skip
    return LaunchOptions(**values | changes)


def search_there(wanted: LaunchOptions) -> tuple[list[str], list[dict[str, str]]]:
    """(what was said, what each trial noted of itself)."""
    console = Console(record=True, width=400, file=open(os.devnull, "w"))
    info = launch(wanted, console).info
    trials = Study.open(f"sqlite:///{wanted.home}/studies.db", info.name)._study.get_trials(deepcopy=False)
    notes = [t.user_attrs["cst_result"].get("notes", []) for t in trials if "cst_result" in t.user_attrs]
    return console.export_text().splitlines(), [dict(note.split(" ", 1) for note in each) for each in notes]


# --- one node --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.2:1", "Connection refused"),
        ("ray://127.0.0.2:1", "Connection refused"),
        ("nonsense", "got 'nonsense'"),
        ("http://127.0.0.1:8265", "for `cst-search submit`"),
    ],
)
def test_a_wrong_address_is_said_within_seconds(tmp_path: Path, address: str, why: str) -> None:
    begun = time.monotonic()
    ran = run_cli("launch", "--budget-mem", "6GB", "--address", address, "--home", tmp_path)
    assert ran.code == 2 and time.monotonic() - begun < 15
    assert "--address takes auto, HOST:PORT" in ran.message and why in ran.message
    assert not (tmp_path / "studies.db").exists()


@pytest.mark.parametrize(("n_times", "raises"), [(1, False), (2, True)])
def test_a_head_that_is_too_busy_for_a_client_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, n_times: int, raises: bool
) -> None:
    import ray

    calls: list[str] = []

    def init(address: str, **_: Any) -> None:
        calls.append(address)
        if len(calls) <= n_times:
            raise ConnectionError(
                "Initialization failure from server:\nRuntimeError: Starting Ray client server failed."
            )

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "_silence", lambda *_, **__: None)
    with pytest.raises(ConfigError) if raises else nullcontext():
        cluster._connect("ray://127.0.0.2:7")
    assert len(calls) == 2


def test_a_port_of_the_cluster_that_is_another_one(head: Machine, tmp_path: Path) -> None:
    for address, why in (
        (f"127.0.0.1:{head.jobs_port}", "another service listens there"),
        (f"{HEAD}:{head.client_port}", "the port of ray:// addresses"),
        (f"ray://{head.address}", "to be given without ray://"),
    ):
        ran = run_cli("launch", "--budget-mem", "6GB", "--address", address, "--home", tmp_path)
        assert ran.code == 2 and why in ran.message, ran


def test_another_token_is_not_let_in(head: Machine, tmp_path: Path) -> None:
    words = [
        "-m",
        "cst_search.cli",
        "launch",
        "--budget-mem",
        "6GB",
        "--address",
        head.address,
        "--home",
        str(tmp_path),
    ]
    code, said = warm.finished(words, os.environ | {"RAY_AUTH_TOKEN": "x" * 48}, 60)
    assert code == 2 and "RAY_AUTH_TOKEN" in said and "Traceback" not in said


def job(machine: Machine, verb: str, *words: str) -> Ran:
    return run_cli("job", verb, *words, "--address", machine.jobs)


def stop_after(text: str, head: Machine) -> tuple[int, str]:
    """Stop the job of a cluster once its output has a text, with the command of a process of its own."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(head.jobs)
    (name,) = wait_for(lambda: [job.submission_id for job in client.list_jobs() if job.submission_id], 120)
    try:
        wait_for(lambda: text in client.get_job_logs(name), 240, 0.5)
        return warm.finished(
            ["-m", "cst_search.cli", "job", "stop", name, "--address", head.jobs], dict(os.environ), 60
        )
    finally:  # it would go on for long and take the cores from all other tests
        client.stop_job(name)


def test_a_search_is_submitted_and_followed_and_stopped(
    head: Machine, tiny_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """Real, tiny trials, with a recipe of one's own and an address that nobody may see."""
    recipe = tiny_recipe(method="head")
    (tmp_path / "mine.yaml").write_text(json.dumps(recipe.to_dict()))
    (tmp_path / "heads.yaml").write_text("methods: [head]\nshared: {lr: {float: [0.001, 0.01]}}\n")
    # SQLite has no passwords, and takes no notice of this one
    secret = f"sqlite:///file:{tmp_path}/studies.db?uri=true&password=hidden7"
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(stop_after, "trial 0 complete", head)
        ran = run_cli(
            "submit", "--address", head.jobs, "--", "launch", "--budget-mem", "6GB", "--trials", 500, "--study", "sent",
            "--recipe", tmp_path / "mine.yaml", f"--space={tmp_path}/heads.yaml", "--data", recipe.data,
            "--home", tmp_path / "home", "--storage", secret, "--no-stop-early", "--sampler", "random",
            "--workers", 1,
        )  # fmt: skip
        code, said = stopped.result()
    assert code == 0 and "is told to end" in said
    assert ran.code == 130, ran
    assert "INFO" not in ran.err  # of Ray, which tells of every package
    assert "trial 0 complete" in ran.out
    assert "finished trials are kept; continue with" in ran.out  # it ended as by Ctrl-C
    (name,) = re.findall(r"job (raysubmit_\w+) on", ran.err)
    assert f"cst-search job logs --follow {name} --address {head.jobs}" in ran.message
    state = json.loads(job(head, "status", name, "--json").out)
    assert state["state"] == "STOPPED" and state["ended"] >= state["begun"]
    assert "--recipe recipe-mine.yaml --space space-heads.yaml" in state["command"]
    assert "--storage @storage.address" in state["command"] and state["command"].endswith("--address auto")
    assert "trial 0 complete" in job(head, "logs", name).out
    # what the job server tells anybody of a job, its environment too
    from ray.job_submission import JobSubmissionClient

    told = [str(details) for details in JobSubmissionClient(head.jobs).list_jobs()]
    assert told and not [text for text in [*told, ran.out, ran.err] if "hidden7" in text]
    study = Study.open(f"sqlite:///{tmp_path}/studies.db", "sent").info()
    assert study.trials[0].state == "complete" and study.recipe["method"] == "head"
    assert "is over: stopped" in job(head, "stop", name).out
    for verb in ("status", "logs", "stop"):
        gone = job(head, verb, "raysubmit_none")
        assert gone.code == 2 and "there is no job 'raysubmit_none'" in gone.message


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("STOPPED", -15, 130)],
)
def test_submit_ends_as_its_job_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: str, exit_code: int | None, expected: int
) -> None:
    from ray.job_submission import JobStatus

    class Client:
        def submit_job(self, **_: Any) -> str:
            return "raysubmit_1"

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            yield "done after 1 trial\n"

        def get_job_info(self, job: str) -> SimpleNamespace:
            return SimpleNamespace(status=JobStatus[status], message="it ended", start_time=1000, end_time=2000,
                                   driver_exit_code=exit_code, entrypoint="python -m cst_search.cli")  # fmt: skip

    monkeypatch.setattr(Jobs, "__init__", lambda self, address: vars(self).update(_client=Client(), address=address))
    words = ("--address", "http://head:8265", "--", "launch", "--home", tmp_path, "--budget-mem", "6GB")
    ran = run_cli("submit", *words)
    assert (ran.code, ran.out) == (expected, "done after 1 trial\n"), ran
    assert ("it ended" in ran.err) == (expected != 0)
    assert run_cli("submit", "--no-wait", *words).out == "raysubmit_1\n"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["train", "x"], "must be one of launch, resume, confirm"),
        (["launch", "--home", "/x", "--trails", "3"], "No such option"),
        (["launch", "--home", "/x", "--budget-mem", "6XB"], "got '6XB'"),
        (["launch", "--home", "runs", "--data", "coco"], "--data must be a whole path"),
        (["launch"], "--home must be a whole path"),
        (["launch", "--home", "/x", "--storage", "sqlite:///here.db"], "--storage must have a whole path"),
        (["launch", "--home", "/x", "--address", "10.0.0.1:6379"], "leave out its --address"),
        (["launch", "--home", "/x", "--space", "nothing"], "search space 'nothing'"),
        (["launch", "--home", "/x", "--recipe", "nothing"], "recipe 'nothing'"),
        (["launch", "--home", "/x", "--set", "weights=mine.pt"], "weights must be a whole path"),
        (["launch", "--home", "/x", "--storage", "@/nowhere"], "cannot be read"),
        (["resume", "s", "--home", "/x", "--in-process"], "--in-process"),
        (["launch", "--home", "/x"], "no Ray job server"),  # all is well but the address
    ],
)
def test_what_is_wrong_is_found_before_it_is_sent(words: list[str], why: str) -> None:
    ran = run_cli("submit", "--address", "http://127.0.0.2:1", "--", *words)
    assert ran.code == 2 and why in ran.message, ran


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    ran = run_cli("submit", "--address", "http://127.0.0.2:1", "--", "launch", "--home", "/x")
    assert ran.code == 2 and "pip install 'cst-search[cluster]'" in ran.message


def test_an_address_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://u:secret@h/d\n")
    assert read_address(f"@{tmp_path}/url") == "postgresql://u:secret@h/d"
    assert read_address("sqlite:///x") == "sqlite:///x"
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "none"):
        with pytest.raises(ConfigError, match=name):
            read_address(f"@{tmp_path}/{name}")


# --- nodes that join -------------------------------------------------------------------------------------------------


def can_unshare() -> bool:
    command = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def test_nodes_join_a_search(
    head: Machine, tiny_recipe: Callable[..., Recipe], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are looked at: one gets trials, and the other, that lacks the data, none. It then stops a launch."""
    recipe, lines = tiny_recipe(method="head"), []
    monkeypatch.setattr(search, "_trainable", quick_trial(tmp_path / "joined"))
    # trials on the head wait for the node that may join; the other one must have been refused by then
    lacking = head.start_lacking(recipe.data) if can_unshare() else None
    starting = threading.Thread(target=head.start, args=("node", NODE_OPTIONS))
    starting.start()
    hide_until_checked(monkeypatch, APART)
    try:
        lines, notes = search_there(options(tmp_path, recipe, trials=4, address=head.address))
    finally:
        starting.join()
    assert {note["node"] for note in notes} == {HEAD, NODE} and len(notes) == 4
    assert {note["cpus"] for note in notes} == {"1.0"}
    assert {note["setting"] for note in notes} == {os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"]}
    assert f"cluster {head.address}: {HEAD}: 2 CPUs" in lines
    assert f"node {NODE}: 2 CPUs, 2 GPUs of 0 B has joined" in lines
    if lacking is None:
        pytest.skip("a node with files of its own needs the right to mount")
    assert [line for line in lines if line.startswith(f"note: node {APART} has joined, and gets no trial: the anno")]

    monkeypatch.undo()
    monkeypatch.setattr(cluster.Cluster, "check_storage", lambda *_: None)
    monkeypatch.setattr(node_check, "requirements_of", without_versions)
    home = tmp_path / "again"
    home.mkdir()
    with pytest.raises(ConfigError) as raised:
        search_there(options(home, recipe, trials=4, address=head.address))
    said = str(raised.value)
    assert f"of 3 node(s) 1 lack(s) something:\n  {APART}: the annotation file of train is not there" in said
    assert "an image of train is not there" in said and "(8 of 8 that were looked at)" in said
    assert "Nothing was started" in said and HEAD not in said and NODE not in said
    assert not (home / "studies.db").exists()
    head.end(lacking)


def hide_until_checked(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A node that is there counts as one that joins after the others were looked at."""
    alive = cluster.Cluster._alive
    monkeypatch.setattr(
        cluster.Cluster, "_alive",
        lambda self: {key: node for key, node in alive(self).items() if node.name != name or self.nodes},
    )  # fmt: skip


# --- two nodes -------------------------------------------------------------------------------------------------------


def test_sqlite_is_refused(both: Machine, tmp_path: Path) -> None:
    ran = run_cli("launch", "--budget-mem", "6GB", "--address", both.address, "--home", tmp_path)
    assert ran.code == 2 and "the cluster has 2 nodes" in ran.message and "postgresql+psycopg://" in ran.message
    assert not (tmp_path / "studies.db").exists()
    asked = run_cli("doctor", "--address", both.address, "--home", tmp_path)
    assert asked.code == 1 and re.search(rf"\nok +cluster .*, {both.address}: .*{NODE}: 2 CPUs, 2 GPUs", asked.out)
    assert re.search(r"\nfault +cluster .*the cluster has 2 nodes", asked.out) and list(tmp_path.iterdir()) == []


def test_the_driver_stays_here_with_a_client(
    both: Machine, tiny_recipe: Callable[..., Recipe], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study is written by this process. And what waits for a node that has gone goes elsewhere."""
    check = cluster.Cluster.check

    def check_and_lose(self: cluster.Cluster, wanted: NodeRequirements) -> None:
        check(self, wanted)
        self.nodes["gone"] = Node("127.0.0.9", 8)  # where the first trial is sent

    monkeypatch.setattr(cluster.Cluster, "check", check_and_lose)
    said, notes = search_there(options(tmp_path, tiny_recipe(method="head"), trials=4, address=both.client))
    assert {note["node"] for note in notes} == {HEAD, NODE} and len(notes) == 4
    assert not [note for note in notes if Path(note["package"]).is_relative_to(ROOT)]  # it came with the search
    assert "note: node 127.0.0.9 has gone" in said


def test_a_front_is_confirmed_there(
    both: Machine, tiny_recipe: Callable[..., Recipe], tmp_path: Path, quick: None
) -> None:
    search_there(options(tmp_path, tiny_recipe(method="head"), trials=2, address=both.address))
    (tmp_path / "s").mkdir()  # where the page would be
    secret = f"sqlite:///file:{tmp_path}/studies.db?uri=true&password=hidden8"  # SQLite takes no notice of it
    words = (
        "--seeds",
        3,
        "--address",
        both.address,
        "--device",
        "cpu",
        "--home",
        tmp_path,
        "--storage",
        secret,
        "--json",
    )
    ran = run_cli("confirm", "s", *words)
    assert ran.code == 0, ran
    from ray.job_submission import JobSubmissionClient

    # Ray keeps the command lines of its drivers, and shows them
    told = [details.entrypoint for details in JobSubmissionClient(both.jobs).list_jobs()]
    assert [text for text in told if "confirm s" in text and "password=***" in text]
    assert not [text for text in told if "hidden8" in text]
    repeats = Study.open(f"sqlite:///{tmp_path}/studies.db", "s").info().repeats
    front = {point["trial"] for point in json.loads(ran.out)["points"]}
    assert sorted((r.repeat_of, r.seed) for r in repeats) == sorted((trial, seed) for trial in front for seed in (1, 2))
    assert {r.state for r in repeats} == {"complete"}
    assert {note.split()[1] for r in repeats for note in r.notes if note.startswith("node ")} == {HEAD, NODE}
    assert json.loads(run_cli("confirm", "s", *words).out)["points"] and len(repeats) == 2 * len(front)


def test_trials_go_to_gpus_that_are_large_enough(
    both: Machine, tiny_recipe: Callable[..., Recipe], tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine has no GPU: what torch would see on the nodes is made up, what Ray books is not."""
    monkeypatch.setattr(cluster, "_found", lambda _: NodeReport(gpu_bytes=[20 * 10**9, 20 * 10**9]))
    said, notes = search_there(
        options(tmp_path, tiny_recipe(method="head"), trials=2, address=both.address, device="cuda")
    )
    assert {note["node"] for note in notes} == {NODE}
    for note in notes:
        share, limit, gpus = note["gpu"].split(" ", 2)
        assert 0 < float(share) < 0.1 and 0 < int(limit) < 2 * 10**9 and gpus in ("[0]", "[1]", "['0']", "['1']")
    assert f"cluster {both.address}: {NODE}: 2 CPUs, 2 GPUs of 20 GB" in said
    with pytest.raises(ConfigError, match="no node of the cluster has a GPU"):
        monkeypatch.setattr(cluster.Cluster, "_alive", lambda _: {"a": Node("10.0.0.1", 2)})
        search_there(options(tmp_path, tiny_recipe(method="head"), address=both.address, device="cuda"))
