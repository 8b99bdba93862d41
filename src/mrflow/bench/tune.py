"""A plan for a target: candidates are measured on few prompts, the better half of them on more, and so on.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943) over the machinery of `compare`: every picture is
kept, so that a later round only adds prompts, and a stopped search goes on. The reference and the best native run
stay to the end, whatever their place. What is tried: plans around the model's own, and always native runs with
few steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from mrflow.bench.compare import Course, missing, run_turns
from mrflow.bench.ledger import Ledger
from mrflow.bench.measurements import Examiner, Measurements, measure_pictures
from mrflow.bench.methods import Method
from mrflow.bench.records import Json
from mrflow.bench.scores import composite, composite_change, peak_of, speedup
from mrflow.bench.timing import OnRun
from mrflow.errors import RequestError
from mrflow.metrics.intervals import Estimate
from mrflow.plan import ABOUT, AUTO, SWITCH, Plan, written

if TYPE_CHECKING:
    from mrflow.jobs import Size
    from mrflow.pipeline import MrFlow

_FEWEST = 4  # prompts of the first round: below, the order is chance
_LAST = 3  # candidates in the last round

SOLVER = "unipc"
"""The one of second order that is tried: on vista it is nearer to the path of 60 steps (docs/log.md)."""
# By solver, None being the reference's own or the pipeline's: shares of the reference's steps and of the native
# run's. With as many steps as the reference's the other solver can only be better, not faster.
_STEPS = {None: (1 / 2, 2 / 3, 1), SOLVER: (1 / 3, 1 / 2, 2 / 3)}
_NATIVE = {None: (0.1, 0.16, 0.25), SOLVER: (0.1, 0.16)}
_SIGMAS = (0.2,)  # the larger of what the authors advise; the reference's own is tried too
_SMALL = (3 / 4, 7 / 8)  # of a few-step model's steps, the others large
_IN_LABEL = ("steps", "refine_steps")
_STOP = 0.5  # of the draft, and of what the reference guides: arXiv 2404.07724 finds late steps better without


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is looked for, relative to the reference. Checked on creation: raises RequestError.

    at_least: times faster. at_most_loss: of the composite. max_memory: bytes at the peak. None sets no bound.
    """

    at_least: float | None = None
    at_most_loss: float | None = None
    max_memory: int | None = None

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most_loss is None and self.max_memory is None:
            raise RequestError("There is no target. Give --at-least 1.3, --at-most-loss 0.01 or --max-memory 12.")
        for name, low, high in (("at_least", 0.01, 1000), ("at_most_loss", 0, 1), ("max_memory", 1, 2**50)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise RequestError(f"{name} is {value}; it must lie between {low} and {high}.")


@dataclass(frozen=True)
class Finding:
    """What was measured of a candidate. faster, change: than the reference, and of the composite."""

    method: Method
    faster: Estimate
    quality: Estimate
    change: Estimate
    memory: int | None
    prompts: int

    def meets(self, target: Target) -> bool:
        """Return whether the figures, as measured, are within the target."""
        faster, change = self.faster.value, self.change.value
        return (
            (target.at_least is None or (faster is not None and faster >= target.at_least))
            and (target.at_most_loss is None or (change is not None and change >= -target.at_most_loss))
            and (target.max_memory is None or (self.memory is not None and self.memory <= target.max_memory))
        )

    def rank(self, target: Target) -> tuple[bool, float]:
        """Return what candidates are ordered by: within the target first, then the better of the open end.

        With a bound on the loss alone the open end is speed; else it is quality.
        """
        by_speed = target.at_most_loss is not None and target.at_least is None
        value = self.faster.value if by_speed else self.quality.value
        return self.meets(target), -math.inf if value is None else value

    def to_dict(self) -> Json:
        """Return the figures as plain JSON values."""
        return {
            "method": self.method.name,
            "times_faster": self.faster.to_dict(),
            "composite": self.quality.to_dict(),
            "change_of_composite": self.change.to_dict(),
            "peak_memory": self.memory,
            "prompts": self.prompts,
        }


def rounds_of(candidates: int, prompts: int) -> list[tuple[int, int]]:
    """Return (candidates, prompts) of each round: the candidates halve, the prompts double up to all of them."""
    rounds = []
    left, count = candidates, min(_FEWEST, prompts)
    while left > _LAST and count < prompts:
        rounds.append((left, count))
        left, count = max(_LAST, math.ceil(left / 2)), min(2 * count, prompts)
    return [*rounds, (left, prompts)]


def search(
    fast: MrFlow,
    course: Course,
    ledger: Ledger,
    target: Target,
    examiner: Examiner,
    size: Size,
    on_round: Callable[[int, int, int], OnRun],
) -> list[Finding]:
    """Return the findings of the last round, the best first.

    course: its methods are the baseline that quality is measured by, the reference, and the candidates.
    on_round: called with the number of methods, prompts and runs of a round; gives what is told of its runs.
    """
    base, reference, *candidates = course.methods
    findings: list[Finding] = []
    for left, prompts in rounds_of(len(candidates), len(course.questions)):
        if findings:
            candidates = keep(findings, target, left, reference)
        methods = [base, reference, *candidates]
        part = replace(course, methods=methods, questions=course.questions[:prompts], timed_against=reference.name)
        turns = missing(part, ledger)
        on_run = on_round(len(candidates), prompts, sum(len(group) for _, group in turns))
        run_turns(fast, part, ledger, turns, size, on_run)
        findings = judge(part, ledger, target, examiner)
    return findings


def keep(findings: Sequence[Finding], target: Target, count: int, reference: Method) -> list[Method]:
    """Return the best `count` candidates, and the best native run if it is not among them."""
    ranked = [each.method for each in findings if each.method.name != reference.name]
    native = next((method for method in ranked if method.plan is None), None)
    kept = ranked[:count]
    return kept if native is None or native in kept else [*kept, native]


def judge(course: Course, ledger: Ledger, target: Target, examiner: Examiner) -> list[Finding]:
    """Return what was measured of the reference and the candidates, the best first."""
    base, reference, *candidates = course.methods
    prompts = list(range(len(course.questions)))
    items = course.items_of(prompts)

    def measured(method: Method) -> Measurements:
        return measure_pictures(ledger, course, prompts, method.name, examiner, lambda _name: None)

    own, other = measured(base), measured(reference)
    findings = []
    for method in (reference, *candidates):
        if ledger.failed(method.name):
            continue
        mine = other if method is reference else measured(method)
        faster, _ = speedup(ledger, items, reference.name, method.name)
        quality, change = composite(mine, own), composite_change(mine, other, own)
        memory = peak_of(ledger, method.name, items)
        findings.append(Finding(method, faster, quality, change, memory, len(prompts)))
    return sorted(findings, key=lambda each: each.rank(target), reverse=True)


def choose(findings: Sequence[Finding], target: Target, reference: Method) -> Finding | None:
    """Return the best plan within the target that no native run within it beats, None if there is none."""
    best = next((each for each in findings if each.method.name != reference.name and each.meets(target)), None)
    return best if best is not None and best.method.plan is not None else None


def make_candidates(
    reference: Plan, native_steps: int, *, solvers: bool = True, own: Plan | None = None
) -> list[Method]:
    """Return plans made from a resolved one, other than itself, and native runs: 30 to 45.

    Fewer steps, fewer still with a solver of second order; a larger sigma, and at the reference's pace the one
    that fits; guidance in half of the draft or of what had it, and none in the refine pass, where there is some to
    save. Of a model that natively takes no more steps than the reference, these divided between the sizes.
    solvers: whether the pipeline takes any, and lets its schedule be divided. own: the model's plan, which a
    method's text changes; None is the reference.
    """
    tried = (None, SOLVER) if solvers else (None,)
    paces = {(_part(reference.steps, part), each or reference.solver) for each in tried for part in _STEPS[each]}
    few = [(_part(native_steps, part), each) for each in tried for part in _NATIVE[each]]
    sigmas, guidance = sorted({reference.refine_sigma, *_SIGMAS}, key=str), _guidance(reference)
    plans = [
        replace(reference, steps=steps, solver=solver, refine_sigma=sigma, **guided)
        for (steps, solver), sigma, guided in product(sorted(paces, key=str), sigmas, guidance)
    ]
    plans += [replace(reference, refine_sigma=AUTO, **guided) for guided in guidance]
    if solvers and not reference.scales and 1 < native_steps <= reference.schedule_steps:
        for small in dict.fromkeys(min(_part(native_steps, share), native_steps - 1) for share in _SMALL):
            plans.append(replace(reference, steps=small, refine_steps=native_steps - small, refine_sigma=SWITCH))
    staged = [Method(name=name_plan(plan, own or reference), plan=plan) for plan in plans if plan != reference]
    return [*staged, *(_native(*each) for each in dict.fromkeys(few))]


def _part(steps: int, share: float) -> int:
    return max(1, round(steps * share))


def _guidance(reference: Plan) -> list[dict[str, Any]]:
    """Return changes of guidance: none, and where there is any, half of it, and half of the draft guided."""
    if (reference.true_cfg_scale or 1.0) <= 1:
        return [{}]
    stop = 1.0 if reference.guidance_stop is None else reference.guidance_stop
    stops = sorted({_STOP * stop, _STOP} - {stop})
    return [{}, *({"guidance_stop": each, "refine_true_cfg_scale": 1.0} for each in stops)]


def _native(steps: int, solver: str | None) -> Method:
    name = f"native:{steps}" if solver is None else f"native:{steps},solver={solver}"
    return Method(name=name, steps=steps, solver=solver)


def name_plan(plan: Plan, own: Plan) -> str:
    """Return a plan's name by what differs from the model's own, as a method's text."""
    changes = [
        f"{name}={written(value)}"
        for name in ABOUT
        if name not in _IN_LABEL and (value := getattr(plan, name)) not in (None, SWITCH, getattr(own, name))
    ]
    return f"{plan.label}:{','.join(changes)}" if changes else plan.label
