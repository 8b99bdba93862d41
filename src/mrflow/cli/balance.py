"""`mrflow balance`: workers of each stage, from a report of `mrflow bench`, and a large batch on paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.filesize import decimal

from mrflow.cli.options import HOW, Streams, Whole
from mrflow.cli.outputs import tell_json
from mrflow.cli.reporting import hang, stdout_console
from mrflow.errors import RequestError

if TYPE_CHECKING:
    from mrflow.bench.balance import Cost, Paper, Split


def balance(
    report: Path,
    /,
    *,
    workers: Annotated[Whole | None, Parameter(group=HOW, show_default="the fewest that are 95% busy")] = None,
    pictures: Annotated[float | None, Parameter(metavar="N", group=HOW)] = None,
    streams: Streams = Streams(),
) -> None:
    """Divide workers between drafting and finishing so that neither waits, for each staged method of a report.

    A worker is what was measured: a GPU, or a process with the report's number of CPU threads. The transport
    between the stages is not in the report, and not in these figures.

    Args:
        report: What `mrflow bench --out` or `--json` wrote.
        workers: How many there are, of both stages.
        pictures: Calculate a batch of so many, such as 1e8.

    Examples:
      mrflow balance bench.json
      mrflow balance bench.json --workers 8 --pictures 1e8
    """
    from mrflow.bench.balance import balance_workers, calculate, read_costs, split_workers

    count = None if pictures is None else _whole(pictures)
    rows = []
    for cost in read_costs(report):
        split = balance_workers(cost) if workers is None else split_workers(cost, workers)
        rows.append((cost, split, None if count is None else calculate(cost, split, count)))
    if streams.json:
        methods = [{**asdict(c), **asdict(s), **({"paper": asdict(p)} if p else {})} for c, s, p in rows]
        tell_json({"methods": methods})
        return
    for cost, split, _ in rows:
        _print_split(cost, split)
    for cost, split, paper in rows:
        if paper is not None:
            _print_paper(cost, split, paper)


def _print_split(cost: Cost, split: Split) -> None:
    lines = {
        "draft": f"{cost.draft:.3f} s",
        "finish": f"{cost.finish:.3f} s, {cost.draft / cost.finish:.2f} draft workers for each that finishes",
        "together": f"{split.pictures_per_second:.3g} pictures a second, {split.busy:.0%} busy",
    }
    _print_lines(f"{_title(cost)}, {split.draft_workers} + {split.finish_workers} workers", lines)


def _print_paper(cost: Cost, split: Split, paper: Paper) -> None:
    from mrflow.bench.balance import BYTES_PER_PIXEL, LINE_BYTES, PER_COMMAND, READ_RATE

    shards, rate = f"{paper.shards:,} shards of {decimal(paper.shard_bytes)}", decimal(int(READ_RATE))
    lines = {
        "work": f"{paper.worker_hours:,.0f} hours of one worker, {paper.days:,.1f} days of these",
        "commands": f"{paper.commands:,} of {PER_COMMAND:,} rows at most",
        "files": f"{paper.files_per_folder:,} in a folder, or {shards}",
        "space": f"{decimal(paper.bytes)}, at {BYTES_PER_PIXEL} bytes a pixel",
        "manifest": f"{decimal(paper.manifest_bytes)} together, at {LINE_BYTES} bytes a line",
        "resume": f"{paper.resume_hours:,.1f} hours if one disk has all, hashing {rate} a second",
        "object store": f"{paper.put_requests:,} PUT requests, and {paper.get_requests:,} GET to resume all",
    }
    workers = f"{split.draft_workers} + {split.finish_workers} workers"
    _print_lines(f"{paper.pictures:,} pictures, {_title(cost)}, {workers}", lines)


def _print_lines(title: str, lines: Mapping[str, str]) -> None:
    console = stdout_console()
    print(hang(console, "", title))
    for name, text in lines.items():
        print(hang(console, f"    {name:13}", text))


def _title(cost: Cost) -> str:
    return f"{cost.method} at {cost.width}x{cost.height}" + (f", batch {cost.batch}" if cost.batch > 1 else "")


def _whole(value: float) -> int:
    if not 1 <= value <= 1e12 or value != int(value):
        raise RequestError(f"--pictures is {value}; it must be a whole number from 1 to 1e12. Try 1e6.")
    return int(value)
