"""Pictures made safe while the next are computed: encoded in threads, written and entered in order by one.

Encoders (Pillow) and disks release the GIL, as torch does, so all three go on side by side. The queue is
short: where the disk is slower than the model, the model waits.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from queue import Queue
from types import TracebackType

from PIL.Image import Image

from mrflow.batch.manifest import Entry
from mrflow.batch.sinks import Sink
from mrflow.batch.tasks import Task
from mrflow.errors import MrFlowError, OutputError
from mrflow.files import encode_image
from mrflow.journal import Journal
from mrflow.recipe import Recipe

_WAITING = 8  # pictures between the model and the disk, at most
_MARGIN = 2**16  # bytes that a picture needs besides its data: its recipe in a shard, its line
_ENCODERS = 4  # PNG takes about a third of a second for 1024x1024


@dataclass(frozen=True)
class Finished:
    """A picture as it leaves the model. seconds: stage to seconds, its part of its batches'."""

    task: Task
    image: Image
    recipe: Recipe
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Encoded:
    """A finished picture as a file's bytes. seconds: stage to seconds; "write" is what encoding took."""

    task: Task
    data: bytes
    recipe: Recipe
    seconds: Mapping[str, float]


class Writer:
    """Writes pictures and then their lines, in the order in which they come.

    with Writer(sink, ledger, on_saved, on_failed) as writer:
        writer.put(finished)

    on_saved: told of each entry that is safe. on_failed: told of a task whose picture alone can't be written, and
    why; where nothing can be written any more, the next `put`, or the end, raises instead.
    """

    def __init__(
        self,
        sink: Sink,
        ledger: Journal,
        on_saved: Callable[[Entry], None],
        on_failed: Callable[[Task, Exception], None],
    ) -> None:
        """Prepare; the threads begin with the block."""
        self._sink = sink
        self._ledger = ledger
        self._on_saved = on_saved
        self._on_failed = on_failed
        self._queue: Queue[tuple[Task, Future[Encoded]] | None] = Queue(_WAITING)
        self._encoders = ThreadPoolExecutor(min(_ENCODERS, os.cpu_count() or 1), thread_name_prefix="encode")
        self._thread = threading.Thread(target=self._write_all, name="write", daemon=True)
        self._broken: BaseException | None = None

    def __enter__(self) -> Writer:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Make safe what has been put, also after an error; raise what went wrong unless an error is under way."""
        self._queue.put(None)
        self._thread.join()
        self._encoders.shutdown()
        if error is None:
            self._check()

    def put(self, finished: Finished) -> None:
        """Hand over a picture; waits where many are waiting. Raises OutputError if nothing can be written."""
        self._check()
        self._queue.put((finished.task, self._encoders.submit(encode, finished, self._sink.suffix)))

    def put_encoded(self, encoded: Encoded) -> None:
        """Hand over a picture that was encoded elsewhere, for the sink's suffix."""
        self._check()
        ready: Future[Encoded] = Future()
        ready.set_result(encoded)
        self._queue.put((encoded.task, ready))

    def _check(self) -> None:
        if self._broken is not None:
            raise self._broken

    def _write_all(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._broken is None:  # else only make room, so that nobody waits for ever
                try:
                    self._write(*item)
                except BaseException as error:  # raised where the main thread will see it
                    self._broken = error

    def _write(self, task: Task, encoding: Future[Encoded]) -> None:
        try:
            encoded = encoding.result()
            begin = time.perf_counter()
            path = self._save(task.id, encoded.data, encoded.recipe)
        except (MrFlowError, OSError, ValueError) as error:
            if self._broken is not None:
                raise
            self._on_failed(task, error)
            return
        seconds = {**encoded.seconds, "write": encoded.seconds["write"] + time.perf_counter() - begin}
        digest = hashlib.sha256(encoded.data).hexdigest()
        entry = Entry.of(task.id, path, digest, len(encoded.data), encoded.recipe, seconds)
        self._ledger.append(asdict(entry))
        self._on_saved(entry)

    def _save(self, id: str, data: bytes, recipe: Recipe) -> str:
        try:
            return self._sink.write(id, data, recipe)
        except OutputError as error:
            try:
                self._sink.probe(len(data) + _MARGIN)  # is it this name, or the disk?
            except OutputError:
                self._broken = error
            raise


def encode(finished: Finished, suffix: str) -> Encoded:
    """Return the picture as the bytes of a file with that suffix, its recipe inside."""
    begin = time.perf_counter()
    data = encode_image(finished.image, suffix, finished.recipe)
    seconds = {**finished.seconds, "write": time.perf_counter() - begin}
    return Encoded(finished.task, data, finished.recipe, seconds)
