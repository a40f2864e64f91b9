"""Write the Pareto report of a study: ``front.html`` to explore, ``front.png`` to show, ``front.json`` for a program.

The page is one file that loads nothing from the network and stores nothing, so it also works in the sandboxed frame in
which MLflow shows artifacts. Its charts are drawn on canvas by our own code (dashboards/*.js); docs/architecture.md has
the comparison with chart libraries. This is the only module that imports Jinja2.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cst_search.config.catalog import shipped_folder
from cst_search.errors import ConfigError
from cst_search.report.figure import paint, picture
from cst_search.report.labels import facts, headline, over_seeds, plain
from cst_search.report.page_data import comparison_data, page_data, value_text, worker
from cst_search.report.storage_curve import storage_curve
from cst_search.study.states import TrialState
from cst_search.study.wording import format_quality, metric_words
from cst_search.units import format_bytes, format_count


def write_front(report: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write ``front.html``, ``front.png`` (1600 x 1000 px) and ``front.json`` (NaN as null).

    Returns the paths by suffix.

    Args:
        report: result of `summary.page_report`. ``front.json`` holds it without the learning curves.
        folder: created if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = plain(report)
    paths = {ending: folder / f"front.{ending}" for ending in ("html", "png", "json")}
    short = whole | {"all": [{k: v for k, v in row.items() if k != "history"} for row in whole["all"]]}
    paths["json"].write_text(json.dumps(short, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    paths["html"].write_text(_front_html(whole), encoding="utf-8")
    paint(whole, picture(whole), paths["png"])
    return paths


def write_comparison(reports: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Path]:
    """Write ``comparison.html`` and ``comparison.json`` with the fronts of several studies.

    Returns the paths by suffix.

    Args:
        reports: results of `summary.page_report` for two or more different studies.

    Raises:
        ConfigError: there are fewer than two studies, or one occurs twice.
    """
    names = [report["study"] for report in reports]
    if len(names) < 2 or len(set(names)) < len(names):
        got = ", ".join(map(repr, names)) or "none"
        raise ConfigError(f"a comparison takes two or more different studies; got {got}")
    folder.mkdir(parents=True, exist_ok=True)
    storage = storage_curve([plain(report) for report in reports])
    data = comparison_data(reports) | {"storage": storage}
    paths = {ending: folder / f"comparison.{ending}" for ending in ("html", "json")}
    told = ("objectives", "reference", "compared_reference", "warnings")
    summary = {key: data[key] for key in told} | {"studies": data["table"], "storage": storage}
    paths["json"].write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    html = _render("comparison.html.j2", data=data, version=reports[0]["version"])
    paths["html"].write_text(html, encoding="utf-8")
    return paths


def _front_html(report: Mapping[str, Any]) -> str:
    data = page_data(report)
    groups = [{**group, "n": data["trials"]["group"].count(code)} for code, group in enumerate(data["groups"])]
    pick = next((row for row in report["front"] if row["trial"] == data["suggested"]), None)
    return _render(
        "front.html.j2",
        report=report,
        page=data,
        groups=[group for group in reversed(groups) if group["n"]],
        facts=facts(report),
        pick=pick,
        pick_map=over_seeds(pick, "map") if pick else None,
        headline=headline(report) if report["front"] else None,
        worker=worker(report),
        picks=",".join(str(row["trial"]) for row in report["methods"] if row["state"] == TrialState.COMPLETE),
        study=shlex.quote(report["study"]),
        data=shlex.quote(str(report["data"])),
    )


def _render(template: str, **values: Any) -> str:
    """Render a template. Jinja2 escapes every value; ``tojson`` also writes ``<`` as ``\\u003c`` inside the script."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(shipped_folder("dashboards")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    filters: dict[str, Callable[..., str]] = {
        "bytes": format_bytes,
        "count": format_count,
        "quality": format_quality,
        "percent": lambda value: f"{100 * value:.1f} %",
        "value": value_text,
        "metrics": metric_words,
    }
    environment.filters |= filters
    return environment.get_template(template).render(**values)
