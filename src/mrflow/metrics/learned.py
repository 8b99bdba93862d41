"""Scores by other people's networks, where they are asked for: CLIP score, LPIPS and ImageReward.

Their weights come from the hub on first use; nothing here is loaded unless it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from mrflow.errors import MissingExtraError, ModelError, RequestError, reason

if TYPE_CHECKING:
    import torch
    from PIL import Image

Score = Callable[["Image.Image", str, "Image.Image | None"], float]
"""A picture, its prompt and the baseline's picture of the same seed to a number."""

CLIP = "openai/clip-vit-base-patch16"


@dataclass(frozen=True)
class Learned:
    """One such score. package, module: to install and to import, by `extra`. better: "higher" or "lower".

    paired: it needs the baseline's picture.
    """

    name: str
    about: str
    package: str
    module: str
    extra: str
    better: str
    load: Callable[[torch.device], Score]
    paired: bool = False


def choose(names: Sequence[str]) -> list[Learned]:
    """Return the scores of these names; raises RequestError if unknown, MissingExtraError without its package."""
    chosen = []
    for name in dict.fromkeys(names):
        if name not in LEARNED:
            raise RequestError(f"There is no metric {name[:80]!r}. Known: {', '.join(LEARNED)}.")
        one = LEARNED[name]
        if find_spec(one.module) is None:
            raise MissingExtraError(one.package, one.extra)
        chosen.append(one)
    return chosen


def load(one: Learned, device: torch.device) -> Score:
    """Return the score, its network loaded; raises ModelError if its weights cannot be had."""
    try:
        return one.load(device)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        text = f"{one.about} cannot be loaded: {reason(error)}"
        raise ModelError(f"{text} Leave out --metric {one.name}.") from error


def _clip(device: torch.device) -> Score:
    from transformers import CLIPModel, CLIPProcessor

    return clip_score(CLIPModel.from_pretrained(CLIP), CLIPProcessor.from_pretrained(CLIP), device)


def clip_score(model: Any, processor: Any, device: torch.device) -> Score:
    """Return the CLIP score by this network: 100 x the cosine of picture and prompt, at least 0."""
    import torch

    model = model.eval().to(device)

    def score(image: Image.Image, prompt: str, _reference: Image.Image | None) -> float:
        pixels = processor(images=[_bytes(image)], return_tensors="pt")
        tokens = processor(text=[prompt], return_tensors="pt", truncation=True)
        with torch.no_grad():
            output = model(**{name: value.to(device) for name, value in {**pixels, **tokens}.items()})
        return max(100 * float((output.image_embeds * output.text_embeds).sum()), 0.0)

    return score


def _lpips(device: torch.device) -> Score:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return lpips_score(LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True), device)


def lpips_score(metric: Any, device: torch.device) -> Score:
    """Return the distance to the baseline's picture by a torchmetrics LPIPS that takes pixels in [0, 1]."""
    import torch

    metric = metric.to(device)

    def score(image: Image.Image, _prompt: str, reference: Image.Image | None) -> float:
        if reference is None:
            raise RequestError("LPIPS compares two pictures; there is one.")
        pair = [_bytes(each)[None].to(device).float() / 255 for each in (image, reference)]
        with torch.no_grad():
            return float(metric(*pair))

    return score


def _image_reward(device: torch.device) -> Score:
    import ImageReward

    model = ImageReward.load("ImageReward-v1.0", device=str(device))
    return lambda image, prompt, _reference: float(model.score(prompt, image))


def _bytes(image: Image.Image) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


# to install, to import, the extra that brings it
_TRANSFORMERS = ("transformers", "transformers", "metrics")
_TORCHMETRICS = ("torchmetrics", "torchmetrics", "metrics")
_IMAGE_REWARD = ("image-reward", "ImageReward", "image-reward")

LEARNED: Mapping[str, Learned] = {
    one.name: one
    for one in (
        Learned("clip", "CLIP score", *_TRANSFORMERS, "higher", _clip),
        Learned("lpips", "LPIPS to the baseline", *_TORCHMETRICS, "lower", _lpips, paired=True),
        Learned("image-reward", "ImageReward", *_IMAGE_REWARD, "higher", _image_reward),
    )
}
