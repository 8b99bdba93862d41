"""The arithmetic of the two passes on plain tensors: sigmas, noise and seeds.

A sigma is in [0, 1]: 1 is pure noise, 0 is clean. Latents at sigma s are (1 - s) * clean + s * noise.

One seed makes one picture, through two streams of random numbers:

    draft stream    torch.Generator("cpu").manual_seed(seed), as a user of the plain pipeline would seed it:
                    what the pipeline draws from it at full size, brought down, or at the draft's own size
    refine stream   the same generator seeded with a hash of the seed, so that the noise of the refine pass
                    is unrelated to that of the draft, and a draft can be finished without being made again;
                    of a plan's later levels with a hash of seed and level

The generators live on the CPU whatever the device, as diffusers' `randn_tensor` allows: the same seed gives
the same noise on every device, and picture k of a batch gets the noise it would get alone.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from mrflow.errors import PlanError


def refine_sigmas(sigma: float | str | tuple[float | str, ...], steps: int | tuple[int, ...]) -> list[float]:
    """Return steps + 1 evenly spaced sigmas from `sigma` down to exactly 0. Source: arXiv 2607.01642, refine pass.

    Raises PlanError if sigma lies outside (0, 1) or is a plan's word for it, if steps is below 1, and for those of
    several levels.
    """
    if isinstance(sigma, str | tuple):
        raise PlanError(f"refine_sigma is {sigma!r}; here it must be a number. Try 0.12.")
    if isinstance(steps, tuple):
        raise PlanError(f"refine_steps is {steps}; here it must be a number. Try 1.")
    _check_sigma(sigma)
    if steps < 1:
        raise PlanError(f"refine_steps is {steps}; it must be at least 1. Try 1.")
    return [sigma * (steps - step) / steps for step in range(steps)] + [0.0]


def add_noise(latents: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """Return latents at noise level `sigma`: (1 - sigma) * latents + sigma * noise.

    latents, noise: (B, C, H, W), any float dtype; sigma: float in (0, 1).
    Raises PlanError if sigma lies outside. Source: arXiv 2607.01642, noise injection.
    """
    _check_sigma(sigma)
    return (1.0 - sigma) * latents + sigma * noise


def draft_generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """Return one CPU generator per seed, at the start of its draft stream."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def refine_generators(seeds: Iterable[int], level: int = 1) -> list[torch.Generator]:
    """Return one CPU generator per seed, at the start of its refine stream of a plan's level, from 1."""
    return [torch.Generator("cpu").manual_seed(_refine_seed(seed, level)) for seed in seeds]


def make_noise(
    shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str = "cpu"
) -> Tensor:
    """Return Gaussian noise (B, *shape), float32, on `device`: row k from generator k alone.

    shape: of one picture's latents (C, H, W). Drawn in float32 and on the generator's device, so that the
    noise depends neither on the model's dtype nor on its device.
    """
    rows = [torch.randn(tuple(shape), generator=g, device=g.device, dtype=torch.float32) for g in generators]
    return torch.stack([row.to(device) for row in rows])


class Noised(NamedTuple):
    """Latents (B, C, H, W) with noise at the first of `sigmas`, which end at 0.

    generators: that the noise came from, as it left them; some pipelines want some in the refine pass.
    """

    latents: Tensor
    sigmas: list[float]
    generators: list[torch.Generator]


def mix_noise(latents: Tensor, sigmas: list[float], seeds: Iterable[int], level: int = 1) -> Noised:
    """Return latents (B, C, H, W) with the refine noise of their seeds, at the first of the sigmas."""
    generators = refine_generators(seeds, level)
    noise = make_noise(latents.shape[1:], generators, latents.device)
    return Noised(add_noise(latents, sigmas[0], noise), sigmas, generators)


def shrink_noise(noise: Tensor, height: int, width: int) -> Tensor:
    """Return white noise (B, C, H, W) brought down to (B, C, height, width), as white and of the same variance.

    Where both ratios are whole, averages times the root of the number averaged; else the lowest frequencies of an
    orthonormal cosine transform, in which white noise is white, too. float32.
    """
    rows, columns = noise.shape[-2:]
    if rows % height == 0 and columns % width == 0:
        window = (rows // height, columns // width)
        pooled: Tensor = avg_pool2d(noise.float(), window) * math.sqrt(math.prod(window))
        return pooled
    down = [_cosines(few)[:, :few].T @ _cosines(many)[:few] for few, many in ((height, rows), (width, columns))]
    above, beside = (each.to(noise.device) for each in down)
    low: Tensor = above @ noise.double() @ beside.T
    return low.float()


def keep_colors(pixels: Tensor, draft: Tensor, share: float) -> Tensor:
    """Return pixels (B, 3, H, W) with the low frequencies of a draft (B, 3, h, w), the mean among them.

    Both in [0, 1], float32; the result too. share: in [0, 1], of the draft's frequencies along each side, rounded
    up: those of the orthonormal cosine transform, of which the first is the mean. What is finer is left as it is,
    but for what leaves [0, 1]; with 0 the pixels are returned themselves.
    """
    if not share:
        return pixels
    counts = [math.ceil(share * min(sides)) for sides in zip(draft.shape[-2:], pixels.shape[-2:], strict=True)]
    (down, across), (rows, columns) = (
        [_cosines(side)[:count].to(each) for side, count in zip(each.shape[-2:], counts, strict=True)]
        for each in (pixels, draft)
    )
    larger = math.sqrt(math.prod(pixels.shape[-2:]) / math.prod(draft.shape[-2:]))
    drift = rows @ draft @ columns.T * larger - down @ pixels @ across.T
    kept: Tensor = (pixels + down.T @ drift @ across).clamp(0, 1)
    return kept


def _cosines(size: int) -> Tensor:
    """Return the orthonormal cosine transform of `size` values as a matrix, a frequency in each row."""
    k, n = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)[None]
    matrix = torch.cos(math.pi * (n + 0.5) * k / size) * (2 / size) ** 0.5
    matrix[0] /= 2**0.5
    return cast("Tensor", matrix)


def _refine_seed(seed: int, level: int) -> int:
    of = f"{seed}" if level == 1 else f"{seed} {level}"  # one level's pictures stay what they were
    digest = hashlib.sha256(f"mrflow refine {of}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # 63 bits: manual_seed takes no larger positive number


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < 1:
        raise PlanError(f"refine_sigma is {sigma}; it must lie between 0 and 1. Try 0.12.")
