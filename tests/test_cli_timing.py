"""Fair timing, and the sheet that shows it."""

from __future__ import annotations

from itertools import count

import pytest
from PIL import Image

from mrflow import Result
from mrflow.cli.side_by_side import Panel, draw_side_by_side
from mrflow.cli.timing import time_in_turn


def test_runs_take_turns_and_medians_are_compared():
    order: list[str] = []
    native = iter([{"draft": 8.0, "total": 10.0}, {"draft": 9.0, "total": 30.0}, {"draft": 7.0, "total": 20.0}])
    staged = iter([{"total": 2.0}, {"total": 1.0}, {"total": 9.0}])
    compared = time_in_turn(
        lambda: Result([], [], next(native)), lambda: Result([], [], next(staged)), 3, order.append
    )
    assert order == ["native", "staged"] * 3
    assert compared.native.seconds == {"draft": 8.0, "total": 20.0}
    assert compared.staged.totals == [2.0, 1.0, 9.0]
    assert compared.speedup == 10


def test_the_first_result_is_kept():
    numbers = count()
    compared = time_in_turn(*[lambda: Result([], [], {"total": float(next(numbers))})] * 2, 2, lambda _: None)
    assert compared.staged.result.seconds == {"total": 1.0}


@pytest.mark.parametrize("title", ["a lake", "a lake with mountains and pine trees " * 5, "x" * 200])
def test_the_sheet_shows_every_picture_at_its_own_size(title):
    colors = ("#ff0000", "#0000ff")
    panels = [Panel(Image.new("RGB", (128, 96), color), "label", "1.00 s") for color in colors]
    sheet = draw_side_by_side(panels, title)
    assert sheet.width < 2 * 128 + 100
    pixels = sheet.tobytes()
    for red, _, blue in ((255, 0, 0), (0, 0, 255)):
        assert pixels.count(bytes([red, 0, blue]) * 128) >= 96
