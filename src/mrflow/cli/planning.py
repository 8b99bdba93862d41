"""The options that make a plan, one for each of Plan's numbers that has names for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import make_dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter, Token

from mrflow.cli.options import HOW, Whole
from mrflow.errors import RequestError
from mrflow.plan import ABOUT, FINISHING, About, Plan, named_plan

if TYPE_CHECKING:
    from mrflow import MrFlow

_T = TypeVar("_T", bound="_PlanOptions")


def _option(about: About) -> Any:
    kind: Any = Whole if about.kind is int else about.kind
    read = about.each or (about.choices and about.kind is not str)
    if read:  # cyclopts holds what the converter makes against the type where pydantic is loaded
        kind = Any
    default = "the model's" if about.absent is None else "the plan's"
    more = Parameter(name=about.options, metavar=about.metavar, help=about.text, show_default=default)
    return Annotated[kind | None, more, Parameter(converter=partial(_to_value, about)) if read else None]


def _to_value(about: About, _kind: type, tokens: Sequence[Token]) -> Any:
    try:
        return about.read(tokens[0].value)
    except ValueError:
        kinds = ["whole number" if about.kind is int else "number"]
        kinds += [*(["one for each level, as in 1+2"] if about.each else []), *map(repr, about.choices)]
        raise ValueError(f"{tokens[0].value[:80]!r} is no {', nor '.join(kinds)}.") from None


_OPTIONS: dict[str, Any] = {
    "plan": Annotated[
        str | None,
        Parameter(
            alias="-p",
            metavar="N+M",
            help="Draft steps + refine steps, 3/4 for the first 3 of a few-step model's 4 small, or a file of "
            "mrflow tune; 'mrflow models' lists the presets.",
            show_default="the model's, usually 12+1",
        ),
    ],
    **{name: _option(about) for name, about in ABOUT.items() if about.options},
    "guidance": Annotated[
        float | None,
        Parameter(
            metavar="G",
            help="How closely to follow the prompt, in the way that the checkpoint is guided: "
            "guidance_scale where it has guidance embeddings, else true_cfg_scale.",
            show_default="the model's",
        ),
    ],
}


def _with(*names: str) -> Callable[[type[_T]], type[_T]]:
    """Return a decorator that adds those of these options that there are, as fields of a frozen dataclass."""

    def add(cls: type[_T]) -> type[_T]:
        fields = [(name, _OPTIONS[name], None) for name in _OPTIONS if name in names]
        about = {"__module__": cls.__module__, "__doc__": cls.__doc__}
        made = make_dataclass(cls.__name__, fields, bases=(cls,), frozen=True, kw_only=True, namespace=about)
        return Parameter(name="*", group=HOW)(made)

    return add


class _PlanOptions:
    """Options that make a plan, None where the plan's or the model's own value stands.

    Checked on creation: raises PlanError. Names as in Plan, except guidance: of the kind that the checkpoint
    takes.
    """

    plan: str | None = None
    guidance: float | None = None

    def __post_init__(self) -> None:
        self.outline()

    def outline(self) -> Plan:
        """Return the plan as far as it is known without a model; raises PlanError."""
        numbers = self._numbers("guidance_scale")
        if self.plan is None and "scales" not in numbers:  # how many levels, the model's or draft's plan will say
            numbers = {name: value for name, value in numbers.items() if not isinstance(value, tuple)}
        return named_plan(self.plan).changed(**numbers)

    def resolve(self, fast: MrFlow) -> Plan:
        """Return the plan for this model: the named one or the model's own, changed as the options say."""
        base = fast.model.defaults.plan if self.plan is None else named_plan(self.plan)
        return self.apply(fast, base)

    def apply(self, fast: MrFlow, base: Plan) -> Plan:
        """Return `base` with the options' numbers; `plan` plays no part."""
        return base.changed(**self._numbers(fast.model.backbone.guidance_field(fast.pipe)))

    def given(self) -> list[str]:
        """Return the names of the fields that were given."""
        return [name for name, value in vars(self).items() if value is not None]

    def _numbers(self, guidance_field: str) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in self.given() if name in ABOUT}
        if self.guidance is None:
            return numbers
        if "true_cfg_scale" in numbers and guidance_field == "true_cfg_scale":
            raise RequestError(
                "This model is guided by true_cfg_scale alone; give --guidance or --true-cfg-scale."
            )
        return {**numbers, guidance_field: self.guidance}


@_with(*_OPTIONS)
class PlanOptions(_PlanOptions):
    """All of them, for both passes, or for the plain pipeline instead."""

    steps: int | None
    guidance_stop: float | None
    solver: str | None

    def resolve_native(self, fast: MrFlow) -> Plan:
        """Return the plain pipeline's plan: guided in every step, with its own scheduler, unless told to."""
        return replace(self.resolve(fast), guidance_stop=self.guidance_stop, solver=self.solver)

    def check_native(self, flags: Mapping[str, bool] | None = None) -> None:
        """Raise RequestError for options that a run without stages could only ignore.

        flags: further options that make no sense there, and whether they were given.
        """
        given = [
            "--plan" if name == "plan" else ABOUT[name].options[0]
            for name in self.given()
            if name in ("plan", *FINISHING)
        ]
        given += [flag for flag, value in (flags or {}).items() if value]
        if given:
            raise RequestError(f"--native runs no stages, so it cannot go with {', '.join(given)}. Leave one out.")


@_with(*FINISHING)
class RefineOptions(_PlanOptions):
    """Those of finishing a draft."""


@_with(*FINISHING, "true_cfg_scale", "guidance")
class EnhanceOptions(_PlanOptions):
    """Those of finishing a picture that has no plan yet."""
