"""A batch on one machine: texts ahead in a thread, drafts of several rows, then their finishing.

    read-ahead thread    encode the prompts of the next rows
    lanes                draft a window of rows in draft batches, finish them in finish batches
    writer's threads     encode, write and enter the pictures (mrflow.batch.writer)

One lane is the calling thread. Several, on a CPU, are threads that share the weights (mrflow.lanes).

A window is as many rows as the larger of the two batches holds, so that on a CPU, with batches of one, each
picture is made as if it were alone, bit for bit, and a kill loses one for each lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import torch

from mrflow.batch.tasks import Streak, Task, by_kind, describe_error, kind_of, next_window
from mrflow.batch.writer import Finished
from mrflow.batches import BatchSizes, Read, Work
from mrflow.borrowing import borrowed
from mrflow.drafts import Draft
from mrflow.lanes import Lanes
from mrflow.model import Model
from mrflow.progress import Callback, Progress


@dataclass(frozen=True)
class Drafted:
    """A task with its draft. seconds: stage to seconds so far."""

    task: Task
    draft: Draft
    seconds: dict[str, float]


def draft_all(work: Work[Task], reads: Sequence[Read[Task]]) -> list[Drafted]:
    """Return the drafts of tasks whose prompts are encoded."""
    return [Drafted(*each) for done in work.draft(reads) for each in done.each()]


def finish_all(work: Work[Task], drafted: Sequence[Drafted]) -> Iterator[Finished]:
    """Yield the finished pictures of drafts."""
    before = {each.task.id: each.seconds for each in drafted}
    for done in work.finish([(each.task, each.draft) for each in drafted]):
        for task, result, seconds in done.each():
            yield Finished(task, result.images[0], result.recipes[0], {**before[task.id], **seconds})


class Engine:
    """Makes tasks on one model; its pipeline is borrowed for the whole of `run`."""

    def __init__(
        self,
        model: Model,
        sizes: BatchSizes,
        put: Callable[[Finished], None],
        on_failed: Callable[[Task, Exception], None],
        callback: Callback | None = None,
        lanes: int = 1,
    ) -> None:
        """put: takes each finished picture. on_failed: told of tasks that can't be made, and why."""
        self._model = model
        self._lanes: Lanes[Finished] = Lanes(model, lanes)
        self._sizes = sizes
        self._put = put
        self._on_failed = on_failed
        self._callback = callback
        self._streak = Streak()

    def run(self, tasks: Sequence[Task]) -> None:
        """Make all tasks: in their order, or with larger batches those of one kind after each other.

        Raises BatchError if one after another fails, and whatever put, on_failed and the callback raise.
        """
        line = by_kind(tasks) if self._sizes.batching else list(tasks)
        with borrowed(self._model.pipe), self._read_ahead() as ahead, self._lanes as lanes:
            for window in self._windows(line, ahead):
                for finished in lanes.take(partial(self._make, window, ahead)):
                    self._put(finished)
            for finished in lanes.rest():
                self._put(finished)

    def _windows(self, line: Sequence[Task], ahead: _ReadAhead) -> Iterator[Sequence[Task]]:
        """Yield windows of the line, the prompts of each and of those that follow being read."""
        begin = 0
        while begin < len(line):
            kind = kind_of(line[begin])
            most = max(self._sizes.of(stage, kind).size for stage in ("draft", "finish"))
            window = next_window(line, begin, most)
            begin += len(window)
            ahead.read([*window, *line[begin : begin + self._lanes.count * len(window)]])
            yield window

    def _make(self, window: Sequence[Task], ahead: _ReadAhead, model: Model) -> Iterator[Finished]:
        """Yield what can be made of a window on one lane's model."""
        work = self._work(model)
        for finished in finish_all(work, draft_all(work, work.read_all(window, ahead.take))):
            self._streak.worked()
            yield finished

    def _work(self, model: Model) -> Work[Task]:
        return Work(model=model, sizes=self._sizes, failed=self._failed, listen=lambda _: self._progressed)

    def _failed(self, task: Task, error: Exception) -> None:
        self._on_failed(task, error)
        self._streak.failed(describe_error(error))

    def _progressed(self, progress: Progress) -> None:
        self._lanes.check()
        if self._callback is not None:
            self._callback(progress)

    def _read_ahead(self) -> _ReadAhead:
        """Return the reader: in a thread where that costs the drafts nothing.

        Where modules move between devices (offloading) or wear LoRAs, they must not be called side by side. On a
        CPU with several threads for a picture, a second thread with threads of its own makes OpenMP yield rather
        than wait: drafts of vista took 1.53 s instead of 0.96 s each on 2 cores, to win the 0.04 s of the text.
        """
        pipe = self._model.pipe
        offloads = bool(getattr(pipe, "_all_hooks", None)) or bool(getattr(pipe, "hf_device_map", None))
        divided = self._model.device.type == "cpu" and self._lanes.count == 1 and torch.get_num_threads() > 1
        return _ReadAhead(self._work(self._model).read, threaded=not (offloads or divided or self._model.loras))


class _ReadAhead:
    """Encodes prompts with `read`: in a thread of its own before they are needed, or else when they are."""

    def __init__(self, read: Callable[[Task], Read[Task]], *, threaded: bool) -> None:
        self._read = read
        self._reading: dict[str, Future[Read[Task]]] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="text") if threaded else None

    def __enter__(self) -> _ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def read(self, tasks: Iterable[Task]) -> None:
        """Begin to encode the prompts of these tasks, unless it has begun."""
        if self._pool is not None:
            for task in tasks:
                if task.id not in self._reading:
                    self._reading[task.id] = self._pool.submit(self._read, task)

    def take(self, task: Task) -> Read[Task]:
        """Return the encoded prompt, once; raises what the encoding raised."""
        return self._reading.pop(task.id).result() if self._pool is not None else self._read(task)
