"""The stored form of a trial's result."""

from __future__ import annotations

import json

from cst_search.trial.result import FIGURES, Outcome, TrialResult

# as studies and metrics.json have them; a new figure may follow anywhere
STORED = [
    "outcome", "petl_params", "trainable_params", "map", "map50", "loss", "device_bytes", "reserved_bytes",
    "active_bytes", "images_per_second", "seconds", "train_seconds", "epochs", "reason", "device", "history", "final",
    "limit_bytes", "held_bytes", "asked_bytes", "stage", "notes", "resumed_epochs",
]  # fmt: skip


def test_stored_names_and_their_order_stay() -> None:
    plain = TrialResult(Outcome.COMPLETE, 10, 20, map=0.5).to_dict()
    assert [name for name in plain if name in STORED] == STORED
    assert set(plain) == {"outcome", "petl_params", "trainable_params", *FIGURES}


def test_a_stored_result_is_plain_and_gives_the_result_again() -> None:
    result = TrialResult(
        Outcome.OOM, 10, 20, history=[{"epoch": 1, "loss": 2.0}], final={"val": {"map": 0.5}}, notes=["cache"],
        held_bytes=7, stage="training, epoch 2",
    )  # fmt: skip
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain == result.to_dict() and plain["outcome"] == "oom"
    assert TrialResult(**plain) == result
