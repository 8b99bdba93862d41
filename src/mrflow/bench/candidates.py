"""What a search tries: plans around the model's own, and native runs with few steps, always."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from mrflow.bench.methods import Method
from mrflow.plan import Plan

SOLVER = "unipc"
"""The one of second order that is tried: on vista it is nearer to the path of 60 steps (docs/log.md)."""
_STEPS = (1 / 2, 2 / 3, 1)  # of the reference's; what lies above cannot be faster
_SOLVER_STEPS = (1 / 3, 1 / 2, 2 / 3)  # what it is for; with as many steps it can only be better, not faster
_NATIVE = (0.1, 0.16, 0.25)
_NATIVE_SOLVER = (0.1, 0.16)
_SIGMAS = (0.2,)  # the larger of what the authors advise; the reference's own is tried too
_STOP = 0.5  # of the steps that the reference guides: arXiv 2404.07724 finds the late steps better without


def make_candidates(
    reference: Plan, native_steps: int, *, solvers: bool = True, own: Plan | None = None
) -> list[Method]:
    """Return plans made from a resolved one, other than itself, and native runs: fewer than 30.

    Fewer steps, fewer still with a solver of second order, a larger sigma, guidance in half as many of the draft's
    steps and none in the refine pass; the latter only where there is guidance to save. solvers: whether the
    pipeline takes any. own: the model's plan, which a method's text changes; None is the reference.
    """
    paces = {(_part(reference.steps, share), reference.solver) for share in _STEPS}
    few: list[tuple[int, str | None]] = [(_part(native_steps, share), None) for share in _NATIVE]
    if solvers:
        paces |= {(_part(reference.steps, share), SOLVER) for share in _SOLVER_STEPS}
        few += [(_part(native_steps, share), SOLVER) for share in _NATIVE_SOLVER]
    plans = [
        replace(
            reference,
            steps=steps,
            solver=solver,
            refine_sigma=sigma,
            guidance_stop=stop,
            refine_true_cfg_scale=refine_cfg,
        )
        for (steps, solver), sigma, (stop, refine_cfg) in product(
            sorted(paces, key=str), sorted({reference.refine_sigma, *_SIGMAS}), _guidances(reference)
        )
    ]
    staged = [Method(name=name_plan(plan, own or reference), plan=plan) for plan in plans if plan != reference]
    return [*staged, *(_native(*each) for each in dict.fromkeys(few))]


def _part(steps: int, share: float) -> int:
    return max(1, round(steps * share))


def _guidances(reference: Plan) -> list[tuple[float | None, float | None]]:
    """Return what `guidance_stop` and `refine_true_cfg_scale` may be: the reference's, and less where possible."""
    own = (reference.guidance_stop, reference.refine_true_cfg_scale)
    if (reference.true_cfg_scale or 1.0) <= 1:
        return [own]
    stop = 1.0 if reference.guidance_stop is None else reference.guidance_stop
    return [own, (_STOP * stop, 1.0)]


def _native(steps: int, solver: str | None) -> Method:
    name = f"native:{steps}" if solver is None else f"native:{steps},solver={solver}"
    return Method(name=name, steps=steps, solver=solver)


def name_plan(plan: Plan, own: Plan) -> str:
    """Return a plan's name by what differs from the model's own, as a method's text."""
    other = own.to_dict()
    changes = [
        f"{name}={value}" if isinstance(value, str) else f"{name}={value:g}"
        for name, value in plan.to_dict().items()
        if value is not None and value != other[name] and name not in ("steps", "refine_steps")
    ]
    return f"{plan.label}:{','.join(changes)}" if changes else plan.label
