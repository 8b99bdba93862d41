"""How many pictures go through a stage at once: found by trying, halved when memory runs out, remembered."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

MOST = 64
_GAIN = 1.05  # a doubling that wins less than this is not worth the memory and the longer wait

Item = TypeVar("Item")
Made = TypeVar("Made")


class BatchSize:
    """The size of one stage's batches for pictures of one kind."""

    def __init__(self, size: int, *, grow: bool) -> None:
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

    def __init__(self, start: int, *, grow: bool) -> None:
        """Begin every stage with `start` pictures."""
        self.start = start
        self._grow = grow and start > 1
        self._sizes: dict[tuple[str, Hashable], BatchSize] = {}

    @property
    def batching(self) -> bool:
        """Whether pictures ever share a batch."""
        return self.start > 1

    def of(self, stage: str, kind: Hashable) -> BatchSize:
        """Return the size for a stage, "draft" or "finish", and a kind of pictures."""
        return self._sizes.setdefault((stage, kind), BatchSize(self.start, grow=self._grow))

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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error says that the device's, or the machine's, memory ran out."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


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
