"""Water that mirrors what is painted above it: a lake between two banks, and the sea at a beach."""

from __future__ import annotations

import math

import numpy as np

from .canvas import Canvas, blend, blend_below, get, put, put_block
from .color import add, clamp, compiled, lit, mix, rgb, scale, smoothstep
from .ground import ground_color
from .noise import Table, hash01, sample, wave, zigzag
from .sky import haze_colors
from .view import DESERT, NOON, WINTER, View

FOAM = (0.97, 0.98, 1.0)


@compiled
def paint_far_bank(canvas: Canvas, view: View, soft: Table, ridged: Table) -> None:
    """Paint the strip of land behind a lake."""
    shift = hash01(1, 41, view.seed), hash01(2, 41, view.seed)
    last_row = int(view.horizon * view.unit) + 6
    light, ambient = rgb(view.light), rgb(view.ambient)
    columns = canvas.shape[1]
    fades, borders = haze_colors(view, columns), np.empty(columns)
    for column in range(columns):
        place = (column + 0.5) / view.unit * 3.0 + 9.0 * shift[0]
        borders[column] = (view.horizon - 0.026 - 0.018 * wave(place, view.seed)) * view.unit
    for row in range(int(borders.min()) // 2 * 2, last_row, 2):
        for column in range(0, columns, 2):
            depth = 0.10 + 0.5 * max(row + 1.0 - borders[column], 0.0) / view.unit
            albedo = ground_color(view, soft, ridged, (column + 1.0) / view.unit, depth, shift)
            color = mix(lit(albedo, light, ambient, 0.62), rgb(fades[column]), 0.10)
            blend_below(canvas, column, row, color, borders)


@compiled
def paint_lake(canvas: Canvas, view: View, soft: Table) -> None:
    """Paint still water from the horizon down, mirroring the canvas above with ripples."""
    shift = hash01(1, 41, view.seed), hash01(2, 41, view.seed)
    first = int(view.horizon * view.unit) // 2 * 2
    ground = view.height - view.horizon
    deep, last = rgb(view.deep_lake), canvas.shape[1] - 1
    for row in range(first, canvas.shape[0], 2):
        y = (row + 1.0) / view.unit
        depth = max((y - view.horizon) / ground, 0.0)
        q = 1.0 / (depth + 0.08)
        calm = clamp(depth * 7.0 + 0.15)
        reach = (0.010 + 0.055 * depth) * ground / 0.41
        for column in range(0, canvas.shape[1], 2):
            x = (column + 1.0) / view.unit
            u = (x - 0.5 * view.width) * q
            swell = sample(soft, u * 0.10 + shift[0], q * 0.75 + shift[1]) - 0.5
            ripple = (sample(soft, u * 0.28 + shift[1], q * 1.9 + shift[0]) - 0.5) * calm
            mirror_y = 2.0 * view.horizon - y + (swell * 0.98 + ripple * 0.7) * reach - 0.004
            source_x = int((x + ripple * reach * 0.35) * view.unit)
            source_y = int(mirror_y * view.unit)
            clear = clamp(0.84 - 0.34 * depth + ripple * 0.35)
            shine = _glitter(view, x, depth, 0.0035, swell * 0.6 + ripple)
            for j in range(2):
                for i in range(2):
                    column_there = min(max(source_x + i - 1, 0), last)
                    row_there = min(max(source_y - j, 0), first - 1)
                    color = scale(get(canvas, column_there, row_there), 0.94)
                    color = add(mix(deep, color, clear), rgb(view.glow), shine)
                    put(canvas, column + i, row + j, color)


@compiled
def _glitter(view: View, x: float, depth: float, width: float, height: float) -> float:
    """Return how much of the sun's or moon's path of light lies on a place of the water."""
    away = x - view.sun_x
    path = math.exp(-away * away / (width + 0.010 * depth)) * smoothstep(0.10, 0.30, height)
    return path * (0.45 if view.time == NOON else 0.8)


@compiled
def near_bank_edge(view: View, x: float) -> float:
    """Return where the near bank of a lake begins: lower in the middle of the picture."""
    aside = abs(x / view.width - 0.5) * 2.0
    start = 9.0 * hash01(3, 41, view.seed)
    rise = 0.035 + 0.13 * aside**2.2 + 0.07 * wave(x * 3.3 + start, view.seed + 5)
    rise += 0.018 * wave(x * 17.0, view.seed + 6) + 0.010 * zigzag(x * 50.0, view.seed + 8)
    return view.height - rise * (view.height - view.horizon) / 0.41 * 0.92


@compiled
def paint_near_bank(canvas: Canvas, view: View, soft: Table, ridged: Table) -> None:
    """Paint the land on this side of a lake."""
    shift = hash01(1, 41, view.seed), hash01(2, 41, view.seed)
    base = 0.55 if view.season in (WINTER, DESERT) else 0.32
    light, ambient = rgb(view.light), rgb(view.ambient)
    columns = canvas.shape[1]
    borders = np.empty(columns)
    for column in range(columns):
        borders[column] = near_bank_edge(view, (column + 0.5) / view.unit) * view.unit
    for row in range(int(borders.min()) // 2 * 2, canvas.shape[0], 2):
        y = (row + 1.0) / view.unit
        for column in range(0, columns, 2):
            if min(borders[column], borders[column + 1]) > row + 2.0:
                continue
            x, top = (column + 1.0) / view.unit, borders[column] / view.unit
            blades = sample(ridged, x * 2.0 + shift[0], y * 0.9 + shift[1])
            albedo = ground_color(view, soft, ridged, x, 0.55 + (y - top) * 2.0, shift)
            color = lit(albedo, light, ambient, base + 0.45 * blades)
            color = scale(color, 0.55 + 0.45 * smoothstep(0.0, 0.03, y - top))
            blend_below(canvas, column, row, color, borders)


@compiled
def shore(view: View, soft: Table, x: float) -> float:
    """Return where the sea ends and the sand begins."""
    start = 20.0 * hash01(4, 41, view.seed), 20.0 * hash01(5, 41, view.seed)
    ground = view.height - view.horizon
    bays = 0.034 * math.sin(x * 4.0 + start[0]) + 0.012 * math.sin(x * 13.0 + start[1])
    detail = 0.010 * (sample(soft, x * 0.6 + start[0], 0.3) - 0.5)
    return view.horizon + ground * (0.52 + (bays + detail) * 2.4)


@compiled
def paint_sea(canvas: Canvas, view: View, soft: Table) -> None:
    """Paint the sea from the horizon down to the lower edge, with waves and crests."""
    shift = hash01(1, 41, view.seed), hash01(2, 41, view.seed)
    first = int(view.horizon * view.unit) // 2 * 2
    ground = view.height - view.horizon
    day = rgb(view.light), rgb(view.ambient)
    shallow = lit((0.30, 0.75, 0.72), day[0], day[1], 1.0)
    foam = lit(FOAM, day[0], day[1], 1.0)
    for row in range(first, canvas.shape[0], 2):
        y = (row + 1.0) / view.unit
        depth = max((y - view.horizon) / ground, 0.0)
        q = 1.0 / (depth + 0.07)
        calm = clamp(depth * 7.0 + 0.15)
        for column in range(0, canvas.shape[1], 2):
            x = (column + 1.0) / view.unit
            u = (x - 0.5 * view.width) * q
            swell = sample(soft, u * 0.09 + shift[0], q * 0.55 + shift[1]) - 0.5
            ripple = (sample(soft, u * 0.30 + shift[1], q * 1.7 + shift[0]) - 0.5) * calm
            mirror_y = 2.0 * view.horizon - y + (swell * 0.8 + ripple * 0.6) * 0.05
            mirror_row = min(max(int(mirror_y * view.unit), 0), first - 1)
            mirrored = scale(get(canvas, column, mirror_row), 0.95)
            roll = math.sin((q * 5.2 + swell * 3.0) * 2.2) * calm
            clear = clamp(0.50 - 0.22 * depth + roll * 0.10 + ripple * 0.5)
            color = mix(rgb(view.deep_sea), mirrored, clear)
            color = mix(color, shallow, 0.55 * smoothstep(0.10, 0.52, depth))
            shine = _glitter(view, x, depth, 0.004, swell * 0.6 + ripple)
            color = add(color, rgb(view.glow), shine)
            crest = smoothstep(0.80, 0.97, roll + ripple * 0.8) * smoothstep(0.10, 0.30, depth)
            put_block(canvas, column, row, mix(color, foam, 0.5 * crest))


@compiled
def paint_sand(canvas: Canvas, view: View, soft: Table) -> None:
    """Paint the beach below the shore line, and the foam where the sea runs out."""
    shift = hash01(1, 41, view.seed), hash01(2, 41, view.seed)
    day = rgb(view.light), rgb(view.ambient)
    foam = lit(FOAM, day[0], day[1], 1.0)
    columns = canvas.shape[1]
    borders = np.empty(columns)
    for column in range(columns):
        borders[column] = shore(view, soft, (column + 0.5) / view.unit) * view.unit
    for row in range(int(borders.min() - 0.09 * view.unit) // 2 * 2, canvas.shape[0], 2):
        y = (row + 1.0) / view.unit
        for column in range(0, columns, 2):
            x = (column + 1.0) / view.unit
            inland = y - borders[column] / view.unit
            if inland < -0.09:
                continue
            if inland > -0.01:
                grain = sample(soft, x * 1.3 + shift[0], y * 2.2 + shift[1]) - 0.5
                broad = sample(soft, x * 0.35 + shift[1], y * 0.6 + shift[0]) - 0.5
                sand = mix((0.74, 0.58, 0.38), (0.97, 0.85, 0.62), clamp(0.5 + grain + broad))
                sand = scale(sand, 0.64 + 0.36 * smoothstep(0.0, 0.06, inland))
                blend_below(canvas, column, row, lit(sand, day[0], day[1], 0.85), borders)
            if inland < 0.05:
                edge_foam = math.exp(-((inland + 0.008) ** 2) / 0.00016)
                edge_foam *= smoothstep(0.30, 0.52, sample(soft, x * 1.2 + shift[0], y * 1.4))
                outer = math.exp(-((inland + 0.05) ** 2) / 0.00012)
                outer *= smoothstep(0.42, 0.6, sample(soft, x * 1.3 + shift[1], y * 2.0))
                for j in range(2):
                    for i in range(2):
                        blend(canvas, column + i, row + j, foam, clamp(edge_foam + 0.6 * outer))
