"""What a search tries: plans around the model's own, and native runs with few steps, always."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from mrflow.bench.methods import Method
from mrflow.plan import Plan

_STEPS = (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)  # of the reference's; what lies above cannot be faster
_NATIVE = (0.1, 0.16, 0.25)
_SIGMAS = (0.2,)  # the larger of what the authors advise; the reference's own is tried too
_STOP = 0.5
"""Guidance in the first half of the draft alone: arXiv 2404.07724 finds the late steps better without."""


def make_candidates(reference: Plan, native_steps: int) -> list[Method]:
    """Return plans made from a resolved one, other than itself, and native runs.

    Fewer steps, a larger sigma, guidance in half of the draft's steps, none in the refine pass; the latter two
    only where there is guidance to save.
    """
    guided = (reference.true_cfg_scale or 1.0) > 1
    steps = sorted({max(1, round(reference.steps * share)) for share in _STEPS})
    axes: dict[str, list[Any]] = {
        "steps": steps,
        "refine_sigma": sorted({reference.refine_sigma, *_SIGMAS}),
        "guidance_stop": [reference.guidance_stop, _STOP] if guided else [reference.guidance_stop],
        "refine_true_cfg_scale": sorted({reference.refine_true_cfg_scale or 1.0, 1.0}) if guided else [None],
    }
    plans = [replace(reference, **dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
    staged = [Method(name=name_plan(plan, reference), plan=plan) for plan in plans if plan != reference]
    few = sorted({max(1, round(native_steps * share)) for share in _NATIVE})
    return [*staged, *(Method(name=f"native:{count}", steps=count) for count in few)]


def name_plan(plan: Plan, reference: Plan) -> str:
    """Return a plan's name by what differs from the reference's, as a method's text."""
    own, other = plan.to_dict(), reference.to_dict()
    changes = [
        f"{name}={value:g}"
        for name, value in own.items()
        if value is not None and value != other[name] and name not in ("steps", "refine_steps")
    ]
    return f"{plan.label}:{','.join(changes)}" if changes else plan.label
