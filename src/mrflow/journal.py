"""A file of JSON lines that survives a crash: it only grows, and a line is on the disk before the next begins.

A crash costs at most the last, torn line. Reading leaves it out; `rewrite` cuts it off, which whoever wants to
append does first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from mrflow.errors import OutputError
from mrflow.files import save_bytes


class Journal:
    """The lines of one file. Raises OutputError where it can't be read or written."""

    def __init__(self, path: Path) -> None:
        """Name the file, which need not be there yet."""
        self.path = path

    def read(self) -> tuple[list[Any], bool]:
        """Return the value of each whole line, None for one that is no JSON, and whether no line is torn."""
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read: {error.strerror}.") from error
        *lines, torn = data.split(b"\n")
        return [_parse(line) for line in lines], not torn

    def append(self, *values: Mapping[str, Any]) -> None:
        """Add a line for each value and have them on the disk; after an error the file ends as it did before."""
        try:
            with open(self.path, "ab", buffering=0) as file:
                append_synced(file, b"".join(map(_line, values)))
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}.") from error

    def rewrite(self, values: Iterable[Mapping[str, Any]]) -> None:
        """Replace the file, in one step, by these lines."""
        save_bytes(b"".join(map(_line, values)), self.path, overwrite=True)


def append_synced(file: IO[bytes], data: bytes) -> None:
    """Write at the end of an unbuffered file and sync, or leave the file as it was and raise OSError."""
    end = file.tell()
    try:
        if file.write(data) != len(data):  # what a full disk does first
            raise OSError(28, "No space left on device")
        os.fsync(file.fileno())
    except OSError:
        file.truncate(end)
        file.seek(end)
        raise


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
