"""Arithmetic on colours inside compiled code: an RGB is a tuple of three floats of light, 1.0 being white."""

from __future__ import annotations

import numba
import numpy as np

from .palette import RGB

Line = np.ndarray
"""One number for each pixel column, or for each tree."""

compiled = numba.njit(cache=True, fastmath=True, nogil=True, error_model="numpy")
"""Decorator of every compiled function of the painter; without the lock of the interpreter, so that
threads can paint side by side.

Numba keeps the machine code next to the source and renews it when that one file changes, not when
a file it imports from changes: after editing, remove this folder's __pycache__.
"""


@compiled
def rgb(values: Line) -> RGB:
    """Return the three numbers of an array as a tuple."""
    return (values[0], values[1], values[2])


@compiled
def clamp(value: float) -> float:
    """Return the value limited to 0..1."""
    return min(max(value, 0.0), 1.0)


@compiled
def smoothstep(start: float, end: float, value: float) -> float:
    """Return 0 before `start`, 1 after `end`, and a smooth rise between; start may exceed end."""
    t = clamp((value - start) / (end - start))
    return t * t * (3.0 - 2.0 * t)


@compiled
def mix(a: RGB, b: RGB, t: float) -> RGB:
    """Return colour a at t = 0, b at t = 1, and the straight line between."""
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


@compiled
def scale(a: RGB, factor: float) -> RGB:
    """Return the colour times a number."""
    return (a[0] * factor, a[1] * factor, a[2] * factor)


@compiled
def add(a: RGB, b: RGB, factor: float = 1.0) -> RGB:
    """Return a + factor * b."""
    return (a[0] + b[0] * factor, a[1] + b[1] * factor, a[2] + b[2] * factor)


@compiled
def lit(albedo: RGB, light: RGB, ambient: RGB, amount: float) -> RGB:
    """Return a surface of colour `albedo` under `amount` of the light plus all of the ambient."""
    return (
        albedo[0] * (light[0] * amount + ambient[0]),
        albedo[1] * (light[1] * amount + ambient[1]),
        albedo[2] * (light[2] * amount + ambient[2]),
    )
