"""A comparison's main figures as a table for a person."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from mrflow.bench.report_tables import columns_of
from mrflow.bench.tradeoff import measured


def print_scores(scores: dict[str, Any], console: Console) -> None:
    """Print the first of the report's tables, and what has no figures."""
    tables = columns_of(scores)
    if tables:
        heading, _, columns = tables[0]
        title = f"{heading}: {scores['prompts']} of {scores['of']} prompts"
        table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
        table.add_column("method", no_wrap=True)
        for column in columns:
            table.add_column(column.name, justify="right")
        for row in measured(scores):
            cells = [" ".join(part for part in (value, f"({note})" if note else "") if part)
                     for value, note in (column.cell(row) for column in columns)]  # fmt: skip
            table.add_row(row["name"], *cells)
        console.print(table)
    for method in scores["methods"]:
        if "failed" in method:
            console.print(f"{method['name']}: {method['failed']}", highlight=False)
