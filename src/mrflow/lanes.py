"""Pictures side by side on a CPU with one set of weights: lanes of a model, and the cores divided between them.

A small model can't keep several cores busy with one picture: its operations are too short to be divided. Measured
by `benchmarks/batch_throughput.py` (docs/scale.md) and `benchmarks/load.py` (docs/serving.md).

A lane has a copy of the pipeline object and of its modules, shallow, so that the weights are shared. What a call
changes belongs to those copies: the scheduler and the guidance to the pipeline, the caches of convolutions to the
video autoencoders (`_feat_map`, diffusers 0.42.1, autoencoder_kl_qwenimage.py). Prompts must be encoded by one
lane at a time, for tokenizers that are called from two threads raise "Already borrowed".
"""

from __future__ import annotations

import copy
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

import torch
from torch import nn

from mrflow.backbones.family import Pipeline
from mrflow.borrowing import borrowed
from mrflow.errors import RequestError
from mrflow.model import Model

Made = TypeVar("Made")

SMALL = 500_000_000  # parameters of the transformer; a guess between vista's 11 million and the billions of others
_ALLOWED = 64  # lanes that may be asked for; each is a thread, and waits its turn
MOST = 8  # lanes by themselves: between their operations all take turns at one interpreter lock; not measured


def check_lanes(model: Model, count: int | None) -> int:
    """Return how many lanes to use: `count`, or what suits the model, one for each CPU thread where it is small.

    Raises RequestError for more than one on another device, where modules carry hooks (offloading, step caches) or
    are compiled, for these keep state between calls, or with LoRAs, which are put on modules that lanes share.
    """
    able = model.device.type == "cpu" and not model.loras and not _keeps_state(model.pipe)
    if count is None:
        size = sum(weight.numel() for weight in model.pipe.transformer.parameters())
        return min(torch.get_num_threads(), MOST) if able and size < SMALL else 1
    if not 1 <= count <= _ALLOWED:
        raise RequestError(f"lanes is {count}; it must be 1 to {_ALLOWED}. Try one for each core.")
    if count > 1 and not able:
        reason = (
            "offloaded, cached, compiled or has LoRAs" if model.device.type == "cpu" else f"on {model.device.type}"
        )
        raise RequestError(f"lanes is {count}; a model that is {reason} makes one picture at a time. Try 1.")
    return count


def copy_lane(model: Model) -> Model:
    """Return a model whose pipeline has attributes of its own, as have its modules, and the same weights."""
    pipe = copy.copy(model.pipe)
    for name, part in model.pipe.components.items():
        if isinstance(part, nn.Module):
            setattr(pipe, name, copy.copy(part))
    return replace(model, pipe=pipe)


def weights_id(model: Model) -> int:
    """Return a number that lanes of one model share, and no other model that is alive has."""
    return id(next(model.pipe.transformer.parameters()))


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Give the calling thread `count` of torch's threads for a while; None, or more than the cores: as it has."""
    before = torch.get_num_threads()
    if count is not None and count <= (os.cpu_count() or 1):
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Cores:
    """The CPU threads of torch, divided equally between those who compute at the moment, at least one each.

    torch keeps their number for each calling thread where it is built with OpenMP, as its packages are, once that
    thread has asked for it; before, it takes over what any other has set (ATen/ParallelOpenMP.cpp). Matrix
    products and convolutions follow it too (tried with torch 2.15: processor seconds of each thread). Other builds
    know one number for the whole process, which is left alone.
    """

    def __init__(self) -> None:
        """Divide as many as the calling thread has."""
        self.total = torch.get_num_threads()
        self._divides = "backend: OpenMP" in torch.__config__.parallel_info()
        self._busy = 0
        self._lock = threading.Lock()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count the calling thread among those who compute."""
        with self._lock:
            self._busy += 1
        try:
            self.divide()
            yield
        finally:
            with self._lock:
                self._busy -= 1

    def divide(self) -> None:
        """Give the calling thread, which is at work, its share; to be called whenever that may have changed."""
        share = max(self.total // self._busy, 1)
        if self._divides and torch.get_num_threads() != share:  # asked first, see above
            torch.set_num_threads(share)


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
        self._stopped = threading.Event()
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
            with borrowed(model.pipe):
                return list(work(model))
        finally:
            self._free.put(model)


def _keeps_state(pipe: Pipeline) -> bool:
    if getattr(pipe, "_all_hooks", None) or getattr(pipe, "hf_device_map", None):
        return True
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return any(_is_hooked(module) for part in parts for module in part.modules())


def _is_hooked(module: nn.Module) -> bool:
    """Return whether accelerate, diffusers or torch.compile wraps the module's calls."""
    registry = getattr(module, "_diffusers_hook", None)
    compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    return hasattr(module, "_hf_hook") or bool(getattr(registry, "hooks", None)) or compiled
