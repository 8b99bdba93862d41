"""A compiled transformer is compiled for its two sizes, and then no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from conftest import make_fast, make_pipe
from mrflow import Plan

PLAN = Plan(steps=2, refine_sigma=0.3, true_cfg_scale=1.0)


def compiled_frames() -> int:
    return sum(torch._dynamo.utils.counters["frames"].values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("how", ["whole", "blocks"])
def test_a_second_call_compiles_nothing(how: str, cache: bool) -> None:
    torch._dynamo.reset()
    pipe = make_pipe()
    plain = make_fast(pipe)("a red boat", seed=7, plan=PLAN).images[0]
    if cache:
        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    if how == "whole":
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer.compile_repeated_blocks(backend="eager")
    fast = make_fast(pipe)
    counts: list[int] = []
    images: list[Any] = []
    for seed in (7, 8, 9, 7):
        images.append(fast("a red boat", seed=seed, plan=PLAN).images[0])
        counts.append(compiled_frames())
    assert counts[0] > 0
    assert counts[1:] == [counts[1]] * 3
    difference = torch.tensor(list(images[0].tobytes())) - torch.tensor(list(plain.tobytes()))
    assert difference.abs().max() <= 1
    assert images[3].tobytes() == images[0].tobytes()
    torch._dynamo.reset()
