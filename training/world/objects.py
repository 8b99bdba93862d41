"""The one coloured thing in a scene: a hot-air balloon, a sailing boat or a house."""

from __future__ import annotations

import math

from .canvas import Canvas, blend, edge
from .color import RGB, add, clamp, compiled, lit, mix, rgb, scale, smoothstep
from .noise import Table, hash01, sample
from .view import NIGHT, NOON, WINTER, View

WHITE = (0.97, 0.97, 0.95)
WOOD = (0.40, 0.23, 0.12)


@compiled
def paint_balloon(canvas: Canvas, view: View) -> None:
    """Paint a balloon of one colour, its gores only hinted at, with ropes and a basket."""
    unit, size, x, y = view.unit, view.object_size, view.object_x, view.object_y
    light, ambient, paint = rgb(view.object_light), rgb(view.object_ambient), rgb(view.object_color)
    basket = lit((0.52, 0.33, 0.16), light, ambient, 0.7)
    for row in range(int((y - size) * unit) - 1, int((y + 2.0 * size) * unit) + 1):
        dy = ((row + 0.5) / unit - y) / size
        for column in range(int((x - size) * unit) - 1, int((x + size) * unit) + 2):
            dx = ((column + 0.5) / unit - x) / size
            if dy < 1.28:
                half = _envelope(dy)
                cover = edge((half - abs(dx)) * size * unit)
                if cover <= 0.0:
                    continue
                across = min(max(dx / (half + 0.01), -1.0), 1.0)
                gore = 0.5 + 0.5 * math.cos(math.asin(across) * 10.0)
                albedo = scale(paint, 0.88 + 0.12 * gore)
                albedo = mix(albedo, WHITE, 0.55 * smoothstep(0.03, 0.01, abs(dy - 0.62)))
                shine = clamp(0.66 + 0.30 * view.light_x * dx - 0.20 * dy)
                color = lit(albedo, light, ambient, shine)
                if view.time == NIGHT:  # the burner lights it from inside
                    color = add(color, albedo, 0.22 * clamp(0.5 + 0.45 * dy))
                blend(canvas, column, row, color, cover)
            elif dy < 1.62:
                rope = edge((0.020 - abs(abs(dx) - 0.15)) * size * unit)
                blend(canvas, column, row, (0.15, 0.12, 0.10), 0.8 * rope)
            elif dy < 1.95:
                blend(canvas, column, row, basket, edge((0.20 - abs(dx)) * size * unit))


@compiled
def _envelope(dy: float) -> float:
    """Return half the balloon's width at a height, in radii: a ball that narrows to a neck."""
    if dy < 0.25:
        return math.sqrt(max(1.0 - dy * dy, 0.0))
    return 0.968 * (1.0 - 0.93 * smoothstep(0.1, 1.9, dy))


@compiled
def paint_boat(canvas: Canvas, view: View, soft: Table) -> None:
    """Paint a boat under sail and, first, its reflection in the water below it."""
    unit, size = view.unit, view.object_size
    water = int(view.object_y * unit)
    drift = hash01(1, 91, view.seed)
    rows = int(size * unit)
    for row in range(int(0.8 * rows)):
        up = (row + 0.5) / (0.8 * rows)
        wobble = sample(soft, 0.31 + up * 0.6, (water + row) / unit * 5.6 + drift) - 0.5
        shift = 0.030 * wobble * (0.4 + up * 4.0)
        _paint_boat_row(canvas, view, water + row, up, shift, 0.55 * (1.0 - 0.7 * up))
    for row in range(rows):
        _paint_boat_row(canvas, view, water - 1 - row, (row + 0.5) / rows, 0.0, 1.0)


@compiled
def _paint_boat_row(canvas: Canvas, view: View, row: int, up: float, shift: float, alpha: float) -> None:
    """Paint one row of hull, mast and sails; up runs from 0 at the water to 1 at the mast's top."""
    unit, size, x = view.unit, view.object_size, view.object_x
    light, ambient, paint = rgb(view.object_light), rgb(view.object_ambient), rgb(view.object_color)
    for column in range(int((x - 0.42 * size) * unit), int((x + 0.42 * size) * unit) + 1):
        dx = ((column + 0.5) / unit - x) / size + shift
        if up < 0.14:
            hull = WHITE if up > 0.105 else WOOD
            color = lit(hull, light, ambient, clamp(0.65 + 0.3 * view.light_x * dx))
            cover = edge((0.26 + 0.6 * up - abs(dx)) * size * unit)
        else:
            reach = (1.0 - up) / 0.81
            main = min(dx - 0.012, 0.012 + 0.37 * reach - dx) if up > 0.19 else -1.0
            jib = min(-0.022 - dx, dx + 0.022 + 0.27 * (reach - 0.08)) if up > 0.19 else -1.0
            cover = edge(max(main, jib) * size * unit)
            color = lit(paint, light, ambient, (0.82 if main > jib else 0.70) - 0.35 * abs(dx))
            mast = edge((0.011 - abs(dx)) * size * unit)
            if mast > cover:
                cover, color = mast, lit((0.25, 0.17, 0.12), light, ambient, 0.6)
        blend(canvas, column, row, color, cover * alpha)


@compiled
def paint_house(canvas: Canvas, view: View) -> None:
    """Paint a house front: walls of the object's colour, door, two windows, roof and chimney."""
    unit, size, x, base = view.unit, view.object_size, view.object_x, view.object_y
    for row in range(int((base - 1.03 * size) * unit), int(base * unit)):
        up = (base - (row + 0.5) / unit) / size
        for column in range(int((x - 0.61 * size) * unit), int((x + 0.61 * size) * unit) + 1):
            dx = ((column + 0.5) / unit - x) / size
            slope = 0.60 * (1.0 - (up - 0.52) / 0.46)
            if up < 0.52 and abs(dx) < 0.5:
                blend(canvas, column, row, _wall_color(view, dx, up), 1.0)
            elif up >= 0.52 and abs(dx) < slope:
                blend(canvas, column, row, _roof_color(view, dx, up), 1.0)
            elif 0.22 < dx < 0.33 and 0.6 < up < 1.02:
                blend(canvas, column, row, _lamp_lit(view, (0.45, 0.25, 0.20), 0.6), 1.0)


@compiled
def _lamp_lit(view: View, albedo: RGB, amount: float) -> RGB:
    return lit(albedo, rgb(view.object_light), rgb(view.object_ambient), clamp(amount))


@compiled
def _roof_color(view: View, dx: float, up: float) -> RGB:
    """Return the colour of the roof: rows of tiles, under snow in winter but for the eaves, which
    set a white house off from its white surroundings."""
    sunny = 0.6 + 0.4 * view.light_x * dx
    if view.season == WINTER and up > 0.60 + 0.02 * math.sin(dx * 30.0):
        return _lamp_lit(view, (0.93, 0.95, 1.0), sunny)
    tiles = 0.92 + 0.12 * math.sin(up * 80.0)
    return _lamp_lit(view, scale((0.34, 0.25, 0.24), tiles), sunny)


@compiled
def _wall_color(view: View, dx: float, up: float) -> RGB:
    """Return the colour of the front: boards, a door, and windows that glow unless it is noon."""
    if abs(dx) < 0.075 and up < 0.29:
        return _lamp_lit(view, (0.28, 0.17, 0.10), 0.6)
    aside = abs(abs(dx) - 0.29)
    if aside < 0.085 and 0.19 < up < 0.38:
        if aside > 0.068 or up < 0.207 or up > 0.363 or aside < 0.009:
            return _lamp_lit(view, (0.93, 0.93, 0.91), 0.75)
        if view.time == NOON:
            return _lamp_lit(view, (0.26, 0.32, 0.42), 0.6)
        return (1.0, 0.82, 0.42)
    board = up * 11.0
    groove = 0.90 if board - math.floor(board) < 0.16 else 1.0
    eaves = 1.0 - 0.25 * smoothstep(0.46, 0.52, up)
    return scale(_lamp_lit(view, rgb(view.object_color), 0.74 + 0.22 * view.light_x * dx), groove * eaves)
