"""The ledger of a batch: `manifest.jsonl`, one line per picture, written only once the picture is safe.

Lines are appended and synced, so that a crash costs at most the last, torn line. Reading tolerates it, and
repairing cuts it off; a line broken in any other way counts as not there, and its picture is made again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mrflow.errors import OutputError, PlanError
from mrflow.files import save_bytes
from mrflow.plan import Plan
from mrflow.recipe import Recipe

MANIFEST, ERRORS = "manifest.jsonl", "errors.jsonl"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHAPING = ("prompt", "negative_prompt", "seed", "width", "height", "plan", "model", "revision", "upscaler")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture that is safe.

    path: in the output folder; of a picture in a shard "shard-000000.tar/id.png". sha256, size: of the file.
    plan, upscaler_sha256 and the like: as in the recipe that the file carries. seconds: stage to seconds, those
    of a batch divided by its pictures; "write" is encoding, writing and syncing.
    """

    id: str
    path: str
    sha256: str
    size: int
    prompt: str
    negative_prompt: str | None
    seed: int
    width: int
    height: int
    plan: Mapping[str, Any]
    model: str
    revision: str | None
    upscaler: str | None
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, id: str, path: str, sha256: str, size: int, recipe: Recipe, seconds: Mapping[str, float] | None = None
    ) -> Entry:
        """Return the entry of a written picture."""
        shaping = {name: getattr(recipe, name) for name in _SHAPING}
        shaping["plan"] = recipe.plan.to_dict()
        rounded = {name: round(value, 4) for name, value in (seconds or {}).items()}
        return cls(id=id, path=path, sha256=sha256, size=size, seconds=rounded, **shaping)

    def differences(self, recipe: Recipe) -> dict[str, tuple[object, object]]:
        """Return in what the picture was to be otherwise than `recipe` now says: name to (then, now)."""
        then = {name: getattr(self, name) for name in _SHAPING} | {"plan": _whole(self.plan)}
        now = {name: getattr(recipe, name) for name in _SHAPING} | {"plan": recipe.plan}
        return {name: (then[name], value) for name, value in now.items() if then[name] != value}


class Ledger:
    """A file of entries that is only ever appended to, one synced line at a time."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened before `open`."""
        self.path = path
        self._file: IO[bytes] | None = None

    def read(self) -> tuple[list[Entry], bool]:
        """Return the entries, the last one of each id, and whether the file holds nothing else. None for no file.

        Raises OutputError if the file is there and can't be read.
        """
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read: {error.strerror}.") from error
        lines = data.split(b"\n")
        entries = [_parse(line) for line in lines[:-1]]  # what follows the last newline is torn
        kept = {entry.id: entry for entry in entries if entry is not None}
        return list(kept.values()), lines[-1] == b"" and len(kept) == len(entries)

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Replace the file, in one step, by these entries."""
        save_bytes(b"".join(map(_line, entries)), self.path, overwrite=True)

    def open(self) -> Ledger:
        """Open the file for appending; it must exist and be whole."""
        self._file = self.path.open("r+b", buffering=0)
        self._file.seek(0, os.SEEK_END)
        return self

    def append(self, entry: Entry) -> None:
        """Write one line and have it on the disk. Raises OutputError; the file then ends as it did before."""
        if self._file is None:
            raise OutputError(f"{self.path} is not open.")
        end, line = self._file.tell(), _line(entry)
        try:
            if self._file.write(line) != len(line):  # what a full disk does first
                raise OSError(28, "No space left on device")
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            self._file.seek(end)
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}.") from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Ledger:
        """Open for appending."""
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def _whole(plan: Mapping[str, Any]) -> Plan | Mapping[str, Any]:
    """Return the plan as whichever version wrote it meant it; what is no plan as it is."""
    try:
        return Plan.from_dict(plan)
    except PlanError:
        return plan


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), allow_nan=False).encode() + b"\n"


def _parse(line: bytes) -> Entry | None:
    """Return the entry of a line, or None for one that is no entry."""
    try:
        values = json.loads(line)
        entry = Entry(**{each.name: values[each.name] for each in fields(Entry)})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = (entry.id, entry.path, entry.sha256, entry.prompt)
    mappings = (entry.plan, entry.seconds)
    sound = all(isinstance(text, str) for text in texts) and all(isinstance(each, Mapping) for each in mappings)
    return entry if sound and _SHA256.fullmatch(entry.sha256) else None
