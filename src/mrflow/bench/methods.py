"""What can be measured against each other: the plain pipeline with some steps, and plans, written as short texts.

native            the plain pipeline, the model's own number of steps
native:25         with 25
12+1              a plan: draft steps + refine steps
12+1:scale=1.5,refine_sigma=0.2     with other fields of Plan
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from mrflow.errors import PlanError, RequestError
from mrflow.plan import Plan, get_plan

if TYPE_CHECKING:
    from mrflow.pipeline import MrFlow
    from mrflow.results import Result

_WARM_STEPS = 2  # of a warm-up: every kernel and buffer of a step is used, without the other 48
_FIELDS = tuple(item.name for item in fields(Plan))


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of making pictures. name: the text it was read from. plan: None for the plain pipeline.

    steps: of the plain pipeline; None is the model's own number.
    """

    name: str
    plan: Plan | None = None
    steps: int | None = None

    @property
    def kind(self) -> str:
        """Return "native" or "staged"."""
        return "native" if self.plan is None else "staged"

    def run(self, fast: MrFlow, **settings: Any) -> Result:
        """Return the pictures; settings: what MrFlow's verbs take, without plan and steps."""
        if self.plan is None:
            return fast.native(steps=self.steps, **settings)
        return fast(plan=self.plan, **settings)

    def shortened(self) -> Method:
        """Return the same with so few steps that it warms everything up cheaply."""
        if self.plan is None:
            return replace(self, steps=min(_WARM_STEPS, self.steps or _WARM_STEPS))
        return replace(self, plan=replace(self.plan, steps=min(_WARM_STEPS, self.plan.steps)))


def read_methods(texts: Sequence[str]) -> list[Method]:
    """Return the methods in order; raises PlanError for what is none, RequestError for none or one given twice."""
    if not texts:
        raise RequestError("There are 0 methods; give at least one, such as native or 12+1.")
    methods = [_read(text.strip()) for text in texts]
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"The method {name} is given twice. Leave one out; --repeats measures it again.")
    return methods


def _read(text: str) -> Method:
    head, _, tail = text.partition(":")
    if head == "native":
        return Method(name=text, steps=_read_steps(text, tail) if ":" in text else None)
    changes: dict[str, Any] = dict(_read_change(text, part) for part in tail.split(",")) if ":" in text else {}
    return Method(name=text, plan=replace(get_plan(head), **changes))


def _read_steps(text: str, number: str) -> int:
    if not re.fullmatch(r"\d{1,4}", number, flags=re.ASCII):
        raise PlanError(f"The method is {text[:80]!r}; after native: comes a number of steps, such as native:25.")
    return Plan(steps=int(number)).steps


def _read_change(text: str, part: str) -> tuple[str, float | int]:
    name, _, value = part.partition("=")
    if name not in _FIELDS:
        raise PlanError(f"The method {text[:80]!r} has {name[:40]!r}; after : come {', '.join(_FIELDS)}, each =.")
    try:
        return name, int(value) if name in ("steps", "refine_steps") else float(value)
    except ValueError:
        raise PlanError(f"The method {text[:80]!r} gives {name} as {value[:40]!r}; it must be a number.") from None
