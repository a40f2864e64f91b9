"""A study to read by every command."""

from __future__ import annotations

from studies import fake_estimate, run_one, scored

from cst_search.search.session import SearchSession


def fill(session: SearchSession) -> SearchSession:
    session.begin_launch()
    for i, (quality, measured) in enumerate(((0.6, 900), (0.5, 400), (0.4, 500))):
        run_one(session, scored(quality, device_bytes=measured), cst__reduction=4, batch_size=2, lr=0.01 + i / 1000)
    run_one(
        session, {"outcome": "failed", "reason": "ValueError: [/bold] & <b>"}, cst__reduction=4, batch_size=2, lr=0.02
    )
    session.enqueue({"method": "cst", "cst.reduction": 4, "batch_size": 2, "lr": 0.015})
    session.ask(fake_estimate)  # type: ignore[arg-type]
    return session


NAME = "<script>alert(1)</script>"
