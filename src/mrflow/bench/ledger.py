"""What a comparison has made so far: a folder with pictures, and a line for each with the seconds it took.

FOLDER/course.json           what is compared, on what machine
FOLDER/runs.jsonl            a line per run, synced before the next begins; a torn last line is dropped
FOLDER/pictures/METHOD/      the pictures, with their recipes inside
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mrflow.bench.records import Json, differing, read_record, write_record
from mrflow.errors import OutputError, RequestError
from mrflow.files import make_folder, save_image
from mrflow.journal import Journal

if TYPE_CHECKING:
    from PIL import Image

    from mrflow.recipe import Recipe

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
        _claim(folder, course)
        self.runs: list[Run] = []
        self._by_picture: dict[tuple[str, int], list[Run]] = {}
        self._journal = Journal(folder / "runs.jsonl")
        for run in _read_runs(self._journal):
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
        self._journal.append(vars(run))

    def picture(self, method: str, item: int) -> Path:
        """Return where a picture is, or would be."""
        return picture_file(self.folder, method, item)

    def _keep(self, run: Run) -> None:
        self.runs.append(run)
        self._by_picture.setdefault((run.method, run.item), []).append(run)


def read_course(folder: Path) -> Json | None:
    """Return what a folder was begun with, None if it was not; raises OutputError if that cannot be read."""
    return read_record(folder / "course.json", "is there and no comparison's. Choose another --out.")


def picture_file(folder: Path, method: str, item: int) -> Path:
    """Return where a comparison's folder has a picture."""
    return folder / "pictures" / folder_name(method) / f"{item:05}.png"


def folder_name(method: str) -> str:
    """Return a method's name as a folder's: readable, and different for different methods."""
    short = re.sub(r"[^A-Za-z0-9.+@=]+", "-", method).strip("-.")[:60]
    return short if short == method else f"{short}-{hashlib.sha256(method.encode()).hexdigest()[:6]}"


def _claim(folder: Path, course: Json) -> None:
    """Write down what is compared, or check that it was begun so."""
    before = read_course(folder)
    same = {name: value for name, value in course.items() if name != "methods"}
    if before is not None and (names := differing(before, same)):
        raise RequestError(f"{folder} was begun with another {names}. Choose another --out.")
    write_record(folder / "course.json", course)


def _read_runs(journal: Journal) -> list[Run]:
    """Return the runs of whole lines; a last line without its end is a crash's and is cut off."""
    lines, whole = journal.read()
    try:
        runs = [Run(**line) for line in lines]
    except TypeError:
        raise OutputError(f"{journal.path} is damaged, or no comparison's. Choose another --out.") from None
    if not whole:
        journal.rewrite(lines)
    return runs
