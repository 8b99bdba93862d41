"""Records of what was begun, as JSON: whoever goes on in the same place must want the same."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mrflow.errors import OutputError
from mrflow.files import write_text

Json = dict[str, Any]


def read_record(path: Path, foreign: str) -> Json | None:
    """Return the object that a file holds, None for no file.

    foreign: what is said of a file that holds none, in the OutputError that is then raised.
    """
    if not os.path.lexists(path):
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise OutputError(f"{path} {foreign}")
    return record


def differing(record: Json, wanted: Mapping[str, Any]) -> str:
    """Return the names of what the record does not say as it is wanted, for a message; "" for none."""
    wanted = json.loads(json.dumps(wanted))
    return " and ".join(name for name in wanted if name not in record or record[name] != wanted[name])


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record over an earlier one, in one step. Raises OutputError."""
    write_text(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
