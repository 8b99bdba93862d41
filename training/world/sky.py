"""The sky: its gradient, sun or moon, clouds and stars."""

from __future__ import annotations

import math

import numpy as np

from .canvas import Canvas, blend, put_block
from .color import RGB, add, clamp, compiled, mix, rgb, scale, smoothstep
from .noise import Table, hash01, sample
from .view import NIGHT, NOON, View

STAR_RADIUS = 0.0026


@compiled
def sky_color(view: View, x: float, y: float) -> RGB:
    """Return the clear sky at a place, in units; below the horizon, its colour at the horizon."""
    rise = max((view.horizon - y) / view.horizon, 0.0)
    color = mix(rgb(view.low), rgb(view.middle), smoothstep(0.0, 0.42, rise))
    color = mix(color, rgb(view.zenith), smoothstep(0.25, 1.0, rise))
    dx, dy = x - view.sun_x, y - view.sun_y
    distance = math.sqrt(dx * dx + dy * dy)
    strength = 0.5 if view.time == NOON else (0.4 if view.time == NIGHT else 1.0)
    halo = 0.42 * math.exp(-distance * 9.0) + 0.26 * math.exp(-distance * 3.0)
    if view.time != NOON:
        halo += 0.22 * math.exp(-abs(dx) * 2.2 - rise * 6.0)
    return add(color, rgb(view.glow), strength * halo)


@compiled
def haze_color(view: View, x: float) -> RGB:
    """Return the colour into which distant things fade."""
    return scale(sky_color(view, x, view.horizon - 0.03), 0.97)


@compiled
def haze_colors(view: View, columns: int) -> np.ndarray:
    """Return haze_color for each pixel column, (columns, 3).

    Land is painted row by row, which suits the memory, though its haze goes by columns.
    """
    colors = np.empty((columns, 3))
    for column in range(columns):
        color = haze_color(view, (column + 0.5) / view.unit)
        colors[column, 0], colors[column, 1], colors[column, 2] = color
    return colors


@compiled
def paint_sky(canvas: Canvas, view: View, soft: Table) -> None:
    """Paint everything above the horizon, and a little below it.

    One colour per output pixel (2 x 2 here) is enough: nothing in a sky has hard edges.
    """
    rows = min(int(view.horizon * view.unit) + 6, canvas.shape[0])
    drift = hash01(1, 11, view.seed), hash01(2, 11, view.seed)
    for y in range(0, rows - rows % 2, 2):
        for x in range(0, canvas.shape[1], 2):
            place_x, place_y = (x + 1.0) / view.unit, (y + 1.0) / view.unit
            color = sky_color(view, place_x, place_y)
            color = _add_disc(view, soft, color, place_x, place_y)
            if view.clouds:
                color = _add_clouds(view, soft, drift, color, place_x, place_y)
            put_block(canvas, x, y, color)
    if view.time == NIGHT and not view.clouds:
        _paint_stars(canvas, view)


@compiled
def _add_disc(view: View, soft: Table, color: RGB, x: float, y: float) -> RGB:
    dx, dy = x - view.sun_x, y - view.sun_y
    distance = math.sqrt(dx * dx + dy * dy)
    radius = view.sun_radius
    cover = smoothstep(radius + 0.003, radius - 0.003, distance)
    if cover <= 0.0:
        return color
    if view.time == NIGHT:
        disc = scale((0.96, 0.96, 0.90), 0.80 + 0.35 * sample(soft, x * 0.7 + 0.3, y * 0.7))
    else:
        disc = add((0.62, 0.58, 0.48), rgb(view.glow), 0.55)
    return mix(color, disc, cover)


@compiled
def _cloud_density(soft: Table, drift: tuple[float, float], u: float, v: float) -> float:
    broad = sample(soft, u * 0.12 + drift[0], v * 0.21 + drift[1])
    return 0.62 * broad + 0.38 * sample(soft, u * 0.23 + drift[1], v * 0.42 + drift[0])


@compiled
def _add_clouds(view: View, soft: Table, drift: tuple[float, float], color: RGB, x: float, y: float) -> RGB:
    """Return the sky colour with clouds: noise on a plane seen in perspective, lit towards the sun."""
    rise = max((view.horizon - y) / view.horizon, 0.0)
    depth = 1.0 / (rise + 0.22)
    u = (x - 0.5 * view.width) * depth
    sun_u = (view.sun_x - 0.5 * view.width) * depth
    density = _cloud_density(soft, drift, u, depth)
    cover = smoothstep(0.40, 0.56, density) * smoothstep(0.0, 0.14, rise)
    if cover <= 0.0:
        return color
    towards_sun = _cloud_density(soft, drift, u + (sun_u - u) * 0.10, depth + 0.05)
    shine = clamp(0.55 + (density - towards_sun) * 5.0 - (density - 0.6) * 0.9)
    cloud = mix(rgb(view.cloud_shade), rgb(view.cloud_lit), shine)
    dx, dy = x - view.sun_x, y - view.sun_y
    near = math.exp(-math.sqrt(dx * dx + dy * dy) * 5.0)
    cloud = add(cloud, rgb(view.glow), (0.07 if view.time == NOON else 0.35) * near)
    return mix(color, cloud, 0.94 * cover)


@compiled
def _paint_stars(canvas: Canvas, view: View) -> None:
    """Scatter stars of uneven brightness, away from the moon."""
    reach = int(3.0 * STAR_RADIUS * view.unit) + 1
    spread = 0.5 / (STAR_RADIUS * view.unit) ** 2
    for star in range(130):
        x = hash01(star, 21, view.seed) * view.width
        y = hash01(star, 22, view.seed) ** 1.2 * view.horizon * 0.93
        if math.hypot(x - view.sun_x, y - view.sun_y) < 2.0 * view.sun_radius:
            continue
        bright = 0.3 + 0.7 * hash01(star, 23, view.seed) ** 3
        column, row = int(x * view.unit), int(y * view.unit)
        for j in range(-reach, reach + 1):
            for i in range(-reach, reach + 1):
                dx, dy = column + i + 0.5 - x * view.unit, row + j + 0.5 - y * view.unit
                fade = math.exp(-(dx * dx + dy * dy) * spread)
                blend(canvas, column + i, row + j, (0.94, 0.96, 1.0), bright * fade)
