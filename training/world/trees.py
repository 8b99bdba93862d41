"""Single plants: a pine, a round tree, a cactus. A plant stands on (x, base) and is `height` tall."""

from __future__ import annotations

import math

import numpy as np

from .canvas import Canvas, blend, edge
from .color import RGB, clamp, compiled, lit, mix, rgb, scale, smoothstep
from .noise import Table, hash01, sample
from .sky import haze_color
from .view import AUTUMN, PINES, SUMMER, WINTER, View

SNOW = (0.94, 0.96, 1.0)
BARK = (0.26, 0.18, 0.11)


@compiled
def paint_tree(
    canvas: Canvas, view: View, soft: Table, x: float, base: float, height: float, haze: float, seed: int
) -> None:
    """Paint one tree of the scene's kind; haze in 0..1 fades it into the distance."""
    if view.trees == PINES:
        _paint_pine(canvas, view, soft, x, base, height, haze, seed)
    else:
        _paint_trunk(canvas, view, x, base, height, haze)
        _paint_crown(canvas, view, soft, x, base, height, haze, seed)


@compiled
def _paint_pine(
    canvas: Canvas, view: View, soft: Table, x: float, base: float, height: float, haze: float, seed: int
) -> None:
    """Paint tiers of branches that widen downwards, lit on the sun's side, snowy in winter."""
    unit, fade = view.unit, haze_color(view, x)
    shift = hash01(1, 51, seed), hash01(2, 51, seed)
    width = height * (0.40 + 0.10 * hash01(3, 51, seed))
    tiers = min(4 + int(height / 0.06), 8)
    needles = scale(_needle_color(view, hash01(5, 51, seed)), 0.85 + 0.4 * hash01(4, 51, seed))
    light, ambient = rgb(view.light), rgb(view.ambient)
    bark = mix(lit(BARK, light, ambient, 0.5), fade, haze)
    for row in range(int((base - height) * unit), int(base * unit) + 1):
        t = 1.0 - (base - (row + 0.5) / unit) / height
        if t < 0.0:
            continue
        for column in range(int((x - 0.62 * width) * unit), int((x + 0.62 * width) * unit) + 1):
            dx = (column + 0.5) / unit - x
            if t > 0.92:
                blend(canvas, column, row, bark, edge((0.06 * width - abs(dx)) * unit))
            if t > 0.96:
                continue
            rough = sample(soft, dx / height * 0.30 + shift[0], t * 0.30 + shift[1])
            tier = t * tiers + abs(dx) / width * 0.9
            tier -= math.floor(tier)
            half = 0.5 * width * (0.03 + 0.97 * t**0.9) * (0.55 + 0.45 * tier)
            half = half * (0.66 + 0.70 * rough) + 0.0008
            cover = edge((half - abs(dx)) * unit)
            if cover <= 0.0:
                continue
            shine = 0.42 + 0.5 * view.light_x * dx / (half + 0.002)
            shine = clamp(shine + (rough - 0.5) * 1.2 - 0.30 * (1.0 - tier))
            albedo = scale(needles, 0.75 + 0.9 * shine)
            if view.season == WINTER:
                snow = smoothstep(0.52, 0.18, tier + (0.5 - rough) * 0.9)
                albedo = mix(albedo, SNOW, 0.95 * snow)
            color = lit(albedo, light, ambient, 0.25 + 0.85 * shine)
            blend(canvas, column, row, mix(color, fade, haze), cover)


@compiled
def _needle_color(view: View, kind: float) -> RGB:
    if view.season == WINTER:
        return (0.10, 0.21, 0.17)
    if view.season == AUTUMN and kind < 0.5:
        return (0.62, 0.36, 0.05)  # a larch, which turns before it sheds
    return (0.07, 0.21, 0.09)


@compiled
def _leaf_color(view: View, kind: float, shade: float) -> RGB:
    if view.season == SUMMER:
        return mix((0.13, 0.32, 0.07), (0.30, 0.50, 0.12), shade)
    if view.season == AUTUMN:
        if kind < 0.55:
            return (0.90, 0.42, 0.05)
        if kind < 0.75:
            return (0.80, 0.22, 0.06)
        return (0.94, 0.66, 0.10)
    return (0.84, 0.88, 0.95)


@compiled
def _paint_trunk(canvas: Canvas, view: View, x: float, base: float, height: float, haze: float) -> None:
    unit, fade = view.unit, haze_color(view, x)
    light, ambient = rgb(view.light), rgb(view.ambient)
    for row in range(int((base - 0.45 * height) * unit), int(base * unit) + 1):
        t = (base - (row + 0.5) / unit) / height
        half = height * (0.026 + 0.03 * (1.0 - 2.0 * t) ** 2)
        for column in range(int((x - half) * unit) - 1, int((x + half) * unit) + 2):
            dx = (column + 0.5) / unit - x
            shine = clamp(0.5 + 0.5 * view.light_x * dx / half)
            color = mix(lit(BARK, light, ambient, shine), fade, haze)
            blend(canvas, column, row, color, edge((half - abs(dx)) * unit))


@compiled
def _paint_crown(
    canvas: Canvas, view: View, soft: Table, x: float, base: float, height: float, haze: float, seed: int
) -> None:
    """Paint a round crown with an uneven border and clumps of leaves lit from above."""
    unit, fade = view.unit, haze_color(view, x)
    shift = hash01(1, 51, seed), hash01(2, 51, seed)
    wide, high = height * (0.37 + 0.08 * hash01(3, 51, seed)), 0.40 * height
    middle = base - 0.60 * height
    leaves = _leaf_color(view, hash01(4, 51, seed), hash01(5, 51, seed))
    light, ambient = rgb(view.light), rgb(view.ambient)
    for row in range(int((middle - 1.25 * high) * unit), int((middle + 1.25 * high) * unit)):
        dy = ((row + 0.5) / unit - middle) / high
        for column in range(int((x - 1.3 * wide) * unit), int((x + 1.3 * wide) * unit) + 1):
            dx = ((column + 0.5) / unit - x) / wide
            radius = math.sqrt(dx * dx + dy * dy)
            if radius > 1.3:
                continue
            lobes = sample(soft, dx * 0.09 + shift[0], dy * 0.09 + shift[1]) - 0.5
            clumps = sample(soft, dx * 0.28 + shift[1], dy * 0.28 + shift[0]) - 0.5
            cover = edge((0.92 - radius + lobes + clumps * 0.35) * wide * unit * 0.4)
            if cover <= 0.0:
                continue
            shine = clamp(0.50 + 0.33 * view.light_x * dx - 0.36 * dy + clumps * 1.2 + lobes * 0.9)
            color = lit(scale(leaves, 0.70 + 0.55 * shine), light, ambient, 0.15 + shine)
            blend(canvas, column, row, mix(color, fade, haze), cover)


@compiled
def paint_cactus(canvas: Canvas, view: View, x: float, base: float, height: float, seed: int) -> None:
    """Paint a saguaro: an upright column with an arm on either side."""
    unit = view.unit
    thick = 0.085 * height
    light, ambient = rgb(view.light), rgb(view.ambient)
    left, right = 0.26 + 0.14 * hash01(1, 52, seed), 0.34 + 0.16 * hash01(2, 52, seed)
    arm = 0.26 * height
    for row in range(int((base - 1.02 * height) * unit), int(base * unit) + 1):
        up = base - (row + 0.5) / unit
        for column in range(int((x - 0.40 * height) * unit), int((x + 0.40 * height) * unit) + 1):
            dx = (column + 0.5) / unit - x
            level = (left if dx < 0 else right) * height
            tip = level + (0.30 if dx < 0 else 0.24) * height
            stem = _segment(dx, up, 0.0, 0.0, height - thick) - thick
            elbow = math.hypot(max(abs(dx) - arm, 0.0), up - level) - 0.72 * thick
            limb = min(elbow, _segment(abs(dx), up, arm, level, tip) - 0.72 * thick)
            distance = min(stem, limb)
            cover = edge(-distance * unit)
            if cover <= 0.0:
                continue
            center, half = (0.0, thick) if stem <= limb else (math.copysign(arm, dx), 0.72 * thick)
            round_ = min(max((dx - center) / half, -1.0), 1.0)
            ribs = 0.86 + 0.14 * np.cos(math.asin(round_) * 8.0)
            shine = clamp(0.5 + 0.45 * view.light_x * round_) * ribs
            blend(canvas, column, row, lit((0.24, 0.46, 0.20), light, ambient, shine), cover)


@compiled
def _segment(x: float, y: float, at: float, bottom: float, top: float) -> float:
    """Return the distance from (x, y) to the upright line at x = at between two heights."""
    return math.hypot(x - at, y - min(max(y, bottom), top))
