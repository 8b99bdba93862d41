"""What covers the ground in each season, and the open meadow, dune or snow field."""

from __future__ import annotations

import math

import numpy as np

from .canvas import Canvas, blend, blend_below, edge
from .color import RGB, clamp, compiled, lit, mix, rgb, smoothstep
from .noise import Table, hash01, sample, wave
from .sky import haze_colors
from .view import AUTUMN, SUMMER, WINTER, View

FLOWERS = 110


@compiled
def ground_color(
    view: View, soft: Table, ridged: Table, x: float, depth: float, shift: tuple[float, float]
) -> RGB:
    """Return the ground's own colour; depth runs from 0 at the horizon to 1 at the lower edge."""
    q = 1.0 / (depth * 0.9 + 0.10)
    u = (x - 0.5 * view.width) * q
    near = clamp(depth * 2.5 + 0.1)  # far away, grain finer than a pixel would only flicker
    broad = sample(soft, u * 0.10 + shift[0], q * 0.13 + shift[1]) - 0.5
    fine = (sample(soft, u * 1.0 + shift[1], q * 0.8 + shift[0]) - 0.5) * near
    if view.season == SUMMER:
        blades = (sample(ridged, u * 1.8 + shift[0], q * 0.8 + shift[1]) - 0.5) * near
        share = clamp(0.45 + broad * 1.2 + fine + blades * 0.8)
        return mix((0.13, 0.32, 0.06), (0.46, 0.62, 0.17), share)
    if view.season == AUTUMN:
        blades = (sample(ridged, u * 1.8 + shift[0], q * 0.8 + shift[1]) - 0.5) * near
        share = clamp(0.52 + broad * 1.2 + fine * 1.1 + blades * 0.7)
        grass = mix((0.50, 0.28, 0.06), (0.95, 0.70, 0.22), share)
        return mix(grass, (0.82, 0.28, 0.05), 0.75 * smoothstep(0.62, 0.80, fine + 0.5))
    if view.season == WINTER:
        return mix((0.70, 0.78, 0.91), (0.98, 0.99, 1.0), clamp(0.74 + broad * 1.0 + fine * 0.22))
    ripple = 0.5 * math.sin(q * 16.0 + u * 3.0 + broad * 10.0) * clamp(depth * 3.0 + 0.2)
    share = clamp(0.48 + broad * 1.5 + ripple * 0.34 + fine * 0.2)
    return mix((0.76, 0.42, 0.18), (1.0, 0.74, 0.40), share)


@compiled
def meadow_edge(view: View, x: float) -> float:
    """Return where the meadow meets the sky or the mountains, gently uneven."""
    edge_y = view.horizon - 0.035 * wave(x * 2.0 + 9.0 * hash01(3, 31, view.seed), view.seed)
    return edge_y - 0.015 * wave(x * 5.0 + 9.0 * hash01(4, 31, view.seed), view.seed + 1)


@compiled
def paint_meadow(canvas: Canvas, view: View, soft: Table, ridged: Table) -> None:
    """Paint open ground from the horizon down, with flowers in summer."""
    shift = hash01(1, 31, view.seed), hash01(2, 31, view.seed)
    haze = 0.12 if view.season == WINTER else 0.34  # hazy snow would melt into a cloudy sky
    light, ambient = rgb(view.light), rgb(view.ambient)
    columns = canvas.shape[1]
    fades, borders = haze_colors(view, columns), np.empty(columns)
    for column in range(columns):
        borders[column] = meadow_edge(view, (column + 0.5) / view.unit) * view.unit
    for row in range(int(borders.min()) // 2 * 2, canvas.shape[0], 2):
        for column in range(0, columns, 2):
            top, x = borders[column] / view.unit, (column + 1.0) / view.unit
            depth = ((row + 1.0) / view.unit - top) / (view.height - top)
            if depth < -0.02:
                continue
            depth = max(depth, 0.0)
            swell = sample(soft, x * 0.30 + shift[1], depth * 0.5 + shift[0])
            albedo = ground_color(view, soft, ridged, x, depth, shift)
            shine = clamp(0.64 + (swell - 0.5) * 0.9)
            color = lit(albedo, light, ambient, shine)
            color = mix(color, rgb(fades[column]), haze * smoothstep(0.30, 0.0, depth))
            blend_below(canvas, column, row, color, borders)
    if view.season == SUMMER:
        _paint_flowers(canvas, view)


@compiled
def _flower_color(kind: float) -> RGB:
    if kind < 0.25:
        return (0.96, 0.92, 0.96)
    if kind < 0.5:
        return (0.96, 0.80, 0.15)
    if kind < 0.75:
        return (0.88, 0.22, 0.28)
    return (0.62, 0.42, 0.86)


@compiled
def _paint_flowers(canvas: Canvas, view: View) -> None:
    """Scatter one kind of flower over the near half of the meadow."""
    petal = _flower_color(hash01(5, 31, view.seed))
    color = lit(petal, rgb(view.light), rgb(view.ambient), 0.9)
    for flower in range(int(FLOWERS * view.width)):
        depth = 0.22 + 0.78 * math.sqrt(hash01(flower, 32, view.seed))
        x = hash01(flower, 33, view.seed) * view.width * view.unit
        y = (view.horizon + (view.height - view.horizon) * depth) * view.unit
        radius = (0.0028 + 0.0080 * depth * depth) * view.unit
        reach = int(radius + 1.5)
        for j in range(-reach, reach + 1):
            for i in range(-reach, reach + 1):
                column, row = int(x) + i, int(y) + j
                distance = math.hypot(column + 0.5 - x, (row + 0.5 - y) * 1.3)
                blend(canvas, column, row, color, edge(radius - distance))
