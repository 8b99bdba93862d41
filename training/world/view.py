"""From words to numbers: the record that the compiled painters read, one per scene and size.

Lengths are in units of the square root of the picture's area, on both axes: a square picture is 1 x 1,
one of aspect 2:1 is 1.41 x 0.71, and a circle stays a circle in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .palette import LIGHTS, OBJECT_COLORS, RGB, SEASON_LIGHT, Light
from .scene import ATTRIBUTES, Scene

DAWN, NOON, SUNSET, NIGHT = range(4)
SUMMER, AUTUMN, WINTER, DESERT = range(4)
NO_MOUNTAINS, HILLS, PEAKS = range(3)
LAKE, MEADOW, BEACH = range(3)
NO_TREES, PINES, ROUND = range(3)
NO_OBJECT, BALLOON, BOAT, HOUSE = range(4)

View: TypeAlias = Any
"""One record of dtype VIEW, whose fields compiled code reads as attributes (numpy's type has none)."""
CODES = ("time", "season", "mountains", "foreground", "trees", "clouds", "object", "side")
LENGTHS = ("unit", "width", "height", "horizon", "sun_x", "sun_y", "sun_radius", "light_x",
           "object_x", "object_y", "object_size", "left", "top", "right", "bottom")  # fmt: skip
VIEW = np.dtype(
    [("seed", "i8"), ("many", "i8")]
    + [(name, "i8") for name in CODES]
    + [(name, "f8") for name in LENGTHS]
    + [(name, "f8", (3,)) for name in Light._fields]
    + [("object_color", "f8", (3,))],
    align=True,
)
"""unit: pixels per unit. light_x: from which side the light comes, -1 or 1, softer at noon.
left, top, right, bottom: the box around the object, which nothing may cover."""

SUPERSAMPLING = 2
OBJECT_SIZES = {"none": (0.0, 0.0), "balloon": (0.13, 0.15), "boat": (0.30, 0.36), "house": (0.27, 0.31)}
"""Radius of a balloon, height of a boat, width of a house."""
SUN_RADIUS = {"dawn": 0.048, "noon": 0.038, "sunset": 0.050, "night": 0.044}
SUN_BANDS = {"dawn": (0.10, 0.22), "noon": (0.38, 0.50), "sunset": (0.08, 0.20), "night": (0.36, 0.50)}
"""Height of the sun or moon above the horizon, in parts of the picture's height."""
SUN_GAP = 0.28
"""Least distance between the sun and an object it might touch, in parts of the width."""


def compose(scenes: Sequence[Scene], width: int, height: int) -> np.ndarray:
    """Return one VIEW record per scene for pictures of width x height pixels (before supersampling)."""
    views = np.zeros(len(scenes), VIEW)
    for view, scene in zip(views, scenes, strict=True):
        view["seed"], view["many"] = scene.seed, scene.many
        for name in CODES:
            view[name] = ATTRIBUTES[name].index(getattr(scene, name))
        view["unit"] = SUPERSAMPLING * math.sqrt(width * height)
        view["width"] = math.sqrt(width / height)
        view["height"] = math.sqrt(height / width)
        view["horizon"] = scene.horizon * view["height"]
        _set_light(view, scene)
        _set_object(view, scene)
        _set_sun(view, scene)
    return views


def _set_light(view: np.void, scene: Scene) -> None:
    light = LIGHTS[scene.time]
    for name, color in light._asdict().items():
        view[name] = color
    factor, grey = SEASON_LIGHT[scene.season]
    for name in ("light", "ambient"):
        view[name] = np.array(_fade(view[name], grey)) * factor
    view["object_color"] = OBJECT_COLORS[scene.color]


def _fade(color: np.ndarray, grey: float) -> RGB:
    """Return the colour with a share of its saturation taken out, equally bright."""
    level = 0.3 * color[0] + 0.6 * color[1] + 0.1 * color[2]
    faded = color + (level - color) * grey
    return (float(faded[0]), float(faded[1]), float(faded[2]))


def _set_object(view: np.void, scene: Scene) -> None:
    """Place the object whole inside its own half, whatever the shape of the picture."""
    width, height, horizon = view["width"], view["height"], view["horizon"]
    smallest, largest = OBJECT_SIZES[scene.object]
    size = smallest + (largest - smallest) * scene.object_size
    size *= min(1.0, 1.05 * width, 1.2 * height)
    ground = height - horizon
    low = scene.object_height
    if scene.object == "balloon":
        y = size + (horizon - 2.95 * size) * (0.15 + 0.40 * low)
        half, above, below = size, size, 1.95 * size
    elif scene.object == "boat":
        first = 0.27 if scene.foreground == "lake" else 0.17
        y = horizon + ground * (first + 0.10 * low)
        half, above, below = 0.40 * size, size, 0.0
    else:
        on_bank = scene.foreground == "lake"
        y = horizon - 0.017 if on_bank else horizon + ground * (0.15 + 0.12 * low)
        half, above, below = 0.61 * size, 1.02 * size, 0.0
    inset = max(scene.object_inset * width, half + 0.015)
    x = inset if scene.side == "left" else width - inset
    view["object_x"], view["object_y"], view["object_size"] = x, y, size
    view["left"], view["right"] = x - half, x + half
    view["top"], view["bottom"] = y - above, y + below


def _set_sun(view: np.void, scene: Scene) -> None:
    """Place the sun or moon, and on the other side of the picture when the object would meet it."""
    place = scene.sun_x
    low_sun = scene.time in ("dawn", "sunset")
    if scene.object == "balloon" or (scene.object != "none" and low_sun):
        taken = view["object_x"] / view["width"]
        if abs(place - taken) < SUN_GAP:
            place = 1.0 - place
        if abs(place - taken) < SUN_GAP:
            place = taken + SUN_GAP * (1 if scene.side == "left" else -1)
    first, last = SUN_BANDS[scene.time]
    rise = first + (last - first) * scene.sun_height
    if low_sun and scene.mountains != "none":
        rise += 0.08 if scene.mountains == "peaks" else 0.04
    view["sun_x"] = place * view["width"]
    view["sun_radius"] = SUN_RADIUS[scene.time] * min(1.0, 1.2 * view["height"])
    view["sun_y"] = max(view["horizon"] - rise * view["height"], 1.5 * view["sun_radius"])
    view["light_x"] = (-1.0 if place < 0.5 else 1.0) * (0.7 if scene.time == "noon" else 1.0)
