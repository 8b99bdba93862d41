"""What a batch tells a person while it runs, and what it leaves on stdout."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from mrflow.cli.outputs import tell_json, tell_paths
from mrflow.cli.reporting import say, stderr_console, warn
from mrflow.progress import WORDS

if TYPE_CHECKING:
    from mrflow.batch.output import Output
    from mrflow.batch.run import News, Prepared, Summary
    from mrflow.batch.tasks import Failure

_SHOWN = 20  # failures and warnings as lines of their own; errors.jsonl has all
_EVERY = 30.0  # seconds between lines where there is no terminal to draw on


class Report:
    """One line that moves: stage, pictures, rate, time left, failures. Without a terminal a line now and then.

    with Report(as_json=False) as report:
        run_batch(..., on_prepared=report.tell_prepared, on_news=report.tell_news)
    """

    def __init__(self, *, as_json: bool) -> None:
        """as_json: print summaries as JSON objects on stdout."""
        self._as_json = as_json
        console = stderr_console()
        self._drawing = console.is_terminal
        self._bars = Bars(
            TextColumn("{task.fields[stage]:17}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not self._drawing,
        )
        self._task = self._bars.add_task("", total=None, visible=False, stage="", state="")
        self._summary: Summary | None = None
        self._failures = 0
        self._next_line = time.monotonic() + _EVERY

    def __enter__(self) -> Report:
        """Begin; nothing is drawn before the batch is prepared."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give the terminal back, and say how the batch stands if it was stopped."""
        self._bars.stop()
        if self._summary is not None and kind is not None:
            say(f"{_counts(self._summary)}. Run the same command again to go on.")

    def tell_prepared(self, prepared: Prepared) -> None:
        """Show what was found wrong before the start, and begin to draw."""
        self._tell_warnings(prepared)
        for failure in prepared.failures:
            self._tell_failure(failure)
        if prepared.found.lost:
            warn(f"{prepared.found.lost} pictures are missing or damaged and will be made again")
        if prepared.bytes_free is not None and prepared.bytes_needed > prepared.bytes_free:
            warn(f"the disk may fill up: {_space(prepared)}")
        if prepared.todo:
            self._bars.update(self._task, visible=True, total=len(prepared.tasks) + len(prepared.failures))
            self._bars.start()

    def tell_news(self, news: News) -> None:
        """Draw one piece of news."""
        summary = self._summary = news.summary
        if news.failure is not None:
            self._tell_failure(news.failure)
        done = summary.total - summary.left
        if self._drawing:
            state = f"{done}/{summary.total}  {_pace(summary)}" + (
                f"  {summary.failed} failed" if summary.failed else ""
            )
            self._bars.update(self._task, completed=done, state=state)
            if news.progress is not None:
                self._bars.update(self._task, stage=WORDS[news.progress.stage])
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _EVERY
            say(f"{done}/{summary.total}, {_pace(summary)}, {summary.failed} failed")

    def tell_summary(self, summary: Summary, output: Output) -> None:
        """Say how the batch stands: the manifest's path on stdout, or the summary as JSON."""
        self._bars.stop()
        if self._as_json:
            errors = str(output.errors) if output.errors.exists() else None
            tell_json(
                {**summary.to_dict(), "out": str(output.out), "manifest": str(output.manifest), "errors": errors}
            )
        else:
            tell_paths([output.manifest])
        rate = f", {summary.made / summary.seconds:.2f} a second" if summary.made else ""
        say(f"{_counts(summary)} in {summary.seconds:.2f} s{rate}")
        if summary.failed:
            say(f"the rows that failed are in {output.errors}")

    def tell_dry_run(self, prepared: Prepared, output: Output) -> bool:
        """Print what the batch would do, and return whether every row can be made and the disk has room."""
        room = prepared.bytes_free is None or prepared.bytes_needed <= prepared.bytes_free
        kinds = Counter(f"{task.job.width}x{task.job.height} {task.job.plan.label}" for task in prepared.todo)
        if self._as_json:
            tell_json(
                {
                    "to_make": len(prepared.todo),
                    "skipped": len(prepared.tasks) - len(prepared.todo),
                    "kinds": kinds,
                    "failures": [failure.to_dict() for failure in prepared.failures],
                    "warnings": dict(prepared.warned),
                    "bytes_needed": prepared.bytes_needed,
                    "bytes_free": prepared.bytes_free,
                }
            )
        else:
            print(f"to make      {len(prepared.todo)}")
            for kind, count in kinds.items():
                print(f"             {count} of {kind}")
            print(f"there        {len(prepared.tasks) - len(prepared.todo)}")
            print(f"bad rows     {len(prepared.failures)}")
            print(f"space        {_space(prepared)}")
            print(f"output       {output.out}, as {output.form}")
        self._tell_warnings(prepared)
        for failure in prepared.failures:
            self._tell_failure(failure, "--json lists")
        if not room:
            say(f"the disk is too small: {_space(prepared)}", "Error", "red")
        return room and not prepared.failures

    def _tell_warnings(self, prepared: Prepared) -> None:
        for text, rows in prepared.warned.most_common(_SHOWN):
            warn(text + (f" ({rows} rows)" if rows > 1 else ""))
        if len(prepared.warned) > _SHOWN:
            warn(f"and {len(prepared.warned) - _SHOWN} more kinds of warning")

    def _tell_failure(self, failure: Failure, rest: str = "errors.jsonl has") -> None:
        self._failures += 1
        if self._failures <= _SHOWN:
            name = f"row {failure.row}" + (f" ({failure.id})" if failure.id is not None else "")
            say(" ".join(f"{name}: {failure.error}".split()), "Failed", "red")
        elif self._failures == _SHOWN + 1:
            say(f"more rows fail; {rest} them all", "Failed", "red")


def _counts(summary: Summary) -> str:
    left = f", {summary.left} left" if summary.left else ""
    return f"{summary.made} made, {summary.skipped} skipped, {summary.failed} failed{left}"


def _pace(summary: Summary) -> str:
    if not summary.made:
        return "-- a second"
    rate = summary.made / summary.seconds
    minutes, seconds = divmod(round(summary.left / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{rate:.2f} a second, {hours}:{minutes:02}:{seconds:02} left"


def _space(prepared: Prepared) -> str:
    free = "an unknown amount is" if prepared.bytes_free is None else f"{decimal(prepared.bytes_free)} are"
    return f"at most {decimal(prepared.bytes_needed)} needed, {free} free"
