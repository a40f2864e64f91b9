"""Measure the check of a data set before a search: cold, and warm, when the cache knows every image file.

    python benchmarks/data_check.py --out benchmarks/results/data-check-cpu2.json
    python benchmarks/data_check.py --source OTHER_CHECKOUT ...

Images are drawn: JPEG of 640 x 480 with some detail, split 4:1, ten boxes each. Every figure is of a fresh process, the
time of `load_data` alone and that of the imports it needs; cold and warm in turn. "Cold" is without the cache of
checked images; the files themselves are in the page cache of the system. CPU time is there for machines that do other
things, too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
from PIL import Image

WIDTH, HEIGHT = 640, 480
N_CLASSES = 10
_MEASURE = """
import json, sys, time
from pathlib import Path
begun = time.perf_counter()
from cst_search.data.dataset import load_data
imported, imported_cpu = time.perf_counter(), time.process_time()
data, report = load_data(sys.argv[1], cache=Path(sys.argv[2]))
ended, ended_cpu = time.perf_counter(), time.process_time()
print(json.dumps({
    "import_seconds": imported - begun,
    "check_seconds": ended - imported, "check_cpu_seconds": ended_cpu - imported_cpu,
    "n_from_cache": report.n_from_cache, "n_boxes": sum(data.summary()["n_boxes"].values()),
}))
"""


def draw(folder: Path, n_images: int, n_boxes: int) -> None:
    """Write train.json, val.json and their images; ``n_boxes`` per image."""
    rng = random.Random(0)
    numbers = np.random.default_rng(0)
    ids = iter(range(1, n_images * n_boxes + 1))
    for name, n in (("train", n_images * 4 // 5), ("val", n_images - n_images * 4 // 5)):
        (folder / name).mkdir(parents=True)
        images, annotations = [], []
        for i in range(1, n + 1):
            coarse = numbers.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            picture.save(folder / name / f"{i:06}.jpg", quality=90)
            images.append({"id": i, "file_name": f"{i:06}.jpg", "width": WIDTH, "height": HEIGHT})
            for _ in range(n_boxes):
                x, y = rng.uniform(0, WIDTH - 65), rng.uniform(0, HEIGHT - 65)
                box = [round(x, 2), round(y, 2), round(rng.uniform(4, 64), 2), round(rng.uniform(4, 64), 2)]
                annotations.append({
                    "id": next(ids), "image_id": i, "category_id": rng.randint(1, N_CLASSES), "bbox": box,
                    "area": box[2] * box[3], "iscrowd": 0,
                })  # fmt: skip
        categories = [{"id": i, "name": f"class {i}"} for i in range(1, N_CLASSES + 1)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(document))


def measure(source: Path, folder: Path, cache: Path) -> dict[str, Any]:
    """Check the data set once in a process of its own."""
    command = [sys.executable, "-c", _MEASURE, str(folder), str(cache)]
    environment = os.environ | {"PYTHONPATH": str(source)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def commit(source: Path) -> str:
    """Return the commit of a checkout, with a plus if files were changed since."""
    command = ["git", "-C", str(source), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000, help="[%(default)s]")
    parser.add_argument("--boxes", type=int, default=10, help="per image [%(default)s]")
    parser.add_argument("--rounds", type=int, default=5, help="[%(default)s]")
    parser.add_argument(
        "--source", type=Path, action="append", help="checkout to measure; several take turns [this one]"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sources = args.source or [Path(__file__).resolve().parent.parent]
    rounds = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "set"
        draw(folder, args.images, args.boxes)
        for n in range(args.rounds):
            for i, source in enumerate(sources):
                cache = Path(place) / f"checked-{n}-{i}.json"
                for kind in ("cold", "warm"):
                    found = measure(source, folder, cache)
                    expected = args.images if kind == "warm" else 0
                    assert (found["n_from_cache"], found["n_boxes"]) == (expected, args.images * args.boxes), found
                    rounds.append({"round": n, "source": i, "kind": kind} | found)
    figures = ("check_seconds", "check_cpu_seconds", "import_seconds")
    rows = [
        {"source": i, "kind": kind}
        | {f: round(median(r[f] for r in rounds if (r["source"], r["kind"]) == (i, kind)), 3) for f in figures}
        for i in range(len(sources))
        for kind in ("cold", "warm")
    ]
    for row in rows:
        print(row)
    if args.out:
        stamp = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
            "load_average": round(os.getloadavg()[0], 1),
            "versions": {"python": platform.python_version(), "pillow": PIL.__version__, "numpy": np.__version__},
            "sources": [commit(source) for source in sources],
            "images": args.images,
            "boxes": args.images * args.boxes,
            "size_px": [WIDTH, HEIGHT],
        }
        args.out.write_text(json.dumps(stamp | {"rows": rows, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
