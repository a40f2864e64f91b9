"""A trial that stops at a rung and goes on: equal to one that never stopped, whatever became of its file."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_run import without_times

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.detector.build import build_detector
from cst_search.trial import checkpoints
from cst_search.trial import epochs as loop
from cst_search.trial.checkpoint_folder import Checkpoints
from cst_search.trial.result import TrialResult
from cst_search.trial.run import run_trial

pytestmark = pytest.mark.usefixtures("few_boxes")

Make = Callable[..., Recipe]
EPOCHS, RUNGS = 3, (1, 2)


class Run:
    """``run(...)`` is `run_trial` for EPOCHS with RUNGS, which keeps what was reported and the trained tensors."""

    def __init__(self, recipe: Recipe, data: DetectionData, path: Path) -> None:
        self.recipe, self.data, self.path = recipe, data, path
        self.weights: dict[str, torch.Tensor] = {}
        self.epochs: list[int] = []

    def __call__(self, stop_at: int | None = None, **options: Any) -> TrialResult:
        torch.rand(3)  # what was drawn before must not matter
        self.epochs = []

        def report(entry: dict[str, Any]) -> bool:
            self.epochs.append(entry["epoch"])
            return entry["epoch"] != stop_at

        values: dict[str, Any] = {"epochs": EPOCHS, "rungs": RUNGS, "checkpoint": self.path} | options
        return run_trial(
            self.recipe, self.data, report=report, keep=lambda model: self.weights.update(model.state_dict()), **values
        )


@pytest.fixture(scope="module")
def half(tiny_data: DetectionData) -> DetectionData:
    """Every second image of `tiny_data`: two batches an epoch."""
    splits = {name: dataclasses.replace(split, images=split.images[::2]) for name, split in tiny_data.splits.items()}
    return dataclasses.replace(tiny_data, splits=splits)


@pytest.fixture
def make(tiny_recipe: Make, half: DetectionData, tmp_path: Path) -> Callable[..., Run]:
    def start(name: str = "7", **changes: Any) -> Run:
        return Run(tiny_recipe(**{"method": "head", "lr": 1e-2} | changes), half, tmp_path / "new" / f"{name}.pt")

    return start


def facts(result: TrialResult) -> dict[str, Any]:
    """What must not depend on how often a trial stopped."""
    return {name: value for name, value in without_times(result).items() if name not in ("resumed_epochs", "notes")}


CASES: list[tuple[str, dict[str, Any]]] = [
    *[(f"cst with batch norm, {detector}", {"detector": detector, "method": "cst", "options": {"norm": "bn"},
                                            "batch_size": 1, "accumulate": 3}) for detector in ("fasterrcnn", "fcos")],
    ("batch norm of the body trains", {"method": "full", "accumulate": 2, "weights": "none", "batch_size": 1}),
    ("blocks that start as those of the body", {"method": "lst", "options": {"init": "prune_l1"}}),
    ("inside the backbone, without an evaluation of its own", {"method": "conv_lora", "eval_every": 99}),
    ("augmented images", {"augment": "strong"}),
]  # fmt: skip


@pytest.mark.parametrize(("why", "changes"), CASES, ids=[row[0] for row in CASES])
def test_stopped_and_gone_on_is_as_never_stopped(make: Callable[..., Run], why: str, changes: dict[str, Any]) -> None:
    straight, halting = make("straight", **changes), make("halting", **changes)
    through = straight()
    assert through.outcome == "complete" and straight.epochs == [1, 2, 3]
    assert ["map" in entry for entry in through.history] == [True] * 3

    for rung in RUNGS:
        stopped = halting(stop_at=rung)
        assert (stopped.outcome, stopped.epochs, stopped.reason) == ("stopped", rung, None)
        assert stopped.map == stopped.history[-1]["map"] == through.history[rung - 1]["map"]
        assert stopped.final["val"]["map"] == stopped.map
        assert halting.weights == {}  # nothing is saved of a trial that is not complete
    ended = halting()
    assert halting.epochs == [2, 3] and ended.resumed_epochs == 2 and ended.notes == []
    assert facts(ended) == facts(through)
    assert straight.weights.keys() == halting.weights.keys()
    assert all(torch.equal(straight.weights[name], halting.weights[name]) for name in straight.weights)


def test_a_trial_that_is_killed_goes_on_from_its_last_rung(
    make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, killed = make("straight", method="cst"), make("killed", method="cst")
    through = straight()
    with monkeypatch.context() as patch:
        real, calls = loop.train_one_epoch, []

        def train_one_epoch(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        patch.setattr(loop, "train_one_epoch", train_one_epoch)
        with pytest.raises(KeyboardInterrupt):
            killed()
    # the last report comes again: whether it stopped there may not have been known
    assert facts(killed()) == facts(through) and killed.epochs == [1, 2, 3]
    assert list(killed.path.parent.glob("*.part")) == []


def test_seconds_are_those_of_the_whole_trial(make: Callable[..., Run]) -> None:
    run = make()
    first = run(stop_at=1)
    assert 0 < first.history[0]["seconds"] <= first.seconds
    ended = run()
    assert ended.seconds > ended.history[1]["seconds"] > ended.history[0]["seconds"] == first.history[0]["seconds"]
    assert ended.seconds >= ended.train_seconds > 0
    assert "seconds" not in ended.history[2]  # no rung


def damaged(run: Run, how: str) -> None:
    path, content = run.path, bytearray(run.path.read_bytes())
    if how == "empty":
        content.clear()
    elif how == "cut off":
        del content[len(content) // 2 :]
    elif how == "not a checkpoint":
        content = bytearray(b"hello " * 50)
    elif how == "a bit turned in a tensor":
        # in the middle of the largest tensor: torch.load alone takes it
        tensors = torch.load(path, weights_only=True)["tensors"]
        largest = max(tensors.values(), key=torch.Tensor.numel).numpy().tobytes()
        content[content.index(largest) + len(largest) // 2] ^= 64
    elif how == "code":
        torch.save({"format": 1, "identity": Run}, path)
        return
    elif how == "a pickle":
        content = bytearray(pickle.dumps({"format": 1}))
    elif how == "another format":
        torch.save(torch.load(path, weights_only=True) | {"format": 2}, path)
        return
    elif how == "other tensors":
        stored = torch.load(path, weights_only=True)
        stored["tensors"].popitem()
        torch.save(stored, path)
        return
    elif how == "something is missing":
        stored = torch.load(path, weights_only=True)
        del stored["optimiser"]
        torch.save(stored, path)
        return
    elif how == "bytes without end":
        path.unlink()
        path.symlink_to("/dev/zero")
        return
    elif how == "a pipe":
        path.unlink()
        os.mkfifo(path)
        return
    elif how == "too large":
        os.truncate(path, 10**9)
        return
    elif how == "compressed":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("archive/data/0", bytes(10**6))
        return
    elif how == "a folder":
        path.unlink()
        path.mkdir()
        return
    path.write_bytes(content)


@pytest.fixture(scope="module")
def of_epoch_1(tiny_recipe: Make, half: DetectionData, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint that ``make()`` leaves when it is stopped after its first epoch."""
    run = Run(tiny_recipe(method="head", lr=1e-2), half, tmp_path_factory.mktemp("stopped") / "7.pt")
    run(stop_at=1)
    return run.path.read_bytes()


@pytest.fixture
def stopped(make: Callable[..., Run], of_epoch_1: bytes) -> Run:
    """``make()``, stopped after its first epoch."""
    run = make()
    run.path.parent.mkdir()
    run.path.write_bytes(of_epoch_1)
    return run


@pytest.fixture(scope="module")
def through(tiny_recipe: Make, half: DetectionData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``make()`` gives when it is never stopped."""
    run = Run(tiny_recipe(method="head", lr=1e-2), half, tmp_path_factory.mktemp("through") / "7.pt")
    return facts(run())


@pytest.mark.parametrize(
    "how",
    [
        "empty", "cut off", "not a checkpoint", "a bit turned in a tensor", "code", "a pickle", "another format",
        "other tensors", "something is missing", "a folder", "bytes without end", "a pipe", "too large", "compressed",
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_noticed_and_the_trial_begins_anew(
    stopped: Run, through: dict[str, Any], how: str
) -> None:
    run = stopped
    damaged(run, how)
    ended = run(stop_at=1)  # what comes then is that of a trial which begins
    assert run.epochs == [1] and ended.resumed_epochs == 0
    assert facts(ended)["history"] == through["history"][:1]
    assert ended.notes[0].startswith("began anew: 7.pt was left aside, as it")
    assert [note.startswith("its checkpoint could not be written") for note in ended.notes[1:]] == (
        [True] if how == "a folder" else []
    )


@pytest.mark.parametrize(
    ("why", "recorded", "is_taken"),
    [
        ("what it reached itself", lambda entry: [entry], True),
        ("the search was killed before it was told", lambda entry: [], True),
        ("it reached more than the checkpoint has", lambda entry: [entry, entry | {"epoch": 2, "map": 0.3}], True),
        ("another score", lambda entry: [entry | {"map": 0.9}], False),
        ("no score", lambda entry: [{"epoch": 1, "loss": 1.0}], False),
    ],
)
def test_a_checkpoint_agrees_with_the_study(
    stopped: Run, why: str, recorded: Callable[[dict[str, Any]], list[dict[str, Any]]], is_taken: bool
) -> None:
    entry = json.loads(torch.load(stopped.path, weights_only=True)["found"])["history"][0]
    ended = stopped(stop_at=1, recorded=recorded(entry))
    assert ended.resumed_epochs == int(is_taken)
    assert is_taken or ended.notes[0].endswith("its history is not the one that the study has recorded")


def test_a_checkpoint_is_not_of_epochs_that_were_not_run(stopped: Run) -> None:
    stored = torch.load(stopped.path, weights_only=True)
    found = json.loads(stored["found"])
    for n_epochs, is_taken in ((2, True), (3, False)):
        found["history"] = [found["history"][0] | {"epoch": epoch + 1} for epoch in range(n_epochs)]
        torch.save(stored | {"found": json.dumps(found)}, stopped.path)
        assert (stopped(recorded=[], stop_at=EPOCHS).notes == []) is is_taken, n_epochs


def test_a_checkpoint_sets_nothing_but_what_training_changes(stopped: Run, through: dict[str, Any]) -> None:
    stored = torch.load(stopped.path, weights_only=True)
    stored["schedule"] |= {"base_lrs": [9.0], "lr_lambdas": [{"n_warm": 9}], "step": "no method", "optimizer": None}
    stored["optimiser"]["param_groups"][0] |= {"weight_decay": 9.0, "maximize": True, "more": 1}
    torch.save(stored, stopped.path)
    ended = stopped()
    assert ended.resumed_epochs == 1 and facts(ended) == through


def test_no_damage_goes_unnoticed(stopped: Run, of_epoch_1: bytes, through: dict[str, Any]) -> None:
    """One bit at a time: either the trial begins anew, or the bit is none that is read."""
    run, content, rng = stopped, of_epoch_1, random.Random(0)
    assert run().resumed_epochs == 1  # whole, it is one that is taken
    for _ in range(6):
        broken = bytearray(content)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        run.path.write_bytes(broken)
        assert facts(run()) == through


@pytest.mark.parametrize(
    "change", [{"lr": 2e-2}, {"seed": 1}, {"method": "norm"}, {"epochs": 4}, {"data": "fewer"}], ids=str
)
def test_a_checkpoint_of_another_trial_is_left_aside(
    make: Callable[..., Run], stopped: Run, change: dict[str, Any]
) -> None:
    other = make(**{name: value for name, value in change.items() if name not in ("epochs", "data")})
    if "data" in change:
        train = other.data.splits["train"]
        fewer = dataclasses.replace(train, images=train.images[:3])
        other.data = dataclasses.replace(other.data, splits=other.data.splits | {"train": fewer})
    ended = other(epochs=change.get("epochs", EPOCHS))
    assert ended.resumed_epochs == 0 and other.epochs[0] == 1
    assert ended.notes == ["began anew: 7.pt was left aside, as it is another trial's"]


def test_a_checkpoint_that_cannot_be_written_is_noted(
    make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    run = make()
    ended = run()
    assert ended.outcome == "complete" and list(run.path.parent.iterdir()) == []
    assert ended.notes == ["its checkpoint could not be written: [Errno 28] No space left on device"] * 2


def test_without_rungs_it_is_written_too_and_nothing_more_is_evaluated(make: Callable[..., Run]) -> None:
    straight, halting = make("straight", eval_every=99), make("halting", eval_every=99)
    through = straight(rungs=())
    assert ["map" in entry for entry in through.history] == [False, False, True]
    halting(rungs=(), stop_at=2)
    ended = halting(rungs=())
    assert ended.resumed_epochs == 2 and facts(ended) == facts(through)


@pytest.mark.parametrize(
    ("epochs", "rungs", "expected"), [(1, (), []), (3, (), [1, 2]), (7, (), [2, 4, 6]), (7, (3,), [2, 3, 4, 6])]
)
def test_when_it_is_written(
    make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, epochs: int, rungs: tuple[int, ...], expected: list[int]
) -> None:
    """At every fifth, rounded up, and at the rungs; not at the end, which needs none."""
    written: list[int] = []
    monkeypatch.setattr(loop, "_write", lambda work, *_: written.append(len(work.history)))
    make(eval_every=99)(rungs=rungs, epochs=epochs)
    assert written == expected


def test_a_checkpoint_holds_what_is_trained_and_no_more(make: Callable[..., Run]) -> None:
    run = make(method="cst", width=0.25, weights="none")
    run(stop_at=1)
    whole = sum(tensor.nbytes for tensor in build_detector(run.recipe, 3).state_dict().values())
    trained = sum(t.nbytes for t in torch.load(run.path, weights_only=True)["tensors"].values())
    assert trained < 0.8 * whole
    assert run.path.stat().st_size < 3 * trained + 400_000  # twice again for the optimiser, and names


# --- the folder -------------------------------------------------------------------------------------------------------


def test_the_oldest_go_first_when_the_bound_is_reached(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "checkpoints", bound_bytes=250)
    kept.trim()
    kept.drop(3)  # there is nothing yet
    kept.folder.mkdir()
    for age, number in enumerate((5, 2, 9)):
        kept.path(number).write_bytes(bytes(100))
        os.utime(kept.path(number), ns=(age, age))
    kept.trim()
    assert sorted(path.name for path in kept.folder.iterdir()) == ["2.pt", "9.pt"]
    kept.trim()
    kept.drop(2)
    (kept.folder / "9.pt.123.part").write_bytes(bytes(10))
    kept.tidy()
    assert [path.name for path in kept.folder.iterdir()] == ["9.pt"]
    kept.drop(9)
    kept.tidy()
    assert not kept.folder.exists()


def test_a_folder_of_checkpoints_that_cannot_be_changed_ends_no_search(tmp_path: Path) -> None:
    """A network disk that is away, say, while the study is in PostgreSQL. Here a file is in its place."""
    (tmp_path / "study").touch()
    kept = Checkpoints(tmp_path / "study" / "checkpoints", bound_bytes=0)
    kept.drop(1)
    kept.trim()
    kept.tidy()
    kept = Checkpoints(tmp_path, bound_bytes=0)
    kept.path(1).mkdir()  # nor can this be removed, as if it were a file
    (tmp_path / "2.pt.part").mkdir()
    kept.drop(1)
    kept.trim()
    kept.tidy()
