"""Borrowing the user's pipeline: one caller at a time, one denoising pass at a time, given back as it was."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mrflow.backbones import Pipeline
from mrflow.errors import BusyError

_locks: WeakKeyDictionary[Any, threading.Lock] = WeakKeyDictionary()
_locks_guard = threading.Lock()


@contextmanager
def borrowed(pipe: Pipeline, *, quiet: bool = False) -> Iterator[None]:
    """Hold the pipeline for one call; afterwards, also after an error or Ctrl-C, it is as it was.

    quiet: keep the pipeline's own progress bar silent meanwhile.
    Raises BusyError at once, rather than waiting, if another call holds it: a thread that waits for itself
    (a callback that calls back) would hang, and whoever wants a queue knows best what belongs in it.
    """
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


def denoise(
    pipe: Pipeline,
    scheduler: Any,
    arguments: Mapping[str, Any],
    on_step: Callable[[int], None],
) -> Tensor:
    """Return the latents of one run of the pipeline's own loop with `scheduler` in place of its own.

    arguments: of the pipeline's call. on_step: called with the number of steps done after each; what it
    raises ends the run.
    """
    return _run(pipe, scheduler, arguments, on_step)[0]


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
    set_timesteps = scheduler.set_timesteps

    @wraps(set_timesteps)  # pipelines look its arguments up before they use them
    def set_head(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.tail = scheduler.timesteps[steps:]
        scheduler.timesteps = scheduler.timesteps[:steps]

    scheduler.set_timesteps = set_head
    return _run(pipe, scheduler, arguments, on_step)[1]


def tail(scheduler: Any) -> Any:
    """Return the scheduler of a `denoise_head`, made to go on with the steps that are left."""

    @wraps(scheduler.set_timesteps)
    def set_tail(*args: Any, **kwargs: Any) -> None:
        scheduler.timesteps = scheduler.tail

    scheduler.set_timesteps = set_tail
    return scheduler


def _run(
    pipe: Pipeline, scheduler: Any, arguments: Mapping[str, Any], on_step: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Return what the pipeline gives as latents, and what its loop held after the last step."""
    held: list[Tensor] = []

    def after_step(_pipe: Any, index: int, _timestep: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        held[:] = [tensors["latents"]]
        on_step(index + 1)
        return {}

    own = pipe.scheduler
    pipe.scheduler = scheduler
    try:
        result = pipe(**arguments, output_type="latent", callback_on_step_end=after_step)
        return result.images, held[0]
    finally:
        pipe.scheduler = own


def own_scheduler(pipe: Pipeline) -> Any:
    """Return a copy of the pipeline's scheduler, so that setting timesteps leaves the user's untouched."""
    return copy.deepcopy(pipe.scheduler)


class ExactScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # untyped, hence Any
    """Plain Euler over the sigmas it was made with, whatever a pipeline asks of it.

    It is built afresh from the number of training timesteps alone: a copy of the checkpoint's configuration
    with shifts switched off would still carry keys such as `use_flow_sigmas`, for which FluxPipeline
    (diffusers 0.42.1) drops a caller's sigmas. It holds the sigmas itself because a pipeline may make its own
    for a caller who gives none, and some (PRX, ERNIE-Image, Bria) for every caller.
    """

    def __init__(self, sigmas: Sequence[float] = (1.0, 0.0), num_train_timesteps: int = 1000) -> None:
        """Make a schedule of `sigmas`, which end at 0."""
        super().__init__(num_train_timesteps=num_train_timesteps)
        self._exact = list(sigmas[:-1])  # the parent appends the 0

    def set_timesteps(  # pipelines look these names up before they use them
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        """Set the schedule it was made with; nothing that is asked for changes it."""
        super().set_timesteps(sigmas=self._exact, device=device)


def exact_scheduler(pipe: Pipeline, sigmas: Sequence[float]) -> ExactScheduler:
    """Return a scheduler that takes the pipeline through exactly these sigmas, the last of which is 0."""
    return ExactScheduler(sigmas, pipe.scheduler.config.get("num_train_timesteps", 1000))


def _restore(pipe: Pipeline, name: str, value: Any) -> None:
    if value is not None:
        setattr(pipe, name, value)
    elif hasattr(pipe, name):
        delattr(pipe, name)
