"""Randomness for textures and places: two tileable noise tables, and a hash without any state."""

from __future__ import annotations

from functools import lru_cache

import numba
import numpy as np

from .color import compiled

Table = np.ndarray
"""float32 (TABLE, TABLE)."""
TABLE = 512
"""Side of a noise table in texels; a power of two, so that wrapping is a bit mask."""
BASE_CELLS = 8
OCTAVES = 5
"""5 octaves end at 4 texels: finer grain would be lost in a model's 8x autoencoder anyway."""
SPREAD = 0.18
"""Standard deviation of a table around its mean of 0.5."""


@lru_cache(maxsize=1)
def noise_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return (soft, ridged): float32 (TABLE, TABLE) each, mean 0.5, tileable in both directions.

    soft is cloudy; ridged has sharp bright creases, as in rock, grass and bark.
    """
    rng = np.random.Generator(np.random.PCG64(20))
    soft = np.zeros((TABLE, TABLE))
    ridged = np.zeros((TABLE, TABLE))
    for octave in range(OCTAVES + 1):
        cells, weight = BASE_CELLS << octave, 0.52**octave
        if octave < OCTAVES:
            soft += weight * _smooth_grid(rng, cells)
        ridged += weight * (1 - np.abs(2 * _smooth_grid(rng, cells) - 1))
    return _normalize(soft), _normalize(ridged)


@compiled
def sample(table: Table, u: float, v: float) -> float:
    """Return the table at (u, v), where 1.0 is the whole tile, blended between four texels."""
    u *= TABLE
    v *= TABLE
    column, row = np.floor(u), np.floor(v)
    u -= column
    v -= row
    left, top = int(column) & (TABLE - 1), int(row) & (TABLE - 1)
    right, bottom = (left + 1) & (TABLE - 1), (top + 1) & (TABLE - 1)
    upper = table[top, left] + (table[top, right] - table[top, left]) * u
    lower = table[bottom, left] + (table[bottom, right] - table[bottom, left]) * u
    return upper + (lower - upper) * v


@numba.njit("float64(int64, int64, int64)", cache=True, fastmath=True, nogil=True)
def hash01(x: int, y: int, seed: int) -> float:
    """Return a number in [0, 1) that looks random and depends only on three integers.

    The signature is spelt out because numba would compile it anew for each constant argument.
    """
    h = np.uint32(x) * np.uint32(374761393) + np.uint32(y) * np.uint32(668265263)
    h = np.uint32(np.uint32(h) + np.uint32(seed) * np.uint32(2246822519))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(1274126177))
    h = np.uint32(h ^ (h >> np.uint32(16)))
    h = np.uint32(h * np.uint32(2654435761))
    h = np.uint32(h ^ (h >> np.uint32(15)))
    return (h & np.uint32(0xFFFFFF)) / 16777216.0


@compiled
def wave(x: float, seed: int) -> float:
    """Return smooth one-dimensional noise in 0..1 with one hill or dip per unit of x."""
    cell = np.floor(x)
    t = x - cell
    t = t * t * (3.0 - 2.0 * t)
    a, b = hash01(int(cell), 3, seed), hash01(int(cell) + 1, 3, seed)
    return a + (b - a) * t


@compiled
def zigzag(x: float, seed: int) -> float:
    """Return one-dimensional noise in 0..1 with straight slopes and sharp corners."""
    cell = np.floor(x)
    a, b = hash01(int(cell), 3, seed), hash01(int(cell) + 1, 3, seed)
    return a + (b - a) * (x - cell)


def _smooth_grid(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Return a TABLE x TABLE picture of random values on a cells x cells grid, smoothly joined."""
    grid = rng.random((cells, cells))
    place = np.arange(TABLE) * cells / TABLE
    low = place.astype(int)
    high = (low + 1) % cells
    t = place - low
    t = t * t * (3 - 2 * t)
    rows = grid[low] + (grid[high] - grid[low]) * t[:, None]
    return rows[:, low] + (rows[:, high] - rows[:, low]) * t[None, :]


def _normalize(table: np.ndarray) -> np.ndarray:
    scaled = 0.5 + SPREAD * (table - table.mean()) / table.std()
    return np.ascontiguousarray(scaled.astype(np.float32))
