"""Score samples while the flow trains: does the inspector find what the prompts asked for?"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mrflow.vista import inspector
from training.flow import Flow, shift, tokenize, unpack
from training.world import ATTRIBUTES, caption, labels, sample_scene

__all__ = ["draw", "prompts", "score"]


def prompts(count: int, seed: int = 2 * 10**6) -> tuple[list[str], Tensor]:
    """Return captions naming every attribute, of scenes not trained on, and labels (count, attributes)."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    wanted = [[labels(scene)[name] for name in ATTRIBUTES] for scene in scenes]
    return [caption(scene, rng, full=True) for scene in scenes], torch.tensor(wanted)


@torch.no_grad()
def draw(
    flow: Flow, tokenizer: PreTrainedTokenizerFast, captions: list[str], side: int = 128, steps: int = 20,
    guidance: float = 3.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Return latents (B, C, side/8, side/8), both guidance branches in one batch: quick, for scoring alone."""
    count, rows = len(captions), side // 16
    text = flow.text(tokenize(tokenizer, [*captions, *[""] * count]))
    x = torch.randn(
        count, rows * rows, flow.transformer.config.in_channels, generator=torch.Generator().manual_seed(seed)
    )
    sigmas = torch.cat([shift(torch.linspace(1, 1 / steps, steps), rows * rows), torch.zeros(1)])
    for sigma, following in pairwise(sigmas):
        asked, free = flow(torch.cat([x, x]), sigma.expand(2 * count), text, rows, rows).chunk(2)
        x = x + (following - sigma) * (free + guidance * (asked - free))
    return unpack(x, 2 * rows, 2 * rows)


def score(
    flow: Flow,
    vae: AutoencoderKL,
    tokenizer: PreTrainedTokenizerFast,
    sheet: Path,
    count: int = 32,
    side: int = 128,
) -> dict[str, float]:
    """Return the share of asked attributes found, each and on average, at 20 steps; write a contact sheet."""
    captions, wanted = prompts(count)
    images = torch.cat(
        [vae.decode(draw(flow, tokenizer, captions[i : i + 16], side, seed=i)).sample for i in range(0, count, 16)]
    ).clamp(-1, 1)
    found = inspector.load().name(images)
    values = {}
    for k, name in enumerate(ATTRIBUTES):
        asked = wanted[:, k] >= 0
        values[name] = (found[asked, k] == wanted[asked, k]).float().mean().item()
    pictures = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(pictures[i : i + 8]), 1) for i in range(0, count - count % 8, 8)]
    Image.fromarray(np.concatenate(rows)).save(sheet)
    return values | {"mean": sum(values.values()) / len(values)}
