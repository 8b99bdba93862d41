"""Pictures made side by side on a CPU: several threads with one set of weights, each with a single thread inside.

A small model can't keep several cores busy with one picture: its operations are too short to be divided. Measured
by `benchmarks/batch_throughput.py`; the figure is in docs/scale.md.

Each lane has a copy of the pipeline object and of its modules, shallow, so that the weights are shared. What a
call changes belongs to those copies: the scheduler and the guidance to the pipeline, the caches of convolutions to
the video autoencoders (`_feat_map`, diffusers 0.42.1, autoencoder_kl_qwenimage.py). Prompts are encoded by one
thread alone, for tokenizers that are called from two raise "Already borrowed".
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from threading import Event
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from mrflow.errors import RequestError
from mrflow.model import Model
from mrflow.passes import borrowed

SMALL = 500_000_000  # parameters of the transformer; a guess between vista's 11 million and the billions of others
MOST = 8  # lanes by themselves: between their operations all take turns at one interpreter lock; not measured

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
        computes (ATen/ParallelOpenMP.cpp), and some builds of torch know no other.
        """
        if self.count > 1:
            for _ in range(self.count):
                self._free.put(replace(self._model, pipe=_copied(self._model.pipe)))
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="lane")
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


def check_lanes(model: Model, count: int | None) -> int:
    """Return how many lanes to use: `count`, or what suits the model, one for each CPU thread where it is small.

    Raises RequestError for more than one on another device, or where modules carry hooks (offloading, step
    caches) or are compiled, for these keep state between calls.
    """
    able = model.device.type == "cpu" and not _keeps_state(model.pipe)
    if count is None:
        size = sum(weight.numel() for weight in model.pipe.transformer.parameters())
        return min(torch.get_num_threads(), MOST) if able and size < SMALL else 1
    if count < 1:
        raise RequestError(f"lanes is {count}; it must be at least 1. Try 1.")
    if count > 1 and not able:
        reason = "offloaded, cached or compiled" if model.device.type == "cpu" else f"on {model.device.type}"
        raise RequestError(f"lanes is {count}; a model that is {reason} makes one picture at a time. Try 1.")
    return count


def _copied(pipe: Any) -> Any:
    """Return a pipeline with attributes of its own, as have its modules, and the same weights."""
    other = copy.copy(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            setattr(other, name, copy.copy(part))
    return other


def _keeps_state(pipe: Any) -> bool:
    if getattr(pipe, "_all_hooks", None) or getattr(pipe, "hf_device_map", None):
        return True
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return any(_is_hooked(module) for part in parts for module in part.modules())


def _is_hooked(module: nn.Module) -> bool:
    """Return whether accelerate, diffusers or torch.compile wraps the module's calls."""
    registry = getattr(module, "_diffusers_hook", None)
    compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    return hasattr(module, "_hf_hook") or bool(getattr(registry, "hooks", None)) or compiled
