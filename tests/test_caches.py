"""Feature caches skip work in the draft, none in the refine pass, and are afterwards as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig

from conftest import make_fast, make_pipe
from mrflow import Plan
from mrflow.borrowing import describe_cache, without_caches
from support.pictures import bytes_of
from support.pipelines import own_call

PLAN = Plan(steps=6, refine_steps=3, refine_sigma=0.3, true_cfg_scale=2.0, noise="own")
CACHES: dict[str, Callable[[], Any]] = {
    "FirstBlockCache": lambda: FirstBlockCacheConfig(threshold=10.0),
    "MagCache": lambda: MagCacheConfig(
        threshold=10.0, num_inference_steps=6, retention_ratio=0.2, mag_ratios=[1.0] * 6
    ),
    "TaylorSeer": lambda: TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=1),
}


class Calls:
    """How often the last block computes."""

    def __init__(self, pipe: Any) -> None:
        self.count = 0
        layer = pipe.transformer.single_transformer_blocks[-1].attn.to_q  # deep enough for every cache to skip
        layer.register_forward_hook(self._hook)

    def _hook(self, *_: Any) -> None:
        self.count += 1

    def of(self, work: Callable[[], Any]) -> int:
        before = self.count
        work()
        return self.count - before


def switch_on(pipe: Any, name: str) -> None:
    if name == "cache-dit":
        import cache_dit

        config = cache_dit.DBCacheConfig(max_warmup_steps=1, residual_diff_threshold=10.0, Fn_compute_blocks=1)
        cache_dit.enable_cache(pipe, cache_config=config)
    else:
        pipe.transformer.enable_cache(CACHES[name]())


def switch_off(pipe: Any, name: str) -> None:
    if name == "cache-dit":
        import cache_dit

        cache_dit.disable_cache(pipe)  # it replaces the class's call


@pytest.mark.parametrize("name", [*CACHES, "cache-dit"])
def test_a_cache_works_in_the_draft_alone(name: str) -> None:
    pipe = make_pipe()
    pipe.transformer.single_transformer_blocks.append(
        type(pipe.transformer.single_transformer_blocks[0])(32, 2, 16).eval()
    )
    fast, calls = make_fast(pipe), Calls(pipe)
    whole = fast.draft("a red boat", seed=7, plan=PLAN)[0]
    finished = fast.finish(whole)
    switch_on(pipe, name)
    try:
        check_cached(fast, pipe, calls, whole, finished)
    finally:
        switch_off(pipe, name)


def check_cached(fast: Any, pipe: Any, calls: Calls, whole: Any, finished: Any) -> None:
    def by_hand() -> torch.Tensor:
        return own_call(pipe, steps=6, negative_prompt="", true_cfg_scale=2.0)

    settings = describe_cache(pipe)
    expected, drafts = by_hand(), []
    assert calls.of(by_hand) < 12
    assert calls.of(lambda: drafts.extend(fast.draft("a red boat", seed=7, plan=PLAN))) == calls.of(by_hand)
    assert torch.equal(drafts[0].pixels, expected)
    assert drafts[0].recipe.conditions == {"cache": settings}

    with pytest.warns(match="here"):  # the draft was made without
        assert calls.of(lambda: drafts.append(fast.finish(whole))) == 6  # three steps, with guidance: none skipped
    assert bytes_of(drafts[1].images) == bytes_of(finished.images)

    def stop(*_: Any) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        fast("a red boat", seed=7, plan=PLAN, callback_on_step_end=stop)
    with pytest.raises(KeyError), pytest.warns(match="here"):
        fast.finish(whole, callback_on_step_end=stop)
    assert describe_cache(pipe) == settings
    assert torch.equal(by_hand(), expected)
    assert torch.equal(fast("a red boat", seed=7, plan=PLAN).drafts[0].pixels, expected)


def test_a_pipeline_without_a_cache_is_left_alone() -> None:
    pipe = make_pipe()
    forward = pipe.transformer.forward
    with without_caches(pipe):
        assert pipe.transformer.forward == forward
    assert describe_cache(pipe) is None
