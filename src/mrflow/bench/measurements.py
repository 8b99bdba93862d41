"""What is measured in each picture of a comparison, as arrays over prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mrflow.bench.compare import Course
from mrflow.bench.ledger import Ledger
from mrflow.bench.prompts import Question
from mrflow.bench.records import Json
from mrflow.bench.timing import OnRun
from mrflow.files import load_image
from mrflow.images import to_tensor
from mrflow.metrics import attributes, pixels
from mrflow.metrics.intervals import Floats
from mrflow.metrics.learned import LEARNED, Score

if TYPE_CHECKING:
    from PIL import Image

    from mrflow.vista.inspector import Inspector


@dataclass(frozen=True)
class Measurements:
    """One method's pictures, measured. Each array is (prompts, seeds, ...).

    fine: energy. rings: radial power. stripes: in dB. mean: red, green, blue; contrast; both in levels of 255.
    psnr, ssim: to the baseline, NaN for the baseline itself. hits: per attribute, NaN unasked. features,
    patch_features: the inspector's, of whole pictures and of patches (prompts, seeds, patches, ...).
    learned: by metric. diversity: (prompts, 1), NaN with one seed.
    """

    fine: Floats
    rings: Floats
    stripes: Floats
    mean: Floats
    contrast: Floats
    psnr: Floats
    ssim: Floats
    hits: Floats
    features: Floats
    patch_features: Floats
    diversity: Floats
    learned: dict[str, Floats]


@dataclass(frozen=True)
class Examiner:
    """What pictures are measured with. inspector: None where no prompt asks for what it knows."""

    inspector: Inspector | None
    learned: dict[str, Score]


def measure_pictures(
    ledger: Ledger, course: Course, prompts: Sequence[int], method: str, examiner: Examiner, on_picture: OnRun
) -> Measurements:
    """Return what is measured in a method's pictures of these prompts, all of which must be there."""
    baseline = course.methods[0].name
    rows, diversity = [], []
    for prompt in prompts:
        small = []
        for item in course.items_of([prompt]):
            on_picture(method)
            image = load_image(ledger.picture(method, item))
            other = None if method == baseline else load_image(ledger.picture(baseline, item))
            rows.append(_measure(image, other, course.questions[prompt], examiner))
            small.append(pixels.reduce(to_tensor([image])[0]))
        diversity.append(pixels.diversity(small) if len(small) > 1 else np.nan)
    shape = (len(prompts), course.seeds)
    arrays = {
        name: np.array([row[name] for row in rows], np.float64).reshape(*shape, *np.shape(rows[0][name]))
        for name in rows[0]
    }
    learned = dict(zip(examiner.learned, np.moveaxis(arrays.pop("learned"), -1, 0), strict=True))
    return Measurements(**arrays, diversity=np.array(diversity, np.float64)[:, None], learned=learned)


def _measure(image: Image.Image, other: Image.Image | None, question: Question, examiner: Examiner) -> Json:
    """Return what is measured in one picture; None becomes NaN. other: the baseline's of the same seed."""
    tensor = to_tensor([image])
    *mean, contrast = pixels.moments(tensor[0])
    hits = np.full(len(attributes.GROUPS["all"]), np.nan)
    features, patch_features = np.full(1, np.nan), np.full((1, 1), np.nan)
    if examiner.inspector is not None:
        wanted = attributes.as_indices([attributes.asked(question.prompt, question.labels)])
        hits = attributes.hits(attributes.found(examiner.inspector, tensor), wanted)[0]
        features = attributes.features(examiner.inspector, tensor)[0]
        patch_features = attributes.patch_features(examiner.inspector, tensor)[0]
    return {
        "fine": float(pixels.fine_energy(tensor)[0]),
        "rings": pixels.radial_power(tensor)[0].numpy(),
        "stripes": float(pixels.stripes(tensor)[0]),
        "mean": mean,
        "contrast": contrast,
        "psnr": None if other is None else pixels.psnr(image, other),
        "ssim": None if other is None else pixels.ssim(image, other),
        "hits": hits,
        "features": features,
        "patch_features": patch_features,
        "learned": [
            None if other is None and LEARNED[name].paired else score(image, question.prompt, other)
            for name, score in examiner.learned.items()
        ],
    }
