"""How a picture is made: the numbers of the two passes, each described once, and what a model does by itself.

A field of Plan says in its metadata all that the doors need: its help, its bounds, what the command line and HTTP
call it. Options, request bodies, method texts and the docstring are made from that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any

from mrflow.checks import real, whole
from mrflow.errors import PlanError

MAX_STEPS = 1000
MAX_SCALE = 8.0
SOLVERS = ("dpm++2m", "unipc")
OWN = "own"
_MAX_DENOMINATOR = 8  # 1.5 = 3/2 and 1.333 = 4/3 pass; finer ratios would leave hardly any size that fits
_RATIO_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of one of a plan's numbers.

    text: in a sentence or two, for every door. more: for programmers. low, high: the bounds, themselves excluded
        where they stand in `open`. choices: of a text. hint: what to try instead.
    absent: what a file without the field means, whatever the default becomes; never to be changed.
    options, metavar: the command line's names for it. http: in requests, None where a client may not set it.
    """

    kind: type[int] | type[float] | type[str]
    text: str
    more: str = ""
    low: float = -math.inf
    high: float = math.inf
    open: tuple[float, ...] = ()
    choices: tuple[str, ...] = ()
    hint: str = ""
    absent: Any = None
    options: tuple[str, ...] = ()
    metavar: str = ""
    http: str | None = None

    def check(self, name: str, value: object) -> Any:
        """Return the value as Python's own number or text; raises PlanError."""
        if value is None and self.absent is None:
            return None
        if self.kind is str:
            if isinstance(value, str) and value in self.choices:
                return value
            raise PlanError(f"{name} is {value!r:.80}; it must be {self.hint}")
        number = whole(value) if self.kind is int else real(value)
        if number is None:
            kind = "whole number" if self.kind is int else "number"
            raise PlanError(f"{name} is {value!r:.80}; it must be a {kind}. {self.hint}")
        if not abs(number) < math.inf:  # also false for nan
            raise PlanError(f"{name} is {value!s:.80}; it must be finite. {self.hint}")
        if not self.low <= number <= self.high or number in self.open:
            raise PlanError(f"{name} is {value!s:.80}; it must {self._range()}. {self.hint}")
        return number

    def _range(self) -> str:
        if self.open == (self.low,):
            return f"lie above {self.low:g} and be at most {self.high:g}"
        return f"lie between {self.low:g} and {self.high:g}"


def _number(default: Any, **about: Any) -> Any:
    return field(default=default, metadata={"about": About(absent=default, **about)})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers of a staged run. Checked on creation: raises PlanError.

    Defaults: arXiv 2607.01642, its 12+1 setting.
    """

    steps: int = _number(
        12,
        kind=int,
        text="Steps of the draft.",
        more="On the model's own schedule. num_inference_steps in a call.",
        low=1,
        high=MAX_STEPS,
        hint="Try 12.",
        options=("--steps",),
        metavar="N",
        http="num_inference_steps",
    )
    refine_steps: int = _number(
        1,
        kind=int,
        text="Steps of the refine pass.",
        more="Euler's, from `refine_sigma` down to 0.",
        low=1,
        high=MAX_STEPS,
        hint="Try 1.",
        options=("--refine-steps",),
        metavar="M",
    )
    refine_sigma: float = _number(
        0.12,
        kind=float,
        text="Noise mixed in before refining, between 0 and 1; .16 to .20 helps small text.",
        more="The sigma at which it is really mixed in, whatever the checkpoint's shift.",
        low=0,
        high=1,
        open=(0, 1),
        hint="Try 0.12.",
        options=("--sigma", "--refine-sigma"),
        metavar="SIGMA",
        http="refine_sigma",
    )
    scale: float = _number(
        2.0,
        kind=float,
        text="How many times smaller the draft's sides are.",
        more="A ratio of small whole numbers.",
        low=1,
        high=MAX_SCALE,
        hint="Try 2.",
        options=("--scale",),
        metavar="RATIO",
    )
    guidance_scale: float | None = _number(
        None,
        kind=float,
        text="Of guidance-embedded checkpoints.",
        low=0,
        high=100,
        hint="Try 3.5.",
        http="guidance_scale",
    )
    true_cfg_scale: float | None = _number(
        None,
        kind=float,
        text="Classifier-free guidance with a negative prompt, two passes a step; 1 is none.",
        low=0,
        high=100,
        hint="Try 3.5.",
        options=("--true-cfg-scale",),
        metavar="G",
        http="true_cfg_scale",
    )
    refine_true_cfg_scale: float | None = _number(
        None,
        kind=float,
        text="The same for the refine pass.",
        more="None takes `true_cfg_scale`.",
        low=0,
        high=100,
        hint="Try 3.5.",
    )
    guidance_stop: float | None = _number(
        None,
        kind=float,
        text="Share of the draft's steps, from the first, with classifier-free guidance; the rest cost half.",
        more="Named as in diffusers' guiders; guidance matters at high noise (arXiv 2404.07724).",
        low=0,
        high=1,
        open=(0,),
        hint="Try 0.5; for no guidance at all set true_cfg_scale to 1.",
        options=("--guidance-stop",),
        metavar="SHARE",
        http="guidance_stop",
    )
    solver: str | None = _number(
        None,
        kind=str,
        text="What steps through the draft's sigmas: unipc or dpm++2m, of second order, or own, the pipeline's.",
        more="Both call the model once a step: UniPC (Zhao et al., arXiv 2302.04867) and DPM-Solver++ (Lu et al., "
        "arXiv 2211.01095), which from sigma 1 begins with two steps of Euler.",
        choices=(OWN, *SOLVERS),
        hint=f"{' or '.join(SOLVERS)}, or {OWN} for the pipeline's own scheduler.",
        options=("--solver",),
        metavar="NAME",
        http="solver",
    )

    def __post_init__(self) -> None:
        for name, about in ABOUT.items():
            object.__setattr__(self, name, about.check(name, getattr(self, name)))
        if abs(float(self.ratio) - self.scale) > _RATIO_TOLERANCE:
            raise PlanError(
                f"scale is {self.scale}; it must be a ratio of small whole numbers, such as 1.5, 2 or 3. "
                f"The nearest is {self.ratio} = {float(self.ratio):.4g}."
            )

    @property
    def guided(self) -> bool:
        """Whether either pass of a resolved plan runs classifier-free guidance."""
        return max(self.true_cfg_scale or 1.0, self.refine_true_cfg_scale or 1.0) > 1.0

    @property
    def guided_steps(self) -> int:
        """How many of the draft's steps run with classifier-free guidance, where the plan has any."""
        return math.ceil(self.steps * (1.0 if self.guidance_stop is None else self.guidance_stop) - 1e-9)

    @property
    def ratio(self) -> Fraction:
        """`scale` as an exact ratio, so that sizes divide without rounding."""
        return Fraction(self.scale).limit_denominator(_MAX_DENOMINATOR)

    @property
    def label(self) -> str:
        """The short name, "12+1": draft steps + refine steps."""
        return f"{self.steps}+{self.refine_steps}"

    def native(self, steps: int, *, guidance_stop: float | None = None, solver: str | None = None) -> Plan:
        """Return the plain pipeline's plan: guided in every step, by its own scheduler, unless given."""
        stop = 1.0 if guidance_stop is None else guidance_stop
        return replace(self, steps=steps, refine_true_cfg_scale=None, guidance_stop=stop, solver=solver)

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the values of `absent`, as plain JSON values: what a file holds of a plan."""
        values = {name: getattr(self, name) for name in ABOUT}
        return {name: value for name, value in values.items() if value != ABOUT[name].absent}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_dict` described, by any version so far; unknown fields raise PlanError."""
        if not isinstance(data, Mapping):
            raise PlanError(f"A plan is {type(data).__name__}; it must be an object with fields such as steps.")
        unknown = sorted(set(map(str, data)) - set(ABOUT))
        if unknown:
            raise PlanError(
                f"A plan has no field {unknown[0][:80]!r}. Its fields are {', '.join(ABOUT)}. "
                "If a later mrflow wrote it, upgrade mrflow."
            )
        return cls(**{name: about.absent for name, about in ABOUT.items()} | dict(data))


ABOUT: Mapping[str, About] = {each.name: each.metadata["about"] for each in fields(Plan)}
"""What is known of each of a plan's numbers, by its name."""

Plan.__doc__ = f"{Plan.__doc__}\n" + "\n".join(
    f"    {name}: {about.text} {about.more}".rstrip()
    + (" None takes the model's default." * (about.absent is None))
    for name, about in ABOUT.items()
)


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """A model's own defaults; what a call gives wins over them.

    width, height: pixels of the finished picture; 1024 x 1024 is what FLUX.1 was trained for.
    plan: of the staged run. Its guidance and its solver also fill in for plans where these are None.
    native_steps: of the plain pipeline; 50 is the baseline of arXiv 2607.01642.
    negative_prompt: used where classifier-free guidance runs and no other is given.
    max_sequence_length: text tokens; None keeps the pipeline's default.
    """

    width: int = 1024
    height: int = 1024
    plan: Plan = field(default_factory=Plan)
    native_steps: int = 50
    negative_prompt: str = ""
    max_sequence_length: int | None = None
