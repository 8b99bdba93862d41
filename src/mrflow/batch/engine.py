"""The stages of a batch on one machine: texts ahead in a thread, drafts of several rows, then their finishing.

    read-ahead thread    encode the prompts of the next rows
    lanes                draft a window of rows in draft batches, finish them in finish batches
    writer's threads     encode, write and enter the pictures (mrflow.batch.writer)

One lane is the calling thread. Several, on a CPU, are threads that share the weights (mrflow.batch.lanes).

A window is as many rows as the larger of the two batches holds, so that on a CPU, with batches of one, each
picture is made as if it were alone, bit for bit, and a kill loses one for each lane.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from types import TracebackType
from typing import Any

import torch

from mrflow.backbones import Conditioning
from mrflow.batch.lanes import Lanes
from mrflow.batch.tasks import Task
from mrflow.batch.writer import Finished
from mrflow.errors import BatchError
from mrflow.fitting import BatchSizes, in_batches
from mrflow.model import Model, is_guided
from mrflow.passes import borrowed
from mrflow.production import finish_drafts, make_drafts
from mrflow.progress import Callback, Clock, Progress
from mrflow.results import Draft
from mrflow.stages import EncodedStages, Stages

MAX_FAILURES_IN_A_ROW = 20  # so many different rows don't fail by chance: the machine is broken, not they


class Streak:
    """Counts failures in a row, whichever threads they happen in."""

    def __init__(self) -> None:
        self._length = 0
        self._lock = Lock()

    def worked(self) -> None:
        """End the streak: a picture was made."""
        with self._lock:
            self._length = 0

    def failed(self, error: Exception) -> None:
        """Count a failure; raises BatchError if it is one too many."""
        with self._lock:
            self._length += 1
            length = self._length
        if length >= MAX_FAILURES_IN_A_ROW:
            raise BatchError(
                f"{length} pictures in a row failed, the last with {type(error).__name__}: {error} "
                "Something is wrong with the machine or the model; put it right and run the command again."
            )


@dataclass(frozen=True)
class _Read:
    task: Task
    row: Conditioning
    seconds: float


@dataclass(frozen=True)
class _Drafted:
    task: Task
    draft: Draft
    seconds: dict[str, float]


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
        line = _by_kind(tasks) if self._sizes.batching else list(tasks)
        with borrowed(self._model.pipe, quiet=True), self._read_ahead() as ahead, self._lanes as lanes:
            for window in self._windows(line, ahead):
                for finished in lanes.take(partial(self._make, window, ahead)):
                    self._put(finished)
            for finished in lanes.rest():
                self._put(finished)

    def _windows(self, line: Sequence[Task], ahead: _ReadAhead) -> Iterator[Sequence[Task]]:
        """Yield windows of the line, the prompts of each and of those that follow being read."""
        begin = 0
        while begin < len(line):
            window = self._window(line, begin)
            begin += len(window)
            ahead.read([*window, *line[begin : begin + self._lanes.count * len(window)]])
            yield window

    def _window(self, line: Sequence[Task], begin: int) -> Sequence[Task]:
        kind = _kind(line[begin])
        most = max(self._sizes.of(stage, kind).size for stage in ("draft", "finish"))
        end = begin
        while end < len(line) and end - begin < most and _kind(line[end]) == kind:
            end += 1
        return line[begin:end]

    def _make(self, window: Sequence[Task], ahead: _ReadAhead, model: Model) -> Iterator[Finished]:
        """Yield what can be made of a window on one lane's model."""
        kind = _kind(window[0])
        read = [each for task in window if (each := self._taken(task, ahead)) is not None]
        draft_size, finish_size = (self._sizes.of(stage, kind) for stage in ("draft", "finish"))
        drafted: list[_Drafted] = []
        for group in _alike(read):
            drafted += in_batches(group, draft_size, partial(self._draft, model), self._failed, self._clean_up)
        finish = partial(self._finish, model)
        for finished in in_batches(drafted, finish_size, finish, self._failed, self._clean_up):
            self._streak.worked()
            yield finished

    def _taken(self, task: Task, ahead: _ReadAhead) -> _Read | None:
        try:
            return ahead.take(task)
        except Exception as error:
            self._failed(task, error)
            return None

    def _draft(self, model: Model, part: list[_Read]) -> list[_Drafted]:
        task, clock = part[0].task, self._clock()
        stages = EncodedStages(model=model, clock=clock, rows=[each.row for each in part])
        drafts = make_drafts(stages, [each.task.job for each in part], task.plan, task.size, len(part))
        seconds = _shared(clock.seconds, len(part))
        return [_Drafted(r.task, d, {"text": r.seconds, **seconds}) for r, d in zip(part, drafts, strict=True)]

    def _finish(self, model: Model, part: list[_Drafted]) -> list[Finished]:
        clock = self._clock()
        stages = Stages(model=model, clock=clock)
        result = finish_drafts(stages, [each.draft for each in part], len(part))
        seconds = _shared(clock.seconds, len(part))
        rows = zip(part, result.images, result.recipes, strict=True)
        return [Finished(d.task, image, recipe, {**d.seconds, **seconds}) for d, image, recipe in rows]

    def _failed(self, item: Task | _Read | _Drafted, error: Exception) -> None:
        task = item if isinstance(item, Task) else item.task
        self._on_failed(task, error)
        self._streak.failed(error)

    def _clean_up(self) -> None:
        """Make room after an error; the pipeline is told that its pass is over, as after one that went well."""
        self._model.pipe.maybe_free_model_hooks()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _clock(self) -> Clock:
        return Clock(self._model.device, self._progressed)

    def _progressed(self, progress: Progress) -> None:
        self._lanes.check()
        if self._callback is not None:
            self._callback(progress)

    def _read_ahead(self) -> _ReadAhead:
        """Return the reader: in a thread where that costs the drafts nothing.

        Where modules move between devices (offloading), they must not be called side by side. On a CPU with
        several threads for a picture, a second thread with threads of its own makes OpenMP yield rather than
        wait: drafts of vista took 1.53 s instead of 0.96 s each on 2 cores, to win the 0.04 s of the text.
        """
        pipe = self._model.pipe
        offloads = bool(getattr(pipe, "_all_hooks", None)) or bool(getattr(pipe, "hf_device_map", None))
        divided = self._model.device.type == "cpu" and self._lanes.count == 1 and torch.get_num_threads() > 1
        return _ReadAhead(self._model, threaded=not offloads and not divided)


class _ReadAhead:
    """Encodes prompts, one at a time, so that a row never depends on its neighbours.

    threaded: in a thread of its own, before they are needed; else when they are.
    """

    def __init__(self, model: Model, *, threaded: bool) -> None:
        self._model = model
        self._reading: dict[str, Future[_Read]] = {}
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
                    self._reading[task.id] = self._pool.submit(self._encode, task)

    def take(self, task: Task) -> _Read:
        """Return the encoded prompt, once; raises what the encoding raised."""
        return self._reading.pop(task.id).result() if self._pool is not None else self._encode(task)

    def _encode(self, task: Task) -> _Read:
        clock = Clock(self._model.device)
        stages = Stages(model=self._model, clock=clock)
        with torch.no_grad():  # a thread has a mode of its own
            rows = stages.encode_prompts([task.job], guided=is_guided(task.plan), batch_size=1)
        return _Read(task, rows[0], clock.seconds["text"])


def _by_kind(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks grouped by kind, the kinds and those within in their order."""
    kinds: dict[Hashable, list[Task]] = {}
    for task in tasks:
        kinds.setdefault(_kind(task), []).append(task)
    return [task for group in kinds.values() for task in group]


def _kind(task: Task) -> Hashable:
    return task.size, task.plan


def _alike(read: Sequence[_Read]) -> list[list[_Read]]:
    """Return rows whose conditioning has the same shapes together; some families pad no prompts."""
    groups: dict[Any, list[_Read]] = {}
    for each in read:
        shapes = tuple(sorted((name, tuple(getattr(value, "shape", ()))) for name, value in each.row.items()))
        groups.setdefault(shapes, []).append(each)
    return list(groups.values())


def _shared(seconds: dict[str, float], count: int) -> dict[str, float]:
    return {name: value / count for name, value in seconds.items()}
