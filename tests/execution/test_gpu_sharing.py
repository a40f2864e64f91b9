"""Shares of a GPU: the arithmetic, and Ray's books with a GPU that exists in them alone. None is needed, none tried."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from studies import FakeEstimate, make_spec
from test_workers import Heard

from cst_search.commands.budget_survey import Survey
from cst_search.commands.options import LaunchOptions
from cst_search.commands.worker_setup import make_workers
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.execution import ray_tune as search
from cst_search.execution.gpu_sharing import MARGIN, Fleet, Node, Placement, cpus_of_each
from cst_search.execution.ray_start import AGENTS_TRIED_ON, init_ray, leave_ray
from cst_search.execution.task import Task
from cst_search.execution.workers import SearchJob
from cst_search.search.session import SearchSession
from cst_search.study.records import Budget
from cst_search.study.study import Study
from cst_search.trial.memory_limit import CPU_IS_LIMITED

GB = 10**9
CARD = Placement(n_gpus=1, gpu_bytes=24 * GB)

# --- arithmetic ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device_bytes", "share", "n_at_once"),
    [
        (1, 0.01, 100),  # never nothing: a trial without a share would see no GPU
        (GB, 0.05, 20),  # 1.1 of 24 is 4.58 %, rounded up
        (2 * GB, 0.10, 10),
        (6 * GB, 0.28, 3),
        (10 * GB, 0.46, 2),
        (12 * GB, 0.55, 1),  # by its bare prediction two would fit
        (22 * GB, 1.0, 1),  # the margin would take it above the card: it gets all of that
        (30 * GB, 1.0, 1),
    ],
)
def test_shares(device_bytes: int, share: float, n_at_once: int) -> None:
    assert CARD.share(device_bytes) == share
    assert CARD.n_at_once(device_bytes) == n_at_once
    assert Placement(3, CARD.gpu_bytes).n_at_once(device_bytes) == 3 * n_at_once


@pytest.mark.parametrize("gpu_bytes", [6 * GB - 1, 6 * GB, 25_757_220_864, 85_100_000_007])
def test_trials_are_limited_to_the_share_they_requested(gpu_bytes: int) -> None:
    card = Placement(1, gpu_bytes)
    for device_bytes in range(6 * 10**8, gpu_bytes, gpu_bytes // 37):
        share = card.share(device_bytes)
        assert round(share * 10**4) % 100 == 0  # Ray keeps four decimals and drops the rest
        limit = card.limit_bytes(share)
        # no more than its share, and at least the prediction, with its margin as long as the card has that
        assert device_bytes <= limit <= share * gpu_bytes + 1
        assert limit >= min(gpu_bytes, device_bytes * (1 + MARGIN)) - 1
        assert card.n_at_once(device_bytes) * limit <= gpu_bytes


def test_placement_describes_itself() -> None:
    assert str(CARD) == "a trial gets its predicted memory and 10% more of 1 GPU of 24 GB, and is held to that"


def test_the_budget_bounds_the_limit() -> None:
    card = Placement(1, 24 * GB, most_bytes=2 * GB)
    assert card.limit_bytes(0.05) == 24 * GB // 20
    assert card.limit_bytes(0.5) == card.limit_bytes(1.0) == 2 * GB


@pytest.mark.parametrize(
    ("n_gpus", "smallest", "cores", "loaders", "asked", "trials", "expected"),
    [
        (1, 2 * GB, 16, 0, None, 50, 10),  # as many as fit
        (1, 2 * GB, 4, 0, None, 50, 4),  # a core each
        (1, 2 * GB, 16, 3, None, 50, 4),  # and one for each process that loads images
        (2, 20 * GB, 16, 0, None, 50, 2),
        (4, 20 * GB, 2, 0, None, 50, 4),  # no GPU stays idle
        (1, 2 * GB, 16, 0, 3, 50, 3),  # --workers
        (1, 2 * GB, 16, 0, None, 6, 6),
    ],
)
def test_workers_on_gpus(
    monkeypatch: pytest.MonkeyPatch, n_gpus: int, smallest: int, cores: int, loaders: int, asked: int | None,
    trials: int, expected: int,
) -> None:  # fmt: skip
    monkeypatch.setattr("cst_search.commands.worker_setup.n_cores", lambda: cores)
    placement = Placement(n_gpus, 24 * GB)
    options = LaunchOptions(workers=asked)
    survey = Survey({"device_bytes": (smallest, 9 * smallest)})
    workers, n_workers, threads = make_workers(options, trials, placement, Recipe(loader_workers=loaders), survey)
    assert isinstance(workers, search.Ray) and workers.placement is placement
    assert n_workers == workers.n_workers == expected
    assert (workers.cpus, threads) == (1.0, max(1, cores // expected))


# --- a cluster -------------------------------------------------------------------------------------------------------

SMALL, LARGE = Node("small", 8, 1, 6 * GB), Node("large", 8, 2, 48 * GB)


def fleet(*nodes: Node, **changes: Any) -> Fleet:
    values: dict[str, Any] = {"on_gpus": True} | changes
    made = Fleet(**values)
    made.set_nodes(nodes)
    return made


def test_a_trial_goes_where_it_fits() -> None:
    cluster = fleet(SMALL, LARGE)
    assert cluster.gpu_bytes == 48 * GB
    place = cluster.place("a", 5 * GB)
    assert place is not None and (place.node, place.gpu) == ("small", 0.92)  # both are idle: the smaller one
    assert place.limit_bytes == 6 * GB * 92 // 100
    place = cluster.place("b", 20 * GB)  # never to a GPU that is too small
    assert place is not None and (place.node, place.gpu) == ("large", 0.46)
    place = cluster.place("c", 5 * GB)  # the small one is full
    assert place is not None and (place.node, place.gpu) == ("large", 0.12)
    cluster.free("a")
    place = cluster.place("d", GB)  # the one with the least to do
    assert place is not None and place.node == "small"
    assert cluster.place("e", 60 * GB) is None


def test_what_fits_no_gpu_of_a_mixed_cluster_is_bounded_by_the_largest() -> None:
    assert fleet(SMALL).gpu_bytes == 6 * GB and fleet(on_gpus=False).gpu_bytes is None
    assert fleet().gpu_bytes == 0
    assert fleet(SMALL).place("a", 6 * GB) is not None and fleet(SMALL).place("a", 6 * GB + 1) is None


def test_gpus_of_a_node_are_booked_one_by_one() -> None:
    """Two of 0.6 do not share a GPU, though together they are less than two."""
    cluster = fleet(Node("n", 16, 2, 10 * GB))
    for name, device_bytes, share in (("a", 5.4, 0.6), ("b", 5.4, 0.6), ("c", 3.6, 0.4), ("d", 3.6, 0.4)):
        place = cluster.place(name, round(device_bytes * GB))
        assert place is not None and place.gpu == share, name
    assert cluster.is_full() and cluster.place("e", 1) is None
    cluster.free("c")
    assert not cluster.is_full()
    assert cluster.place("e", round(5.4 * GB)) is None  # 0.4 is free


def test_small_trials_share_a_gpu_so_that_another_stays_free() -> None:
    """Ray fills the fullest GPU that has room, and the fleet must choose as Ray does."""
    cluster = fleet(Node("n", 16, 2, 10 * GB))
    assert all(cluster.place(name, 3 * GB) is not None for name in "ab")
    assert cluster.place("c", 8 * GB) is not None


@pytest.mark.parametrize("seed", range(20))
def test_no_gpu_and_no_node_is_overbooked(seed: int) -> None:
    rng = random.Random(seed)
    nodes = [Node(f"n{i}", rng.randint(1, 8), rng.randint(1, 4), rng.choice([6, 12, 24, 48]) * GB) for i in range(4)]
    cluster, at_work = fleet(*nodes, cpus=rng.choice([1.0, 3.0])), set()
    for i in range(300):
        if at_work and rng.random() < 0.4:
            cluster.free(gone := rng.choice(sorted(at_work)))
            at_work.remove(gone)
        needs = rng.randint(GB // 2, 50 * GB)
        was_full = cluster.is_full()
        if (place := cluster.place(str(i), needs)) is not None:
            assert not was_full
            at_work.add(str(i))
            node = cluster.nodes[place.node]
            assert needs <= node.gpu_bytes and place.limit_bytes is not None
            assert place.limit_bytes <= place.gpu * node.gpu_bytes + 1
        for node in nodes:
            here = [(p, gpu) for p, gpu in cluster.placed.values() if p.node == node.name]
            assert sum(p.cpus for p, _ in here) <= node.n_cpus + 1e-9
            for number in range(node.n_gpus):
                assert sum(p.gpu for p, gpu in here if gpu == number) <= 1 + 1e-9
    assert set(cluster.placed) == at_work


def test_no_gpu_stays_idle_for_want_of_cpus() -> None:
    cluster = fleet(Node("n", 2, 4, 10 * GB), cpus=3.0)
    places = [cluster.place(name, 9 * GB) for name in "abcde"]
    assert [place and place.cpus for place in places] == [0.5, 0.5, 0.5, 0.5, None]


def test_nodes_come_and_go() -> None:
    cluster = fleet(Node("n", 2), Node("head", 0), on_gpus=False, cpus=2.0)
    assert list(cluster.nodes) == ["n"] and cluster.n_at_once(0) == 1
    assert cluster.place("a", 0) is not None and cluster.is_full() and cluster.place("b", 0) is None
    cluster.set_nodes([Node("n", 2), Node("m", 5)])
    assert [cluster.place(name, 0).node for name in "bc"] == ["m", "m"]  # type: ignore[union-attr]
    cluster.set_nodes([Node("n", 2)])
    assert cluster.is_full()
    for name in "abc":
        cluster.free(name)
    assert cluster.place("d", 0).node == "n"  # type: ignore[union-attr]
    cluster.free("nobody")


def test_workers_bound_a_cluster() -> None:
    cluster = fleet(Node("n", 8), on_gpus=False, n_most=2)
    assert cluster.n_at_once(0) == 2
    assert [cluster.place(name, 0) is None for name in "abc"] == [False, False, True] and cluster.is_full()


@pytest.mark.parametrize(
    ("cpus", "n_trials", "expected"),
    [
        ([4], 16, 1),
        ([4], 4, 1),
        ([4], 2, 2),
        ([4, 4], 2, 4),
        ([4, 4], 3, 2),  # of 3 each only two would run
        ([8, 2], 2, 4),  # both on the large one
        ([8, 2], 5, 2),
        ([0, 2], 9, 1),
        ([], 3, 1),
    ],
)
def test_cpus_of_each(cpus: list[int], n_trials: int, expected: int) -> None:
    assert cpus_of_each([Node(str(i), n) for i, n in enumerate(cpus)], n_trials) == expected


# --- what never fits -------------------------------------------------------------------------------------------------

SPACE = {"methods": ["head"], "shared": {"batch_size": {"choice": [1, 2, 3, 4]}, "lr": {"float": [1e-3, 1e-2]}}}


def estimate(config: Mapping[str, Any]) -> FakeEstimate:
    return FakeEstimate({1: 500, 2: 5000, 3: 9500, 4: 12000}[config["batch_size"]], trainable_params=10)


@pytest.mark.parametrize(
    ("budget", "gpu_bytes", "reason"),
    [
        (None, 10_000, "predicted over the GPU's 10 kB: memory +20%"),
        (11_000, 10_000, "predicted over the GPU's 10 kB: memory +20%"),
        (10_000, 20_000, "predicted over the budget: memory +20%"),
    ],
)
def test_trials_that_never_fit_are_reported_and_take_no_worker(
    tmp_path: Path, budget: int | None, gpu_bytes: int, reason: str
) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    session = SearchSession(Study.create(url, "s", make_spec(space=SPACE, budget=Budget(budget, None))))
    session.begin_launch(gpu_bytes)
    session.enqueue({"method": "head", "batch_size": 4})
    session.enqueue({"method": "head", "batch_size": 3})
    suggestion = session.ask(estimate)  # type: ignore[arg-type]
    assert suggestion is not None and suggestion.config["batch_size"] == 3
    record = session.study.record(0)
    assert (record.state, record.ran, record.feasible, record.reason) == ("infeasible", False, False, reason)


# --- Ray's books -----------------------------------------------------------------------------------------------------


def make_trainable(folder: Path) -> Callable[..., None]:
    """A trial that writes down what it was given and who was at work beside it. Nested: Ray then carries it itself."""

    def trainable(config: dict[str, Any], tasks: list[Task]) -> None:
        import json
        import time
        import uuid
        from contextlib import suppress
        from pathlib import Path

        import ray
        from ray import tune

        at_work, seen = Path(folder) / "at-work", Path(folder) / "seen"
        mine = at_work / uuid.uuid4().hex
        (at_work / f".{mine.name}").write_text(str(config["gpu"]))
        (at_work / f".{mine.name}").rename(mine)  # whole at once, for those who read it
        n_together, share = {1: 4}.get(config["config"]["batch_size"], 1), config["gpu"]
        # those of a quarter each wait for one another: together they fill the card
        end = time.monotonic() + 300
        others: list[float] = []
        while time.monotonic() < end:
            others = []
            for path in at_work.iterdir():
                with suppress(FileNotFoundError):  # it has just ended
                    others += [float(path.read_text())] if not path.name.startswith(".") else []
            if others.count(share) >= n_together or list(seen.glob("*-together")):
                break
            time.sleep(0.02)
        if n_together > 1 and others.count(share) >= n_together:
            (seen / f"{mine.name}-together").touch()
        found = {
            "share": share, "limit_bytes": config["limit_bytes"], "sum": sum(others), "n": len(others),
            "booked": ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0),
            "gpu_ids": ray.get_gpu_ids(), "batch_size": config["config"]["batch_size"],
        }  # fmt: skip
        (seen / f"{mine.name}.json").write_text(json.dumps(found))
        mine.unlink()
        tune.report({"cst_result": json.dumps({"outcome": "complete", "map": 0.1, "map50": 0.2, "history": []})})

    return trainable


@pytest.fixture(scope="module")
def ray_with_a_gpu() -> Iterator[None]:
    init_ray("local", num_cpus=4, num_gpus=1, include_dashboard=False)
    try:
        yield
    finally:
        leave_ray()


@pytest.mark.skipif(not ray.__version__.startswith(AGENTS_TRIED_ON), reason="this Ray starts its own agents")
def test_ray_starts_what_a_search_needs_alone(ray_with_a_gpu: None) -> None:
    """No autoscaler, job server, agents, nothing that passes the output of workers on, no worker before its trial."""
    assert started_here() == Counter(gcs_server=1, raylet=1, **{"ray_agent.py": 2})


def started_here() -> Counter[str]:
    """What each process runs that this one started: a program, or the first file of an interpreter."""
    lines = [child.cmdline() for child in psutil.Process().children(recursive=True)]
    programs = [next((word for word in line if word.endswith(".py")), line[0]) for line in lines if line]
    return Counter(Path(program).name for program in programs)


@pytest.mark.parametrize("name", ["RAY_enable_metrics_collection", "RAY_RUNTIME_ENV_HOOK"])
def test_an_agent_that_is_needed_is_rays_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one has the figures that a user asked for, the other makes environments for workers; another Ray has both."""
    from ray._private import services

    def init(*_: Any, **__: Any) -> None:
        for kind in ("dashboard_agent", "runtime_env_agent"):
            words = services._build_python_executable_command_memory_profileable(kind, "")
            own[kind] = words[-1] != kind

    own: dict[str, bool] = {}
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.__version__", AGENTS_TRIED_ON + "7")
    init_ray("local")
    assert own == {"dashboard_agent": False, "runtime_env_agent": False}
    monkeypatch.setenv(name, "1")
    init_ray("local")
    assert own == {"dashboard_agent": "metrics" in name, "runtime_env_agent": "HOOK" in name}
    monkeypatch.setattr("ray.__version__", "2.6.0")
    monkeypatch.delattr(services, "get_node")  # nothing within it is relied on
    init_ray("local")
    assert own == {"dashboard_agent": True, "runtime_env_agent": True}


def test_trials_share_the_gpu_by_their_prediction(
    ray_with_a_gpu: None, tiny_recipe: Callable[..., Recipe], tiny_data: DetectionData, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name in ("at-work", "seen"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(search, "_trainable", make_trainable(tmp_path))
    session = SearchSession(
        Study.create(f"sqlite:///{tmp_path}/s.db", "s", make_spec(space=SPACE, budget=Budget(9600, None)))
    )
    placement = Placement(1, 10_000, 9000)
    session.begin_launch(placement.gpu_bytes)
    # never; a quarter each; more than a half; all of it
    for i, batch_size in enumerate((4, 1, 1, 1, 1, 2, 2, 3, 1)):
        session.enqueue(
            {"method": "head", "batch_size": batch_size, "lr": (1 + i) * 1e-3}
        )  # what is queued is kept once
    sizes = {1: 2250, 2: 5000, 3: 9500, 4: 12000}

    def estimate(config: Mapping[str, Any]) -> FakeEstimate:
        return FakeEstimate(sizes[config["batch_size"]], trainable_params=10)

    heard = Heard()
    task = Task(tiny_recipe(method="head"), tiny_data, 1, "cpu", 1, 9000)
    search.Ray(4, 1.0, placement).run(SearchJob(session, task, 8, estimate, lambda: False, heard))  # type: ignore[arg-type]
    session.end_launch()
    found = [json.loads(path.read_text()) for path in (tmp_path / "seen").glob("*.json")]
    assert len(found) == 8 and sorted(f["batch_size"] for f in found) == [1, 1, 1, 1, 1, 2, 2, 3]
    assert [record.state for record in heard.records] == ["complete"] * 8
    share = {1: 0.25, 2: 0.55, 3: 1.0}
    for one in found:
        assert one["share"] == share[one["batch_size"]]
        assert one["booked"] == pytest.approx(one["share"], abs=1e-4)
        assert one["limit_bytes"] == min(9000, round(one["share"] * 10_000))
        assert one["sum"] <= 1 + 1e-9  # what else was at work, itself counted, while it was
        assert len(one["gpu_ids"]) == 1
    assert list((tmp_path / "seen").glob("*-together"))  # four quarters ran at a time
    rejected = session.study.record(0)
    assert (rejected.config["batch_size"], rejected.state, rejected.ran) == (4, "infeasible", False)


@pytest.mark.skipif(not CPU_IS_LIMITED, reason="only Linux limits the memory of a CPU process")
def test_a_real_trial_is_held_to_its_share(
    ray_with_a_gpu: None, tiny_recipe: Callable[..., Recipe], tiny_data: DetectionData, tmp_path: Path
) -> None:
    """On a CPU, whose trials can be held too: images one by one need about 17 MB of a process, all eight 70 MB."""
    space = {"methods": ["head"], "shared": {"batch_size": {"choice": [1, 8]}, "lr": {"float": [1e-3, 1e-2]}}}
    recipe = tiny_recipe(method="head")
    session = SearchSession(Study.create(f"sqlite:///{tmp_path}/s.db", "s", make_spec(space=space, budget=Budget())))
    placement = Placement(1, 100 * 10**6)
    session.begin_launch(placement.gpu_bytes)
    for batch_size in (8, 1):
        session.enqueue({"method": "head", "batch_size": batch_size})
    heard = Heard()
    task = Task(recipe, tiny_data, 1, "cpu", 1)
    fake = FakeEstimate(36 * 10**6, trainable_params=10)
    search.Ray(1, 1.0, placement).run(SearchJob(session, task, 2, lambda _: fake, lambda: False, heard))  # type: ignore
    session.end_launch()
    out, well = sorted(heard.records, key=lambda record: record.trial)
    assert (out.state, well.state) == ("infeasible", "complete")
    assert out.reason is not None and out.reason.startswith("out of memory (") and out.reason.endswith(" of 40 MB")
