"""How sharp pictures are: the power of their brightness at each spatial frequency.

Frequencies are in cycles per pixel, .5 being the finest along a side. A Hann window keeps the jump from one
edge of a picture to the opposite one, which a Fourier transform sees, from counting as detail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

HIGH = 1 / 8
"""Frequencies above this count as fine: a draft at half size has hardly any above 1/4, nothing above .35."""
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
    height, width = brightness.shape[1:]
    down, across = (
        torch.hann_window(side, periodic=True, dtype=torch.float64, device=images.device)
        for side in (height, width)
    )
    window = down[:, None] * across[None]
    spectrum = torch.fft.fft2(brightness * window).abs().square()
    power = spectrum / ((height * width) ** 2 * window.square().mean())
    rows, columns = (
        torch.fft.fftfreq(side, dtype=torch.float64, device=images.device) for side in (height, width)
    )
    return power, (rows[:, None].square() + columns[None].square()).sqrt()
