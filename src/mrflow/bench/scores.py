"""From pictures and seconds to figures with intervals: how fast and how good each method is, beside the baseline.

The composite puts into one number what staged sampling may lose: what is asked for, sharpness, contrast.

    composite = share found x mean of min(p, 1/p) x min(c, 1/c)

p: power over the baseline's, at each fine frequency: their sum would not see a grid, whose energy lies at some and
is missing at others. c: contrast over the baseline's. The share is 1 where no prompt asks for what the inspector
knows. By its making the baseline's p and c are 1; too sharp costs as much as too soft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mrflow.bench.compare import Course
from mrflow.bench.ledger import Ledger
from mrflow.bench.measurements import Examiner, Measurements, measure_pictures
from mrflow.bench.methods import Method
from mrflow.bench.records import Json
from mrflow.bench.timing import OnRun, Spread
from mrflow.metrics.attributes import GROUPS, columns
from mrflow.metrics.frechet import Distance, Reference, Renders
from mrflow.metrics.intervals import Estimate, Floats, counted, difference, estimate, mean, ratio_of_medians
from mrflow.metrics.pixels import FINE

_MIN_FRECHET = 32  # pictures below which a covariance says nothing
_CHANNELS = ("red", "green", "blue")


def complete_prompts(course: Course, ledger: Ledger) -> list[int]:
    """Return the prompts of which every method that can run has every picture."""
    able = [method.name for method in course.methods if not ledger.failed(method.name)]
    return [
        prompt
        for prompt in range(len(course.questions))
        if all(ledger.done(name, item) for name in able for item in course.items_of([prompt]))
    ]


def score(course: Course, ledger: Ledger, examiner: Examiner, renders: Renders | None, on_picture: OnRun) -> Json:
    """Return the figures of all methods as plain JSON values, on the prompts that are complete.

    renders: what features are held against, None to leave that out. on_picture: called with a method's name
    before each picture; what it raises ends the work.
    """
    prompts = complete_prompts(course, ledger)
    references = {} if renders is None else {"features": renders.pictures, "patch_features": renders.patches}
    prepared = {name: Reference(gaussian) for name, gaussian in references.items()}
    judged = {
        method.name: _judge(measure_pictures(ledger, course, prompts, method.name, examiner, on_picture), prepared)
        for method in course.methods
        if prompts and not ledger.failed(method.name)
    }
    base = next(iter(judged.values()), None)
    first = course.first_plan
    plan = judged.get(first.name) if first else None
    methods: list[Json] = []
    for method in course.methods:
        figures: Json = {"failed": ledger.failed(method.name) or "not measured"}
        if base is not None and method.name in judged:
            figures = {
                "speed": _speed(course, ledger, method, prompts),
                "quality": _quality(judged[method.name], base, plan),
                "drift": _drift(course, ledger, method, prompts),
            }
        methods.append({**_head(method), **figures})
    return {
        "prompts": len(prompts),
        "of": len(course.questions),
        "seeds": course.seeds,
        "plan": first.name if first and plan else None,
        "methods": methods,
    }


@dataclass(frozen=True)
class _Judged:
    """What one method's pictures got. distances: to renders, by the kind of features; none of too few pictures."""

    measured: Measurements
    distances: Mapping[str, Distance]


def _judge(measured: Measurements, references: Mapping[str, Reference]) -> _Judged:
    distances = {}
    for kind, renders in references.items():
        features = getattr(measured, kind)  # (prompts, seeds, ..., D)
        count, depth = features.shape[0] * features.shape[1], features.shape[-1]
        if count >= _MIN_FRECHET and features.size and depth == len(renders.gaussian.mean):
            distances[kind] = Distance.of(features.reshape(count, -1, depth), renders)
    return _Judged(measured, distances)


def _head(method: Method) -> Json:
    head = {
        name: getattr(method, name) for name in ("name", "kind", "upscaler", "refined", "steps", "solver", "model")
    }
    plan = asdict(method.plan) if method.plan else None
    return {**head, "cache": method.cache.kind if method.cache else None, "plan": plan}


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


def peak_of(ledger: Ledger, method: str, items: Sequence[int]) -> int | None:
    """Return the highest peak of memory of a method's runs in bytes, None where none was read."""
    peaks = [run.memory for item in items for run in ledger.of(method, item) if run.memory is not None]
    return max(peaks, default=None)


def _speed(course: Course, ledger: Ledger, method: Method, prompts: Sequence[int]) -> Json:
    """Return seconds of a picture, and how many times faster than the baseline."""
    items = course.items_of(prompts)
    ratio, pairs = speedup(ledger, items, course.methods[0].name, method.name)
    seconds = [ledger.of(method.name, item)[-1].seconds for item in items]
    stages = {name: Spread.of([each[name] for each in seconds if name in each]) for name in seconds[0]}
    return {
        "seconds": {name: spread.to_dict() for name, spread in stages.items()},
        "speedup": ratio.to_dict(),
        "pairs": pairs,
        "peak_memory": peak_of(ledger, method.name, items),
    }


def _quality(judged: _Judged, baseline: _Judged, first_plan: _Judged | None) -> Json:
    """Return how good a method's pictures are; its changes are to the baseline's and to the first plan's."""
    mine, base = judged.measured, baseline.measured
    named = {"change": baseline, "to_plan": first_plan}
    others = {name: other for name, other in named.items() if other is not None and other is not judged}
    changes = {name: composite_change(mine, other.measured, base).to_dict() for name, other in others.items()}
    own = judged is baseline
    hits = {group: (mine.hits[..., columns(group)], base.hits[..., columns(group)]) for group in GROUPS}
    asked = {group: pair for group, pair in hits.items() if not np.isnan(pair[1]).all()}
    power = zip(mine.rings.mean((0, 1)).tolist(), base.rings.mean((0, 1)).tolist(), strict=True)
    return {
        "composite": composite(mine, base).to_dict(),
        "composite_change": changes.get("change"),
        "composite_to_plan": changes.get("to_plan"),
        "found": {group: mean(one).to_dict() for group, (one, _) in asked.items()},
        "found_change": {} if own else {group: difference(*pair).to_dict() for group, pair in asked.items()},
        "sharpness": _ratio(mine.fine, base.fine),
        "texture": estimate(_rings(mine, base), _texture).to_dict(),
        "contrast": _ratio(mine.contrast, base.contrast),
        "stripes": mean(mine.stripes).to_dict(),
        "color": {
            name: difference(mine.mean[..., k], base.mean[..., k]).to_dict()
            for k, name in enumerate(_CHANNELS)
            if not own
        },
        "spectrum": [one / other if other > 0 else None for one, other in power],
        "psnr": None if own else mean(mine.psnr).to_dict(),
        "ssim": None if own else mean(mine.ssim).to_dict(),
        "diversity": None if np.isnan(mine.diversity).all() else mean(mine.diversity).to_dict(),
        "frechet": _distance("features", judged, others),
        "patch_frechet": _distance("patch_features", judged, others),
        "learned": {name: mean(values).to_dict() for name, values in mine.learned.items()},
    }


def _distance(kind: str, judged: _Judged, others: Mapping[str, _Judged]) -> Json | None:
    """Return a distance to renders, with the changes to the others', by their names."""
    mine = judged.distances.get(kind)
    if mine is None:
        return None
    theirs = {name: other.distances[kind] for name, other in others.items() if kind in other.distances}
    return {"value": mine.value, **{name: mine.less(their).to_dict() for name, their in theirs.items()}}


def _ratio(values: Floats, base: Floats) -> Json:
    rows = np.stack([values.sum(1), base.sum(1)], 1)
    return estimate(rows, lambda sums: sums[..., 0] / sums[..., 1]).to_dict()


def composite(mine: Measurements, base: Measurements) -> Estimate:
    """Return the composite of one method's pictures."""
    return estimate(_composite_rows(mine, base), _composite)


def composite_change(mine: Measurements, other: Measurements, base: Measurements) -> Estimate:
    """Return the composite of one method less that of another, on the same prompts drawn."""
    one, two = _composite_rows(mine, base), _composite_rows(other, base)
    rows, k = np.concatenate([one, two], 1), one.shape[1]
    return estimate(rows, lambda sums: _composite(sums[..., :k]) - _composite(sums[..., k:]))


def _composite_rows(mine: Measurements, base: Measurements) -> Floats:
    """Return what each prompt adds: hits, questions; contrast and fine rings, each with the baseline's."""
    contrast = np.stack([mine.contrast.sum(1), base.contrast.sum(1)], 1)
    return np.hstack([counted(mine.hits), contrast, _rings(mine, base)])


def _rings(mine: Measurements, base: Measurements) -> Floats:
    """Return the power that each prompt adds to each fine ring, and what it adds to the baseline's."""
    return np.concatenate([each.rings[..., FINE:].sum(1) for each in (mine, base)], 1)


def _composite(sums: Floats) -> Floats:
    hits, asked = sums[..., 0], sums[..., 1]
    found = np.where(asked > 0, hits / np.maximum(asked, 1), 1.0)
    return found * _likeness(sums[..., 2], sums[..., 3]) * _texture(sums[..., 4:])


def _texture(sums: Floats) -> Floats:
    """Return the likeness of two spectra, the mean over the rings in which the baseline has any power."""
    own, base = np.split(sums, 2, -1)
    there = base > 0
    likeness: Floats = np.where(there, _likeness(own, base), 0.0).sum(-1) / there.sum(-1)
    return likeness


def _likeness(value: Floats, base: Floats) -> Floats:
    """Return the smaller of value / base and base / value."""
    return np.minimum(value / base, base / value)


def _drift(course: Course, ledger: Ledger, method: Method, prompts: Sequence[int]) -> Json:
    """Return, for stages that make pixels of the same picture, how mean and contrast move from one to the next."""
    runs = [ledger.of(method.name, item)[0].moments for item in course.items_of(prompts)]
    found = {}
    for name, before, after in (("upscale", "decode_draft", "upscale"), ("refine", "upscale", "decode")):
        moved = np.array([np.subtract(run[after], run[before]) for run in runs if {before, after} <= run.keys()])
        if len(moved):
            channels = enumerate((*_CHANNELS, "contrast"))
            found[name] = {channel: mean(moved[:, k]).to_dict() for k, channel in channels}
    return found
