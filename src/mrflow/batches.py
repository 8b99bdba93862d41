"""Pictures in batches, as the server and `mrflow batch` make them; what fails fails alone.

How many at once is found by trying: a size doubles for as long as that makes pictures faster, halves when memory
runs out, and is remembered.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch

from mrflow.backbones.family import Embeds
from mrflow.calls import finish_drafts, make_drafts, make_natives
from mrflow.drafts import Draft, Result
from mrflow.jobs import Job
from mrflow.model import Model
from mrflow.offloading import advise, is_out_of_memory
from mrflow.progress import Callback
from mrflow.steps import Batch, Run, encode_prompts

MOST = 64
_GAIN = 1.05  # a doubling that wins less than this is not worth the memory and the longer wait


class HasJob(Protocol):
    """Something that asks for one picture."""

    @property
    def job(self) -> Job:
        """What is to be made."""


Item = TypeVar("Item")
Asking = TypeVar("Asking", bound=HasJob)
Made = TypeVar("Made")


class BatchSize:
    """The size of one stage's batches for pictures of one kind."""

    def __init__(self, size: int, *, grow: bool = False) -> None:
        """Begin with `size`; grow: double it for as long as that makes pictures faster."""
        self.size = size
        self._grow = grow
        self._best = 0.0

    def worked(self, count: int, seconds: float) -> None:
        """Learn that a batch of `count` pictures went well."""
        if not self._grow or count < self.size:
            return
        rate = count / max(seconds, 1e-9)
        if rate > self._best * _GAIN and self.size < MOST:
            self._best, self.size = rate, min(2 * self.size, MOST)
        else:
            self._grow = False
            if rate < self._best:
                self.size = max(self.size // 2, 1)

    def ran_out(self, count: int) -> None:
        """Learn that memory ran out with `count` pictures."""
        self._grow = False
        self.size = max(min(self.size, count) // 2, 1)


class BatchSizes:
    """The sizes of all stages and kinds of pictures met so far."""

    def __init__(self, start: int, *, grow: bool = False, finish: int | None = None, native: int = 1) -> None:
        """Begin with `start` pictures; finish, native: of those stages, if others."""
        self.start = start
        self._starts = {"draft": start, "finish": finish or start, "native": native}
        self._grow = grow and start > 1
        self._sizes: dict[tuple[str, Hashable], BatchSize] = {}

    @property
    def batching(self) -> bool:
        """Whether pictures ever share a batch."""
        return self.start > 1

    def of(self, stage: str, kind: Hashable) -> BatchSize:
        """Return the size for a stage, "draft", "finish" or "native", and a kind of pictures."""
        return self._sizes.setdefault((stage, kind), BatchSize(self._starts[stage], grow=self._grow))

    def found(self) -> dict[str, int]:
        """Return the smallest size of each stage so far."""
        found: dict[str, int] = {}
        for (stage, _), size in self._sizes.items():
            found[stage] = min(size.size, found.get(stage, size.size))
        return found


def in_batches(
    items: Sequence[Item],
    size: BatchSize,
    work: Callable[[list[Item]], list[Made]],
    on_error: Callable[[Item, Exception], None],
    clean_up: Callable[[], None],
) -> Iterator[Made]:
    """Yield what `work` makes of the items, in batches as large as fit.

    After an error the items of the batch are tried again: half as many where memory ran out, else one by one, so
    that only the one that can't be made fails; on_error is told of it. clean_up: called after each error.
    """
    todo = deque(items)
    alone = 0
    while todo:
        count = 1 if alone else min(size.size, len(todo))
        part = [todo.popleft() for _ in range(count)]
        alone = max(alone - 1, 0)
        made, error = _attempt(part, size, work)
        if error is None:
            yield from made
            continue
        clean_up()
        if len(part) == 1:
            on_error(part[0], error)
            continue
        todo.extendleft(reversed(part))
        if is_out_of_memory(error):
            size.ran_out(len(part))
        else:
            alone = len(part)


def _attempt(
    part: list[Item], size: BatchSize, work: Callable[[list[Item]], list[Made]]
) -> tuple[list[Made], Exception | None]:
    """Return what was made, or the error without its traceback, whose frames would hold on to the memory."""
    begin = time.perf_counter()
    try:
        made = work(part)
    except Exception as error:
        return [], error.with_traceback(None)
    size.worked(len(part), time.perf_counter() - begin)
    return made, None


@dataclass(frozen=True)
class Read(Generic[Asking]):
    """Who asks, with the encoded prompt, the seconds that took, and the draft if there is one to be finished."""

    item: Asking
    row: Embeds
    seconds: float = 0.0
    draft: Draft | None = None


@dataclass(frozen=True)
class Done(Generic[Asking, Made]):
    """A batch that went through: who asked, what was made for each. seconds: stage to seconds, of all together."""

    reads: list[Read[Asking]]
    made: list[Made]
    seconds: dict[str, float]

    def each(self) -> Iterator[tuple[Asking, Made, dict[str, float]]]:
        """Yield who asked, what was made, and one's share of the seconds."""
        share = {name: value / len(self.reads) for name, value in self.seconds.items()}
        for read, made in zip(self.reads, self.made, strict=True):
            yield read.item, made, share


@dataclass(frozen=True, kw_only=True)
class Work(Generic[Asking]):
    """Takes those who ask through the steps on a borrowed model, in batches of what may go together.

    failed: told of each that can't be made, and why; what it raises ends the work. listen: gives the callback of a
    batch. reading: held while prompts are encoded, for tokenizers do not bear two threads at once.
    """

    model: Model
    sizes: BatchSizes
    failed: Callable[[Asking, Exception], None]
    listen: Callable[[list[Asking]], Callback | None] = lambda _: None
    reading: AbstractContextManager[Any] = field(default_factory=nullcontext)

    def read(self, item: Asking) -> Read[Asking]:
        """Return the item with its prompt encoded, alone, so that a row never depends on its neighbours."""
        with self.reading, torch.no_grad():  # a thread has a mode of its own
            run = Run.over(self.model, self.listen([item]))
            (row,) = encode_prompts(run, Batch([item.job])).rows
        return Read(item, row, run.clock.seconds["text"])

    def read_all(
        self, items: Iterable[Asking], read: Callable[[Asking], Read[Asking]] | None = None
    ) -> list[Read[Asking]]:
        """Return those of the items whose prompts can be encoded. read: None does it now."""
        found = []
        for item in items:
            try:
                found.append((read or self.read)(item))
            except Exception as error:
                self.failed(item, error)
        return found

    def draft(self, reads: Iterable[Read[Asking]]) -> Iterator[Done[Asking, Draft]]:
        """Yield drafts, batch by batch."""
        return self._batches("draft", reads, lambda run, jobs, part: make_drafts(run, jobs, _rows(part)))

    def native(self, reads: Iterable[Read[Asking]]) -> Iterator[Done[Asking, Result]]:
        """Yield the plain pipeline's pictures, batch by batch."""
        return self._batches("native", reads, lambda run, jobs, part: _apart(make_natives(run, jobs, _rows(part))))

    def finish(self, drafted: Iterable[tuple[Asking, Draft]]) -> Iterator[Done[Asking, Result]]:
        """Yield finished pictures, batch by batch; prompts of drafts from files or images are encoded first."""
        reads = []
        for item, draft in drafted:
            known = self.read_all([item]) if draft.embeds is None else [Read(item, draft.embeds)]
            reads += [replace(each, draft=replace(draft, embeds=each.row)) for each in known]
        return self._batches("finish", reads, lambda run, _, part: _apart(finish_drafts(run, _drafts(part))))

    def clean_up(self) -> None:
        """Make room after an error; the pipeline is told that its pass is over, as after one that went well."""
        self.model.pipe.maybe_free_model_hooks()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batches(
        self,
        stage: str,
        reads: Iterable[Read[Asking]],
        make: Callable[[Run, list[Job], list[Read[Asking]]], list[Made]],
    ) -> Iterator[Done[Asking, Made]]:
        """Yield what `make` gives for batches of what may go together: one plan, size and kind of prompt."""

        def work(part: list[Read[Asking]]) -> list[Done[Asking, Made]]:
            items = [each.item for each in part]
            run = Run.over(self.model, self.listen(items), batch_size=len(part))
            made = make(run, [item.job for item in items], part)
            text = sum(each.seconds for each in part)
            return [Done(part, made, {**({"text": text} if text else {}), **run.clock.seconds})]

        def failed(one: Read[Asking], error: Exception) -> None:
            advise(self.model.pipe, error)
            self.failed(one.item, error)

        groups: dict[Hashable, list[Read[Asking]]] = {}
        for each in reads:
            shape = None if each.draft is None else tuple(each.draft.pixels.shape)
            kind = each.item.job.kind, shape, self.model.backbone.batch_key(each.row)
            groups.setdefault(kind, []).append(each)
        for group in groups.values():
            size = self.sizes.of(stage, group[0].item.job.kind)
            yield from in_batches(group, size, work, failed, self.clean_up)


def _rows(part: list[Read[Any]]) -> list[Embeds]:
    return [each.row for each in part]


def _drafts(part: list[Read[Any]]) -> list[Draft]:
    return [each.draft for each in part if each.draft is not None]


def _apart(result: Result) -> list[Result]:
    """Return a result for each picture."""
    pairs = zip(result.images, result.recipes, strict=True)
    return [Result([image], [recipe], result.seconds) for image, recipe in pairs]
