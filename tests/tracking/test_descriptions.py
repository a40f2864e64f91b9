"""Names and descriptions in MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from studies import make_study, run_one, scored

from cst_search.study.records import TrialRecord
from cst_search.tracking.descriptions import code, description, escape, run_name

CONFIG = {"method": "cst", "cst.reduction": 16, "cst.mtc_stages": (3, 4, 5), "cst.block": "3x3", "lr": 1e-3}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "7 cst r16 mtc[3,4,5] map .412 3.12GB"),
        ({"state": "pruned"}, "7 cst r16 mtc[3,4,5] map .412 stopped 3.12GB"),
        ({"map": 0.0}, "7 cst r16 mtc[3,4,5] map .000 3.12GB"),
        ({"state": "infeasible", "map": None}, "7 cst r16 mtc[3,4,5] infeasible 3.12GB"),
        ({"state": "failed", "map": 0.2, "device_bytes": None}, "7 cst r16 mtc[3,4,5] failed"),
        ({"repeat_of": 3, "seed": 2}, "7 trial 3 again, seed 2: cst r16 mtc[3,4,5] map .412 3.12GB"),
        ({"config": {"method": "head", "lr": 0.1}}, "7 head map .412 3.12GB"),
        ({"config": {"method": "conv_lora", "conv_lora.rank": 8, "conv_lora.scale": 1.0, "conv_lora.first_stage": 2}},
         "7 conv_lora r8 from2 map .412 3.12GB"),
        ({"config": {}}, "7 ? map .412 3.12GB"),
    ],
)  # fmt: skip
def test_run_name_has_configuration_and_result(changes: dict[str, Any], name: str) -> None:
    values: dict[str, Any] = {"trial": 7, "state": "complete", "config": CONFIG, "map": 0.412, "device_bytes": 3.12e9}
    assert run_name(TrialRecord(**values | changes)) == name


def test_a_description_without_a_front_says_where_to_look(tmp_path: Path) -> None:
    session = make_study(tmp_path, data="a | `b` <i>")
    session.begin_launch()
    run_one(session, {"outcome": "failed", "reason": "x"})
    text = description(session.study.info(), "1", "run", {})
    assert r"budget 1 kB; data a \| \`b\` \<i\>; CUDA" in text
    assert text.startswith(
        "**0 of 1 trials on the front**, hypervolume 0.0000; budget 1 kB; data a \\| \\`b\\` \\<i\\>;"
    )
    assert "`cst.reason`" in text and "|---" not in text


def test_the_front_in_a_description_links_to_its_runs(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    session.begin_launch()
    for quality, used in ((0.5, 700), (0.3, 500), (0.2, 900)):
        run_one(session, scored(quality, device_bytes=used), batch_size=2, lr=quality / 100)
    text = description(session.study.info(), "4", "abc", {0: "run-of-0"})
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 2 and rows[0].startswith("| [0 cst") and "](#/experiments/4/runs/run-of-0)" in rows[0]
    assert rows[1].startswith("| 1 cst")  # one whose run MLflow has not yet
    assert "| 0.500" in rows[0] and "**knee**" in "".join(rows)
    assert "get-artifact?path=pareto%2Ffront-small.png&run_uuid=abc" in text


def test_markdown_syntax_in_names_is_escaped() -> None:
    assert escape("a_b [c](d) <e>\n| *f* &lt;") == r"a\_b \[c\]\(d\) \<e\> \| \*f\* \&lt;"
    assert (code("a"), code("a `b`"), code("``")) == ("`a`", "`` a `b` ``", "``` `` ```")


def test_the_command_in_a_description_can_be_pasted(tmp_path: Path) -> None:
    session = make_study(tmp_path, "my `best` study")
    session.begin_launch()
    run_one(session, scored(0.5, device_bytes=700))
    text = description(session.study.info(), "4", "abc", {})
    assert "`` cst-search export 'my `best` study' --pick best -o best.yaml `` writes" in text
