"""Progress bars on stderr: one for each stage of a run, or one over runs that are timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from mrflow.cli.reporting import stderr_console

if TYPE_CHECKING:
    from mrflow import Progress


def _bars(label: str, *, auto_refresh: bool = True) -> Bars:
    """Return bars with a label, how much is done and the time left; silent where stderr is no terminal."""
    console = stderr_console()
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    return Bars(*columns, console=console, disable=not console.is_terminal, auto_refresh=auto_refresh)


class StageBars:
    """A callback for MrFlow's verbs that draws a bar for each stage. Silent where stderr is no terminal.

    with StageBars() as bars:
        fast(prompt, callback=bars)
    """

    def __init__(self) -> None:
        """Prepare the bars; nothing is drawn yet."""
        self._bars = _bars("{task.description}")
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StageBars:
        """Begin to draw."""
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bars as they are and give the terminal back."""
        self._bars.stop()

    def __call__(self, news: Progress) -> None:
        """Draw one piece of news."""
        if news.words not in self._tasks:
            self._tasks[news.words] = self._bars.add_task(news.words, total=news.steps * news.batches)
        done = news.steps * (news.batch - 1) + news.step
        self._bars.update(self._tasks[news.words], completed=done)


def silent(_news: Progress) -> None:
    """Hear a call's news and draw nothing: keeps the pipeline's own bars from a call within a longer bar."""


@contextmanager
def run_bar(total: int) -> Iterator[Callable[[str], None]]:
    """Give a function to call as each timed run begins. The bar stands still within a run, to cost it nothing."""
    with _bars("{task.description:8}", auto_refresh=False) as bars:
        task = bars.add_task("", total=total)
        begun = count()

        def on_run(name: str) -> None:
            bars.update(task, description=name, completed=next(begun), refresh=True)

        yield on_run
        bars.update(task, description="done", completed=total, refresh=True)


@contextmanager
def prompt_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Give a function that draws how many prompts are done, and the time left."""
    with _bars("prompts") as bars:
        task = bars.add_task("", total=total)
        yield lambda done: bars.update(task, completed=done)
