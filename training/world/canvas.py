"""The float picture that painters draw on, and its way to bytes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .color import RGB, Line, clamp, compiled

Canvas = np.ndarray
"""float32 (rows, columns, 3): RGB light, 1.0 is a bright surface in full sun."""
TONE_STEPS = 4096
TONE_RANGE = 2.0


@lru_cache(maxsize=1)
def tone_curve() -> np.ndarray:
    """Return uint8 (TONE_STEPS,): light in 0..TONE_RANGE to a byte; highlights above 0.8 roll off.

    Without the roll-off a sun or lit snow would clip to flat white with hard edges.
    """
    light = np.linspace(0.0, TONE_RANGE, TONE_STEPS)
    rolled = np.where(light > 0.8, 0.8 + 0.2 * (1 - np.exp(-(light - 0.8) * 5)), light)
    return (rolled**0.92 * 255 + 0.5).astype(np.uint8)


@compiled
def blend(canvas: Canvas, x: int, y: int, color: RGB, alpha: float) -> None:
    """Paint one pixel over what is there; outside the canvas, or with no alpha, do nothing."""
    if alpha > 0.0 and 0 <= x < canvas.shape[1] and 0 <= y < canvas.shape[0]:
        t = min(alpha, 1.0)
        for channel in range(3):
            old = canvas[y, x, channel]
            canvas[y, x, channel] = old + (color[channel] - old) * t


@compiled
def blend_below(canvas: Canvas, x: int, y: int, color: RGB, borders: Line) -> None:
    """Paint the 2 x 2 pixels from (x, y) as far as they lie below a border line.

    borders: the line's row in pixels, per column. Texture is worked out once for these four, which
    become one pixel of the picture; only the border needs all four to be smooth.
    """
    for j in range(2):
        for i in range(2):
            blend(canvas, x + i, y + j, color, edge(y + j + 0.5 - borders[x + i]))


@compiled
def put(canvas: Canvas, x: int, y: int, color: RGB) -> None:
    """Replace one pixel, which must lie inside the canvas."""
    canvas[y, x, 0] = color[0]
    canvas[y, x, 1] = color[1]
    canvas[y, x, 2] = color[2]


@compiled
def put_block(canvas: Canvas, x: int, y: int, color: RGB) -> None:
    """Replace the 2 x 2 pixels from (x, y), which must lie inside the canvas."""
    for j in range(2):
        for i in range(2):
            put(canvas, x + i, y + j, color)


@compiled
def get(canvas: Canvas, x: int, y: int) -> RGB:
    """Return the colour of one pixel, which must lie inside the canvas."""
    return (float(canvas[y, x, 0]), float(canvas[y, x, 1]), float(canvas[y, x, 2]))


@compiled
def edge(distance: float) -> float:
    """Return how much of a pixel lies inside a shape whose border is `distance` pixels away."""
    return clamp(distance + 0.5)


@compiled
def shrink(canvas: Canvas, curve: np.ndarray, picture: np.ndarray) -> None:
    """Write the canvas, averaged over 2 x 2 pixels and toned, into a uint8 picture of half its size."""
    for y in range(picture.shape[0]):
        for x in range(picture.shape[1]):
            for channel in range(3):
                total = (
                    canvas[2 * y, 2 * x, channel]
                    + canvas[2 * y, 2 * x + 1, channel]
                    + canvas[2 * y + 1, 2 * x, channel]
                    + canvas[2 * y + 1, 2 * x + 1, channel]
                )
                step = int(total * (0.25 * (TONE_STEPS - 1) / TONE_RANGE) + 0.5)
                picture[y, x, channel] = curve[min(max(step, 0), TONE_STEPS - 1)]
