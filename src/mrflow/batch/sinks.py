"""Where pictures go: a folder, or an object store that fsspec knows. Shards are in `mrflow.batch.shards`."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from mrflow.batch.manifest import Entry
from mrflow.errors import MissingExtraError, OutputError
from mrflow.files import remove_parts, save_bytes
from mrflow.recipe import Recipe

_READERS = 8  # threads that check hashes: reading and hashing both release the GIL


class Sink(Protocol):
    """A place for pictures. One run at a time writes there; see `mrflow.batch.folder.locked`.

    suffix: of the image files, with its dot.
    """

    suffix: str

    def taken(self, ids: Iterable[str]) -> list[str]:
        """Return the paths of those pictures that are there already, whoever put them there."""

    def intact(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries whose picture is there with the recorded hash. Changes nothing."""

    def repair(self, entries: Sequence[Entry]) -> None:
        """Clear away what a killed run left besides the pictures of these entries. Raises OutputError."""

    def write(self, id: str, data: bytes, recipe: Recipe) -> str:
        """Return the path under which the picture is now safe. Raises OutputError; nothing is half-written."""

    def probe(self, size: int) -> None:
        """Raise OutputError unless that many bytes can be written now; leaves nothing behind."""

    def free(self) -> int | None:
        """Return the bytes that are free, None where nobody knows."""

    def close(self) -> None:
        """Complete what is still open."""


class FolderSink:
    """One image file per picture, named by its id, in a local folder."""

    def __init__(self, folder: Path, suffix: str = ".png") -> None:
        """Name the folder; it is made by `repair`."""
        self.suffix = suffix
        self._folder = folder

    def taken(self, ids: Iterable[str]) -> list[str]:
        """Return the names that are there already."""
        there = set(os.listdir(self._folder)) if self._folder.is_dir() else set()
        return [name for name in (id + self.suffix for id in ids) if name in there]

    def intact(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries whose file has the recorded hash."""
        return check_hashes(entries, self._hash)

    def repair(self, entries: Sequence[Entry]) -> None:
        """Remove temporary files."""
        remove_parts(self._folder)

    def write(self, id: str, data: bytes, recipe: Recipe) -> str:
        """Write the file and sync it."""
        return save_bytes(data, self._folder / (id + self.suffix), overwrite=True).name

    def probe(self, size: int) -> None:
        """Write as much and remove it."""
        save_bytes(b"\0" * size, self._folder / ".probe", overwrite=True).unlink()

    def free(self) -> int | None:
        """Return the bytes free on the folder's disk."""
        return free_bytes(self._folder)

    def close(self) -> None:
        """Nothing is open."""

    def _hash(self, entry: Entry) -> str | None:
        if entry.path != entry.id + self.suffix:  # also keeps a tampered path from leading elsewhere
            return None
        try:
            path = self._folder / entry.path
            if path.is_symlink() or path.stat().st_size != entry.size:
                return None
            return hash_file(path)
        except OSError:
            return None


class RemoteSink:
    """One object per picture under a URL such as s3://bucket/folder, through fsspec."""

    def __init__(self, url: str, suffix: str = ".png") -> None:
        """Find the file system. Raises MissingExtraError without fsspec, OutputError without its driver."""
        try:
            from fsspec.core import url_to_fs
        except ImportError:
            raise MissingExtraError("fsspec", "batch") from None
        self.suffix = suffix
        try:
            found: tuple[Any, str] = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise OutputError(f"{url} cannot be opened: {error}.") from error
        self._files, self._root = found

    def taken(self, ids: Iterable[str]) -> list[str]:
        """Return the names that are there already."""
        there = {path.rsplit("/", 1)[-1] for path in self._try(lambda: self._list(), self._root)}
        return [name for name in (id + self.suffix for id in ids) if name in there]

    def intact(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries whose object has the recorded hash; all of them are read."""
        return check_hashes(entries, self._hash)

    def repair(self, entries: Sequence[Entry]) -> None:
        """Nothing to clear away: an object appears whole or not at all."""

    def write(self, id: str, data: bytes, recipe: Recipe) -> str:
        """Put the object."""
        name = id + self.suffix
        path = f"{self._root}/{name}"
        self._try(lambda: self._files.pipe_file(path, data), path)
        return name

    def put(self, name: str, data: bytes) -> None:
        """Put any other object beside the pictures."""
        self._try(lambda: self._files.pipe_file(f"{self._root}/{name}", data), name)

    def probe(self, size: int) -> None:
        """Put an object of that size and remove it."""
        path = f"{self._root}/.probe"
        self._try(lambda: self._files.pipe_file(path, b"\0" * size), path)
        self._try(lambda: self._files.rm_file(path), path)

    def free(self) -> int | None:
        """Return None: object stores do not say."""
        return None

    def close(self) -> None:
        """Nothing is open."""

    def _list(self) -> list[str]:
        try:
            listed: list[str] = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return listed

    def _hash(self, entry: Entry) -> str | None:
        if entry.path != entry.id + self.suffix:
            return None
        try:
            return hashlib.sha256(self._files.cat_file(f"{self._root}/{entry.path}")).hexdigest()
        except FileNotFoundError:
            return None

    def _try(self, action: Callable[[], Any], path: str) -> Any:
        try:
            return action()
        except Exception as error:  # every store has its own kinds
            raise OutputError(f"{path} cannot be written: {type(error).__name__}: {error}.") from error


def is_remote(out: str) -> bool:
    """Return whether `out` is a URL rather than a folder; one letter before the colon is a drive."""
    return "://" in out and len(urlsplit(out).scheme) > 1


def check_hashes(entries: Sequence[Entry], hash_of: Callable[[Entry], str | None]) -> list[Entry]:
    """Return the entries for which `hash_of`, run in several threads, gives the recorded hash."""
    with ThreadPoolExecutor(_READERS) as pool:
        return [
            entry
            for entry, found in zip(entries, pool.map(hash_of, entries), strict=True)
            if found == entry.sha256
        ]


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def free_bytes(folder: Path) -> int:
    """Return the bytes free on the disk of a folder that need not exist yet."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
