"""What can be read off pixels: how sharp a picture is, its colours, its likeness to another.

Sharpness is the power of brightness at each spatial frequency, in cycles per pixel, .5 being the finest along a
side. A Hann window keeps the jump from one edge of a picture to the opposite one, which a Fourier transform sees,
from counting as detail.

Colours are two numbers: the mean of each channel, and the contrast. A decode and encode, or an upscaler, may shift
either a little; over the stages of a picture that shows as grey or tinted results (the drift), so it is measured
from stage to stage of the very same picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mrflow.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

LEVELS = 255.0
MAX_PSNR = 100.0
"""dB given for equal pictures, whose ratio is infinite."""
_SIDE = 64  # pixels at which pictures are told apart: what they show, not their grain
_MIN_SIDE = 11  # of the window of SSIM, which is that of the original
_WINDOW = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}

HIGH = 1 / 8
"""Frequencies above this count as fine: a draft at half size has hardly any above 1/4, nothing above .35."""
COARSEST, FAINT = 32, 0.1
"""Of stripes: the longest period, in pixels, and an amplitude in levels of 255 that nobody sees."""
_REACH, _LEAK = 16, 3  # frequencies to each side that are compared, and those into which the window leaks
BINS = 32
FINE = round(2 * HIGH * BINS)
"""The first of the rings that are fine."""


def radial_power(images: Tensor) -> Tensor:
    """Return (B, BINS) power per ring of frequencies, from 0 to .5 in equal widths, float64.

    images: (B, 3, H, W) in [0, 1]. The rings and what lies in the corners beyond .5 add up to the variance of
    the windowed brightness, over the mean of the squared window.
    """
    import torch

    power, radius = _power(images)
    ring = (radius * 2 * BINS).long().clamp(max=BINS)
    rings = torch.zeros(len(images), BINS + 1, dtype=power.dtype, device=power.device)
    rings.index_add_(1, ring.flatten(), power.flatten(1))
    return rings[:, :BINS]


def fine_energy(images: Tensor) -> Tensor:
    """Return (B,) power above HIGH, corners included, float64. images: (B, 3, H, W) in [0, 1]."""
    power, radius = _power(images)
    return power[:, radius > HIGH].sum(1)


def _power(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return power (B, H, W) and the frequency (H, W) it belongs to."""
    import torch

    brightness = images.double().mean(1)
    brightness = brightness - brightness.mean((1, 2), keepdim=True)
    sides = brightness.shape[1:]
    options: dict[str, Any] = {"dtype": torch.float64, "device": images.device}
    window = torch.outer(*(torch.hann_window(side, **options) for side in sides))
    spectrum = torch.fft.fft2(brightness * window).abs().square()
    power = spectrum / (sides.numel() ** 2 * window.square().mean())
    rows, columns = (torch.fft.fftfreq(side, **options) for side in sides)
    return power, (rows[:, None].square() + columns[None].square()).sqrt()


def stripes(images: Tensor) -> Tensor:
    """Return (B,) how far the strongest stripes along a side stand out of what a picture has there anyway, dB.

    images: (B, 3, H, W) in [0, 1]. The mean brightness of rows and of columns is a sum of waves; taken is the one
    of a period of at most COARSEST pixels whose power is the most times the median of its neighbours', which edges
    and textures raise as well. What is weaker than FAINT counts nothing. Chance alone gives 6 to 10 dB; models
    that paint larger than they have learned (FLUX.1 near 2048) put waves of a few pixels through all of a picture.
    """
    import torch

    brightness, found = images.double().mean(1), []
    for dim in (1, 2):
        profile = brightness.mean(dim)
        length = profile.shape[1]
        window = torch.hann_window(length, dtype=torch.float64, device=images.device)
        power = torch.fft.rfft((profile - profile.mean(1, keepdim=True)) * window).abs().square()
        reach = min(_REACH, power.shape[1] - 1)
        if reach <= _LEAK:  # too small to have any
            found.append(torch.zeros(len(images), dtype=torch.float64, device=images.device))
            continue
        around = torch.nn.functional.pad(power, (reach, reach), mode="reflect").unfold(1, 2 * reach + 1, 1)
        beside = torch.cat([around[..., : reach - _LEAK], around[..., reach + _LEAK + 1 :]], -1)
        faint = (FAINT / LEVELS * length / 4) ** 2  # what a wave of that amplitude has under the window
        ratio = power / (beside.median(-1).values + faint)
        found.append(ratio[:, -(-length // COARSEST) :].amax(1))
    return 10 * torch.stack(found).amax(0).clamp_min(1).log10()


def moments(image: Tensor) -> list[float]:
    """Return [red, green, blue, contrast] of one picture (3, H, W) in [0, 1], in levels of 255.

    The mean of each channel, and the standard deviation of the brightness.
    """
    pixels = image.detach().double() * LEVELS
    return [*pixels.mean((1, 2)).tolist(), float(pixels.mean(0).std(unbiased=False))]


def check_similarity() -> None:
    """Raise MissingExtraError unless scikit-image is installed."""
    from importlib.util import find_spec

    if find_spec("skimage") is None:
        raise MissingExtraError("scikit-image", "bench")


def psnr(image: Image.Image, other: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two RGB pictures of one size in dB, MAX_PSNR at most."""
    from skimage.metrics import peak_signal_noise_ratio

    a, b = _array(image), _array(other)
    if np.array_equal(a, b):
        return MAX_PSNR
    return min(float(peak_signal_noise_ratio(a, b, data_range=255)), MAX_PSNR)


def ssim(image: Image.Image, other: Image.Image) -> float | None:
    """Return the structural similarity of two RGB pictures of one size, None where a side is under 11 pixels.

    Source: Wang et al. 2004, through scikit-image.
    """
    from skimage.metrics import structural_similarity

    if min(image.size) < _MIN_SIDE:
        return None
    return float(structural_similarity(_array(image), _array(other), data_range=255, channel_axis=2, **_WINDOW))


def reduce(image: Tensor) -> Tensor:
    """Return a picture (3, H, W) in [0, 1] at 64 x 64, where `diversity` looks."""
    from torch.nn.functional import interpolate

    return interpolate(image[None].double(), (_SIDE, _SIDE), mode="bilinear", antialias=True)[0]


def diversity(images: Sequence[Tensor]) -> float:
    """Return the mean distance of each two reduced pictures, at least 2.

    The distance is the root of the mean squared difference, in levels of 255.
    """
    import torch

    rows = torch.stack(list(images)).flatten(1)
    return LEVELS * float(torch.pdist(rows).mean()) / math.sqrt(rows.shape[1])


def _array(image: Image.Image) -> NDArray[np.float64]:
    return np.asarray(image.convert("RGB"), dtype=np.float64)
