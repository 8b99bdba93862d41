"""Caches and variants on a tiny pipeline: what they change, and that nothing of them stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conftest import make_fast, make_pipe
from mrflow import MrFlow, Plan
from mrflow.bench import caches
from mrflow.bench.caches import Cache, cached, read_cache
from mrflow.bench.methods import Method, read_methods
from mrflow.bench.variants import run_unrefined
from mrflow.errors import MissingExtraError, ModelError, PlanError
from mrflow.images import to_pil
from mrflow.upscaler import Upscaler

SETTINGS = {"prompt": "a red boat", "seed": 3, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def fast() -> MrFlow:
    return make_fast(make_pipe())


def run(fast: MrFlow, text: str) -> np.ndarray:
    (method,) = read_methods([text])
    return np.asarray(method.run(fast, **SETTINGS).images[0])


@pytest.mark.parametrize("text", ["first-block@0.2", "taylorseer@4", "cache-dit@0.1"])
def test_caches_are_read(text: str) -> None:
    cache = read_cache(text)
    assert f"{cache.kind}@{cache.level:g}" == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no cache ''"),
        ("teacache@1", "Known: first-block"),
        ("first-block", "after @ comes a number"),
        ("first-block@much", "after @ comes a number"),
        ("first-block@nan", "between 0 and 100"),
        ("first-block@-1", "between 0 and 100"),
        ("taylorseer@1.5", "whole number"),
        ("taylorseer@inf", "whole number"),
        ("taylorseer@0", "whole number"),
    ],
)
def test_what_is_no_cache_is_refused(text: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        read_cache(text)


@pytest.mark.parametrize("kind", ["first-block", "taylorseer"])
def test_a_cache_skips_steps_and_leaves_nothing(fast: MrFlow, kind: str) -> None:
    plain = run(fast, "native:8")
    forward = fast.pipe.transformer.forward
    blocks: list[int] = []
    handle = fast.pipe.transformer.single_transformer_blocks[0].attn.register_forward_pre_hook(
        lambda *_: blocks.append(1)
    )
    with_cache = run(fast, f"native:8,cache={kind}@{'50' if kind == 'first-block' else '3'}")
    cached_blocks = len(blocks)
    blocks.clear()
    again = run(fast, "native:8")
    handle.remove()
    assert cached_blocks < len(blocks)
    assert not np.array_equal(with_cache, plain)
    assert np.array_equal(again, plain)
    assert fast.pipe.transformer.forward == forward
    assert not fast.pipe.transformer.is_cache_enabled


def test_a_cache_that_never_reuses_changes_nothing(fast: MrFlow) -> None:
    assert np.array_equal(run(fast, "native:4,cache=first-block@0"), run(fast, "native:4"))
    assert np.array_equal(run(fast, "4+1:cache=first-block@0"), run(fast, "4+1"))


def test_a_cache_is_taken_off_after_an_error(fast: MrFlow) -> None:
    with pytest.raises(KeyError), cached(fast.pipe, Cache("first-block", 0.1)):
        raise KeyError
    assert not fast.pipe.transformer.is_cache_enabled


def test_a_pipeline_with_a_cache_of_its_own_is_said(fast: MrFlow) -> None:
    with (
        cached(fast.pipe, Cache("first-block", 0.1)),
        pytest.raises(ModelError, match="already been enabled"),
        cached(fast.pipe, Cache("taylorseer", 3)),
    ):
        pass


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'"\.\[caches\]"'):
        read_methods(["native:cache=cache-dit@0.1"])


def test_unrefined_is_the_upscaled_picture(fast: MrFlow) -> None:
    result = run_unrefined(fast, Plan(steps=2), **SETTINGS)
    whole = fast(plan=Plan(steps=2), keep_upscaled=True, **SETTINGS)
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(whole.upscaled[0]))
    assert set(result.seconds) == {"text", "draft", "decode_draft", "upscale", "total"}
    assert result.seconds["total"] >= sum(value for name, value in result.seconds.items() if name != "total")
    assert np.array_equal(run(fast, "2+0"), np.asarray(result.images[0]))


def test_unrefined_it_is_upscaled_in_the_plans_tiles(fast: MrFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, plain = list[int | None](), Upscaler.upscale

    def upscale(*given: Any, tile: int | None = None) -> Any:
        tiles.append(tile)
        return plain(*given, tile=tile)

    monkeypatch.setattr(Upscaler, "upscale", upscale)
    for text in ("2+0", "2+0:tile=64"):
        (method,) = read_methods([text])
        method.run(fast, **{**SETTINGS, "width": 128})
    assert tiles == [None, 64]


@pytest.mark.parametrize(("text", "moved"), [("2+0", 0.1), ("2+0:color_guard=0.1", 0.0)])
def test_unrefined_its_colours_are_guarded_too(
    fast: MrFlow, text: str, moved: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Upscaler.upscale
    monkeypatch.setattr(Upscaler, "upscale", lambda *given, **tiles: plain(*given, **tiles) * 0.8 + 0.1)
    drafted = np.asarray(fast.draft(plan="2+1", **SETTINGS)[0].image, dtype=float).mean((0, 1)) / 255
    means = run(fast, text).mean((0, 1)) / 255
    expected = drafted * 0.8 + 0.1 if moved else drafted
    assert np.abs(means - expected).max() < 4e-3


def test_latents_enlarged_are_those_of_a_plan_without_enlarging(fast: MrFlow) -> None:
    """At scale 1 nothing is enlarged: the latents' way is then the draft, noise and the refine pass alone."""
    from mrflow import steps
    from mrflow.borrowing import borrowed
    from mrflow.jobs import ask
    from mrflow.sampling import Noised, add_noise, make_noise, refine_generators

    (job,) = fast.model.resolve(ask("a red boat", seed=3, plan=Plan(steps=2, scale=1.0)))
    sigma = job.plan.refine_sigma
    with borrowed(fast.pipe):
        run = steps.Run.over(fast.model)
        batch = steps.encode_prompts(run, steps.Batch([job]))
        held = steps.denoise(run, batch, (64, 64))
        latents = fast.model.backbone.layout.unpack(fast.pipe, held, 64, 64)
        generators = refine_generators([3])
        noised = add_noise(latents, sigma, make_noise(latents.shape[1:], generators))
        refined = steps.refine(run, batch, Noised(noised, [sigma, 0.0], generators), (64, 64))
        pixels = steps.decode(run, batch, refined, (64, 64))
    result = fast(plan=Plan(steps=2, scale=1.0, lift="latent"), **SETTINGS)
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(to_pil(pixels)[0]))
    (method,) = read_methods(["2+1:lift=latent"])
    twice = method.run(fast, **SETTINGS)
    assert twice.images[0].size == (64, 64)
    assert set(twice.seconds) == {"text", "draft", "decode_draft", "upscale", "refine", "decode", "total"}


def test_upscalers_of_methods(fast: MrFlow, network_file) -> None:
    pictures = [run(fast, f"2+1:upscaler={name}") for name in ("bicubic", "lanczos", "latent", network_file)]
    for k, picture in enumerate(pictures):
        assert not any(np.array_equal(picture, other) for other in pictures[:k])
    assert np.array_equal(pictures[0], run(fast, "2+1"))  # its own is bicubic


def test_plain_methods_are_told_from_others() -> None:
    texts = ["native:2", "2+1:scale=1.5", "2+1:upscaler=latent", "2+0", "native:cache=first-block@1"]
    assert [method.plain for method in read_methods(texts)] == [True, True, False, False, False]
    assert Method(name="a").plain
