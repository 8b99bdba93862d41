"""The schedulers of the two passes: a copy of the pipeline's own for the draft, plain Euler for refining.

A plan may name a solver of second order for the draft, which then steps over the sigmas of that copy.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from mrflow.backbones.family import Pipeline
from mrflow.errors import PlanError, RequestError
from mrflow.plan import OWN

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 2}
_SOLVERS: Mapping[str, Callable[[], Any]] = {
    "dpm++2m": lambda: DPMSolverMultistepScheduler(**_FLOW),
    "unipc": lambda: UniPCMultistepScheduler(**_FLOW),
}
_REPLACEABLE = (FlowMatchEulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler)
_WHY_WHOLE = {  # what keeps a schedule from being cut in two
    "FlowMatchHeunDiscreteScheduler": "which asks the model twice a step and takes no shift for the size",
    "FlowMatchLCMScheduler": "which draws noise anew at every step",
    "FlowMapSDEScheduler": "whose network was taught each of its steps whole",
}
_FARTHEST = 1 - 1e-6
"""The highest sigma UniPC is given, as by diffusers itself: at 1 the signal's logarithm is infinite."""


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
    pipelines hand over all the same: its copy passes over them and keeps its own schedule. A schedule of one step
    goes from noise to picture: `shift_terminal` cannot move its end as well (0/0 in diffusers 0.42.1).
    """
    scheduler = copy.deepcopy(pipe.scheduler)
    if (stretch := getattr(scheduler, "stretch_shift_to_terminal", None)) is not None:
        scheduler.stretch_shift_to_terminal = lambda sigmas: sigmas if len(sigmas) == 1 else stretch(sigmas)
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


def takes_solver(pipe: Pipeline) -> bool:
    """Return whether a solver can stand in for the pipeline's scheduler.

    It can for those that step along the flow itself and call the model once a step. Distilled ones (LCM, flow
    maps, pi-Flow) jump by what the model was trained to give; a class of somebody's own may do anything.
    """
    known = getattr(type(pipe.scheduler), "step", None) in [each.step for each in _REPLACEABLE]
    return known and not _oddity(pipe.scheduler)


def _oddity(scheduler: Any) -> str:
    return next((name for name in ("stochastic_sampling", "invert_sigmas") if scheduler.config.get(name)), "")


def resolve_solver(pipe: Pipeline, solver: str | None, usual: str | None) -> str | None:
    """Return a plan's solver, or where it names none `usual`, which stands in for plain Euler alone.

    Raises PlanError where `solver` cannot stand in for the pipeline's scheduler.
    """
    if solver == OWN or (solver is not None and takes_solver(pipe)):
        return solver
    if solver is None:
        plain = takes_solver(pipe) and isinstance(pipe.scheduler, FlowMatchEulerDiscreteScheduler)
        return usual if plain else None
    raise PlanError(
        f"solver is {solver!r}; it can stand in for {', '.join(each.__name__ for each in _REPLACEABLE)}, and the "
        f"pipeline's scheduler is {_kind(pipe)}. Leave solver out, or give the pipeline one of these."
    )


def check_switch(pipe: Pipeline) -> None:
    """Raise PlanError where the pipeline's schedule cannot be gone on with at another size."""
    if takes_solver(pipe):
        return
    kind = _kind(pipe)
    raise PlanError(
        f"refine_sigma is 'switch'; the pipeline's scheduler is {kind}, "
        f"{_WHY_WHOLE.get(kind, 'which may do otherwise than step along the flow')}. Give a number, such as 0.12."
    )


def _kind(pipe: Pipeline) -> str:
    odd = _oddity(pipe.scheduler)
    return type(pipe.scheduler).__name__ + (f" with {odd}" if odd else "")


def draft_scheduler(pipe: Pipeline, solver: str | None = None, part: slice | None = None) -> Any:
    """Return a copy of the pipeline's scheduler, whose steps are the solver's if a plan names one.

    Everything that a pipeline asks or reads stays the copy's own: class, configuration, sigmas, timesteps. The
    solver has its own list of all steps, for it treats the last ones otherwise, and keeps what it remembers of
    earlier steps where the copy is led through them in two runs (`take_head`, `take_tail`).
    part: the steps that it takes of those it is set to, the last of which then ends where the schedule does, at 0:
    from the first ones that is the model's own clean estimate, latents - sigma * velocity, in each of the solvers.
    """
    scheduler = own_scheduler(pipe)
    if part is not None:
        _take_part(scheduler, part)
    if solver in (None, OWN):
        return scheduler
    set_own, stepping = scheduler.set_timesteps, _SOLVERS[solver]()

    @wraps(set_own)  # pipelines look its arguments up before they use them
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        nonlocal stepping
        set_own(*args, **kwargs)
        stepping = _over(_SOLVERS[solver](), scheduler)

    @wraps(scheduler.step)
    def step(
        model_output: Tensor, timestep: Any, sample: Tensor, *_: Any, return_dict: bool = True, **__: Any
    ) -> Any:
        made = stepping.step(model_output.float(), timestep, sample.float(), return_dict=False)[0]
        made = made.to(model_output.dtype)  # as plain Euler (diffusers 0.42.1) gives it
        return SchedulerOutput(prev_sample=made) if return_dict else (made,)

    scheduler.set_timesteps, scheduler.step = set_timesteps, step
    return scheduler


def _take_part(scheduler: Any, part: slice) -> None:
    set_whole = scheduler.set_timesteps

    @wraps(set_whole)  # pipelines look its arguments up before they use them
    def set_part(*args: Any, **kwargs: Any) -> None:
        set_whole(*args, **kwargs)
        scheduler.timesteps = scheduler.timesteps[part]
        scheduler.sigmas = torch.cat([scheduler.sigmas[:-1][part], scheduler.sigmas[-1:]])
        scheduler.num_inference_steps = len(scheduler.timesteps)

    scheduler.set_timesteps = set_part


def _over(solver: Any, scheduler: Any) -> Any:
    """Return a new solver set to the scheduler's sigmas; its `set_timesteps` would make sigmas of its own.

    Raises PlanError for sigmas that do not fall with every step, over which none of them is defined.
    """
    sigmas = scheduler.sigmas.to("cpu", torch.float32)  # as diffusers keeps a solver's
    if not bool((sigmas.diff() < 0).all()):
        raise PlanError(
            f"The sigmas of {type(scheduler).__name__} do not fall with every one of {len(sigmas) - 1} steps; "
            "a solver needs that. Leave solver out, or take fewer steps."
        )
    solver.sigmas = sigmas.clamp(max=_FARTHEST) if isinstance(solver, UniPCMultistepScheduler) else sigmas
    solver.timesteps = scheduler.timesteps
    solver.num_inference_steps = len(scheduler.timesteps)
    solver.set_begin_index(0)
    return solver


def take_head(scheduler: Any, steps: int) -> None:
    """Make a draft's scheduler end after its first `steps` steps; `take_tail` then lets it go on.

    Not by interrupting the pipeline: not all can be, and those that can still run to the end of their loop.
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


def take_tail(scheduler: Any) -> None:
    """Make the scheduler of a `take_head` go on with the steps that are left."""

    @wraps(scheduler.set_timesteps)
    def set_tail(*args: Any, **kwargs: Any) -> None:
        scheduler.timesteps = scheduler.tail

    scheduler.set_timesteps = set_tail


class ExactScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]  # untyped, hence Any
    """Plain Euler over the sigmas it was made with, whatever a pipeline asks of it.

    It is built afresh from the number of training timesteps alone: a copy of the checkpoint's configuration
    with shifts switched off would still carry keys such as `use_flow_sigmas`, for which FluxPipeline
    (diffusers 0.42.1) drops a caller's sigmas. It holds the sigmas itself because a pipeline may make its own
    for a caller who gives none, and some (PRX, ERNIE-Image, Bria) for every caller.
    """

    def __init__(
        self,
        sigmas: Sequence[float] = (1.0, 0.0),
        num_train_timesteps: int = 1000,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Make a schedule of `sigmas`, which end at 0.

        timesteps: what the transformer is told at each but the last; by default sigma * num_train_timesteps.
        """
        super().__init__(num_train_timesteps=num_train_timesteps)
        self._own_timesteps = timesteps  # where a family pairs otherwise: Backbone.timesteps
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
        super().set_timesteps(sigmas=self._exact, device=device, timesteps=self._own_timesteps)

    def scale_model_input(self, sample: Any, timestep: Any) -> Any:
        """Return the sample: BriaPipeline asks this of all but the parent class itself."""
        return sample


def exact_scheduler(pipe: Pipeline, sigmas: Sequence[float], timesteps: Sequence[float] | None = None) -> Any:
    """Return a scheduler that takes the pipeline through exactly these sigmas, the last of which is 0.

    timesteps: what the transformer is told at each but the last, where a family has its own (Backbone.timesteps).
    """
    if hasattr(pipe.scheduler, "calculate_sigmas_dst"):
        return _exact_flow_map(pipe.scheduler, sigmas)
    return ExactScheduler(sigmas, pipe.scheduler.config.get("num_train_timesteps", 1000), timesteps)


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
