"""The sheet that shows pictures with captions."""

from __future__ import annotations

import pytest
from PIL import Image

from mrflow.cli.both_ways import Panel, draw_side_by_side


@pytest.mark.parametrize("title", ["a lake", "a lake with mountains and pine trees " * 5, "x" * 200])
def test_the_sheet_shows_every_picture_at_its_own_size(title):
    colors = ("#ff0000", "#0000ff")
    panels = [Panel(Image.new("RGB", (128, 96), color), "label", "1.00 s") for color in colors]
    sheet = draw_side_by_side(panels, title)
    assert sheet.width < 2 * 128 + 100
    pixels = sheet.tobytes()
    for red, _, blue in ((255, 0, 0), (0, 0, 255)):
        assert pixels.count(bytes([red, 0, blue]) * 128) >= 96
