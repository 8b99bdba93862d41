"""One window of tasks on one model, stage by stage: texts, drafts, finished pictures. What fails fails alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch

from mrflow.backbones import Conditioning
from mrflow.batch.tasks import Task
from mrflow.batch.writer import Finished
from mrflow.errors import BatchError
from mrflow.fitting import BatchSizes, in_batches
from mrflow.model import Model
from mrflow.production import finish_drafts, make_drafts
from mrflow.progress import Callback, Clock
from mrflow.results import Draft
from mrflow.stages import EncodedStages, Stages

MAX_FAILURES_IN_A_ROW = 20  # so many different rows don't fail by chance: the machine is broken, not they

OnFailed = Callable[[Task, Exception], None]


@dataclass(frozen=True)
class Read:
    """A task with its encoded prompt."""

    task: Task
    row: Conditioning
    seconds: float


@dataclass(frozen=True)
class Drafted:
    """A task with its draft. seconds: stage to seconds so far."""

    task: Task
    draft: Draft
    seconds: dict[str, float]


class Streak:
    """Counts failures in a row, whichever threads they happen in."""

    def __init__(self) -> None:
        self._length = 0
        self._lock = Lock()

    def worked(self) -> None:
        """End the streak: a picture was made."""
        with self._lock:
            self._length = 0

    def failed(self, reason: str) -> None:
        """Count a failure; raises BatchError if it is one too many."""
        with self._lock:
            self._length += 1
            length = self._length
        if length >= MAX_FAILURES_IN_A_ROW:
            raise BatchError(
                f"{length} pictures in a row failed, the last with {reason} "
                "Something is wrong with the machine or the model; put it right and run the command again."
            )


@dataclass(frozen=True)
class Maker:
    """Makes windows of tasks, which must be of one kind, on a borrowed model.

    on_failed: told of tasks that can't be made, and why; what it raises ends the work.
    """

    model: Model
    sizes: BatchSizes
    on_failed: OnFailed
    callback: Callback | None = None

    def draft(self, window: Sequence[Task], read: Callable[[Task], Read]) -> list[Drafted]:
        """Return the drafts of a window. read: gives a task with its encoded prompt."""
        reads = [each for task in window if (each := self._read(task, read)) is not None]
        drafted: list[Drafted] = []
        for group in _alike(reads):
            size = self.sizes.of("draft", kind_of(group[0].task))
            drafted += in_batches(group, size, self._draft, self._failed, self._clean_up)
        return drafted

    def finish(self, drafted: Sequence[Drafted]) -> Iterator[Finished]:
        """Yield the finished pictures of a window's drafts."""
        if drafted:
            size = self.sizes.of("finish", kind_of(drafted[0].task))
            yield from in_batches(drafted, size, self._finish, self._failed, self._clean_up)

    def read(self, task: Task) -> Read:
        """Return the task with its prompt encoded, alone, so that a row never depends on its neighbours."""
        clock = Clock(self.model.device)
        stages = Stages(model=self.model, clock=clock)
        with torch.no_grad():  # a thread has a mode of its own
            rows = stages.encode_prompts([task.job], guided=task.plan.guided, batch_size=1)
        return Read(task, rows[0], clock.seconds["text"])

    def _read(self, task: Task, read: Callable[[Task], Read]) -> Read | None:
        try:
            return read(task)
        except Exception as error:
            self.on_failed(task, error)
            return None

    def _draft(self, part: list[Read]) -> list[Drafted]:
        task, clock = part[0].task, Clock(self.model.device, self.callback)
        stages = EncodedStages(model=self.model, clock=clock, rows=[each.row for each in part])
        drafts = make_drafts(stages, [each.task.job for each in part], task.plan, task.size, len(part))
        seconds = _shared(clock.seconds, len(part))
        return [Drafted(r.task, d, {"text": r.seconds, **seconds}) for r, d in zip(part, drafts, strict=True)]

    def _finish(self, part: list[Drafted]) -> list[Finished]:
        clock = Clock(self.model.device, self.callback)
        stages = Stages(model=self.model, clock=clock)
        result = finish_drafts(stages, [each.draft for each in part], len(part))
        seconds = _shared(clock.seconds, len(part))
        rows = zip(part, result.images, result.recipes, strict=True)
        return [Finished(d.task, image, recipe, {**d.seconds, **seconds}) for d, image, recipe in rows]

    def _failed(self, item: Read | Drafted, error: Exception) -> None:
        self.on_failed(item.task, error)

    def _clean_up(self) -> None:
        """Make room after an error; the pipeline is told that its pass is over, as after one that went well."""
        self.model.pipe.maybe_free_model_hooks()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


def kind_of(task: Task) -> Hashable:
    """Return what pictures in one batch have in common."""
    return task.size, task.plan


def by_kind(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks grouped by kind, the kinds and those within in their order."""
    kinds: dict[Hashable, list[Task]] = {}
    for task in tasks:
        kinds.setdefault(kind_of(task), []).append(task)
    return [task for group in kinds.values() for task in group]


def next_window(line: Sequence[Task], begin: int, most: int) -> Sequence[Task]:
    """Return the tasks of one kind, `most` at most, that stand at `begin` in a line."""
    end = begin
    while end < len(line) and end - begin < most and kind_of(line[end]) == kind_of(line[begin]):
        end += 1
    return line[begin:end]


def describe_error(error: Exception) -> str:
    """Return an error as errors.jsonl has it."""
    return f"{type(error).__name__}: {error}"


def _alike(read: Sequence[Read]) -> list[list[Read]]:
    """Return rows whose conditioning has the same shapes together; some families pad no prompts."""
    groups: dict[Any, list[Read]] = {}
    for each in read:
        shapes = tuple(sorted((name, tuple(getattr(value, "shape", ()))) for name, value in each.row.items()))
        groups.setdefault(shapes, []).append(each)
    return list(groups.values())


def _shared(seconds: dict[str, float], count: int) -> dict[str, float]:
    return {name: value / count for name, value in seconds.items()}
