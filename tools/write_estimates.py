"""docs/estimate.md: what plans gain by their operations, model by model and size by size.

python -m tools.write_estimates          two and a half minutes of one core
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mrflow import Plan, estimate
from mrflow.costs import Estimate

PAGE = Path(__file__).parents[1] / "docs" / "estimate.md"
MODELS = ("flux-dev", "qwen-image", "flux2-klein-base-9b", "z-image", "sd3.5-large")
SIZES = (1024, 2048, 4096)
LARGEST = {"sd3.5-large": 2048}  # its positions end at 3072
PLANS = {"12+1": Plan(), "20+1": Plan(steps=20), "quarter": Plan(scale=4)}
MEASURED = {  # arXiv 2607.01642, on an A100 at 1024x1024: 12+1 and 20+1
    "flux-dev": "8.25 and 5.78",
    "qwen-image": "10.3 and 6.98",
    "flux2-klein-base-9b": "8.79 for 12+1",
}
HEAD = """\
# What it will gain: `mrflow estimate`

After this page you can know what a plan will gain, and what memory it needs, before anything is downloaded.

    mrflow estimate flux-dev --size 1024 --plan 12+1 --plan 8+1
    mrflow estimate qwen-image --size 2048 --plan 12+1 --plan 12+1:scale=4 --json --plot costs.png
    mrflow estimate flux-dev --size 2048 --max-memory 24GB        # what fits, in tiles if need be

It counts the operations of the true architecture and the bytes of its weights and activations, stage by stage,
for the plain pipeline and each plan. Text encoders, the autoencoder and the upscaler (Real-ESRGAN x2, or that of
`--upscaler`) are among them. Nothing is fetched and no weights are made: the method runs over networks that have
shapes alone.
Known are vista, every model of `mrflow models` but `bria` and `prx-pixel`, and any folder in diffusers' layout.

In Python:

    from mrflow import estimate

    found = estimate("flux-dev", width=1024, height=1024, plans=["12+1", "8+1"])
    native, plan, *_ = found.ways
    found.speedup(plan)                                  # 10.4
    plan.stages["refine"].operations                     # 74.4e12
    found.memory(plan, "8-bit", offload="model")         # bytes by stage

**Operations are not seconds.** `speedup` is the ratio of operations: what a plan gains where each operation
takes as long in it as in the native run. Small passes use a device less well, so a measurement stays below
it: the paper's A100 reaches 79% of it for FLUX.1-dev with 12+1. `mrflow bench` measures.

## What is counted

- **Operations** of matrix products, attention over all pairs of tokens, and convolutions: two for each
  multiplication with its addition. Normalisation, activations and the like take time, but few operations, and
  are left out.
- **Guidance** with a negative prompt is a second pass, as it runs.
- **Texts** are padded where the pipeline pads them (T5 of FLUX.1: 512 tokens). Elsewhere the length of `--prompt`
  counts, about a token a word; without it some 40 words.
- **Memory** is the most that is alive at once within a network, with attention that makes no matrix of all pairs,
  as torch's own. On a GPU convolutions count three times, for the room that they work in.
- **Weights** take 16 bits, or 8 or 4 in the linear layers of the transformer and of large text encoders.
- Not counted are a device's libraries and the pictures between the networks (12 bytes a pixel).

Others' recorded peaks of FLUX.1-dev on an H100, whole, offloaded and in 8 bits, are up to 7% higher than these
figures. Its transformer alone is within 5%, its weights in 4 bits within 2% (sources: `tests/test_estimate.py`).
The tests hold the operations against formulas written out by hand, and vista's against a real run.

## How many times fewer operations

Against the plain pipeline at the same size with its usual steps (50; 28 for Stable Diffusion 3.5), guided where
the model is. Half and quarter are the draft's sides. *Measured* is how many times faster 12+1 and 20+1 were at
1024x1024 on an A100 for the method's authors (arXiv 2607.01642). Stable Diffusion 3.5 takes 3072x3072 at most.
Written by `python -m tools.write_estimates`.

| model | size | native, PFLOP | 12+1, half | 20+1, half | 12+1, quarter | measured |
|---|---|---|---|---|---|---|"""


def row(model: str, found: Estimate) -> str:
    """Return a row of the table; found: of the plans of PLANS."""
    native, *staged = found.ways
    gains = " | ".join(f"{found.speedup(way):.2f}" for way in staged)
    measured = MEASURED.get(model, "") if found.width == 1024 else ""
    size = f"{found.width}x{found.height}"
    return f"| {model} | {size} | {native.operations / 1e15:.2f} | {gains} | {measured} |"


def page() -> Iterable[str]:
    """Yield the lines of docs/estimate.md."""
    yield HEAD
    for model in MODELS:
        for size in (each for each in SIZES if each <= LARGEST.get(model, max(SIZES))):
            yield row(model, estimate(model, width=size, height=size, plans=PLANS))
    base = estimate("z-image", width=1024, height=1024, plans=["12+1"])
    turbo = estimate("z-image-turbo", width=1024, height=1024, plans=["8+1"])
    alone, across = turbo.speedup(turbo.ways[1]), base.ways[0].operations / turbo.ways[1].operations
    yield f"""
The paper's 21.0 for Z-Image-Turbo with 8+1 is no gain of the plan alone: by itself it is {alone:.2f} times fewer
operations than Turbo's own 8 steps, and {across:.1f} times fewer than 50 guided steps of Z-Image."""


if __name__ == "__main__":
    PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")
