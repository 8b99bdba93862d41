"""How a picture is made: the numbers of the two passes, each described once; published plans, and those in files.

plan.toml says of each field of Plan all that the doors need: its help, its bounds, what the command line and HTTP
call it. Options, request bodies, method texts and the docstring are made from that.

`mrflow tune` writes plans into files, which only commands read: a name in a row of prompts or in a request is
never taken for a path.

    {"format": 1, "plan": {"steps": 8, "refine_sigma": 0.2, ...}, "measured": {...}}
"""

from __future__ import annotations

import json
import math
import operator
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from mrflow.errors import PlanError

OWN, NATIVE = "own", "native"
UPSCALER = "upscaler"
AUTO, SWITCH = "auto", "switch"
WHOLE = "whole"
_MAX_DENOMINATOR = 8  # 1.5 = 3/2 and 1.333 = 4/3 pass; finer ratios would leave hardly any size that fits
_RATIO_TOLERANCE = 1e-3
_MOST_LEVELS = 4  # 8192 from 512; a cascade of more would be of levels that hardly enlarge

FORMAT = 1  # of plan files
SUFFIX = ".json"
_MAX_BYTES = 2**20


def whole(value: object) -> int | None:
    """Return a whole number as Python's own, or None for anything else; a truth value is no number."""
    if _is_truth(value):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]  # asked, not told
    except (TypeError, ValueError, RuntimeError):  # the last from a tensor of several values
        return None


def real(value: object) -> float | None:
    """Return a number as a Python float, or None for anything else, text among it. May be infinite or nan."""
    number: Any = value
    if _is_truth(value) or not hasattr(number, "__float__") or getattr(number, "shape", None):
        return None
    try:
        return float(number)
    except OverflowError:  # an integer beyond all floats, and yet finite
        return sys.float_info.max if number > 0 else -sys.float_info.max
    except (TypeError, ValueError, RuntimeError):
        return None


def shown(value: object) -> str:
    """Return a value as messages show it, short, also one that can't be written out, as no huge number can."""
    try:
        return (str(value) if hasattr(value, "__float__") else repr(value))[:80]
    except Exception:  # anybody's own __repr__
        return f"a {type(value).__name__} that can't be shown"


def written(value: object) -> str:
    """Return one of a plan's numbers as texts have it: 0.2, unipc, or 2+2, one for each level; None is empty."""
    if isinstance(value, tuple):
        return "+".join(map(written, value))
    return "" if value is None else value if isinstance(value, str) else f"{value:g}"


def _is_truth(value: object) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of one of a plan's numbers.

    text: in a sentence or two, for every door. more: for programmers. low, high: the bounds, themselves excluded
        where they stand in `open`. choices: of a text, or words that may stand for a number. hint: what to try
        instead.
    absent: what a file without the field means, whatever the default becomes; never to be changed.
    options, metavar: the command line's names for it. http: in requests, None where a client may not set it.
    finishes: whether it is of the steps after the draft, so that finishing may change it.
    each: whether a list, or a text such as 2+2, may give one for each level.
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
    finishes: bool = False
    each: bool = False

    def check(self, name: str, value: object) -> Any:
        """Return the value as Python's own number or text; raises PlanError."""
        if value is None and self.absent is None:
            return None
        if self.each and isinstance(value, str) and "+" in value:
            with suppress(ValueError):
                value = self.read(value)
        if self.each and isinstance(value, list | tuple):
            single = replace(self, each=False, absent=self.low)  # for which None is nothing
            return tuple(single.check(name, one) for one in value)
        if isinstance(value, str) and value in self.choices:
            return value
        if self.kind is str:
            raise PlanError(f"{name} is {shown(value)}; it must be {self.hint}")
        number = whole(value) if self.kind is int else real(value)
        if number is None:
            kinds = ["a whole number" if self.kind is int else "a number", *self.choices]
            raise PlanError(f"{name} is {shown(value)}; it must be {' or '.join(kinds)}. {self.hint}")
        if not abs(number) < math.inf:  # also false for nan
            raise PlanError(f"{name} is {shown(value)}; it must be finite. {self.hint}")
        if not self.low <= number <= self.high or number in self.open:
            raise PlanError(f"{name} is {shown(value)}; it must {self._range()}. {self.hint}")
        return number

    def read(self, text: str) -> Any:
        """Return a text as one of its words, or as a number, or several; raises ValueError for what is neither."""
        if self.each and "+" in text:
            return tuple(self.read(part.strip()) for part in text.split("+"))
        return text if text in self.choices else self.kind(text)

    def typed(self, kind: Any) -> Any:
        """Return the type of its values: `kind`, which stands for its own, or one of the words beside numbers."""
        return kind | Literal[self.choices] if self.choices and self.kind is not str else kind

    def _range(self) -> str:
        if self.open == (self.low,):
            return f"lie above {self.low:g} and be at most {self.high:g}"
        return f"lie between {self.low:g} and {self.high:g}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The numbers of a staged run. Checked on creation: raises PlanError.

    Defaults: arXiv 2607.01642, its 12+1 setting.
    """

    steps: int = 12
    refine_steps: int | tuple[int, ...] = 1
    refine_sigma: float | str | tuple[float | str, ...] = 0.12
    scale: float = 2.0
    scales: tuple[float, ...] | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    refine_true_cfg_scale: float | None = None
    guidance_stop: float | None = None
    solver: str | None = None
    noise: str = NATIVE
    lift: str = UPSCALER
    color_guard: float = 0.0
    tile: int | str | None = None

    def __post_init__(self) -> None:
        for name, about in ABOUT.items():
            object.__setattr__(self, name, about.check(name, getattr(self, name)))
        if self.scales is not None:
            self._check_scales()
        for scale in self._scales:
            if abs(float(near := _exact(scale)) - scale) > _RATIO_TOLERANCE:
                raise PlanError(
                    f"scale is {scale}; it must be a ratio of small whole numbers, such as 1.5, 2 or 3. "
                    f"The nearest is {near} = {float(near):.4g}."
                )
        self._check_each()

    def _check_scales(self) -> None:
        if not isinstance(self.scales, tuple) or not 1 < len(self.scales) <= _MOST_LEVELS:
            raise PlanError(
                f"scales is {shown(self.scales)}; it must be 2 to {_MOST_LEVELS} ratios, one for each "
                "level, such as 2+2. For one level give scale."
            )
        if self.scale != ABOUT["scale"].absent:
            raise PlanError(_both(self.scale, self.scales))

    def _check_each(self) -> None:
        count = len(self._scales)
        for name in ("refine_steps", "refine_sigma"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                continue
            if len(value) != count:
                raise PlanError(
                    f"{name} is {shown(value)}, for {len(value)} levels; the plan has {count}. "
                    "Give one number for all, or one for each of scales, such as 2+2."
                )
            if len(set(value)) == 1:  # so that equal plans are equal
                object.__setattr__(self, name, value[0])
        if count > 1 and SWITCH in self._each(self.refine_sigma):
            raise PlanError(
                "refine_sigma is 'switch', which goes on with the draft's schedule; a plan of several levels "
                "cannot. Give a number, such as 0.12, or auto."
            )

    @property
    def _scales(self) -> tuple[float, ...]:
        """The scale of each level, also of a single one."""
        return self.scales or (self.scale,)

    def _each(self, value: Any) -> tuple[Any, ...]:
        """Return one value for each level."""
        return value if isinstance(value, tuple) else (value,) * len(self._scales)

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
        """`scale`, or all of `scales` together, as an exact ratio, so that sizes divide without rounding."""
        return math.prod(map(_exact, self._scales), start=Fraction(1))

    @property
    def levels(self) -> tuple[Plan, ...]:
        """The plan of each lift with its refining, smallest first, whose numbers are single ones."""
        if self.scales is None:
            return (self,)
        several = self._each(self.refine_steps), self._each(self.refine_sigma)
        return tuple(
            replace(self, scale=scale, scales=None, refine_steps=steps, refine_sigma=sigma)
            for scale, steps, sigma in zip(self.scales, *several, strict=True)
        )

    @property
    def all_refine_steps(self) -> int:
        """Of all levels together."""
        return sum(self._each(self.refine_steps))

    @property
    def switches(self) -> bool:
        """Whether both passes are one schedule of the model's, its first `steps` small and the others large."""
        return self.refine_sigma == SWITCH

    @property
    def schedule_steps(self) -> int:
        """The steps of the schedule that the draft follows, to its end unless the plan switches."""
        return self.steps + self.all_refine_steps * self.switches

    def cut(self, width: int, height: int) -> int | None:
        """Return the pixels a side of the tiles of a picture, None where it stays whole."""
        return self.tile if isinstance(self.tile, int) and max(width, height) > self.tile else None

    @property
    def label(self) -> str:
        """The short name: draft + refine steps, "12+1", "12+1+1" of two levels; "3/4": the first 3 of 4 small."""
        if self.switches:
            return f"{self.steps}/{self.schedule_steps}"
        return written((self.steps, *self._each(self.refine_steps)))

    def changed(self, **numbers: Any) -> Plan:
        """Return the plan with other numbers, `scales` in place of `scale`.

        Raises PlanError for a sigma where it takes the model's own, and for a scale where it has several.
        """
        if (scales := numbers.get("scales", self.scales)) is not None:
            if numbers.get("scale") is not None:
                raise PlanError(_both(numbers["scale"], scales))
            numbers = {**numbers, "scale": ABOUT["scale"].absent}
        sigma = numbers.get("refine_sigma", SWITCH)
        if self.switches and sigma != SWITCH:
            raise PlanError(
                f"refine_sigma is {shown(sigma)} and the plan {self.label} goes on at the model's own sigma. "
                f"Leave one out, or give a plan such as {self.schedule_steps}+1."
            )
        return replace(self, **numbers)

    def draft_size(self, width: int, height: int, multiple: int = 1) -> tuple[int, int]:
        """Return the draft's size of a final one: over `ratio`, in the nearest whole patches of `multiple`."""
        return self.sizes(width, height, multiple)[0]

    def sizes(self, width: int, height: int, multiple: int = 1) -> list[tuple[int, int]]:
        """Return the sizes of the draft and after each level, the last as given, the others as of `draft_size`."""
        ratios = [_exact(scale) for scale in self._scales]
        units, half = [math.prod(ratios[k:], start=multiple) for k in range(len(ratios))], Fraction(1, 2)
        smaller = [[max(int(side / unit + half), 1) * multiple for side in (width, height)] for unit in units]
        return [(across, down) for across, down in [*smaller, (width, height)]]

    def native(self, steps: int, *, guidance_stop: float | None = None, solver: str | None = None) -> Plan:
        """Return the plain pipeline's plan: guided in every step, by its own scheduler, unless given."""
        stop = 1.0 if guidance_stop is None else guidance_stop
        first = self.levels[0]
        sigma = Plan.refine_sigma if isinstance(first.refine_sigma, str) else first.refine_sigma  # of no use there
        plan = replace(first, steps=steps, refine_sigma=sigma, noise=OWN, tile=None)
        return replace(plan, refine_true_cfg_scale=None, guidance_stop=stop, solver=solver)

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the values of `absent`, as plain JSON values: what a file holds of a plan."""
        values = {name: value for name, about in ABOUT.items() if (value := getattr(self, name)) != about.absent}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Return the plan that `to_dict` described, by any version so far; unknown fields raise PlanError."""
        if not isinstance(data, Mapping):
            raise PlanError(f"A plan is {type(data).__name__}; it must be an object with fields such as steps.")
        unknown = [name for name in data if name not in ABOUT]
        if unknown:
            raise PlanError(
                f"A plan has no field {shown(unknown[0])}. Its fields are {', '.join(ABOUT)}. "
                "If a later mrflow wrote it, upgrade mrflow."
            )
        return cls(**{name: about.absent for name, about in ABOUT.items()} | dict(data))


def _exact(scale: float) -> Fraction:
    return Fraction(scale).limit_denominator(_MAX_DENOMINATOR)


def _both(scale: object, scales: object) -> str:
    return (
        f"scale is {shown(scale)} and scales is {shown(scales)}; a plan has one or the other. "
        "Leave one out, or give a plan such as 12+1 or 12+1+1."
    )


def _read_about(plan: type[Plan]) -> dict[str, About]:
    """Return what plan.toml says of the fields of `plan`, whose types and defaults are in the class."""
    tables, kinds = _read_toml("plan.toml"), {kind.__name__: kind for kind in (int, float, str)}
    about = {}
    for each in fields(plan):
        said: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tables[each.name].items()}
        kind = kinds[re.findall("int|float|str", str(each.type))[0]]
        about[each.name] = About(**{"kind": kind, "absent": each.default, **said})
    return about


def _read_toml(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text("utf-8"))


ABOUT: Mapping[str, About] = _read_about(Plan)
"""What is known of each of a plan's numbers, by its name."""

FINISHING = tuple(name for name, about in ABOUT.items() if about.finishes)
"""The numbers that finishing a draft may change."""

Plan.__doc__ = f"{Plan.__doc__}\n" + "\n".join(
    f"    {name}: {about.text} {about.more}".rstrip()
    + (" None takes the model's default." * (about.absent is None))
    for name, about in ABOUT.items()
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published plan: its name, when to take it and where its numbers come from."""

    name: str
    plan: Plan
    about: str
    source: str


def _read_presets() -> dict[str, Preset]:
    tables = _read_toml("presets.toml")
    return {
        name: Preset(**{**table, "name": name, "plan": Plan(**table["plan"])}) for name, table in tables.items()
    }


PRESETS: Mapping[str, Preset] = MappingProxyType(_read_presets())

DEFAULT_PLAN = PRESETS["12+1"].plan


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """A model's own defaults; what a call gives wins over them.

    width, height: pixels of the finished picture; 1024 x 1024 is what FLUX.1 was trained for.
    plan: of the staged run. Its guidance and its solver also fill in for plans where these are None.
    native_steps: of the plain pipeline; 50 is the baseline of arXiv 2607.01642.
    negative_prompt: used where classifier-free guidance runs and no other is given.
    max_sequence_length: text tokens; None keeps the pipeline's default.
    learned_steps: what a distilled model was trained to take, where others are worse; a warning says so.
    """

    width: int = 1024
    height: int = 1024
    plan: Plan = field(default_factory=Plan)
    native_steps: int = 50
    negative_prompt: str = ""
    max_sequence_length: int | None = None
    learned_steps: int | None = None


def get_plan(plan: Plan | str | None = None) -> Plan:
    """Return a plan from a preset's name, any "N+M" or "K/N" text, a Plan (as it is) or None (12+1).

    "12+1+1", with the refine steps of 2 to 4 levels, doubles the size at each. Raises PlanError for other text,
    naming the preset that is near, else all.
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
    match = re.fullmatch(r"(\d{1,4})\s*/\s*(\d{1,4})", name, flags=re.ASCII)
    if match is None and re.fullmatch(r"\d{1,4}(\s*\+\s*\d{1,4}){1,4}", name, flags=re.ASCII):
        steps, *refine = map(int, name.split("+"))
        scales = (Plan.scale,) * len(refine) if len(refine) > 1 else None
        return Plan(steps=steps, refine_steps=tuple(refine), scales=scales)
    if match is None:
        near = get_close_matches(name[:80].lower(), [each for each in PRESETS if each[0].isalpha()], 1, 0.75)
        known = f"Did you mean {near[0]!r}? Or" if near else f"Known: {', '.join(PRESETS)}; or"
        raise PlanError(
            f"There is no plan {name[:80]!r}. {known} give your own as draft steps + refine steps, such as "
            "'16+1', '12+1+1' to double the size twice, or as the small ones of a few-step model's steps, such as "
            "'3/4'."
        )
    steps, more = int(match[1]), int(match[2])
    if not steps < more:
        of = max(more, 2)
        raise PlanError(f"The plan is {name}; not all steps can be small. Try {of - 1}/{of}.")
    return Plan(steps=steps, refine_steps=more - steps, refine_sigma=SWITCH)


def named_plan(name: str | None) -> Plan:
    """Return the plan of a file, if the name ends in .json, else what `get_plan` gives. Raises PlanError."""
    if name is not None and name.strip().lower().endswith(SUFFIX):
        return read_plan(Path(name.strip()))
    return get_plan(name)


def read_plan(path: Path) -> Plan:
    """Return the plan in a file; raises PlanError if it is missing, no plan or written by a later version."""
    if not os.path.isfile(path):  # os.path, for it takes any text, however long
        raise PlanError(f"There is no plan file {str(path)[:200]}. Make one with: mrflow tune")
    try:
        with open(path, "rb") as file:
            data = json.loads(file.read(_MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise PlanError(f"{path} is no JSON that can be read. Make a plan file with: mrflow tune") from None
    if not isinstance(data, dict) or not isinstance(data.get("plan"), dict):
        raise PlanError(f'{path} holds no "plan". Make a plan file with: mrflow tune')
    version = data.get("format")
    if version != FORMAT:
        raise PlanError(f"{path} has format {shown(version)}; known is {FORMAT}. Upgrade mrflow.")
    try:
        return Plan.from_dict(data["plan"])
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def plan_to_json(plan: Plan, measured: Mapping[str, Any]) -> str:
    """Return the text of a plan file. measured: on what grounds, for people to read."""
    return json.dumps({"format": FORMAT, "plan": plan.to_dict(), "measured": dict(measured)}, indent=2) + "\n"
