"""How fast this machine can train: in which precision, and with compiled blocks or without."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

FASTER = 1.3
"""How much faster bfloat16's products have to be: rounding costs something, and casting takes time."""
APART = 0.03
"""Largest difference between compiled blocks and others, as a share of what they give: bfloat16 has three digits,
and a compiler rounds less often."""


def products_per_second(dtype: torch.dtype, side: int = 1024, times: int = 4) -> float:
    """Return how many products of square matrices this CPU makes in a second."""
    matrix = torch.randn(side, side).to(dtype)
    matrix @ matrix
    start = time.perf_counter()
    for _ in range(times):
        matrix @ matrix
    return times / (time.perf_counter() - start)


def faster_dtype(place: torch.device) -> torch.dtype:
    """Return bfloat16 where `place` multiplies it faster than float32 (80 times slower without the hardware)."""
    if place.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    slow, fast = products_per_second(torch.float32), products_per_second(torch.bfloat16, times=1)
    return torch.bfloat16 if fast > FASTER * slow else torch.float32


def products_in(dtype: torch.dtype, place: torch.device) -> AbstractContextManager[object]:
    """Return a context in which `place` multiplies in `dtype` and keeps weights and sums in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(place.type, dtype)


def compile_blocks(transformer: FluxTransformer2DModel, example: Callable[[], Tensor]) -> bool:
    """Compile the blocks in place and say whether they are; a machine without a compiler goes on without.

    example: runs the transformer; called before and after, and what it returns must stay the same.
    """
    before = example()
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 256  # many sizes
    transformer.compile_repeated_blocks(dynamic=False)
    try:
        after = example()
        apart = ((after - before).norm() / before.norm().clamp_min(1e-6)).item()
        trouble = "" if apart < APART else f"compiled blocks differ by {apart:.3f}"
    except Exception as error:  # what a compiler that is missing or broken raises is a large family
        trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    if trouble:
        print(f"training without compiled blocks: {trouble}", file=sys.stderr)
        for block in transformer.modules():
            block._compiled_call_impl = None
    return not trouble
