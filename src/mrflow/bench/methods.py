"""What can be measured against each other: ways of making pictures, written as short texts.

native            the plain pipeline, the model's own number of steps
native:25         with 25
native:25,cache=first-block@0.1     with a feature cache, see mrflow.bench.caches
native:25,guidance_stop=0.4         guided in the first steps alone, as a plan may be
native:12,solver=unipc              with a solver of second order, as a plan may have
12+1              a plan: draft steps + refine steps
12+1:scale=1.5,refine_sigma=0.2     with other fields of Plan
3/4               a few-step model's steps, the first 3 of 4 small
12+1:upscaler=bicubic               with another upscaler: bicubic, lanczos, latent, a known name or a file
12+1:cache=taylorseer@3             with a feature cache in the draft
12+0              not refined: the upscaled draft
4+1:model=vista-turbo               with another model, loaded beside the first: its name, folder or hub id
tuned.json        the plan of a file
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrflow import vista
from mrflow.bench.caches import Cache, cached, read_cache
from mrflow.bench.records import Json
from mrflow.bench.variants import run_unrefined, with_model, with_upscaler
from mrflow.errors import PlanError, RequestError
from mrflow.plan import ABOUT, Plan, named_plan

if TYPE_CHECKING:
    from mrflow.drafts import Result
    from mrflow.pipeline import MrFlow

_WARM_STEPS = 2  # of a warm-up: every kernel and buffer of a step is used, without the other 48


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way of making pictures. name: the text it was read from. plan: None for the plain pipeline.

    steps, guidance_stop, solver: of the plain pipeline; None is the model's own number, guidance throughout, its
    own scheduler.
    upscaler: a name or file, or None for the model's own. refined: False ends with the upscaled draft.
    cache: None is none. model: None is the one that is measured.
    """

    name: str
    plan: Plan | None = None
    steps: int | None = None
    guidance_stop: float | None = None
    solver: str | None = None
    upscaler: str | None = None
    refined: bool = True
    cache: Cache | None = None
    model: str | None = None

    @property
    def kind(self) -> str:
        """Return "native" or "staged"."""
        return "native" if self.plan is None else "staged"

    @property
    def plain(self) -> bool:
        """Whether it is the plain pipeline and nothing else, or a plan and nothing else."""
        return self.cache is None and self.upscaler is None and self.model is None and self.refined

    def run(self, fast: MrFlow, **settings: Any) -> Result:
        """Return the pictures; settings: what MrFlow's verbs take, without plan and steps."""
        fast = with_model(fast, self.model)
        guided = self.cache is not None and fast.model.resolve_plan(self.plan).guided
        with cached(fast.pipe, self.cache, guided=guided):
            if self.plan is None:
                plan = Plan(guidance_stop=self.guidance_stop, solver=self.solver)
                return fast.native(steps=self.steps, plan=plan, **settings)
            fast = with_upscaler(fast, self.upscaler)
            if not self.refined:
                return run_unrefined(fast, self.plan, **settings)
            return fast(plan=self.plan, **settings)

    def warm_up(self, fast: MrFlow, **settings: Any) -> Result:
        """Run it shortened, or as it is where a model has learned some few steps alone; settings: as in `run`."""
        learned = with_model(fast, self.model).model.defaults.learned_steps
        return (self if learned else self.shortened()).run(fast, **settings)

    def shortened(self) -> Method:
        """Return the same with so few steps that it warms everything up cheaply."""
        if self.plan is None:
            return replace(self, steps=min(_WARM_STEPS, self.steps or _WARM_STEPS))
        return replace(self, plan=replace(self.plan, steps=min(_WARM_STEPS, self.plan.steps)))


def others(fast: MrFlow, methods: Sequence[Method]) -> Json:
    """Return {"others": {name: revision}} of other models that methods are of, loaded here; {} where none is."""
    found = {one.model: with_model(fast, one.model).model.revision for one in methods if one.model}
    return {"others": found} if found else {}


OF_NATIVE = [each.name for each in fields(Method) if each.name in ABOUT]
"""What of a plan can be said of the plain pipeline; of a staged run everything can."""


def read_methods(texts: Sequence[str]) -> list[Method]:
    """Return the methods in order; raises PlanError for what is none, RequestError for none or one given twice.

    Also MissingExtraError for a cache whose package is not installed, UpscalerError for a file that is none.
    """
    if not texts:
        raise RequestError("There are 0 methods; give at least one, such as native or 12+1.")
    methods = [_read(text.strip()) for text in texts]
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"The method {name} is given twice. Leave one out; --repeats measures it again.")
    return methods


def _read(text: str) -> Method:
    head, colon, tail = text.partition(":")
    parts = tail.split(",") if colon else []
    if head == "native":
        if parts and "=" not in parts[0]:
            parts[0] = f"steps={_check_steps(text, parts[0])}"
        changes, options = _read_options(text, parts, ("cache", "model", *OF_NATIVE))
        Plan(**changes)  # which checks them
        return Method(name=text, **changes, **options)
    unrefined = re.fullmatch(r"(\d{1,4})\+0", head, flags=re.ASCII)
    plan = named_plan(f"{unrefined[1]}+1" if unrefined else head)
    changes, options = _read_options(text, parts, ("upscaler", "cache", "model", *ABOUT))
    plan = plan.changed(**changes)
    if unrefined and "latent" in (options.get("upscaler"), plan.lift):
        raise PlanError(f"The method {text[:80]!r} enlarges latents, which want refining. Give at least 1 step.")
    return Method(name=text, plan=plan, refined=not unrefined, **options)


def _check_steps(text: str, number: str) -> str:
    if not re.fullmatch(r"\d{1,4}", number, flags=re.ASCII):
        raise PlanError(f"The method is {text[:80]!r}; after native: comes a number of steps, such as native:25.")
    return number


def _read_options(text: str, parts: Sequence[str], known: Sequence[str]) -> tuple[Json, Json]:
    """Return what "name=value" says of the plan, and of the method; raises PlanError for an unknown name."""
    changes: Json = {}
    options: Json = {}
    for part in parts:
        name, _, value = part.partition("=")
        if name not in known:
            raise PlanError(
                f"The method {text[:80]!r} has {name[:40]!r}; after : come {', '.join(known)}, each =."
            )
        if name in changes or name in options:
            raise PlanError(f"The method {text[:80]!r} gives {name} twice. Leave one out.")
        if name in ABOUT:
            changes[name] = _read_number(text, name, value)
        else:
            options[name] = _OPTIONS[name](value)
    return changes, options


def _read_number(text: str, name: str, value: str) -> Any:
    try:
        return ABOUT[name].read(value)
    except ValueError:
        raise PlanError(f"The method {text[:80]!r} gives {name} as {value[:40]!r}; it must be a number.") from None


def _read_model(name: str) -> str:
    from mrflow.loading import check_source

    if name not in vista.DEFAULTS:
        check_source(name)
    return name


def _read_upscaler(name: str) -> str:
    from mrflow.known_upscalers import KNOWN, METHODS
    from mrflow.upscaler import check_file

    if name not in (*METHODS, *KNOWN):
        check_file(Path(name))
    return name


_OPTIONS = {"cache": read_cache, "model": _read_model, "upscaler": _read_upscaler}
"""What reads those that are no numbers of a plan."""
