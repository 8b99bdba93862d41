"""Native against staged, timed fairly: both warmed up, then run in turn, medians of the same number of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mrflow import Result

Run = Callable[[], "Result"]


@dataclass(frozen=True)
class Timed:
    """A way of sampling, with the result of its first run and the seconds per stage of every run."""

    result: Result
    runs: list[Mapping[str, float]]

    @property
    def totals(self) -> list[float]:
        """Seconds of each run, end to end."""
        return [seconds["total"] for seconds in self.runs]

    @property
    def seconds(self) -> dict[str, float]:
        """The median of each stage and of the total; medians of stages need not add up."""
        return {stage: median(run[stage] for run in self.runs) for stage in self.runs[0]}


@dataclass(frozen=True)
class Comparison:
    """Two ways of making the same picture."""

    native: Timed
    staged: Timed

    @property
    def speedup(self) -> float:
        """How many times faster staged is: the ratio of the medians, end to end."""
        return self.native.seconds["total"] / self.staged.seconds["total"]


def time_in_turn(native: Run, staged: Run, repeats: int, on_run: Callable[[str], None]) -> Comparison:
    """Run each `repeats` times in turn, so that a slow moment of the machine falls on both.

    Both must be warm. on_run: called with "native" or "staged" before each run.
    """
    results: dict[str, list[Result]] = {"native": [], "staged": []}
    for _ in range(repeats):
        for name, run in (("native", native), ("staged", staged)):
            on_run(name)
            results[name].append(run())
    timed = {name: Timed(each[0], [result.seconds for result in each]) for name, each in results.items()}
    return Comparison(**timed)
