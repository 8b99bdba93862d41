"""Large pictures in overlapping tiles: where they lie, and what is made of them put together without a seam.

Tiles are of one size, spread evenly. A network guesses where its tile ends, so that along a cut the outermost
quarter of the overlap counts nothing; over its middle half one tile fades into the next. A network that sees no
further than that quarter gives in tiles what it gives for the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise, product

import torch
from torch import Tensor

Span = tuple[int, int]
"""From, and up to but not including."""


def spans(length: int, tile: int, overlap: int, align: int = 1, *, shrink: bool = False) -> list[Span]:
    """Return the spans of tiles that cover `length`, neighbours sharing `overlap` or more.

    Each begins at a multiple of `align` and is `tile` long, rounded down to such a multiple; the last ends at
    `length`, and is up to align - 1 longer. One span where all fits into a tile. shrink: no longer than as many
    tiles need to be.
    """
    tile = max(tile // align, -(-overlap // align) + 1) * align
    if length < tile + align:
        return [(0, length)]
    last, stride = (length - tile) // align, (tile - overlap) // align
    count = -(-last // stride)
    if shrink:
        tile = -(-(length // align + count * -(-overlap // align)) // (count + 1)) * align
        last = (length - tile) // align
    starts = [last * k // count * align for k in range(count + 1)]
    return [(start, start + tile) for start in starts[:-1]] + [(starts[-1], length)]


def shares(cuts: list[Span], overlap: int, factor: Fraction | int = 1) -> list[Tensor]:
    """Return how much each span counts at each of its places, float32: together 1 at every place.

    factor: of the places of a result to those of the spans.
    """
    length, made = cuts[-1][1], list[Tensor]()
    for start, end in cuts:
        places = (torch.arange(int((end - start) * factor), dtype=torch.float64) + 0.5) / float(factor)
        rising = places / overlap if start else torch.full_like(places, torch.inf)
        falling = (end - start - places) / overlap if end < length else torch.full_like(places, torch.inf)
        made.append(((torch.minimum(rising, falling) - 0.25) * 2).clamp(0, 1))
    total = torch.zeros(int(length * factor), dtype=torch.float64)
    where = [slice(int(start * factor), int(end * factor)) for start, end in cuts]
    for part, share in zip(where, made, strict=True):
        total[part] += share
    return [(share / total[part]).float() for part, share in zip(where, made, strict=True)]


def in_tiles(
    work: Callable[[slice, slice], Tensor],
    height: int,
    width: int,
    tile: int,
    overlap: int,
    align: int = 1,
    *,
    shrink: bool = False,
) -> Tensor:
    """Return what `work` gives for the rows and columns of each tile, (..., h, w), as one, (..., H, W).

    The results may be any whole number of times larger than the tiles. Blended in float32, given in work's dtype.
    """
    down, across = (spans(length, tile, overlap, align, shrink=shrink) for length in (height, width))
    total, weights = torch.empty(0), ([torch.empty(0)],) * 2
    for (i, rows), (k, columns) in product(enumerate(down), enumerate(across)):
        part = work(slice(*rows), slice(*columns))
        factor = part.shape[-1] // (columns[1] - columns[0])
        if not total.numel():
            shape = (*part.shape[:-2], height * factor, width * factor)
            total = torch.zeros(shape, dtype=torch.float32, device=part.device)
            weights = shares(down, overlap, factor), shares(across, overlap, factor)
        share = weights[0][i][:, None].to(part.device), weights[1][k].to(part.device)
        y, x = (slice(start * factor, end * factor) for start, end in (rows, columns))
        total[..., y, x] += part * share[0] * share[1]
    return total.to(part.dtype)


def cores(cuts: list[Span]) -> dict[Span, Span]:
    """Return the part of each span that no other has: up to the middle of what it shares with its neighbours."""
    middles = [0, *((after[0] + before[1]) // 2 for before, after in pairwise(cuts)), cuts[-1][1]]
    return dict(zip(cuts, pairwise(middles), strict=True))
