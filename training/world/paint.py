"""From scenes to pictures."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from .canvas import shrink, tone_curve
from .ground import paint_meadow
from .mountains import paint_mountains
from .noise import noise_tables
from .objects import paint_balloon, paint_boat, paint_house
from .scene import Scene
from .sky import paint_sky
from .view import (
    BALLOON,
    BEACH,
    BOAT,
    DESERT,
    HOUSE,
    LAKE,
    MEADOW,
    NO_MOUNTAINS,
    NO_TREES,
    SUPERSAMPLING,
    compose,
)
from .water import paint_far_bank, paint_lake, paint_near_bank, paint_sand, paint_sea
from .woods import paint_cacti, paint_far_trees, paint_meadow_trees, paint_near_trees


def paint(scenes: Sequence[Scene], width: int = 256, height: int = 256) -> np.ndarray:
    """Return uint8 pictures (len(scenes), height, width, 3), antialiased; the same scene and size
    always give the same bytes.

    width, height: pixels, multiples of 16, of an aspect between 1:2 and 2:1. Shapes keep their
    proportions in any of them. The first call compiles for about half a minute.
    Raises ValueError for another size.
    """
    if width % 16 or height % 16 or min(width, height) < 16:
        raise ValueError(f"The size is {width} x {height}; both must be multiples of 16.")
    if max(width, height) > 2 * min(width, height):
        raise ValueError(f"The size is {width} x {height}; the longer side may be at most twice the other.")
    pictures = np.empty((len(scenes), height, width, 3), np.uint8)
    views = compose(scenes, width, height)
    with ThreadPoolExecutor(numba.get_num_threads()) as threads:
        list(threads.map(_paint_picture, views, pictures))
    return pictures


def _paint_picture(view: np.void, picture: np.ndarray) -> None:
    """Fill one picture, from far to near.

    Water mirrors what is there when it is painted, so the balloon comes twice: once for its
    reflection, and last, so that nothing stands before it.

    This is Python on purpose: one compiled function for the whole scene took more than twice as
    long to compile, and numba's own parallel loop may not be entered by two threads at once.
    """
    soft, ridged = noise_tables()
    rows, columns = SUPERSAMPLING * picture.shape[0], SUPERSAMPLING * picture.shape[1]
    canvas = np.zeros((rows, columns, 3), np.float32)
    paint_sky(canvas, view, soft)
    if view["mountains"] != NO_MOUNTAINS:
        paint_mountains(canvas, view, soft, ridged)
    if view["object"] == BALLOON:
        paint_balloon(canvas, view)
    FOREGROUNDS[int(view["foreground"])](canvas, view, soft, ridged)
    if view["object"] == BALLOON:
        paint_balloon(canvas, view)
    shrink(canvas, tone_curve(), picture)


def _paint_lake_scene(canvas: np.ndarray, view: np.void, soft: np.ndarray, ridged: np.ndarray) -> None:
    paint_far_bank(canvas, view, soft, ridged)
    if view["trees"] != NO_TREES:
        paint_far_trees(canvas, view, soft)
    if view["object"] == HOUSE:
        paint_house(canvas, view)
    paint_lake(canvas, view, soft)
    if view["object"] == BOAT:
        paint_boat(canvas, view, soft)
    paint_near_bank(canvas, view, soft, ridged)
    if view["season"] == DESERT:
        paint_cacti(canvas, view, True)
    if view["trees"] != NO_TREES:
        paint_near_trees(canvas, view, soft)


def _paint_meadow_scene(canvas: np.ndarray, view: np.void, soft: np.ndarray, ridged: np.ndarray) -> None:
    paint_meadow(canvas, view, soft, ridged)
    if view["season"] == DESERT:
        paint_cacti(canvas, view, False)
    if view["trees"] != NO_TREES:
        paint_meadow_trees(canvas, view, soft)
    if view["object"] == HOUSE:
        paint_house(canvas, view)


def _paint_beach_scene(canvas: np.ndarray, view: np.void, soft: np.ndarray, ridged: np.ndarray) -> None:
    paint_sea(canvas, view, soft)
    if view["object"] == BOAT:
        paint_boat(canvas, view, soft)
    paint_sand(canvas, view, soft)


FOREGROUNDS = {LAKE: _paint_lake_scene, MEADOW: _paint_meadow_scene, BEACH: _paint_beach_scene}
