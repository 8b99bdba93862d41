"""What counts as a number, wherever one is given: Python's, NumPy's and torch's alike."""

from __future__ import annotations

import operator
import sys
from typing import Any


def whole(value: object) -> int | None:
    """Return a whole number as Python's own, or None for anything else; a truth value is no number."""
    if _is_truth(value):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # asked, not told
    except (TypeError, ValueError, RuntimeError):  # the last from a tensor of several values
        return None


def real(value: object) -> float | None:
    """Return a number as a Python float, or None for anything else, text among it. May be infinite or nan."""
    number: Any = value
    if _is_truth(value) or not hasattr(number, "__float__") or getattr(number, "shape", None):
        return None
    try:
        return float(number)
    except OverflowError:  # an integer beyond all floats, and yet finite
        return sys.float_info.max if number > 0 else -sys.float_info.max
    except (TypeError, ValueError, RuntimeError):
        return None


def _is_truth(value: object) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
