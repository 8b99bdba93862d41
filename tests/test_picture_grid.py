"""The pages' pictures: rows of a comparison's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tools import picture_grid

from mrflow.bench.ledger import folder_name


def test_rows_are_methods_and_columns_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colors = {("native", 0): "red", ("native", 4): "lime", ("12+1:lift=latent", 0): "blue"}
    for method in ("native", "12+1:lift=latent"):
        for item in (0, 4):
            file = tmp_path / "pictures" / folder_name(method) / f"{item:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 16), colors.get((method, item), "black")).save(file)
    out = tmp_path / "grid.png"
    asked = [str(tmp_path), "native", "12+1:lift=latent", "--items", "0,4", "--side", "16", "--out", str(out)]
    monkeypatch.setattr("sys.argv", ["picture_grid", *asked])
    picture_grid.main()
    page = Image.open(out).convert("RGB")
    assert page.size == (2 * 16 + 4, 2 * 8 + 4)
    middles = [page.getpixel((x, y)) for y in (4, 16) for x in (8, 28)]
    assert middles == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]
    assert page.getpixel((18, 4)) == (255, 255, 255)
