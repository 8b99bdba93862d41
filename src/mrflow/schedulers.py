"""The schedulers of the two passes: a copy of the pipeline's own for the draft, plain Euler for refining."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from mrflow.backbones import Pipeline
from mrflow.errors import RequestError


def check_scheduler(pipe: Pipeline) -> None:
    """Raise RequestError for a scheduler that follows another law than flow matching.

    The solvers of diffusion models name a `prediction_type`; they integrate a flow only with the two settings
    named in the message (diffusers 0.42.1: UniPC, DPM-Solver++, DEIS). The flow's own solvers name none.
    """
    scheduler = pipe.scheduler
    kind, config = type(scheduler).__name__, scheduler.config
    prediction = config.get("prediction_type")
    if prediction is None or (prediction == "flow_prediction" and config.get("use_flow_sigmas")):
        return
    raise RequestError(
        f"The scheduler is {kind} with prediction_type {prediction!r} and use_flow_sigmas "
        f"{bool(config.get('use_flow_sigmas'))}; flow matching mixes (1 - sigma) of the picture with sigma of "
        "noise, and this one does not. Take a FlowMatch scheduler, or build it with "
        "prediction_type='flow_prediction' and use_flow_sigmas=True where it has them."
    )


def own_scheduler(pipe: Pipeline) -> Any:
    """Return a copy of the pipeline's scheduler, so that setting timesteps leaves the user's untouched.

    FlowMatchHeunDiscreteScheduler (diffusers 0.42.1) takes neither sigmas nor a shift for the size, which most
    pipelines hand over all the same: its copy passes over them and keeps its own schedule.
    """
    scheduler = copy.deepcopy(pipe.scheduler)
    plain = scheduler.set_timesteps
    if "sigmas" not in inspect.signature(plain).parameters:

        def set_timesteps(
            num_inference_steps: int | None = None,
            device: Any = None,
            sigmas: Any = None,
            mu: float | None = None,
            **others: Any,
        ) -> None:
            plain(num_inference_steps if sigmas is None else len(sigmas), device=device, **others)

        scheduler.set_timesteps = set_timesteps
    return scheduler


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

    def scale_model_input(self, sample: Any, timestep: Any) -> Any:
        """Return the sample: BriaPipeline asks this of all but the parent class itself."""
        return sample


def exact_scheduler(pipe: Pipeline, sigmas: Sequence[float]) -> Any:
    """Return a scheduler that takes the pipeline through exactly these sigmas, the last of which is 0."""
    if hasattr(pipe.scheduler, "calculate_sigmas_dst"):
        return _exact_flow_map(pipe.scheduler, sigmas)
    return ExactScheduler(sigmas, pipe.scheduler.config.get("num_train_timesteps", 1000))


def _exact_flow_map(own: Any, sigmas: Sequence[float]) -> Any:
    """Return a copy of LakonLab's FlowMapSDEScheduler that holds these sigmas: one policy spans each step.

    Its own shift stays: it says where within a step the policy is asked (LakonLab, flow_map_sde.py).
    """
    scheduler = copy.deepcopy(own)

    def set_timesteps(num_inference_steps: int, seq_len: int | None = None, device: Any = None) -> None:
        scheduler.num_inference_steps = len(sigmas) - 1
        scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float32, device=device)
        scheduler.timesteps = scheduler.sigmas[:-1] * own.config.num_train_timesteps
        destinations, scheduler.m_vals = scheduler.calculate_sigmas_dst(scheduler.sigmas)
        scheduler.timesteps_dst = destinations * own.config.num_train_timesteps
        scheduler._step_index = scheduler._begin_index = None

    scheduler.set_timesteps = set_timesteps
    return scheduler
