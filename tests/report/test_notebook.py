"""Tables and sentences as HTML for a notebook."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.bar import Bar
from rich.table import Table
from rich.text import Text
from studies import make_study, run_one, scored

import cst_search
from cst_search.report.notebook import html


def test_a_table_keeps_headings_rows_and_sides() -> None:
    table = Table(title="[bold]Front[/bold]")
    table.add_column("trial", justify="right")
    table.add_column("share")
    table.add_row("[red]3[/red]", Bar(200, 50, 150))
    said = html([table])
    assert "<caption" in said and ">Front</caption>" in said  # rich's markup is no text
    assert '<th style="text-align:right">trial</th>' in said and '<td style="text-align:right">3</td>' in said
    assert "width:50.0%" in said


def test_all_text_is_escaped() -> None:
    bad = "<script>alert('x')</script>"
    table = Table(title=Text(bad))
    table.add_column(Text(bad))
    table.add_row(Text(f"{bad}\nbelow"))
    said = html([table, Text(bad), bad])
    assert "<script" not in said and said.count("&lt;script&gt;") == 5 and "<br>below" in said


def test_a_table_without_rows_is_not_shown() -> None:
    assert html([Table("trial", title="Front")]) == ""


def test_a_study_shows_its_front(tmp_path: Path) -> None:
    session = make_study(tmp_path, "a<b>")
    run_one(session, scored(0.5))
    search = cst_search.open_study(home=tmp_path)
    said = search._repr_html_()
    assert said.startswith("<p>Study a&lt;b&gt;: 1 trials, hypervolume ")
    assert "<td" in said and "0.500" in said and "<b>" not in said


@pytest.mark.parametrize("more", [{}, {"compare": "cst,full", "tasks": "1,5"}])
def test_an_estimate_is_a_dict_that_shows_its_tables(more: dict[str, str]) -> None:
    found = cst_search.estimate("resnet50", **more)  # type: ignore[arg-type]
    assert json.loads(json.dumps(found))["device_bytes"] == found["device_bytes"] > 0
    said = found._repr_html_()  # type: ignore[attr-defined]
    assert said.count("<table>") == 1 + len(more) and "CUDA context (fixed cost)" in said
