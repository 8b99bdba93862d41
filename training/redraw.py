"""Pictures as the flow repaints them: real flaws, with the truth beside them.

A picture's latents are noised part of the way and brought back by the flow. What comes back shows the same scene
with the smudges that drafts and refined pictures have, which no noise or blur imitates; the picture itself is what
the upscaler or the decoder should have made of it.
"""

from __future__ import annotations

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from training.data import to_tensor
from training.flow_model import Flow, load_flow, pack, unpack
from training.latents import project
from training.text import make_tokenizer, tokenize

REFINED = ((0.12, 0.12), 1)
"""Sigmas and steps of vista's refine pass."""
DRAFTED = ((0.1, 0.4), 8)
"""Those that decide a draft's details; forms, which have no truth once they are repainted, are older than 0.4."""
_BATCH = 32


@torch.no_grad()
def repaint(
    flow: Flow, latents: Tensor, tokens: Tensor, sigmas: Tensor, steps: int, rng: torch.Generator
) -> Tensor:
    """Return latents (B, C, H, W) noised to sigmas (B,) and brought back by `steps` Euler steps of one length."""
    rows, columns = latents.shape[2] // 2, latents.shape[3] // 2
    text = flow.text(tokens)
    noised = torch.lerp(latents, torch.randn(latents.shape, generator=rng), sigmas[:, None, None, None])
    x, stride = pack(noised), sigmas / steps
    for step in range(steps):
        x = x - stride[:, None, None] * flow(x, sigmas - step * stride, text, rows, columns)
    return unpack(x, 2 * rows, 2 * columns)


def repaint_all(
    pictures: np.ndarray,
    captions: list[str],
    projection: tuple[Tensor, Tensor],
    half: bool,
    way: tuple[tuple[float, float], int],
    seed: int = 0,
) -> Tensor:
    """Return the repainted latents (N, C, H/8, W/8) of pictures (N, H, W, 3) uint8, at half size if asked.

    way: DRAFTED or REFINED: between which sigmas, in how many steps.
    """
    (low, high), steps = way
    flow, tokenizer = load_flow()[0].eval(), make_tokenizer()
    rng = torch.Generator().manual_seed(seed)
    found = []
    for at in track(range(0, len(pictures), _BATCH), f"repainting {'drafts' if half else 'pictures'}"):
        chosen = slice(at, at + _BATCH)
        latents = project(to_tensor(pictures[chosen], half), *projection)
        sigmas = low + (high - low) * torch.rand(len(latents), generator=rng)
        found.append(repaint(flow, latents, tokenize(tokenizer, captions[chosen]), sigmas, steps, rng))
    return torch.cat(found)
