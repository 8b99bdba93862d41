"""Pictures of a batch made side by side on a CPU, by threads with one set of weights (mrflow.sharing)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from types import TracebackType
from typing import Generic, TypeVar

import torch

from mrflow.model import Model
from mrflow.passes import borrowed
from mrflow.sharing import copy_lane

Made = TypeVar("Made")


class Stopped(BaseException):
    """Ends a lane's work from within; no failure of the picture that it was making."""


class Lanes(Generic[Made]):
    """Runs work on a model, several at a time, and gives its results in the order in which it was given.

    with Lanes(model, 2) as lanes:
        for item in items:
            for made in lanes.take(work, item): ...
        for made in lanes.rest(): ...

    The order keeps shards the same from run to run. Results wait for those before them, at most `count` pieces of
    work, so that pictures of very different sizes leave a lane idle now and then.
    """

    def __init__(self, model: Model, count: int) -> None:
        """count: 1 works in the calling thread on the model itself, with all its threads."""
        self.count = count
        self._stopped = Event()
        self._model = model
        self._free: SimpleQueue[Model] = SimpleQueue()
        self._under_way: deque[Future[list[Made]]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._threads = torch.get_num_threads()

    def __enter__(self) -> Lanes[Made]:
        """Copy the pipeline for each lane.

        The number of threads is one for the whole process meanwhile: a thread takes it over when it first
        computes (ATen/ParallelOpenMP.cpp), the one that encodes texts too, and some builds of torch know no
        other. MKL's is each thread's own.
        """
        if self.count > 1:
            for _ in range(self.count):
                self._free.put(copy_lane(self._model))
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(self.count, "lane", torch.set_num_threads, (1,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what is under way within a step, and set the number of threads back."""
        self._stopped.set()
        if self._pool is not None:
            try:
                self._pool.shutdown(cancel_futures=True)
            finally:
                torch.set_num_threads(self._threads)

    def take(self, work: Callable[[Model], Iterable[Made]]) -> Iterator[Made]:
        """Begin `work` on a free lane's model, and yield what earlier work has made."""
        if self._pool is None:
            yield from work(self._model)
            return
        self._under_way.append(self._pool.submit(self._run, work))
        if len(self._under_way) > self.count:
            yield from self._under_way.popleft().result()

    def rest(self) -> Iterator[Made]:
        """Yield what is still under way."""
        while self._under_way:
            yield from self._under_way.popleft().result()

    def check(self) -> None:
        """Raise Stopped, in whichever lane asks, once the block is being left."""
        if self._stopped.is_set():
            raise Stopped

    def _run(self, work: Callable[[Model], Iterable[Made]]) -> list[Made]:
        model = self._free.get()
        try:
            with borrowed(model.pipe, quiet=True):
                return list(work(model))
        finally:
            self._free.put(model)
