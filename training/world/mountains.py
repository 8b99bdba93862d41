"""Mountains: ranges of jagged peaks, and rolling hills, one layer behind the other."""

from __future__ import annotations

import numpy as np

from .canvas import Canvas, blend_below
from .color import RGB, Line, add, clamp, compiled, lit, mix, rgb, scale, smoothstep
from .noise import Table, hash01, sample, wave, zigzag
from .sky import haze_colors
from .view import AUTUMN, DESERT, NO_MOUNTAINS, PEAKS, SUMMER, WINTER, View

SNOW = (0.94, 0.96, 1.0)
PEAK_LAYERS = np.array([[0.41, 0.01, 2.6, 0.32], [0.22, 0.02, 3.8, 0.14]])
HILL_LAYERS = np.array([[0.20, 0.02, 2.6, 0.40], [0.14, 0.02, 2.9, 0.22], [0.085, 0.02, 3.1, 0.08]])
"""From far to near: height, how far the foot lies below the horizon, summits per unit, haze."""
SLOPE_REACH = 0.014
"""Over which length, in units, the slope that shades a ridge is measured."""
RIDGE_OFFSET = 0.0028


@compiled
def paint_mountains(canvas: Canvas, view: View, soft: Table, ridged: Table) -> None:
    """Paint the layers from far to near; nothing for a scene without mountains."""
    layers = PEAK_LAYERS if view.mountains == PEAKS else HILL_LAYERS
    tall = min(view.height, 1.15)
    for index in range(layers.shape[0] if view.mountains != NO_MOUNTAINS else 0):
        height, foot, frequency, haze = layers[index]
        base = view.horizon + foot
        _paint_layer(canvas, view, soft, ridged, index, height * tall, base, frequency, haze)


@compiled
def _paint_layer(
    canvas: Canvas,
    view: View,
    soft: Table,
    ridged: Table,
    index: int,
    amplitude: float,
    base: float,
    frequency: float,
    haze: float,
) -> None:
    columns = canvas.shape[1]
    seed = view.seed * 13 + index * 101
    heights, smooth = _draw_ridge(view, columns, seed, frequency)
    last_row = min(int(view.horizon * view.unit) + 8, canvas.shape[0])
    shift = hash01(index, 1, seed), hash01(index, 2, seed)
    reach = max(int(SLOPE_REACH * view.unit), 1)
    slopes = np.empty(columns)
    for column in range(columns):
        left, right = max(column - reach, 0), min(column + reach, columns - 1)
        slopes[column] = (smooth[right] - smooth[left]) * amplitude * view.unit / (right - left)
    fades = haze_colors(view, columns)
    light, ambient = rgb(view.light), rgb(view.ambient)
    borders = (base - amplitude * heights) * view.unit
    for row in range(max(int(borders.min()) // 2 * 2, 0), last_row, 2):
        y = (row + 1.0) / view.unit
        rise = (base - y) / amplitude
        foot = smoothstep(0.02, 0.0, max(view.horizon - y - 0.03, 0.0) * 0.4)
        amount = clamp(haze + (1.0 - haze) * 0.40 * foot * (0.5 + haze))
        for column in range(0, columns, 2):
            if min(borders[column], borders[column + 1]) > row + 2.0:
                continue
            x, ridge = (column + 1.0) / view.unit, borders[column] / view.unit
            if view.mountains == PEAKS:
                albedo, shine = _shade_rock(view, soft, ridged, shift, slopes, x, y, rise, y - ridge)
            else:
                albedo, shine = _shade_hill(view, soft, ridged, shift, slopes[column], x, y)
            color = lit(albedo, light, ambient, 1.05 * shine)
            blend_below(canvas, column, row, mix(color, rgb(fades[column]), amount), borders)


@compiled
def _draw_ridge(view: View, columns: int, seed: int, frequency: float) -> tuple[Line, Line]:
    """Return the ridge's height in each column, its highest point at 1, and the same without its
    finest detail. Scaling to the highest point keeps every range unmistakable."""
    heights, smooth = np.empty(columns), np.empty(columns)
    start = 50.0 * hash01(7, 9, seed)
    highest = 0.0
    for column in range(columns):
        x = column / view.unit * frequency + start
        if view.mountains == PEAKS:
            height, rough = _peak_height(x, seed)
        else:
            rough = _hill_height(x, seed)
            height = rough + 0.012 * wave(x * 21.0, seed + 3)
        heights[column], smooth[column] = height, rough
        highest = max(highest, height)
    for column in range(columns):
        heights[column] /= highest
        smooth[column] /= highest
    return heights, smooth


@compiled
def _peak_height(x: float, seed: int) -> tuple[float, float]:
    """Return the height of pointed summits, one per unit of x, jagged, and the same less jagged."""
    cell = int(np.floor(x))
    cone = 0.0
    for neighbour in range(cell - 1, cell + 2):
        center = neighbour + 0.5 + 0.7 * (hash01(neighbour, 4, seed) - 0.5)
        summit = 0.50 + 0.50 * hash01(neighbour, 5, seed)
        cone = max(cone, summit * (1.0 - abs(x - center) / 1.15))
    height, size, grain, rough = cone, 0.26, 2.1, 0.0
    for octave in range(6):
        height += size * (zigzag(x * grain, seed + octave) - 0.5) * (0.3 + 0.7 * cone)
        if octave < 3:
            rough = height
        size *= 0.55
        grain *= 2.07
    return max(height, 0.03), max(rough, 0.03)


@compiled
def _hill_height(x: float, seed: int) -> float:
    """Return the height of round domes, one per unit of x, that run into each other."""
    cell = int(np.floor(x))
    total = 0.0
    for neighbour in range(cell - 1, cell + 2):
        center = neighbour + 0.5 + 0.5 * (hash01(neighbour, 4, seed) - 0.5)
        away = (x - center) / 0.85
        dome = max(1.0 - away * away, 0.0) * (0.55 + 0.45 * hash01(neighbour, 5, seed))
        total += dome**4  # the fourth-power mean joins two domes without a crease
    return total**0.25


@compiled
def _shade_rock(
    view: View,
    soft: Table,
    ridged: Table,
    shift: tuple[float, float],
    slopes: Line,
    x: float,
    y: float,
    rise: float,
    depth: float,
) -> tuple[RGB, float]:
    """Return (albedo, share of light) of a mountain face: rock, snow above, woods at its foot."""
    blotch = sample(soft, x * 0.55 + shift[0], y * 0.55 + shift[1])
    before = sample(ridged, x * 0.5 + shift[0] - RIDGE_OFFSET, y * 0.42 + shift[1])
    behind = sample(ridged, x * 0.5 + shift[0] + RIDGE_OFFSET, y * 0.42 + shift[1])
    relief = behind - before
    # Spurs run down a face: borrow the slope of a ridge point that wanders with depth.
    wander = (sample(ridged, x * 0.22 + shift[1], y * 0.3 + shift[0]) - 0.5) * 0.18
    source = int((x + wander * clamp(depth * 9.0)) * view.unit)
    slope = slopes[min(max(source, 0), slopes.shape[0] - 1)]
    shine = 0.48 - view.light_x * slope * 0.42 - view.light_x * relief * 2.6
    shine = clamp(shine + (blotch - 0.5) * 0.25)
    if view.season == DESERT:
        rock = scale((0.86, 0.40, 0.20), 0.84 + 0.40 * blotch)
        band = np.sin(y * 90.0 + blotch * 16.0)
        return scale(rock, 0.94 + 0.13 * band), shine
    rock = scale((0.44, 0.41, 0.41), 0.8 + 0.45 * blotch)
    if view.season == SUMMER:
        foot, woods = (0.20, 0.36, 0.14), 0.95
    elif view.season == AUTUMN:
        foot, woods = (0.66, 0.34, 0.10), 0.95
    else:
        foot, woods = (0.74, 0.79, 0.86), 0.7
    albedo = mix(rock, foot, smoothstep(0.42, 0.12, rise + (blotch - 0.5) * 0.5) * woods)
    line = 0.12 if view.season == WINTER else 0.50
    patch = rise + (blotch - 0.5) * 0.42 - abs(relief) * 2.2 + (shine - 0.5) * 0.12
    return mix(albedo, SNOW, smoothstep(line - 0.05, line + 0.05, patch)), shine


@compiled
def _shade_hill(
    view: View, soft: Table, ridged: Table, shift: tuple[float, float], slope: float, x: float, y: float
) -> tuple[RGB, float]:
    """Return (albedo, share of light) of a hill side: woods, snow or sand, never bare rock."""
    blotch = sample(soft, x * 0.55 + shift[0], y * 0.55 + shift[1])
    before = sample(ridged, x * 0.5 + shift[0] - RIDGE_OFFSET, y * 0.42 + shift[1])
    behind = sample(ridged, x * 0.5 + shift[0] + RIDGE_OFFSET, y * 0.42 + shift[1])
    clumps = sample(soft, x * 2.2 + shift[0], y * 3.0 + shift[1])
    shine = 0.60 - view.light_x * slope * 0.6 + (before - 0.5) * 0.3
    shine = clamp(shine - view.light_x * (behind - before) * 1.0)
    if view.season == SUMMER:
        share = clamp(0.5 + (clumps - 0.5) * 1.6 + blotch - 0.5)
        return mix((0.15, 0.34, 0.09), (0.42, 0.58, 0.19), share), shine
    if view.season == AUTUMN:
        share = clamp(0.5 + (clumps - 0.5) * 2.4)
        woods = mix((0.66, 0.17, 0.05), (0.95, 0.58, 0.10), share)
        return mix(woods, (0.40, 0.36, 0.12), 0.7 * smoothstep(0.55, 0.8, blotch)), shine
    if view.season == WINTER:
        bare = 0.6 * smoothstep(0.66, 0.88, clumps)
        return mix((0.91, 0.94, 0.99), (0.50, 0.56, 0.62), bare), shine
    sand = scale((0.93, 0.58, 0.29), 0.84 + 0.32 * blotch)
    return add(sand, sand, 0.05 * np.sin(y * 70.0 + blotch * 14.0)), shine
