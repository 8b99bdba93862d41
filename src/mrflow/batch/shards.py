"""WebDataset shards: tar files with id.png and id.json for each picture, appended to and synced one by one.

A shard in progress is called shard-000003.tar.part; it gets its name once it is full or the run is over, so that
whoever reads *.tar finds complete archives only. What a crash leaves at the end of a shard is cut off again.
Times and owners are left out, so that the same pictures are the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import IO

from mrflow.batch.manifest import Entry
from mrflow.batch.sinks import free_bytes
from mrflow.errors import OutputError
from mrflow.files import remove_parts, save_bytes
from mrflow.journal import append_synced
from mrflow.recipe import Recipe

PER_SHARD = 1000  # pictures; with 1 to 2 MB each about the gigabyte that webdataset's own writer aims at
_NAME = re.compile(r"shard-(\d{6,})\.tar(\.part)?")
_PART = ".part"


@dataclass
class _Shard:
    """A shard on the disk. spans, hashes: id to the bytes and the SHA-256 of the pictures that are whole."""

    path: Path
    number: int
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)


class ShardSink:
    """PNG files in tar shards in a local folder."""

    suffix = ".png"

    def __init__(self, folder: Path, per_shard: int = PER_SHARD) -> None:
        """Name the folder and how many pictures fill a shard."""
        self._folder = folder
        self._per_shard = per_shard
        self._file: IO[bytes] | None = None
        self._number = 0
        self._count = 0

    def taken(self, ids: Iterable[str]) -> list[str]:
        """Return the names of all shards that are there."""
        return [path.name for path, _ in self._paths()]

    def intact(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the entries whose picture is in its shard with the recorded hash."""
        found = {f"{_name(s.number)}/{id}.png": sha for s in self._scan() for id, sha in s.hashes.items()}
        return [each for each in entries if found.get(each.path) == each.sha256]

    def repair(self, entries: Sequence[Entry]) -> None:
        """Reduce every shard to the pictures of these entries and get ready to fill up the last one."""
        remove_parts(self._folder)
        known: dict[str, set[str]] = {}
        for entry in entries:
            known.setdefault(entry.path.split("/")[0], set()).add(entry.id)
        last = None
        for shard in self._scan():
            kept = {id: span for id, span in shard.spans.items() if id in known.get(_name(shard.number), ())}
            if kept:
                _reduce(shard, list(kept.values()))
                last = shard.path, shard.number, len(kept)
            else:
                shard.path.unlink()
        self._number = 0
        if last is not None:
            path, self._number, self._count = last
            if self._count >= self._per_shard and path.name.endswith(_PART):
                self._reopen()
                self._complete()
            elif self._count >= self._per_shard:
                self._number, self._count = self._number + 1, 0

    def write(self, id: str, data: bytes, recipe: Recipe) -> str:
        """Append the picture and its recipe, and sync."""
        try:
            if self._file is None:
                self._reopen()
            assert self._file is not None
            append_synced(self._file, _member(f"{id}.png", data) + _member(f"{id}.json", _describe(id, recipe)))
            path = f"{_name(self._number)}/{id}.png"
            self._count += 1
            if self._count >= self._per_shard:
                self._complete()
            return path
        except OSError as error:
            raise OutputError(f"{self._part()} cannot be written: {error.strerror or error}.") from error

    def probe(self, size: int) -> None:
        """Write as much and remove it."""
        save_bytes(b"\0" * size, self._folder / ".probe", overwrite=True).unlink()

    def free(self) -> int | None:
        """Return the bytes free on the folder's disk."""
        return free_bytes(self._folder)

    def close(self) -> None:
        """Give the shard in progress its end and its name."""
        try:
            if self._file is None and self._part().exists():
                self._reopen()
            if self._file is not None:
                self._complete()
        except OSError as error:
            raise OutputError(f"{self._part()} cannot be written: {error.strerror or error}.") from error

    def _part(self) -> Path:
        return self._folder / (_name(self._number) + _PART)

    def _reopen(self) -> None:
        """Open the shard in progress behind its last picture."""
        whole = self._folder / _name(self._number)
        if whole.exists():
            os.replace(whole, self._part())
        self._part().touch()
        file = self._part().open("r+b", buffering=0)
        ends = [end for _, end in _read_shard(self._part(), self._number).spans.values()]
        file.truncate(max(ends, default=0))
        file.seek(0, os.SEEK_END)
        self._file = file

    def _complete(self) -> None:
        assert self._file is not None
        size = self._file.tell()
        if size == 0:  # its first picture never arrived
            self._file.close()
            self._file = None
            self._part().unlink()
            return
        append_synced(
            self._file, b"\0" * (-(size + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE)
        )
        self._file.close()
        self._file = None
        os.replace(self._part(), self._folder / _name(self._number))
        self._number, self._count = self._number + 1, 0

    def _paths(self) -> list[tuple[Path, int]]:
        names = sorted(os.listdir(self._folder)) if self._folder.is_dir() else []
        matches = [(name, _NAME.fullmatch(name)) for name in names]
        return [(self._folder / name, int(match[1])) for name, match in matches if match]

    def _scan(self) -> Iterator[_Shard]:
        for path, number in self._paths():
            try:
                yield _read_shard(path, number)
            except OSError as error:
                raise OutputError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read_shard(path: Path, number: int) -> _Shard:
    """Return what is whole in a shard: pictures whose png and json follow each other, up to the first break."""
    shard = _Shard(path, number)
    try:
        with tarfile.open(path, "r:") as archive:
            begin, id, digest = 0, "", ""
            for member in archive:
                data = archive.extractfile(member)
                content = data.read() if data is not None else b""
                stem, _, kind = member.name.rpartition(".")
                if kind == "png":
                    begin, id, digest = member.offset, stem, hashlib.sha256(content).hexdigest()
                elif kind == "json" and stem == id:
                    shard.spans[id] = begin, member.offset_data + _padded(member.size)
                    shard.hashes[id] = digest
    except tarfile.TarError:
        pass  # cut short or broken from here on: what came before counts
    return shard


def _reduce(shard: _Shard, spans: Sequence[tuple[int, int]]) -> None:
    """Keep these bytes of a shard, and its end where nothing else is dropped."""
    joined = all(a[1] == b[0] for a, b in pairwise(spans)) and spans[0][0] == 0
    with shard.path.open("rb") as file:
        if joined:
            file.seek(spans[-1][1])
            if file.read().strip(b"\0"):
                os.truncate(shard.path, spans[-1][1])
            return
        parts = []
        for begin, end in spans:
            file.seek(begin)
            parts.append(file.read(end - begin))
    tail = b"" if shard.path.name.endswith(_PART) else b"\0" * (2 * tarfile.BLOCKSIZE)
    save_bytes(b"".join(parts) + tail, shard.path, overwrite=True)


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict") + data.ljust(_padded(len(data)), b"\0")


def _describe(id: str, recipe: Recipe) -> bytes:
    return json.dumps({"id": id, **json.loads(recipe.to_json())}).encode()


def _name(number: int) -> str:
    return f"shard-{number:06}.tar"


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
