"""Colours of pictures in two numbers: the mean of each channel, and the contrast.

A decode and encode, or an upscaler, may shift either a little; over the stages of a picture that shows as grey
or tinted results (the drift), so it is measured from stage to stage of the very same picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = 255.0


@dataclass(frozen=True)
class Moments:
    """mean: of red, green and blue, in levels of 255. contrast: the brightness's standard deviation, likewise."""

    mean: tuple[float, float, float]
    contrast: float


def moments(image: Tensor) -> Moments:
    """Return the moments of one picture (3, H, W) in [0, 1]."""
    pixels = image.detach().double() * LEVELS
    red, green, blue = (float(value) for value in pixels.mean((1, 2)))
    return Moments((red, green, blue), float(pixels.mean(0).std(unbiased=False)))


def drift(before: Moments, after: Moments) -> list[float]:
    """Return [red, green, blue, contrast]: how far each moved, in levels of 255."""
    return [*(a - b for a, b in zip(after.mean, before.mean, strict=True)), after.contrast - before.contrast]
