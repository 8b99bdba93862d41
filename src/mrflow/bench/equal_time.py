"""How many native steps take the time of a plan: the baseline that every speed-up must be held against."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mrflow.bench.methods import Method
from mrflow.bench.timing import time_in_turn

if TYPE_CHECKING:
    from mrflow.pipeline import MrFlow

_FEW, _MORE = 4, 12  # native steps between which a line is drawn
_REPEATS = 3


def steps_of_equal_time(
    fast: MrFlow, method: Method, settings: dict[str, Any], on_run: Callable[[str], None]
) -> int:
    """Return the fewest native steps that take at least as long as `method`: rounded in native's favour.

    A line through the times of 4 and 12 steps, medians of three runs in turn. settings: of a picture.
    """
    few, more = (Method(name=f"native:{steps}", steps=steps) for steps in (_FEW, _MORE))
    ways = {each.name: (lambda m=each: m.run(fast, **settings)) for each in (few, more, method)}
    for each in (few, method):
        on_run("warm up")
        each.shortened().run(fast, **settings)
    timed = time_in_turn(ways, _REPEATS, on_run)
    low, high, wanted = (timed[each.name].seconds["total"] for each in (few, more, method))
    step = max((high - low) / (_MORE - _FEW), 1e-9)
    return max(1, math.ceil(_FEW + (wanted - low) / step - 1e-6))


RUNS = 3 * _REPEATS + 2
"""How many runs that takes."""
