"""The output of a batch: pictures, their ledger and the rows that failed, under one lock."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mrflow.batch.manifest import ERRORS, MANIFEST, Entry, read_entries
from mrflow.batch.shards import PER_SHARD, ShardSink
from mrflow.batch.sinks import FolderSink, RemoteSink, Sink, is_remote
from mrflow.batch.tasks import Failure
from mrflow.errors import OutputError, OutputExistsError, RequestError
from mrflow.files import remove_parts
from mrflow.journal import Journal
from mrflow.recipe import Recipe

FORMATS = ("png", "webp", "jpg", "wds")
_LOCK = ".mrflow-batch.lock"


@dataclass(frozen=True)
class Output:
    """Where a batch goes. Checked on creation: raises RequestError.

    out: a folder, or a URL that fsspec knows. form: one of FORMATS; wds is WebDataset shards of PNG files.
    state: the local folder of the manifest, the errors and the lock; the output folder itself unless that is
        remote, where a file can be neither appended to nor locked. per_shard: pictures in a full shard.
    """

    out: str | Path
    form: str = "png"
    state: str | Path | None = None
    per_shard: int = PER_SHARD

    def __post_init__(self) -> None:
        if self.form not in FORMATS:
            raise RequestError(f"The format is {self.form!r:.80}; it must be one of {', '.join(FORMATS)}.")
        if self.per_shard < 1:
            raise RequestError(f"per_shard is {self.per_shard}; it must be at least 1. Try {PER_SHARD}.")
        if self.remote and self.form == "wds":
            raise RequestError(
                f"{self.out} is remote; shards grow in a local folder. Copy them once they are full."
            )
        if self.remote and self.state is None:
            raise RequestError(
                f"{self.out} is remote; give --state, a local folder for the manifest and the lock."
            )

    @property
    def remote(self) -> bool:
        """Whether the pictures go to an object store."""
        return is_remote(str(self.out))

    @property
    def folder(self) -> Path:
        """The local folder with the manifest."""
        return Path(self.state if self.state is not None else self.out)

    @property
    def manifest(self) -> Path:
        """The ledger's file."""
        return self.folder / MANIFEST

    @property
    def errors(self) -> Path:
        """The file of the rows that failed; there only if some did."""
        return self.folder / ERRORS

    def sink(self) -> Sink:
        """Return the place for the pictures."""
        if self.form == "wds":
            return ShardSink(Path(self.out), self.per_shard)
        return (
            RemoteSink(str(self.out), f".{self.form}")
            if self.remote
            else FolderSink(Path(self.out), f".{self.form}")
        )

    def find(self, sink: Sink, recipes: Mapping[str, Recipe], *, remake: bool = False) -> Found:
        """Return what is there already. Changes nothing.

        recipes: id to the recipe that its picture should have.
        Raises OutputExistsError for pictures that are there without a manifest, or were made otherwise, unless
        remake is true.
        """
        entries, clean = read_entries(Journal(self.manifest))
        if not self.manifest.exists() and not remake and (taken := sink.taken(recipes)):
            raise OutputExistsError(
                f"{self.out} holds {taken[0]} and no {MANIFEST}, so it is not this batch's. Choose another folder."
            )
        forms = {"wds" if "/" in entry.path else entry.path.rpartition(".")[2] for entry in entries}
        if other := forms - {self.form}:
            raise OutputExistsError(f"{self.out} holds a batch as {other.pop()}. Choose another folder or format.")
        asked = [entry for entry in entries if entry.id in recipes]
        changed = {e.id: d for e in asked if (d := e.differences(recipes[e.id]))}
        if changed and not remake:
            id, differences = next(iter(changed.items()))
            name, (old, new) = next(iter(differences.items()))
            raise OutputExistsError(
                f"{len(changed)} pictures in {self.out} were made otherwise, such as {id}: {name} was "
                f"{old!r:.60}, now {new!r:.60}. Choose another folder, or make them again with --force."
            )
        whole = sink.intact([entry for entry in entries if entry.id not in changed])
        lost = len(entries) - len(changed) - len(whole)
        return Found(whole, lost, clean and len(whole) == len(entries))

    def check(self) -> None:
        """Raise OutputError unless the folder is there, or could be made, and can be written. Changes nothing.

        Raises MissingExtraError for a URL without fsspec.
        """
        if self.remote:
            self.sink()
        for folder in self._folders():
            there = folder.absolute()
            while not there.exists() and there != there.parent:
                there = there.parent
            if not there.is_dir():
                raise OutputError(f"{there} is a file; it must be a folder.")
            if not os.access(there, os.W_OK | os.X_OK):
                raise OutputError(f"The folder {there} is not writable.")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, made if need be, for one run; the lock of a killed process is no lock.

        Raises OutputError if another run holds it or the folder can't be written.
        """
        from filelock import FileLock, Timeout

        for folder in self._folders():
            make_folder(folder)
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise OutputError(f"{self.folder} is in use by another run. Wait for it, or choose another.") from None
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be locked: {error.strerror or error}.") from error
        try:
            yield
        finally:
            lock.release()

    def _folders(self) -> list[Path]:
        """Return the local folders that are written to."""
        return [self.folder] if self.remote else list({self.folder, Path(self.out)})

    @contextmanager
    def repair(self, sink: Sink, found: Found) -> Iterator[Journal]:
        """Clear away what a killed run left; inside, the ledger is whole and can grow. Raises OutputError."""
        remove_parts(self.folder)
        sink.repair(found.entries)
        ledger = Journal(self.manifest)
        if not found.clean or not self.manifest.exists():
            ledger.rewrite(map(asdict, found.entries))
        self.errors.unlink(missing_ok=True)
        yield ledger

    def add_failures(self, failures: Sequence[Failure]) -> None:
        """Append rows that failed. Raises OutputError."""
        if failures:
            Journal(self.errors).append(*(each.to_dict() for each in failures))


@dataclass(frozen=True)
class Found:
    """What an earlier run left. entries: of pictures that are whole. lost: how many were in the manifest and are
    missing or damaged. clean: the manifest holds the entries and nothing else.
    """

    entries: list[Entry]
    lost: int
    clean: bool


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and see that files can be written there. Raises OutputError."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError:
        raise OutputError(f"{folder} is a file; it must be a folder.") from None
    except OSError as error:
        raise OutputError(f"The folder {folder} is not writable: {error.strerror or error}.") from error
