"""Measure what a trial costs the launch while many others are at work: its suggestion, an epoch, its result.

    python benchmarks/in_flight.py --at 16,64,128,256 --out benchmarks/results/in-flight-NAME.json

One study in SQLite with a random sampler and made-up costs. CPU time of the process, the mean of so many trials.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from studies import fake_estimate, make_study, scored
from wall import machine

SPACE = {
    "methods": ["cst"],
    "shared": {"lr": {"float": [1e-4, 1e-1], "log": True}, "batch_size": {"choice": [2]}},
    "cst": {"reduction": {"choice": [8]}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", default="16,64,128,256", help="trials at a time, with commas [%(default)s]")
    parser.add_argument("--repeat", type=int, default=8, help="trials measured at each [%(default)s]")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="in-flight-") as folder:
        session = make_study(Path(folder), space=SPACE)
        session.begin_launch()
        n = 0
        for wanted in map(int, args.at.split(",")):
            while n < wanted:
                assert session.ask(fake_estimate) is not None  # type: ignore[arg-type]
                n += 1
            begun = time.process_time()
            for _ in range(args.repeat):
                suggestion = session.ask(fake_estimate)  # type: ignore[arg-type]
                assert suggestion is not None
                session.progress(suggestion.trial, {"epoch": 1, "loss": 1.0})
                session.tell(suggestion.trial, scored(0.4))
            rows.append({"at_work": n, "cpu_ms": round(1000 * (time.process_time() - begun) / args.repeat, 1)})
            print(f"{n} at work: {rows[-1]['cpu_ms']} ms a trial", flush=True)
        session.end_launch()
    if args.out:
        args.out.write_text(json.dumps({"machine": machine(), "repeat": args.repeat, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
