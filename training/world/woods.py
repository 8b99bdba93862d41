"""Where plants stand: woods around a lake, trees on a meadow, cacti on sand; never before the object."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas, get, put
from .color import Line, clamp, compiled, scale, smoothstep
from .noise import Table, hash01
from .trees import paint_cactus, paint_tree
from .view import HOUSE, NO_OBJECT, View

MOST = 64
TRIES = 8


@compiled
def is_covering(view: View, x: float, base: float, height: float, half: float) -> bool:
    """Return whether a plant would overlap the box around the object."""
    if view.object == NO_OBJECT:
        return False
    aside = x + half < view.left or x - half > view.right
    return not (aside or base - height > view.bottom or base < view.top)


@compiled
def paint_far_trees(canvas: Canvas, view: View, soft: Table) -> None:
    """Paint the trees on the far bank of a lake: a wood, or three or four single ones."""
    spread = view.width
    count = min(int((20.0 + 6.0 * hash01(1, 61, view.seed)) * spread), MOST)
    if not view.many:
        count = 3 + int(2.0 * hash01(1, 61, view.seed))
    least = 0.115 if view.many else 0.135
    for index in range(count):
        x = (index + 0.1 + 0.8 * hash01(index, 62, view.seed)) / count * view.width
        base = view.horizon - 0.008 - 0.014 * hash01(index, 63, view.seed)
        height = least + 0.075 * hash01(index, 64, view.seed)
        if view.object == HOUSE and is_covering(view, x, base, height, 0.25 * height):
            continue
        paint_tree(canvas, view, soft, x, base, height, 0.08, view.seed + 7 * index)


@compiled
def paint_near_trees(canvas: Canvas, view: View, soft: Table) -> None:
    """Paint tall trees at the edges of the near bank, on the side away from the object."""
    count = 2 if view.many else 1
    for index in range(count):
        right = (hash01(2, 65, view.seed) < 0.5) != (index == 1)
        inset = 0.02 + 0.09 * hash01(index, 66, view.seed)
        if view.object != NO_OBJECT:
            right = view.object_x < 0.5 * view.width
            inset = 0.03 + 0.14 * index + 0.04 * hash01(index, 66, view.seed)
        x = view.width * (1.0 - inset if right else inset)
        base = view.height * (0.93 + 0.04 * hash01(index, 67, view.seed))
        height = (0.32 + 0.16 * hash01(index, 68, view.seed)) * min(view.height, 1.2)
        paint_tree(canvas, view, soft, x, base, height, 0.0, view.seed + 900 + index)


@compiled
def paint_meadow_trees(canvas: Canvas, view: View, soft: Table) -> None:
    """Paint the trees of a meadow from far to near, each with its shadow."""
    count = min(int((22.0 + 6.0 * hash01(1, 71, view.seed)) * view.width), MOST)
    if not view.many:
        count = 3 + int(2.0 * hash01(1, 71, view.seed))
    ground = view.height - view.horizon
    places, sizes, depths = np.empty(MOST), np.empty(MOST), np.empty(MOST)
    painted = np.zeros(MOST, np.bool_)
    for index in range(count):
        depth = hash01(index, 72, view.seed)
        depth = depth * depth if view.many else 0.25 + 0.75 * depth
        depths[index] = depth
        # A wood is lower than single trees, or it would hide the mountains.
        near, grown = hash01(index, 73, view.seed), hash01(index, 74, view.seed)
        size = 0.13 + (0.23 if view.many else 0.32) * depth * (0.8 + 0.4 * near) + 0.04 * grown
        sizes[index] = size * min(view.height + 0.15, 1.0)
        places[index] = -1.0
        base = _meadow_base(view, ground, depth)
        for attempt in range(TRIES):
            slot = index + hash01(index, 75 + attempt, view.seed)
            x = (slot / count if attempt == 0 else slot - index) * view.width
            if _is_free(view, places, depths, index, x, base, sizes[index]):
                places[index] = x
                break
    for _ in range(count):
        index = _find_farthest(depths, painted, count)
        painted[index] = True
        if places[index] >= 0.0:
            base = _meadow_base(view, ground, depths[index])
            _paint_shadow(canvas, view, places[index], base, 0.26 * sizes[index])
            haze = 0.2 * smoothstep(0.5, 0.0, depths[index])
            paint_tree(canvas, view, soft, places[index], base, sizes[index], haze, view.seed + 7 * index)


@compiled
def _find_farthest(depths: Line, painted: Line, count: int) -> int:
    """Return the index of the farthest tree not yet painted (np.argsort takes 7 s to compile)."""
    found = -1
    for index in range(count):
        if not painted[index] and (found < 0 or depths[index] < depths[found]):
            found = index
    return found


@compiled
def _meadow_base(view: View, ground: float, depth: float) -> float:
    return view.horizon + ground * (0.03 + 0.62 * depth)


@compiled
def _is_free(view: View, places: Line, depths: Line, count: int, x: float, base: float, height: float) -> bool:
    """Return whether a tree may stand here: not before the object, and few trees apart."""
    half = 0.36 * height
    behind = view.object == HOUSE and base < view.bottom - 0.03
    if not behind and is_covering(view, x, base, height, half):
        return False
    if not view.many:
        for other in range(count):
            if places[other] >= 0.0 and abs(places[other] - x) < 0.15 * view.width:
                return False
    return True


@compiled
def _paint_shadow(canvas: Canvas, view: View, x: float, base: float, half: float) -> None:
    """Darken an ellipse of ground on the side away from the light."""
    unit, middle, flat = view.unit, x - 0.3 * half * view.light_x, 0.012
    for row in range(int((base - flat) * unit), int((base + flat) * unit) + 1):
        for column in range(int((middle - half) * unit), int((middle + half) * unit) + 1):
            if 0 <= column < canvas.shape[1] and 0 <= row < canvas.shape[0]:
                dx = ((column + 0.5) / unit - middle) / half
                dy = ((row + 0.5) / unit - base) / flat
                dark = 0.45 * clamp(1.0 - dx * dx - dy * dy)
                put(canvas, column, row, scale(get(canvas, column, row), 1.0 - dark))


@compiled
def paint_cacti(canvas: Canvas, view: View, on_bank: bool) -> None:
    """Paint a few cacti: two to four on dunes, one or two at the edges of a lake's near bank."""
    count = (1 if on_bank else 2) + int((2.0 if on_bank else 3.0) * hash01(1, 81, view.seed))
    ground = view.height - view.horizon
    for index in range(count):
        depth = (index + hash01(index, 82, view.seed)) / count
        base = view.horizon + ground * (0.10 + 0.60 * depth)
        height = 0.12 + 0.20 * depth
        x = hash01(index, 83, view.seed)
        if on_bank:
            base = view.height - ground * (0.05 + 0.05 * depth)
            height = 0.24 + 0.08 * depth
            x = 0.06 + 0.10 * x if index % 2 == 0 else 0.84 + 0.10 * x
        if is_covering(view, x * view.width, base, height, 0.45 * height):
            x = x + 0.5 if x < 0.5 else x - 0.5
        if is_covering(view, x * view.width, base, height, 0.45 * height):
            continue
        if not on_bank:
            _paint_shadow(canvas, view, x * view.width, base, 0.26 * height)
        paint_cactus(canvas, view, x * view.width, base, height, view.seed + index)
