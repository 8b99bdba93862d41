"""What is measured in each picture of a comparison, as arrays over prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrflow.bench.compare import Course
from mrflow.bench.ledger import Ledger
from mrflow.files import load_image
from mrflow.images import to_tensor
from mrflow.metrics import attributes, similarity
from mrflow.metrics.color import moments
from mrflow.metrics.learned import LEARNED, Score
from mrflow.metrics.pixels import fine_energy, radial_power

if TYPE_CHECKING:
    from PIL import Image

    from mrflow.vista.inspector import Inspector

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Marks:
    """One method's pictures, measured. Each array is (prompts, seeds, ...).

    fine: energy. rings: radial power. mean: red, green, blue; contrast; both in levels of 255. psnr, ssim: to
    the baseline, NaN for the baseline itself. hits: per attribute, NaN unasked. features, patch_features: the
    inspector's, of whole pictures and of patches (prompts, seeds, patches, ...).
    learned: by metric. diversity: (prompts, 1), NaN with one seed.
    """

    fine: Floats
    rings: Floats
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
    ledger: Ledger,
    course: Course,
    prompts: Sequence[int],
    method: str,
    examiner: Examiner,
    on_picture: Callable[[str], None],
) -> Marks:
    """Return the marks of a method's pictures of these prompts, all of which must be there."""
    baseline = course.methods[0].name
    rows: dict[str, list[Any]] = {}
    diversity = []
    for prompt in prompts:
        small = []
        for k in range(course.seeds):
            on_picture(method)
            item = prompt * course.seeds + k
            image = load_image(ledger.picture(method, item))
            other = None if method == baseline else load_image(ledger.picture(baseline, item))
            for name, value in _measure(image, other, course.questions[prompt].prompt, examiner).items():
                rows.setdefault(name, []).append(value)
            small.append(similarity.reduce(to_tensor([image])[0]))
        diversity.append(similarity.diversity(small) if len(small) > 1 else np.nan)
    shape = (len(prompts), course.seeds)
    arrays = {
        name: np.array(values, np.float64).reshape(*shape, *np.shape(values[0])) for name, values in rows.items()
    }
    found, wanted = arrays.pop("found"), _wanted(course, prompts)
    hits = np.where(np.isnan(found), np.nan, attributes.hits(found, wanted))
    learned = {name: arrays.pop(f"learned {name}") for name in examiner.learned}
    return Marks(**arrays, hits=hits, diversity=np.array(diversity, np.float64)[:, None], learned=learned)


def _measure(image: Image.Image, other: Image.Image | None, prompt: str, examiner: Examiner) -> dict[str, Any]:
    pixels = to_tensor([image])
    seen = moments(pixels[0])
    likeness = [np.nan, np.nan]
    if other is not None:
        ssim = similarity.ssim(image, other)
        likeness = [similarity.psnr(image, other), np.nan if ssim is None else ssim]
    found = np.full(len(attributes.GROUPS["all"]), np.nan)
    features, patch_features = np.full(1, np.nan), np.full((1, 1), np.nan)
    if examiner.inspector is not None:
        found = attributes.found(examiner.inspector, pixels)[0].astype(np.float64)
        features = attributes.features(examiner.inspector, pixels)[0]
        patch_features = attributes.patch_features(examiner.inspector, pixels)[0]
    return {
        "fine": float(fine_energy(pixels)[0]),
        "rings": radial_power(pixels)[0].numpy(),
        "mean": seen.mean,
        "contrast": seen.contrast,
        "psnr": likeness[0],
        "ssim": likeness[1],
        "found": found,
        "features": features,
        "patch_features": patch_features,
        **{
            f"learned {name}": np.nan if other is None and LEARNED[name].paired else score(image, prompt, other)
            for name, score in examiner.learned.items()
        },
    }


def _wanted(course: Course, prompts: Sequence[int]) -> NDArray[np.int64]:
    """Return (prompts, 1, attributes) of what is asked."""
    questions = [course.questions[prompt] for prompt in prompts]
    return attributes.as_indices([attributes.asked(each.prompt, each.labels) for each in questions])[:, None]
