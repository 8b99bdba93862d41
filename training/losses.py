"""What the decoder and the upscaler are trained for: the right pixels, edges, amount of texture, and look."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from mrflow.vista.inspector import Inspector

_WINDOW = 8
"""Side, in pixels, of the squares within which texture must have the right strength, wherever its grains lie."""
_OCTAVES = 2
_FLOOR = 1e-5
"""Added to mean squares under a root, whose slope at 0 is infinite."""


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return differences of neighbouring pixels, horizontal and vertical."""
    return images.diff(dim=3), images.diff(dim=2)


def edge_energy(images: Tensor) -> float:
    """Return the mean absolute difference of neighbouring pixels."""
    return sum(g.abs().mean().item() for g in gradients(images)) / 2


def pixel_loss(made: Tensor, true: Tensor) -> Tensor:
    """Return how far pixels and edges are from the truth, both (B, 3, H, W)."""
    pairs = zip(gradients(made), gradients(true), strict=True)
    return (made - true).abs().mean() + 0.5 * sum((a - b).abs().mean() for a, b in pairs)


def strengths(images: Tensor) -> list[Tensor]:
    """Return the root mean square of each octave's detail, finest first, in overlapping windows.

    images: (B, 3, H, W). An octave's detail is what a mean over 3x3 pixels takes away.
    """
    found = []
    for _ in range(_OCTAVES):
        detail = images[..., 1:-1, 1:-1] - avg_pool2d(images, 3, 1)
        found.append((avg_pool2d(detail.square(), _WINDOW, _WINDOW // 2) + _FLOOR).sqrt())
        images = avg_pool2d(images, 2)
    return found


def spreads(latents: Tensor) -> Tensor:
    """Return the standard deviation of each channel in overlapping windows of 4x4 latents (B, C, H, W)."""
    squares, means = avg_pool2d(latents.square(), 4, 2), avg_pool2d(latents, 4, 2)
    return ((squares - means.square()).clamp(min=0) + _FLOOR).sqrt()


def texture_loss(made: Tensor, true: Tensor) -> Tensor:
    """Return how far the strength of fine detail is from the truth's, place by place, both (B, 3, H, W).

    The pixel loss alone wipes out texture that cannot be foretold pixel by pixel: its best guess is the mean.
    How strong the texture is can be foretold, and this asks for it; what it looks like is the critic's business.
    """
    return sum((a - b).abs().mean() for a, b in zip(strengths(made), strengths(true), strict=True))


def look_loss(guide: Inspector, made: Tensor, true: Tensor) -> Tensor:
    """Return how far pictures are from the truth to the guide's eye, both (B, 3, H, W) in [-1, 1].

    Squared distances of unit feature vectors, place by place, over all layers (LPIPS, Zhang et al., arXiv
    1801.03924), of a network that is not the judge (training/guide.py). Nothing is made smaller before it looks.
    """
    loss = made.new_zeros(())
    for layer in guide.body:
        made = layer(made)
        with torch.no_grad():
            true = layer(true)
        if isinstance(layer, nn.ReLU):
            loss = loss + (normalize(made, dim=1) - normalize(true, dim=1)).square().sum(1).mean()
    return loss
