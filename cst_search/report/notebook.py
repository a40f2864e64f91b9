"""HTML of terminal tables, for notebooks. All text is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from rich.bar import Bar
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def html(parts: Iterable[RenderableType]) -> str:
    """Return tables, groups of them and sentences as HTML, in their order. Strings are rich markup."""
    return "".join(_part(part) for part in parts)


def _part(part: RenderableType) -> str:
    if isinstance(part, Group):
        return html(part.renderables)
    return _table(part) if isinstance(part, Table) else f"<p>{_cell(part)}</p>"


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    caption = f'<caption style="text-align:left">{_cell(table.title)}</caption>' if table.title else ""
    align = [f' style="text-align:{"right" if column.justify == "right" else "left"}"' for column in table.columns]
    head = "".join(f"<th{to}>{_cell(column.header)}</th>" for to, column in zip(align, table.columns, strict=True))
    rows = (
        "<tr>" + "".join(f"<td{to}>{_cell(cell)}</td>" for to, cell in zip(align, row, strict=True)) + "</tr>"
        for row in zip(*(column.cells for column in table.columns), strict=True)
    )
    header = f"<thead><tr>{head}</tr></thead>" if table.show_header else ""
    return f"<table>{caption}{header}<tbody>{''.join(rows)}</tbody></table>"


def _cell(content: RenderableType) -> str:
    if isinstance(content, Bar):
        share = 100 * (content.end - content.begin) / content.size
        return f'<div style="width:12em"><div style="width:{share:.1f}%;height:.8em;background:#0b6bcb"></div></div>'
    text = content if isinstance(content, Text) else Text.from_markup(str(content))
    return escape(text.plain).replace("\n", "<br>")
