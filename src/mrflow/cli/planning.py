"""From options to a size and a plan. What needs no model is checked before one is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mrflow.errors import RequestError
from mrflow.plan import Plan, named_plan

if TYPE_CHECKING:
    from mrflow import MrFlow

_STAGED_ONLY = {
    "plan": "--plan",
    "refine_steps": "--refine-steps",
    "refine_sigma": "--sigma",
    "scale": "--scale",
}


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """The options that make a plan, None where the plan's or the model's own value stands.

    Checked on creation: raises PlanError. Names as in Plan, except guidance: of the kind that the checkpoint
    takes.
    """

    plan: str | None = None
    steps: int | None = None
    refine_steps: int | None = None
    refine_sigma: float | None = None
    scale: float | None = None
    guidance: float | None = None
    true_cfg_scale: float | None = None
    guidance_stop: float | None = None
    solver: str | None = None

    def __post_init__(self) -> None:
        replace(named_plan(self.plan), **self._numbers("guidance_scale"))

    def resolve(self, fast: MrFlow) -> Plan:
        """Return the plan for this model: the named one or the model's own, changed as the options say."""
        base = fast.model.defaults.plan if self.plan is None else named_plan(self.plan)
        return self.apply(fast, base)

    def resolve_native(self, fast: MrFlow) -> Plan:
        """Return the same for the plain pipeline: guided in every step, with its own scheduler, unless told to."""
        return replace(self.resolve(fast), guidance_stop=self.guidance_stop, solver=self.solver)

    def apply(self, fast: MrFlow, base: Plan) -> Plan:
        """Return `base` with the options' numbers; `plan` plays no part."""
        return replace(base, **self._numbers(fast.model.backbone.guidance_field(fast.pipe)))

    def given(self) -> list[str]:
        """Return the names of the fields that were given."""
        return [name for name, value in vars(self).items() if value is not None]

    def _numbers(self, guidance_field: str) -> dict[str, Any]:
        if self.guidance is not None and self.true_cfg_scale is not None and guidance_field == "true_cfg_scale":
            raise RequestError(
                "This model is guided by true_cfg_scale alone; give --guidance or --true-cfg-scale."
            )
        numbers = {
            "steps": self.steps,
            "refine_steps": self.refine_steps,
            "refine_sigma": self.refine_sigma,
            "scale": self.scale,
            "true_cfg_scale": self.true_cfg_scale,
            "guidance_stop": self.guidance_stop,
            "solver": self.solver,
        }
        if self.guidance is not None:
            numbers[guidance_field] = self.guidance
        return {name: value for name, value in numbers.items() if value is not None}


def check_native(plans: PlanOptions, flags: Mapping[str, bool] | None = None) -> None:
    """Raise RequestError for options that a run without stages could only ignore.

    flags: further options that make no sense there, and whether they were given.
    """
    given = [_STAGED_ONLY[name] for name in plans.given() if name in _STAGED_ONLY]
    given += [flag for flag, value in (flags or {}).items() if value]
    if given:
        raise RequestError(f"--native runs no stages, so it cannot go with {', '.join(given)}. Leave one out.")
