"""Ways of making the same pictures, timed fairly: all warm, then run in turn, medians and their spread.

In turn is A B A B: a slow moment of the machine falls on all alike, where A A B B would charge it to one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from mrflow.errors import RequestError

if TYPE_CHECKING:
    import torch

    from mrflow.drafts import Result
    from mrflow.memory import PeakMemory

Run = Callable[[], "Result"]
OnRun = Callable[[str], None]
"""Told what runs next; what it raises ends the work."""


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing: their median, the smallest and the largest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of at least one value."""
        return cls(median(values), min(values), max(values))

    def to_dict(self) -> dict[str, float]:
        """Return the three numbers as plain JSON values."""
        return {"median": self.median, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Timed:
    """A way of sampling, with the result of its first run, and of every run the seconds per stage.

    gauge: the peak of memory of each run, if it was read.
    """

    result: Result
    runs: list[Mapping[str, float]]
    gauge: list[int | None] = field(default_factory=list)

    @property
    def totals(self) -> list[float]:
        """Seconds of each run, end to end."""
        return [seconds["total"] for seconds in self.runs]

    @property
    def seconds(self) -> dict[str, float]:
        """The median of each stage and of the total; medians of stages need not add up."""
        return {stage: spread.median for stage, spread in self.spreads.items()}

    @property
    def spreads(self) -> dict[str, Spread]:
        """Median, smallest and largest of each stage and of the total."""
        return {stage: Spread.of([run[stage] for run in self.runs]) for stage in self.runs[0]}


def time_in_turn(
    ways: Mapping[str, Run], repeats: int, on_run: OnRun, gauge: PeakMemory | None = None
) -> dict[str, Timed]:
    """Run each way `repeats` times in turn, and return what each took.

    All must be warm. on_run: called with the name before each run; what it raises ends the timing.
    Only the first result of each way is kept, so that repeats need no memory of their own.
    """
    if repeats < 1:
        raise RequestError(f"repeats is {repeats}; it must be at least 1. Try 3.")
    timed: dict[str, Timed] = {}
    for _ in range(repeats):
        for name, run in ways.items():
            on_run(name)
            if gauge is not None:
                gauge.reset()
            result = run()
            one = timed.setdefault(name, Timed(result, []))
            one.runs.append(result.seconds)
            if gauge is not None:
                one.gauge.append(gauge.read())
    return timed


def attempt(run: Run, device: torch.device) -> Result | None:
    """Return what a run gives, None if the device's memory does not suffice, which is then free for the next."""
    import torch

    try:
        return run()
    except torch.OutOfMemoryError:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return None


def speedup(slow: Timed, fast: Timed) -> Spread:
    """Return how many times faster `fast` is than `slow`, end to end.

    The ratio of the medians; low and high are the smallest and the largest ratio within one turn, where both
    met the machine in the same mood. The ratio of the medians may lie outside them.
    """
    ratios = [one / other for one, other in zip(slow.totals, fast.totals, strict=True)]
    return Spread(slow.seconds["total"] / fast.seconds["total"], min(ratios), max(ratios))
