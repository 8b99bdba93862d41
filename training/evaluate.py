"""Quick scores: does the inspector find what the prompts asked for?

python -m training.evaluate --count 64 --steps 12 --guidance-stop 0.4
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from mrflow import Plan
from mrflow.vista import inspector
from training.flow_model import GUIDANCE, WEIGHTS, Flow, load_flow, shift, unpack
from training.text import make_tokenizer, tokenize
from training.world import ATTRIBUTES, Scene, caption, labels, sample_scene

__all__ = ["draw", "prompts", "scenes", "score"]


def scenes(count: int, seed: int) -> list[Scene]:
    """Return the scenes that `prompts` of the same count and seed are captions of."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def prompts(count: int, seed: int = 2 * 10**6) -> tuple[list[str], Tensor]:
    """Return captions naming every attribute, of scenes not trained on, and labels (count, attributes)."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    wanted = [[labels(scene)[name] for name in ATTRIBUTES] for scene in scenes]
    return [caption(scene, rng, full=True) for scene in scenes], torch.tensor(wanted)


@torch.no_grad()
def draw(
    flow: Flow, tokenizer: PreTrainedTokenizerFast, captions: list[str], side: int = 128, steps: int = 20,
    guidance: float = GUIDANCE, guidance_stop: float = 1.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Return latents (B, C, side/8, side/8) on the CPU, drawn as the pipeline draws them but in one go."""
    count, rows = len(captions), side // 16
    device = flow.transformer.device
    asked, free = (flow.text(tokenize(tokenizer, texts).to(device)) for texts in (captions, [""] * count))
    x = torch.randn(
        count, rows * rows, flow.transformer.config.in_channels, generator=torch.Generator().manual_seed(seed)
    ).to(device)
    sigmas = torch.cat([shift(torch.linspace(1, 1 / steps, steps), rows * rows), torch.zeros(1)])
    guided = Plan(steps=steps, guidance_stop=guidance_stop).guided_steps
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        at = sigma.expand(count).to(device)
        velocity = flow(x, at, asked, rows, rows)
        if step < guided:
            unasked = flow(x, at, free, rows, rows)
            velocity = unasked + guidance * (velocity - unasked)
        x = x + (following - sigma) * velocity
    return unpack(x.cpu(), 2 * rows, 2 * rows)


def score(
    flow: Flow,
    vae: AutoencoderKL,
    tokenizer: PreTrainedTokenizerFast,
    sheet: Path,
    count: int = 32,
    **drawing: Any,
) -> dict[str, float]:
    """Return the share of asked attributes found, each and on average; write a contact sheet.

    drawing: of `draw`, whose defaults are 128x128 in 20 steps.
    """
    captions, wanted = prompts(count)
    parts = [draw(flow, tokenizer, captions[i : i + 16], seed=i, **drawing) for i in range(0, count, 16)]
    images = torch.cat([vae.decode(part).sample for part in parts]).clamp(-1, 1)
    found = inspector.load().name(images)
    values = {}
    for k, name in enumerate(ATTRIBUTES):
        asked = wanted[:, k] >= 0
        values[name] = (found[asked, k] == wanted[asked, k]).float().mean().item()
    pictures = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(pictures[i : i + 8]), 1) for i in range(0, count - count % 8, 8)]
    Image.fromarray(np.concatenate(rows)).save(sheet)
    return values | {"mean": sum(values.values()) / len(values)}


def main(
    count: Annotated[int, typer.Option(help="Prompts.")] = 64,
    side: Annotated[int, typer.Option(help="Pixels of a side.")] = 128,
    steps: Annotated[int, typer.Option(help="Euler steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Strength of the guidance.")] = GUIDANCE,
    guidance_stop: Annotated[float, typer.Option(help="Share of the steps, from the first, with guidance.")] = 1.0,
    sheet: Annotated[Path, typer.Option(help="Where to draw the pictures.")] = Path("runs/evaluate.png"),
) -> None:
    """Score the shipped weights and print the shares as JSON."""
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", dtype=torch.float32)
    drawing = {"side": side, "steps": steps, "guidance": guidance, "guidance_stop": guidance_stop}
    with torch.no_grad():
        values = score(load_flow()[0].eval(), vae, make_tokenizer(), sheet, count, **drawing)
    print(json.dumps({name: round(value, 4) for name, value in values.items()}))


if __name__ == "__main__":
    typer.run(main)
