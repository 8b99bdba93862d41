"""Figures with 95% intervals by the bootstrap: prompts are drawn anew, each with all that belongs to it.

Every figure here is a function of sums over prompts: a share is hits / questions, a ratio one sum / another.
Methods are compared on the same prompts drawn, so that what a prompt does to all of them cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 2000
_TAIL = 0.025  # on either side: 95% remain

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95% interval; all three are None where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the three numbers as plain JSON values."""
        return {"value": self.value, "low": self.low, "high": self.high}


def estimate(rows: Floats, figure: Callable[[Floats], Floats], *, rounds: int = ROUNDS, seed: int = 0) -> Estimate:
    """Return a figure of the sums over prompts, with its interval.

    rows: (prompts, k), what each prompt adds to the k sums. figure: sums (..., k) to figures (...); NaN where
    there is none, as for 0 / 0.
    """
    rng = np.random.default_rng(seed)
    count = len(rows)
    times = rng.multinomial(count, np.full(count, 1 / count), size=rounds).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return interval(float(figure(rows.sum(0))), figure(times @ rows))


def counted(values: Floats) -> Floats:
    """Return (prompts, 2): the sum of what is no NaN, and how many these are. values: (prompts, ...)."""
    flat = values.reshape(len(values), -1)
    there = ~np.isnan(flat)
    return np.stack([np.where(there, flat, 0.0).sum(1), there.sum(1)], 1)


def mean(values: Floats, **options: int) -> Estimate:
    """Return the mean of what is no NaN. values: (prompts, ...), all of a prompt drawn together."""
    return estimate(counted(values), lambda sums: sums[..., 0] / sums[..., 1], **options)


def difference(values: Floats, base: Floats, **options: int) -> Estimate:
    """Return mean(values) - mean(base), paired: both (prompts, ...) on the same prompts in the same order."""
    rows = np.hstack([counted(values), counted(base)])
    return estimate(rows, lambda sums: sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3], **options)


def ratio_of_medians(upper: Floats, lower: Floats, *, rounds: int = ROUNDS, seed: int = 0) -> Estimate:
    """Return median(upper) / median(lower), both drawn together: how many times faster, from pairs of seconds."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(upper), size=(rounds, len(upper)))
    drawn = np.median(upper[chosen], 1) / np.median(lower[chosen], 1)
    return interval(float(np.median(upper) / np.median(lower)), drawn)


def interval(value: float, drawn: Floats) -> Estimate:
    """Return a figure with its interval, from the same of prompts drawn anew, (rounds,)."""
    drawn = drawn[np.isfinite(drawn)]
    if not np.isfinite(value) or not len(drawn):
        return Estimate(None, None, None)
    low, high = np.quantile(drawn, [_TAIL, 1 - _TAIL])
    return Estimate(value, float(low), float(high))
