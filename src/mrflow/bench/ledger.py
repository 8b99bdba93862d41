"""What a comparison has made so far: a folder with pictures, and a line for each with the seconds it took.

FOLDER/course.json           what is compared, on what machine
FOLDER/runs.jsonl            a line per run, synced before the next begins; a torn last line is dropped
FOLDER/pictures/METHOD/      the pictures, with their recipes inside
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrflow.bench.text_files import make_folder, write_text
from mrflow.errors import OutputError, RequestError
from mrflow.files import save_image

if TYPE_CHECKING:
    from PIL import Image

    from mrflow.recipe import Recipe

Json = dict[str, Any]
EVERY = -1
"""The item of a run that stands for all: a method that cannot be run at all."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One picture made. item: number of the prompt and seed. session: of the process that timed it.

    seconds: per stage, and "total". moments: stage to [red, green, blue, contrast] of its pixels, in levels of
    255. memory: peak in bytes, None where it cannot be read. failed: why there is no picture.
    """

    method: str
    item: int
    session: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    moments: Mapping[str, list[float]] = field(default_factory=dict)
    memory: int | None = None
    failed: str | None = None


class Ledger:
    """The folder of one comparison. Raises OutputError if it cannot be read or written."""

    def __init__(self, folder: Path, course: Json) -> None:
        """Open a folder, new or begun with the same course; raises RequestError if with another one.

        course: plain JSON values. "methods" may differ: others may be added, or left out.
        """
        self.folder = folder
        make_folder(folder)
        _claim(folder / "course.json", course)
        self.runs: list[Run] = []
        self._by_picture: dict[tuple[str, int], list[Run]] = {}
        for run in _read_runs(folder / "runs.jsonl"):
            self._keep(run)
        self.session = 1 + max((run.session for run in self.runs), default=0)

    def done(self, method: str, item: int) -> bool:
        """Return whether the picture is there, with its seconds."""
        return (method, item) in self._by_picture and self.picture(method, item).is_file()

    def timed_now(self, method: str, item: int) -> bool:
        """Return whether the picture was timed by this process."""
        return any(run.session == self.session for run in self.of(method, item))

    def of(self, method: str, item: int) -> list[Run]:
        """Return the runs of one picture; several where it was made again for its seconds."""
        return self._by_picture.get((method, item), [])

    def failed(self, method: str) -> str | None:
        """Return why the method cannot be run here, None if it can."""
        return next((run.failed for run in self.of(method, EVERY)), None)

    def add(self, run: Run, image: Image.Image | None = None, recipe: Recipe | None = None) -> None:
        """Keep a run; its picture first, so that a line stands for a picture that is safe."""
        if image is not None:
            path = self.picture(run.method, run.item)
            make_folder(path.parent)
            save_image(image, path, recipe, overwrite=True)
        self._keep(run)
        try:
            with open(self.folder / "runs.jsonl", "a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(vars(run), allow_nan=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.folder / 'runs.jsonl'} cannot be written: {error.strerror}.") from error

    def picture(self, method: str, item: int) -> Path:
        """Return where a picture is, or would be."""
        return self.folder / "pictures" / folder_name(method) / f"{item:05}.png"

    def _keep(self, run: Run) -> None:
        self.runs.append(run)
        self._by_picture.setdefault((run.method, run.item), []).append(run)


def read_course(folder: Path) -> Json | None:
    """Return what a folder was begun with, None if it was not; raises OutputError if that cannot be read."""
    path = folder / "course.json"
    if not os.path.lexists(path):
        return None
    try:
        course = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        course = None
    if not isinstance(course, dict):
        raise OutputError(f"{path} is there and no comparison's. Choose another --out.")
    return course


def folder_name(method: str) -> str:
    """Return a method's name as a folder's: readable, and different for different methods."""
    short = re.sub(r"[^A-Za-z0-9.+@=]+", "-", method).strip("-.")[:60]
    return short if short == method else f"{short}-{hashlib.sha256(method.encode()).hexdigest()[:6]}"


def _claim(path: Path, course: Json) -> None:
    """Write down what is compared, or check that it was begun so."""
    course = json.loads(json.dumps(course))
    before = read_course(path.parent)
    if before is not None:
        differ = [name for name in course if name != "methods" and before.get(name) != course[name]]
        if differ:
            raise RequestError(
                f"{path.parent} was begun with another {' and '.join(differ)}. Choose another --out."
            )
    write_text(path, json.dumps(course, indent=2, allow_nan=False) + "\n")


def _read_runs(path: Path) -> list[Run]:
    """Return the runs of whole lines; a last line without its end is a crash's and is cut off."""
    if not os.path.lexists(path):
        return []
    try:
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with open(path, "r+b") as file:
                file.truncate(len(whole))
        return [Run(**json.loads(line)) for line in whole.splitlines()]
    except (OSError, ValueError, TypeError, RecursionError):
        raise OutputError(f"{path} is damaged, or no comparison's. Choose another --out.") from None
