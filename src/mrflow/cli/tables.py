"""Tables for a person: how they look, and whether the terminal has room for one."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def make_table(title: str, columns: Sequence[str], *, whole: bool = False) -> Table:
    """Return an empty table: names on the left, figures on the right. whole: no figure is broken over lines."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    first, *others = columns
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=whole)
    return table


def fits(table: Table, console: Console) -> bool:
    """Return whether the terminal can show the table without breaking a cell."""
    unbounded = console.options.update_width(1_000)  # a table never measures more than it is allowed
    return console.measure(table, options=unbounded).maximum <= console.width
