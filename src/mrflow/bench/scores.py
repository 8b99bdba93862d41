"""From pictures and seconds to figures with intervals: how fast and how good each method is, beside the baseline.

The composite puts into one number what staged sampling may lose: what is asked for, sharpness, contrast.

    composite = share found x mean of min(p, 1/p) x min(c, 1/c)

p: power over the baseline's, at each fine frequency: their sum would not see a grid, whose energy lies at some and
is missing at others. c: contrast over the baseline's. The share is 1 where no prompt asks for what the inspector
knows. By its making the baseline's p and c are 1; too sharp costs as much as too soft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mrflow.bench.compare import Course
from mrflow.bench.ledger import Ledger
from mrflow.bench.measurements import Examiner, Floats, Marks, measure_pictures
from mrflow.bench.methods import Method
from mrflow.bench.records import Json
from mrflow.bench.timing import Spread
from mrflow.metrics.attributes import GROUPS, columns
from mrflow.metrics.frechet import Distance, Reference, Renders
from mrflow.metrics.intervals import Estimate, difference, estimate, mean, ratio_of_medians
from mrflow.metrics.pixels import FINE

_MIN_FRECHET = 32  # pictures below which a covariance says nothing
_CHANNELS = ("red", "green", "blue")


def complete_prompts(course: Course, ledger: Ledger) -> list[int]:
    """Return the prompts of which every method that can run has every picture."""
    able = [method.name for method in course.methods if not ledger.failed(method.name)]
    return [
        prompt
        for prompt in range(len(course.questions))
        if all(ledger.done(name, prompt * course.seeds + k) for name in able for k in range(course.seeds))
    ]


def score(
    course: Course,
    ledger: Ledger,
    examiner: Examiner,
    renders: Renders | None,
    on_picture: Callable[[str], None],
) -> Json:
    """Return the figures of all methods as plain JSON values, on the prompts that are complete.

    renders: what features are held against, None to leave that out. on_picture: called with a method's name
    before each picture; what it raises ends the work.
    """
    prompts = complete_prompts(course, ledger)
    references = None if renders is None else (Reference(renders.pictures), Reference(renders.patches))
    judged = {
        method.name: _Judged.of(
            measure_pictures(ledger, course, prompts, method.name, examiner, on_picture), references
        )
        for method in course.methods
        if prompts and not ledger.failed(method.name)
    }
    base = next(iter(judged.values()), None)
    first = course.first_plan
    plan = judged.get(first.name) if first else None
    methods: list[Json] = []
    for method in course.methods:
        if base is None or method.name not in judged:
            methods.append({**_head(method), "failed": ledger.failed(method.name) or "not measured"})
            continue
        methods.append(
            {
                **_head(method),
                "speed": _speed(course, ledger, method, prompts),
                "quality": _quality(judged[method.name], base, plan),
                "drift": _drift(course, ledger, method, prompts),
            }
        )
    return {
        "prompts": len(prompts),
        "of": len(course.questions),
        "seeds": course.seeds,
        "plan": first.name if first and plan else None,
        "methods": methods,
    }


@dataclass(frozen=True)
class _Judged:
    """What one method's pictures got. distances: to renders, of whole pictures and of patches."""

    marks: Marks
    distances: tuple[Distance | None, Distance | None]

    @classmethod
    def of(cls, marks: Marks, references: tuple[Reference, Reference] | None) -> _Judged:
        """Return it; references: the renders' statistics, None to leave the distances out."""
        if references is None:
            return cls(marks, (None, None))
        whole, patches = references
        return cls(marks, (_held_against(whole, marks.features), _held_against(patches, marks.patch_features)))


def _held_against(renders: Reference, features: Floats) -> Distance | None:
    """Return how far features (prompts, seeds, ..., D) are from renders'; None of too few pictures."""
    count, depth = features.shape[0] * features.shape[1], features.shape[-1]
    if count < _MIN_FRECHET or depth != len(renders.gaussian.mean) or not features.size:
        return None
    return Distance.of(features.reshape(count, -1, depth), renders)


def _head(method: Method) -> Json:
    return {
        "name": method.name,
        "kind": method.kind,
        "cache": method.cache.kind if method.cache else None,
        "upscaler": method.upscaler,
        "refined": method.refined,
        "plan": method.plan.to_dict() if method.plan else None,
        "steps": method.steps,
        "solver": method.solver,
    }


def speedup(ledger: Ledger, items: Sequence[int], slow: str, fast: str) -> tuple[Estimate, int]:
    """Return how many times faster one method is than another, and the number of pairs of runs behind it.

    A pair was timed in one session, so that both met the machine in the same mood.
    """
    pairs = []
    for item in items:
        other = {run.session: run.seconds["total"] for run in ledger.of(slow, item)}
        runs = ledger.of(fast, item)
        pairs += [(other[run.session], run.seconds["total"]) for run in runs if run.session in other][-1:]
    one, two = (np.array([pair[k] for pair in pairs]) for k in (0, 1))
    return (ratio_of_medians(one, two) if pairs else Estimate(None, None, None)), len(pairs)


def items_of(course: Course, prompts: Sequence[int]) -> list[int]:
    """Return the items of these prompts."""
    return [prompt * course.seeds + k for prompt in prompts for k in range(course.seeds)]


def _speed(course: Course, ledger: Ledger, method: Method, prompts: Sequence[int]) -> Json:
    """Return seconds of a picture, and how many times faster than the baseline."""
    items = items_of(course, prompts)
    ratio, pairs = speedup(ledger, items, course.methods[0].name, method.name)
    seconds = [dict(ledger.of(method.name, item)[-1].seconds) for item in items]
    stages = {name: Spread.of([each[name] for each in seconds if name in each]) for name in seconds[0]}
    memory = [run.memory for item in items for run in ledger.of(method.name, item) if run.memory is not None]
    return {
        "seconds": {name: spread.to_dict() for name, spread in stages.items()},
        "speedup": ratio.to_dict(),
        "pairs": pairs,
        "peak_memory": max(memory) if memory else None,
    }


def _quality(judged: _Judged, baseline: _Judged, plan: _Judged | None) -> Json:
    marks, base, own = judged.marks, baseline.marks, judged is baseline
    whole, patches = (
        _distance(mine, None if own else their, None if plan is None or plan is judged else planned)
        for mine, their, planned in zip(
            judged.distances, baseline.distances, (plan or baseline).distances, strict=True
        )
    )
    shares = {
        group: mean(marks.hits[..., columns(group)]).to_dict()
        for group in GROUPS
        if not np.isnan(base.hits[..., columns(group)]).all()
    }
    changes = {
        group: difference(marks.hits[..., columns(group)], base.hits[..., columns(group)]).to_dict()
        for group in shares
        if not own
    }
    rings, their = marks.rings.mean((0, 1)), base.rings.mean((0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        spectrum = np.where(their > 0, rings / their, np.nan)
    return {
        "composite": composite(marks, base).to_dict(),
        "composite_change": None if own else composite_change(marks, base, base).to_dict(),
        "composite_to_plan": None
        if plan is None or plan is judged
        else composite_change(marks, plan.marks, base).to_dict(),
        "found": shares,
        "found_change": changes,
        "sharpness": _ratio(marks.fine, base.fine),
        "texture": estimate(_rings(marks, base), _texture).to_dict(),
        "contrast": _ratio(marks.contrast, base.contrast),
        "color": {
            name: difference(marks.mean[..., k], base.mean[..., k]).to_dict()
            for k, name in enumerate(_CHANNELS)
            if not own
        },
        "spectrum": [None if np.isnan(value) else float(value) for value in spectrum],
        "psnr": None if own else mean(marks.psnr).to_dict(),
        "ssim": None if own else mean(marks.ssim).to_dict(),
        "diversity": None if np.isnan(marks.diversity).all() else mean(marks.diversity).to_dict(),
        "frechet": whole,
        "patch_frechet": patches,
        "learned": {name: mean(values).to_dict() for name, values in marks.learned.items()},
    }


def _ratio(values: Floats, base: Floats) -> Json:
    rows = np.stack([values.sum(1), base.sum(1)], 1)
    return estimate(rows, lambda sums: sums[..., 0] / sums[..., 1]).to_dict()


def composite(marks: Marks, base: Marks) -> Estimate:
    """Return the composite of one method's pictures."""
    return estimate(_composite_rows(marks, base), _composite)


def composite_change(marks: Marks, other: Marks, base: Marks) -> Estimate:
    """Return the composite of one method less that of another, on the same prompts drawn."""
    one, two = _composite_rows(marks, base), _composite_rows(other, base)
    rows, k = np.concatenate([one, two], 1), one.shape[1]
    return estimate(rows, lambda sums: _composite(sums[..., :k]) - _composite(sums[..., k:]))


def _composite_rows(marks: Marks, base: Marks) -> Floats:
    """Return what each prompt adds: hits, questions; contrast and fine rings, each with the baseline's."""
    flat = marks.hits.reshape(len(marks.hits), -1)
    asked = ~np.isnan(flat)
    parts = [np.where(asked, flat, 0.0).sum(1), asked.sum(1), marks.contrast.sum(1), base.contrast.sum(1)]
    return np.concatenate([np.stack(parts, 1), _rings(marks, base)], 1)


def _rings(marks: Marks, base: Marks) -> Floats:
    """Return the power that each prompt adds to each fine ring, and what it adds to the baseline's."""
    return np.concatenate([each.rings[..., FINE:].sum(1) for each in (marks, base)], 1)


def _composite(sums: Floats) -> Floats:
    found, contrast = _share(sums[..., 0], sums[..., 1]), _likeness(sums[..., 2], sums[..., 3])
    return found * contrast * _texture(sums[..., 4:])


def _texture(sums: Floats) -> Floats:
    """Return the likeness of two spectra, the mean over the rings in which the baseline has any power."""
    own, base = np.split(sums, 2, -1)
    there = base > 0
    likeness: Floats = np.where(there, _likeness(own, base), 0.0).sum(-1) / there.sum(-1)
    return likeness


def _share(hits: Floats, asked: Floats) -> Floats:
    """Return hits / asked, 1 where nothing is asked."""
    return np.where(asked > 0, hits / np.maximum(asked, 1), 1.0)


def _likeness(value: Floats, base: Floats) -> Floats:
    """Return the smaller of value / base and base / value."""
    return np.minimum(value / base, base / value)


def _distance(mine: Distance | None, base: Distance | None, plan: Distance | None) -> Json | None:
    """Return a distance to renders, with the changes to the baseline's and to the first plan's."""
    if mine is None:
        return None
    changes = {name: mine.less(other).to_dict() for name, other in (("change", base), ("to_plan", plan)) if other}
    return {"value": mine.value, **changes}


def _drift(course: Course, ledger: Ledger, method: Method, prompts: Sequence[int]) -> Json:
    """Return, for stages that make pixels of the same picture, how mean and contrast move from one to the next."""
    runs = [ledger.of(method.name, item)[0].moments for item in items_of(course, prompts)]
    found = {}
    for name, before, after in (("upscale", "decode_draft", "upscale"), ("refine", "upscale", "decode")):
        rows = [np.subtract(run[after], run[before]) for run in runs if before in run and after in run]
        if rows:
            moved = np.array(rows)
            found[name] = {
                channel: mean(moved[:, k]).to_dict() for k, channel in enumerate((*_CHANNELS, "contrast"))
            }
    return found
