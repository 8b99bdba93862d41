"""Borrowing the user's pipeline: one caller at a time, one denoising pass at a time, given back as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mrflow.backbones import Pipeline
from mrflow.errors import BusyError
from mrflow.schedulers import check_scheduler

_locks: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
_locks_guard = threading.Lock()


@contextmanager
def borrowed(pipe: Pipeline, *, quiet: bool = False) -> Iterator[None]:
    """Hold the pipeline for one call; afterwards, also after an error or Ctrl-C, it is as it was.

    quiet: keep the pipeline's own progress bar silent meanwhile.
    Raises BusyError at once, rather than waiting, if another call holds it: a thread that waits for itself
    (a callback that calls back) would hang, and whoever wants a queue knows best what belongs in it.
    Raises RequestError for a scheduler that follows another law than flow matching.
    """
    check_scheduler(pipe)
    with _locks_guard:
        lock = _locks.setdefault(pipe, threading.Lock())
    if not lock.acquire(blocking=False):
        raise BusyError("The pipeline is in the middle of another call. Wait for it, or load a second pipeline.")
    bar = getattr(pipe, "_progress_bar_config", None)
    try:
        if quiet:
            pipe.set_progress_bar_config(**{**(bar or {}), "disable": True})
        with torch.no_grad():
            yield
    except BaseException:
        pipe.maybe_free_model_hooks()  # offloading and step caches end a pass with this; ours was cut short
        raise
    finally:
        _restore(pipe, "_progress_bar_config", bar)
        lock.release()


@contextmanager
def settings(pipe: Pipeline, values: Mapping[str, Any]) -> Iterator[None]:
    """Give the pipeline's attributes these values for one pass; afterwards they have their own again."""
    own = {name: getattr(pipe, name) for name in values}
    try:
        for name, value in values.items():
            setattr(pipe, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(pipe, name, value)


def denoise(
    pipe: Pipeline,
    scheduler: Any,
    arguments: Mapping[str, Any],
    on_step: Callable[[int], None],
    before: int = 0,
) -> Tensor:
    """Return the latents of one run of the pipeline's own loop with `scheduler` in place of its own.

    arguments: of the pipeline's call; a `callback_on_step_end` among them is called too. on_step: called with the
    number of steps done after each; what it raises ends the run. A step of a second-order scheduler is two
    calls of the transformer. before: steps that a `denoise_head` has done, from which both callbacks count on.
    """
    return _run(pipe, scheduler, arguments, on_step, before)[0]


def denoise_head(
    pipe: Pipeline,
    scheduler: Any,
    steps: int,
    arguments: Mapping[str, Any],
    on_step: Callable[[int], None],
) -> Tensor:
    """Return the latents, as the pipeline's loop holds them, of the first `steps` steps of such a run.

    scheduler: a copy of our own, which `tail` then lets go on. Not by interrupting the pipeline: not all can
    be, and those that can still run to the end of their loop.
    """
    set_timesteps, own_step = scheduler.set_timesteps, scheduler.step

    @wraps(set_timesteps)  # pipelines look its arguments up before they use them
    def set_head(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        calls = steps * scheduler.order
        scheduler.whole, scheduler.tail = scheduler.timesteps, scheduler.timesteps[calls:]
        scheduler.timesteps = scheduler.timesteps[:calls]

    @wraps(own_step)
    def step(*args: Any, **kwargs: Any) -> Any:
        scheduler.timesteps = scheduler.whole  # solvers of higher order treat the last of all steps otherwise
        return own_step(*args, **kwargs)

    scheduler.set_timesteps, scheduler.step = set_head, step
    return _run(pipe, scheduler, arguments, on_step)[1]


def tail(scheduler: Any) -> Any:
    """Return the scheduler of a `denoise_head`, made to go on with the steps that are left."""

    @wraps(scheduler.set_timesteps)
    def set_tail(*args: Any, **kwargs: Any) -> None:
        scheduler.timesteps = scheduler.tail

    scheduler.set_timesteps = set_tail
    return scheduler


def _run(
    pipe: Pipeline,
    scheduler: Any,
    arguments: Mapping[str, Any],
    on_step: Callable[[int], None],
    before: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return what the pipeline gives as latents, and what its loop held after the last step."""
    arguments, held = dict(arguments), list[Tensor]()
    theirs = arguments.pop("callback_on_step_end", None)

    def after_step(lent: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if before and _is_one_of(scheduler.sigmas, index, timestep):  # CogView4Pipeline (0.42.1) gives a sigma
            timestep = scheduler.sigmas[index + before]
        latents, index = tensors["latents"], index + before * scheduler.order
        changed = (theirs(lent, index, timestep, tensors) if theirs is not None else None) or {}
        held[:] = [changed.get("latents", latents)]
        on_step(index // scheduler.order + 1)
        return changed

    own = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        result = pipe(**arguments, output_type="latent", callback_on_step_end=after_step)
        return result.images, held[0]
    finally:
        pipe.scheduler = own


def _is_one_of(sigmas: Tensor, index: int, value: Any) -> bool:
    """Return whether `value` is `sigmas[index]` itself, not merely equal to it."""
    return isinstance(value, Tensor) and value.data_ptr() == sigmas[index].data_ptr()


def _restore(pipe: Pipeline, name: str, value: Any) -> None:
    if value is not None:
        setattr(pipe, name, value)
    elif hasattr(pipe, name):
        delattr(pipe, name)
