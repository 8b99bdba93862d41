"""How a picture is made: the numbers of the two passes, checked once, and the published presets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from mrflow.errors import PlanError

MAX_STEPS = 1000
MAX_SCALE = 8.0
MAX_GUIDANCE = 100.0
SOLVERS = ("dpm++2m", "unipc")
OWN = "own"
_MAX_DENOMINATOR = 8  # 1.5 = 3/2 and 1.333 = 4/3 pass; finer ratios would leave hardly any size that fits
_RATIO_TOLERANCE = 1e-3


def _check_count(name: str, value: object, *, hint: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"{name} is {value!r}; it must be a whole number. {hint}")
    if not 1 <= value <= MAX_STEPS:
        raise PlanError(f"{name} is {value}; it must lie between 1 and {MAX_STEPS}. {hint}")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PlanError(f"{name} is {value!r}; it must be a number.")
    if not abs(value) < math.inf:  # also false for nan; math.isfinite fails on huge integers
        raise PlanError(f"{name} is {value}; it must be finite.")


def _check_guidance(name: str, value: float | None) -> None:
    if value is None:
        return
    _check_number(name, value)
    if not 0 <= value <= MAX_GUIDANCE:
        raise PlanError(f"{name} is {value}; it must lie between 0 and {MAX_GUIDANCE:g}. Try 3.5.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers of a staged run. Checked on creation: raises PlanError.

    steps: steps of the draft, 1 to 1000, on the model's own schedule.
    refine_steps: Euler steps of the refine pass, from `refine_sigma` down to 0.
    refine_sigma: the sigma at which noise is really mixed in, in (0, 1), whatever the checkpoint's shift.
    scale: final side / draft side, 1 to 8, a ratio of small whole numbers.
    guidance_scale: for guidance-embedded checkpoints; None takes the model's default.
    true_cfg_scale: classifier-free guidance with a negative prompt; 1 is none; None takes the model's default.
    refine_true_cfg_scale: the same for the refine pass; None takes `true_cfg_scale`.
    guidance_stop: the share of the draft's steps, from the first, with classifier-free guidance, in (0, 1]; the
        rest run without it, at half the cost. None takes the model's default, usually 1. Named as in diffusers'
        guiders; guidance matters at high noise (Kynkaanniemi et al., arXiv 2404.07724).
    solver: what takes the draft from one sigma of the model's own schedule to the next; "own" is the pipeline's
        own scheduler, usually Euler, and None takes the model's default, usually that. Both solvers are of second
        order and call the model once a step: "unipc" (Zhao et al., arXiv 2302.04867) and "dpm++2m" (Lu et al.,
        arXiv 2211.01095), which from sigma 1 begins with two steps of Euler.

    Defaults: arXiv 2607.01642, its 12+1 setting.
    """

    steps: int = 12
    refine_steps: int = 1
    refine_sigma: float = 0.12
    scale: float = 2.0
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    refine_true_cfg_scale: float | None = None
    guidance_stop: float | None = None
    solver: str | None = None

    def __post_init__(self) -> None:
        _check_count("steps", self.steps, hint="Try 12.")
        _check_count("refine_steps", self.refine_steps, hint="Try 1.")
        _check_number("refine_sigma", self.refine_sigma)
        if not 0 < self.refine_sigma < 1:
            raise PlanError(f"refine_sigma is {self.refine_sigma}; it must lie between 0 and 1. Try 0.12.")
        _check_number("scale", self.scale)
        if not 1 <= self.scale <= MAX_SCALE:
            raise PlanError(f"scale is {self.scale}; it must lie between 1 and {MAX_SCALE:g}. Try 2.")
        if abs(float(self.ratio) - self.scale) > _RATIO_TOLERANCE:
            raise PlanError(
                f"scale is {self.scale}; it must be a ratio of small whole numbers, such as 1.5, 2 or 3. "
                f"The nearest is {self.ratio} = {float(self.ratio):.4g}."
            )
        for name in ("guidance_scale", "true_cfg_scale", "refine_true_cfg_scale"):
            _check_guidance(name, getattr(self, name))
        if self.guidance_stop is not None:
            _check_number("guidance_stop", self.guidance_stop)
            if not 0 < self.guidance_stop <= 1:
                raise PlanError(
                    f"guidance_stop is {self.guidance_stop}; it must lie above 0 and be at most 1. Try 0.5; "
                    "for no guidance at all set true_cfg_scale to 1."
                )
        if self.solver is not None and not (isinstance(self.solver, str) and self.solver in (OWN, *SOLVERS)):
            raise PlanError(
                f"solver is {self.solver!r:.80}; it must be {' or '.join(SOLVERS)}, or {OWN} for the "
                "pipeline's own scheduler."
            )

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
        """Return the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_dict` described; unknown fields raise PlanError."""
        if not isinstance(data, Mapping):
            raise PlanError(f"A plan is {type(data).__name__}; it must be an object with fields such as steps.")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(map(str, data)) - set(known))
        if unknown:
            raise PlanError(f"A plan has no field {unknown[0][:80]!r}. Its fields are {', '.join(known)}.")
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published plan: its name, when to take it and where its numbers come from."""

    name: str
    plan: Plan
    about: str
    source: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                name="12+1",
                plan=Plan(steps=12),
                about="fast: 8.25 times faster than 50 steps on FLUX.1-dev, 10.3 times on Qwen-Image",
                source="arXiv 2607.01642: FLUX.1-dev GenEval .66 -> .63; Qwen-Image .88 -> .86",
            ),
            Preset(
                name="20+1",
                plan=Plan(steps=20),
                about="careful: 5.78 times faster on FLUX.1-dev, 6.98 times on Qwen-Image",
                source="arXiv 2607.01642: FLUX.1-dev GenEval .66 -> .65; Qwen-Image .88 -> .87",
            ),
            Preset(
                name="4+1",
                plan=Plan(steps=4),
                about="for few-step distilled checkpoints: 25.1 times on Qwen-Image with Pi-Flow, 11.3 on FLUX.1",
                source="arXiv 2607.01642: Qwen-Image + Pi-Flow GenEval .85; FLUX.1 + Pi-Flow .69",
            ),
            Preset(
                name="schnell-4+1",
                plan=Plan(steps=4, true_cfg_scale=1.0),
                about="FLUX.1-schnell in the steps it was distilled for",
                source="steps, no guidance: diffusers 0.42.1, pipeline_flux.py; no staged figures published",
            ),
            Preset(
                name="schnell-1+1",
                plan=Plan(steps=1, true_cfg_scale=1.0),
                about="FLUX.1-schnell at its fastest: 19.5 times faster than FLUX.1-dev",
                source="arXiv 2607.01642: GenEval .71",
            ),
            Preset(
                name="z-image-turbo-8+1",
                plan=Plan(steps=8, true_cfg_scale=1.0),
                about="Z-Image-Turbo: 21.0 times faster",
                source="arXiv 2607.01642; steps, no guidance: diffusers 0.42.1, pipeline_z_image.py, example. "
                "The paper's sigma there is an index into a schedule; ours is .12 itself",
            ),
            Preset(
                name="klein-4+1",
                plan=Plan(steps=4, true_cfg_scale=1.0),
                about="FLUX.2 Klein, step-distilled",
                source="steps: fal.ai/learn/devs/flux-2-klein-user-guide; no guidance: diffusers 0.42.1, "
                "pipeline_flux2_klein.py, is_distilled; no staged figures published",
            ),
            Preset(
                name="krea-2-turbo-8+1",
                plan=Plan(steps=8, true_cfg_scale=1.0),
                about="Krea 2 Turbo, step-distilled",
                source="steps, no guidance: diffusers 0.42.1, pipeline_krea2.py; no staged figures published",
            ),
            *(
                Preset(
                    name=f"qwen-image-lightning-{steps}+1",
                    plan=Plan(steps=steps, true_cfg_scale=1.0),
                    about=f"Qwen-Image with the {steps}-step Lightning LoRA and the scheduler its card gives",
                    source="no guidance, shift 3: huggingface.co/lightx2v/Qwen-Image-Lightning; "
                    "no staged figures published",
                )
                for steps in (4, 8)
            ),
        )
    }
)

DEFAULT_PLAN = PRESETS["12+1"].plan


def get_plan(plan: Plan | str | None = None) -> Plan:
    """Return a plan from a preset's name, any "N+M" text, a Plan (as it is) or None (12+1).

    Raises PlanError for other text, naming the presets.
    """
    if plan is None:
        return DEFAULT_PLAN
    if isinstance(plan, Plan):
        return plan
    if not isinstance(plan, str):
        raise PlanError(f"plan is {type(plan).__name__}; it must be a Plan or a name such as '12+1'.")
    name = plan.strip()
    if name in PRESETS:
        return PRESETS[name].plan
    match = re.fullmatch(r"(\d{1,4})\s*\+\s*(\d{1,4})", name, flags=re.ASCII)
    if match is None:
        raise PlanError(
            f"There is no plan {name[:80]!r}. Known: {', '.join(PRESETS)}; "
            "or give your own as draft steps + refine steps, such as '16+1'."
        )
    return Plan(steps=int(match[1]), refine_steps=int(match[2]))
