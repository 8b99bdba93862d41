"""A benchmark's report as tables for a person."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from mrflow.cli.progress import STAGE_NAMES
from mrflow.cli.tables import fits, make_table

_ROWS = {**STAGE_NAMES, "rest": "rest", "total": "total"}


def print_group(group: dict[str, Any], console: Console) -> None:
    """Print one size and batch: a row for each stage, a column for each method; where that is too wide, totals."""
    table = _stages(group)
    console.print(table if fits(table, console) else _totals(group))


def _stages(group: dict[str, Any]) -> Table:
    methods = group["methods"]
    table = make_table(_heading(group), ["seconds", *(method["name"] for method in methods)])
    for stage, name in _ROWS.items():
        cells = [_seconds(method, stage) for method in methods]
        if any(cells):
            table.add_row(name, *cells, style="bold" if stage == "total" else "")
    table.add_row("total, lowest to highest", *(_range(method) for method in methods))
    for stage, name in (("draft", "a draft step"), ("refine", "a refine step")):
        table.add_row(name, *(_number(method.get("seconds_per_step", {}).get(stage)) for method in methods))
    table.add_row("pictures per second", *(_number(method.get("images_per_second")) for method in methods))
    table.add_row("peak memory, GiB", *(_gibibytes(method.get("peak_memory")) for method in methods))
    table.add_row("times faster", *(_speedup(method) for method in methods), style="bold")
    return table


def _totals(group: dict[str, Any]) -> Table:
    title = f"{_heading(group)}; stages in a wider window, --plot or --json"
    table = make_table(title, ["method", "seconds", "lowest to highest", "times faster"], whole=True)
    for method in group["methods"]:
        table.add_row(method["name"], _seconds(method, "total"), _range(method), _speedup(method))
    return table


def print_overview(report: dict[str, Any], console: Console) -> None:
    """Print what it was measured on, and for several groups a line for each."""
    groups = report["groups"]
    if len(groups) > 1:
        names = report["course"]["methods"]
        table = make_table("seconds (pictures per second)", ["size and batch", *names])
        for group in groups:
            cells = [_total(method) for method in group["methods"]]
            table.add_row(_heading(group), *cells)
        console.print(table)
    place = report["environment"]
    console.print(
        f"{report['model']['name']} on {place['device_name']} ({place['device']}), {place['dtype']}, "
        f"{place['threads']} threads, torch {place['versions'].get('torch')}, "
        f"commit {(place['commit'] or 'unknown')[:12]}",
        soft_wrap=True,
    )


def _heading(group: dict[str, Any]) -> str:
    return f"{group['width']}x{group['height']}, batch {group['batch']}"


def _seconds(method: dict[str, Any], stage: str) -> str:
    if "failed" in method:
        return method["failed"] if stage == "total" else ""
    return _number(method["seconds"].get(stage, {}).get("median"))


def _range(method: dict[str, Any]) -> str:
    if "failed" in method:
        return ""
    total = method["seconds"]["total"]
    return f"{total['low']:.3f} to {total['high']:.3f}"


def _speedup(method: dict[str, Any]) -> str:
    ratio = method.get("speedup")
    return "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _total(method: dict[str, Any]) -> str:
    if "failed" in method:
        return str(method["failed"])
    return f"{method['seconds']['total']['median']:.3f} ({method['images_per_second']:.3g})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _gibibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**30:.2f}"
