"""The colours of the world, as data: the light of each hour, and paint for objects."""

from __future__ import annotations

from typing import NamedTuple

RGB = tuple[float, float, float]


class Light(NamedTuple):
    """How an hour of the day colours everything; all values are RGB."""

    zenith: RGB
    middle: RGB
    low: RGB
    """Sky at the top, half way, and at the horizon."""
    glow: RGB
    """Around the sun or moon, and its glitter on water."""
    light: RGB
    ambient: RGB
    """What falls on the landscape from the sun and from the whole sky."""
    object_light: RGB
    object_ambient: RGB
    """What falls on objects: brighter and less tinted, or a red house at sunset and a white one
    would look alike; at night it stands for a lamp."""
    deep_lake: RGB
    deep_sea: RGB
    cloud_lit: RGB
    cloud_shade: RGB


LIGHTS: dict[str, Light] = {
    "dawn": Light(
        zenith=(0.42, 0.54, 0.82),
        middle=(0.82, 0.70, 0.80),
        low=(1.00, 0.79, 0.68),
        glow=(1.00, 0.72, 0.52),
        light=(0.82, 0.66, 0.60),
        ambient=(0.36, 0.37, 0.47),
        object_light=(0.80, 0.75, 0.72),
        object_ambient=(0.34, 0.34, 0.36),
        deep_lake=(0.22, 0.26, 0.38),
        deep_sea=(0.26, 0.38, 0.50),
        cloud_lit=(1.00, 0.88, 0.82),
        cloud_shade=(0.66, 0.58, 0.70),
    ),
    "noon": Light(
        zenith=(0.13, 0.38, 0.82),
        middle=(0.36, 0.62, 0.93),
        low=(0.74, 0.87, 0.97),
        glow=(1.00, 0.95, 0.80),
        light=(0.86, 0.82, 0.74),
        ambient=(0.32, 0.36, 0.43),
        object_light=(0.84, 0.82, 0.78),
        object_ambient=(0.34, 0.35, 0.37),
        deep_lake=(0.06, 0.22, 0.34),
        deep_sea=(0.04, 0.36, 0.50),
        cloud_lit=(1.00, 1.00, 1.00),
        cloud_shade=(0.66, 0.72, 0.81),
    ),
    "sunset": Light(
        zenith=(0.27, 0.18, 0.45),
        middle=(0.78, 0.33, 0.40),
        low=(1.00, 0.56, 0.22),
        glow=(1.00, 0.55, 0.20),
        light=(0.88, 0.55, 0.34),
        ambient=(0.27, 0.23, 0.31),
        object_light=(0.86, 0.76, 0.68),
        object_ambient=(0.33, 0.31, 0.33),
        deep_lake=(0.17, 0.10, 0.18),
        deep_sea=(0.20, 0.14, 0.24),
        cloud_lit=(1.00, 0.62, 0.38),
        cloud_shade=(0.48, 0.28, 0.42),
    ),
    "night": Light(
        zenith=(0.025, 0.045, 0.19),
        middle=(0.06, 0.11, 0.33),
        low=(0.15, 0.23, 0.47),
        glow=(0.50, 0.58, 0.75),
        light=(0.44, 0.51, 0.70),
        ambient=(0.13, 0.16, 0.28),
        object_light=(0.76, 0.73, 0.68),
        object_ambient=(0.26, 0.26, 0.28),
        deep_lake=(0.02, 0.04, 0.13),
        deep_sea=(0.02, 0.06, 0.16),
        cloud_lit=(0.38, 0.43, 0.60),
        cloud_shade=(0.10, 0.13, 0.27),
    ),
}

SEASON_LIGHT: dict[str, tuple[RGB, float]] = {
    "summer": ((1.0, 1.0, 1.0), 0.0),
    "autumn": ((1.10, 1.0, 0.88), 0.20),
    "winter": ((0.98, 1.0, 1.05), 0.60),
    "desert": ((1.20, 1.02, 0.84), 0.35),
}
"""A factor on the landscape's light, after taking out that share of its colour: snow has to stay
white at sunset, and sand has to stay sand at night."""

OBJECT_COLORS: dict[str, RGB] = {
    "red": (0.88, 0.06, 0.05),
    "blue": (0.07, 0.26, 0.92),
    "yellow": (1.00, 0.84, 0.04),
    "white": (0.98, 0.98, 0.98),
    "green": (0.06, 0.62, 0.16),
    "purple": (0.52, 0.12, 0.74),
}
