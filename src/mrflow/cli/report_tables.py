"""Tables for a person, on stderr: what was measured, as wide as the terminal has room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.table import Table

from mrflow.cli.reporting import stderr_console
from mrflow.progress import WORDS

if TYPE_CHECKING:
    from mrflow.bench.report_tables import Column
    from mrflow.bench.tune import Finding

_ROWS = {**WORDS, "rest": "rest", "total": "total"}


def make_table(title: str, columns: Sequence[str], *, whole: bool = False) -> Table:
    """Return an empty table: names on the left, figures on the right. whole: no figure is broken over lines."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    first, *others = columns
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=whole)
    return table


def gigabytes(size: float | None) -> str:
    """Return bytes as people read sizes of models: 33.7; a question mark where nobody knows."""
    return "?" if size is None else f"{size / 1e9:.1f}"


def print_fitting(
    table: RenderableType, *narrower: Callable[[], RenderableType], console: Console | None = None
) -> None:
    """Print the table, or the first narrower one that the terminal can show without breaking a cell, or the last.

    console: None is stderr.
    """
    console = console or stderr_console()
    unbounded = console.options.update_width(1_000)  # a table never measures more than it is allowed
    for make in narrower:
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
        table = make()
    console.print(table)


def print_group(group: dict[str, Any]) -> None:
    """Print one size and batch: a row for each stage, a column for each method; where that is too wide, totals."""
    print_fitting(_stages(group), lambda: _totals(group), lambda: _totals(group, brief=True))


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


def _totals(group: dict[str, Any], *, brief: bool = False) -> Table:
    """Return a row for each method. brief: without the range of the seconds."""
    title = f"{_heading(group)}; stages in a wider window, --plot or --json"
    spread = [] if brief else ["lowest to highest"]
    table = make_table(title, ["method", "seconds", *spread, "times faster"], whole=True)
    for method in group["methods"]:
        cells = [_seconds(method, "total"), _range(method), _speedup(method)]
        table.add_row(method["name"], *(cells[::2] if brief else cells))
    return table


def print_overview(report: dict[str, Any]) -> None:
    """Print what it was measured on, and for several groups a line for each."""
    console, groups = stderr_console(), report["groups"]
    if len(groups) > 1:
        names = report["course"]["methods"]
        table = make_table("seconds (pictures per second)", ["size and batch", *names])
        for group in groups:
            cells = [_total(method) for method in group["methods"]]
            table.add_row(_heading(group), *cells)
        print_fitting(table, lambda: "")  # each group's own table has said it
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


def print_scores(scores: dict[str, Any]) -> None:
    """Print the first of a comparison's tables, without intervals where it is too wide, and what failed."""
    from mrflow.bench.report_tables import columns_of

    tables = columns_of(scores)
    if tables:
        heading, _, columns = tables[0]
        title = f"{heading}: {scores['prompts']} of {scores['of']} prompts"
        short = f"{title}; intervals and more in report.html"
        print_fitting(_scores(title, scores, columns), lambda: _scores(short, scores, columns, brief=True))
    for method in scores["methods"]:
        if "failed" in method:
            stderr_console().print(f"{method['name']}: {method['failed']}")


def _scores(title: str, scores: dict[str, Any], columns: Sequence[Column], *, brief: bool = False) -> Table:
    """Return a row for each method. brief: figures without their intervals."""
    from mrflow.bench.plots import measured

    table = make_table(title, ["method", *(column.name for column in columns)], whole=brief)
    for row in measured(scores):
        cells = [column.cell(row) for column in columns]
        table.add_row(
            row["name"], *(f"{value} ({note})" if value and note and not brief else value for value, note in cells)
        )
    return table


def print_findings(findings: list[Finding]) -> None:
    """Print what the last round of a search for a plan found."""
    print_fitting(_findings(findings), lambda: _findings(findings, brief=True))


def _findings(findings: list[Finding], *, brief: bool = False) -> Table:
    """Return a row for each finding. brief: of the intervals only the one that decides, and no memory."""
    columns = ["method", "times faster", "composite", "change of it", *([] if brief else ["peak memory, GiB"])]
    table = make_table("The last round, the best first", columns, whole=True)
    for each in findings:
        figures = [(each.faster, ".2f", not brief), (each.quality, ".3f", not brief), (each.change, "+.3f", True)]
        cells = [_estimate(figure, style, interval=interval) for figure, style, interval in figures]
        table.add_row(each.method.name, *cells, *([] if brief else [_gibibytes(each.memory)]))
    return table


def _estimate(estimate: Any, style: str, *, interval: bool = True) -> str:
    if estimate.value is None:
        return ""
    bounds = f" ({estimate.low:{style}} to {estimate.high:{style}})" if interval else ""
    return f"{estimate.value:{style}}{bounds}"
