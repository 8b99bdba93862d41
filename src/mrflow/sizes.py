"""Picture sizes: which ones a model and a plan can make, and the nearest that fit.

Sizes are pixels, width then height. A model works in whole patches of `multiple` pixels (16 for FLUX), and
the draft, `scale` times smaller, must too.
"""

from __future__ import annotations

import re

from mrflow.errors import SizeError
from mrflow.plan import Plan

MAX_SIDE = 8192

Size = tuple[int, int]
NO_SIZE: tuple[None, None] = (None, None)


def size_unit(multiple: int, plan: Plan) -> int:
    """Return the pixels by whose multiples both the final and the draft side are whole patches."""
    return int(multiple * plan.ratio.numerator)


def draft_size(width: int, height: int, plan: Plan) -> Size:
    """Return the draft's (width, height) of a final size that `check_size` has accepted."""
    return int(width / plan.ratio), int(height / plan.ratio)


def check_size(width: int, height: int, multiple: int, plan: Plan | None = None) -> None:
    """Raise SizeError, naming the nearest good sizes, unless the size fits the model (and the plan's draft).

    plan: None asks only that the final size fits, for runs without a draft.
    """
    unit = multiple if plan is None else size_unit(multiple, plan)
    for name, value in (("width", width), ("height", height)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise SizeError(f"{name} is {value!r}; it must be a whole number of pixels.")
        if not unit <= value <= MAX_SIDE:
            raise SizeError(f"{name} is {value}; it must lie between {unit} and {MAX_SIDE} pixels here.")
    if width % unit or height % unit:
        near = " or ".join(f"{w}x{h}" for w, h in nearest_sizes(width, height, unit))
        why = f"at scale {plan.scale:g} " if plan is not None else ""
        raise SizeError(f"The size is {width}x{height}; {why}sides must be multiples of {unit}. Try {near}.")


def nearest_sizes(width: int, height: int, unit: int) -> list[Size]:
    """Return the one or two sizes next to width x height whose sides are multiples of `unit`: lower, upper."""
    lower = (max(width // unit, 1) * unit, max(height // unit, 1) * unit)
    top = MAX_SIDE // unit
    upper = (min(-(-width // unit), top) * unit, min(-(-height // unit), top) * unit)
    return [lower] if lower == upper else [lower, upper]


def fit_size(width: int, height: int, scale: float, multiple: int) -> Size:
    """Return the largest size of whole patches within `scale` times width x height.

    Raises SizeError where that is larger than 8192 pixels. The size is never below one patch.
    """
    sides = [max(int(side * scale) // multiple, 1) * multiple for side in (width, height)]
    if max(sides) > MAX_SIDE:
        raise SizeError(
            f"{width}x{height} at scale {scale:g} is {sides[0]}x{sides[1]}; "
            f"sides may be {MAX_SIDE} pixels at most. Take a smaller image or scale."
        )
    return sides[0], sides[1]


def parse_size(text: str | None) -> Size | tuple[None, None]:
    """Return (width, height) from "256" or "320x192", or two Nones for None. Raises SizeError.

    Whether the sides fit the model's patches is for the model to say.
    """
    if text is None:
        return NO_SIZE
    match = re.fullmatch(r"(\d{1,6})(?:\s*[xX]\s*(\d{1,6}))?", text.strip(), flags=re.ASCII)
    if match is None:
        raise SizeError(f"The size is {text[:80]!r}; it must be pixels such as 256 or 320x192.")
    width = int(match[1])
    size = (width, int(match[2] or width))
    check_size(*size, multiple=1)
    return size
