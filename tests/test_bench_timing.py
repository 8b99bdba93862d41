"""Fair timing: in turn, medians, spread and ratio."""

from __future__ import annotations

from itertools import count

import pytest

from mrflow.bench.timing import Spread, speedup, time_in_turn
from mrflow.drafts import Result
from mrflow.errors import RequestError


def ways(**seconds: list[dict[str, float]]):
    """Return ways that take the given seconds, run by run."""
    left = {name: iter(runs) for name, runs in seconds.items()}
    return {name: lambda runs=runs: Result([], [], next(runs)) for name, runs in left.items()}


def test_runs_take_turns_and_medians_are_compared():
    order: list[str] = []
    timed = time_in_turn(
        ways(
            native=[{"draft": 8.0, "total": 10.0}, {"draft": 9.0, "total": 30.0}, {"draft": 7.0, "total": 20.0}],
            staged=[{"total": 2.0}, {"total": 1.0}, {"total": 9.0}],
        ),
        3,
        order.append,
    )
    assert order == ["native", "staged"] * 3
    assert timed["native"].seconds == {"draft": 8.0, "total": 20.0}
    assert timed["native"].spreads["total"] == Spread(20.0, 10.0, 30.0)
    assert timed["staged"].totals == [2.0, 1.0, 9.0]
    assert speedup(timed["native"], timed["staged"]) == Spread(10.0, 20 / 9, 30.0)


def test_the_first_result_is_kept():
    numbers = count()
    same = dict.fromkeys(("a", "b"), lambda: Result([], [], {"total": float(next(numbers))}))
    assert time_in_turn(same, 2, lambda _: None)["b"].result.seconds == {"total": 1.0}


def test_the_gauge_is_reset_before_each_run_and_read_after_it():
    seen: list[str] = []

    class Gauge:
        def reset(self) -> None:
            seen.append("reset")

        def read(self) -> int | None:
            seen.append("read")
            return len(seen)

    timed = time_in_turn(ways(a=[{"total": 1.0}] * 2, b=[{"total": 1.0}] * 2), 2, seen.append, Gauge())
    assert seen == ["a", "reset", "read", "b", "reset", "read"] * 2
    assert (timed["a"].gauge, timed["b"].gauge) == ([3, 9], [6, 12])


def test_no_repeats_are_refused():
    with pytest.raises(RequestError, match="repeats is 0"):
        time_in_turn({}, 0, lambda _: None)
