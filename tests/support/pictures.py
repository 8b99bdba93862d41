"""Pictures, their bytes, and a recipe to go with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mrflow import Plan
from mrflow.recipe import Recipe, library_versions


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def bytes_of(images: Sequence[Image.Image]) -> list[bytes]:
    return [image.tobytes() for image in images]


def make_recipe() -> Recipe:
    return Recipe(
        mode="staged",
        prompt='a "red" boat, 紅い船 \x00 </s>',
        seed=2**63 - 1,
        width=1024,
        height=512,
        plan=Plan(true_cfg_scale=3.0),
        model="vista",
        versions=library_versions(),
        pixels_sha256="0" * 64,
    )
