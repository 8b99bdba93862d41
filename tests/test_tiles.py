"""Tiles cover a picture, and what a network of short sight gives in them is what it gives for the whole."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mrflow.tiles import in_tiles, shares, spans


def random_pixels(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("tile", "overlap", "align"), [(80, 32, 32), (128, 32, 32), (96, 32, 48), (8, 2, 1), (70, 8, 1)]
)
@pytest.mark.parametrize("length", [1, 64, 80, 81, 127, 129, 200, 1000])
def test_tiles_of_one_size_cover_everything_and_overlap(length: int, tile: int, overlap: int, align: int) -> None:
    made = spans(length, tile, overlap, align)
    assert (made[0][0], made[-1][1]) == (0, length)
    assert all(start % align == 0 for start, _ in made)
    assert all(a[1] - b[0] >= overlap for a, b in pairwise(made))
    assert all(b[0] > a[0] for a, b in pairwise(made))
    size = max(tile // align, -(-overlap // align) + 1) * align
    assert all(end - start == size for start, end in made[:-1])
    assert made[-1][1] - made[-1][0] < size + align
    shrunk = spans(length, tile, overlap, align, shrink=True)
    assert (len(shrunk), shrunk[0][0], shrunk[-1][1]) == (len(made), 0, length)
    assert all(a[1] - b[0] >= overlap for a, b in pairwise(shrunk))
    assert all(start % align == 0 and end - start < size + align for start, end in shrunk)


@pytest.mark.parametrize("factor", [1, 8])
def test_shares_are_one_together_and_nothing_along_a_cut(factor: int) -> None:
    cuts, overlap = spans(300, 64, 16), 16
    total, made = torch.zeros(300 * factor), shares(cuts, overlap, factor)
    for (start, end), share in zip(cuts, made, strict=True):
        total[start * factor : end * factor] += share
        edge = 4 * factor
        assert (share[:edge] == 0).all() == (start > 0)
        assert (share[-edge:] == 0).all() == (end < 300)
    assert torch.allclose(total, torch.ones_like(total))


def near(pixels: Tensor) -> Tensor:
    """Return pixels mixed with those up to 4 away, as no picture has them outside of itself."""
    return F.conv2d(pixels, random_pixels(3, 3, 9, 9) / 60, padding=4)


@pytest.mark.parametrize("size", [(90, 200), (64, 64), (65, 300)])
def test_what_sees_no_further_than_a_quarter_of_the_overlap_is_the_same_in_tiles(size: tuple[int, int]) -> None:
    pixels = random_pixels(2, 3, *size)
    tiled = in_tiles(lambda y, x: near(pixels[..., y, x]), *size, 64, 16)
    assert (tiled - near(pixels)).abs().max() < 1e-6
    close = in_tiles(lambda y, x: near(pixels[..., y, x]), *size, 64, 8)  # too little overlap to be the same
    assert max(size) == 64 or (close - near(pixels)).abs().max() > 1e-3


def test_results_may_be_larger_and_keep_their_dtype() -> None:
    pixels = random_pixels(1, 3, 90, 70)
    larger: Any = lambda part: F.interpolate(part, scale_factor=4, mode="nearest")  # noqa: E731
    made = in_tiles(lambda y, x: larger(pixels[..., y, x]).double(), 90, 70, 32, 8)
    assert made.dtype == torch.float64
    assert torch.allclose(made.float(), larger(pixels), atol=1e-6)
