"""Fields that clients and servers elsewhere have: ignored, read as ours or refused with the name to use."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

_TABLES = tomllib.loads(Path(__file__).with_name("other_names.toml").read_text("utf-8"))
IGNORED, SAME, REFUSED = frozenset(_TABLES["ignored"]), _TABLES["same"], _TABLES["refused"]


def translate(given: dict[str, Any], known: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of a request under our names, `known`, and by their own what was done with others.

    Raises ValidationError for a field that would change the picture, that nobody has, or that is said twice.
    """
    fields = {name: value for name, value in given.items() if name in known}
    notes: dict[str, str] = {}
    if {"width", "height"} <= set(given) and "size" in known and "size" not in given:
        fields["size"] = f"{given['width']}x{given['height']}"
        notes |= dict.fromkeys(("width", "height"), "width and height are read as size.")
    for name in given:
        if name in known or name in notes:
            continue
        ours = SAME.get(name)
        if ours in known:
            if ours in fields:
                raise _wrong(name, "value_error", f"{ours} says the same. Leave one out")
            fields[ours], notes[name] = given[name], f"{name} is read as {ours}."
        elif name in IGNORED:
            notes[name] = f"{name} is ignored: it changes nothing here."
        else:
            raise _wrong(name, "extra_forbidden", _hint(name, known))
    return fields, notes


def _hint(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, 1, 0.75)
    return REFUSED.get(name) or (f"Did you mean {near[0]!r}?" if near else "The fields are in /docs.")


def _wrong(name: str, kind: Any, text: str) -> ValidationError:
    error = PydanticCustomError(kind, "{text}", {"text": text})
    return ValidationError.from_exception_data("request", [InitErrorDetails(type=error, loc=(name,), input=None)])
