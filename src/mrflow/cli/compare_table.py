"""A comparison's main figures as a table for a person, one that the terminal has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mrflow.bench.plots import measured
from mrflow.bench.report_tables import Column, columns_of
from mrflow.cli.tables import fits, make_table

_MAIN = {"seconds, median": "seconds", "times faster": "", "composite": "", "sharpness": ""}  # shorter names


def print_scores(scores: dict[str, Any], console: Console) -> None:
    """Print the first of the report's tables, the main figures alone where it is too wide, and what failed."""
    tables = columns_of(scores)
    if tables:
        heading, _, columns = tables[0]
        title = f"{heading}: {scores['prompts']} of {scores['of']} prompts"
        table = _table(title, scores, columns, {})
        if not fits(table, console):
            title += "; intervals and more in report.html"
            table = _table(title, scores, [each for each in columns if each.name in _MAIN], _MAIN, notes=False)
        console.print(table)
    for method in scores["methods"]:
        if "failed" in method:
            console.print(f"{method['name']}: {method['failed']}", highlight=False)


def _table(
    title: str,
    scores: dict[str, Any],
    columns: Sequence[Column],
    names: dict[str, str],
    *,
    notes: bool = True,
) -> Table:
    """Return a row for each method. names: what to call a column instead. notes: with each figure's interval."""
    table = make_table(
        title, ["method", *(names.get(column.name) or column.name for column in columns)], whole=not notes
    )
    for row in measured(scores):
        cells = [
            f"{value} ({note})" if notes and value and note else value
            for value, note in (column.cell(row) for column in columns)
        ]
        table.add_row(row["name"], *cells)
    return table
