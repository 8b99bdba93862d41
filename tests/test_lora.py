"""LoRA loaded before or after MrFlow(pipe): the same in both passes, weighed, recorded, missed when it is gone."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch

from conftest import make_fast, make_pipe
from mrflow import MrFlow, Plan, Recipe
from mrflow.borrowing import describe
from mrflow.errors import MrFlowWarning
from support.pictures import bytes_of
from support.pipelines import own_call, state_of

# peft 0.21 tells that the layers of so small a transformer are few
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

PLAN = Plan(steps=2, refine_sigma=0.3, true_cfg_scale=1.0, noise="own")


def lora(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a LoRA's weights over attention, of transformer and text encoder, as published files hold them."""
    generator = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    found = {}
    for block in ("transformer_blocks.0", "single_transformer_blocks.0"):
        for layer in ("to_q", "to_v"):
            found[f"transformer.{block}.attn.{layer}.lora_A.weight"] = make(4, 32)
            found[f"transformer.{block}.attn.{layer}.lora_B.weight"] = make(32, 4)
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    found |= {f"{layer}.lora_A.weight": make(4, 16), f"{layer}.lora_B.weight": make(16, 4)}
    return found


def refined(fast: MrFlow, **options: Any) -> bytes:
    """Return what the refine pass makes of one and the same picture."""
    image = torch.full((1, 3, 32, 32), 0.5)
    return fast.enhance(image, "a red boat", seed=7, plan=PLAN, **options).images[0].tobytes()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lora_works_in_both_passes(when: str) -> None:
    pipe = make_pipe()
    bare_draft, bare_refined = own_call(pipe), refined(make_fast(pipe))
    if when == "before":
        pipe.load_lora_weights(lora(), adapter_name="style")
        fast = make_fast(pipe)
    else:
        fast = make_fast(pipe)
        pipe.load_lora_weights(lora(), adapter_name="style")
    before = state_of(pipe)
    result = fast("a red boat", seed=7, plan=PLAN)
    assert torch.equal(result.drafts[0].pixels, own_call(pipe))
    assert not torch.equal(result.drafts[0].pixels, bare_draft)
    assert refined(fast) != bare_refined
    assert unhashed(result.recipes[0]) == {"lora.style": "1"}
    assert state_of(pipe) == before
    pipe.unload_lora_weights()
    assert torch.equal(fast.draft("a red boat", seed=7, plan=PLAN)[0].pixels, bare_draft)


def test_weights_of_adapters_count_and_are_recorded() -> None:
    pipe = make_pipe()
    fast = make_fast(pipe)
    pipe.load_lora_weights(lora(0), adapter_name="style")
    pipe.load_lora_weights(lora(1), adapter_name="light")
    whole = refined(fast)
    pipe.set_adapters(["style", "light"], adapter_weights=[0.5, 0.25])
    assert refined(fast) != whole
    result = fast("a red boat", seed=7, plan=PLAN)
    assert torch.equal(result.drafts[0].pixels, own_call(pipe))
    recipe = result.recipes[0]
    assert unhashed(recipe) == {"lora.light": "0.25", "lora.style": "0.5"}
    assert bytes_of(fast.replay(recipe).images) == bytes_of(result.images)

    pipe.set_adapters(["style"], adapter_weights=[0.5])
    with pytest.warns(MrFlowWarning, match=r"lora.light 0.25, here none\."):
        again = fast.replay(recipe)
    lost = {"conditions.lora.light", "conditions.lora.light.sha256"}
    assert recipe.differences(again.recipes[0]).keys() == {*lost, "pixels_sha256"}
    assert bytes_of(again.images) != bytes_of(result.images)


def test_the_scale_of_a_call_reaches_transformer_and_text_encoders_in_both_passes() -> None:
    pipe = make_pipe()
    fast = make_fast(pipe)
    pipe.load_lora_weights(lora(), adapter_name="style")
    scaled = {"joint_attention_kwargs": {"scale": 0.3}}
    result = fast("a red boat", seed=7, plan=PLAN, **scaled)
    assert torch.equal(result.drafts[0].pixels, own_call(pipe, **scaled))
    assert refined(fast, **scaled) != refined(fast)
    assert torch.equal(fast.draft("a red boat", seed=7, plan=PLAN)[0].pixels, own_call(pipe))  # and is gone again


def test_a_fused_lora_is_named() -> None:
    pipe = make_pipe()
    fast = make_fast(pipe)
    pipe.load_lora_weights(lora(), adapter_name="style")
    pipe.fuse_lora(lora_scale=0.5)
    assert fast.draft("a boat", seed=1, plan=PLAN).recipes[0].conditions["lora"] == "fused style"


def test_a_scale_of_zero_switches_off_for_one_call_and_every_weight_comes_back() -> None:
    pipe = make_pipe()
    bare = make_fast(make_pipe()).draft("a red boat", seed=7, plan=PLAN)[0].pixels
    pipe.load_lora_weights(lora(), adapter_name="style")
    pipe.set_adapters("style", 0.5)
    fast = make_fast(pipe)
    first, before = fast.draft("a red boat", seed=7, plan=PLAN)[0].pixels, scalings(pipe)
    off = fast.draft("a red boat", seed=7, plan=PLAN, joint_attention_kwargs={"scale": 0})[0].pixels
    assert torch.equal(off, bare)
    assert scalings(pipe) == before
    assert torch.equal(fast.draft("a red boat", seed=7, plan=PLAN)[0].pixels, first)


def unhashed(recipe: Recipe) -> dict[str, str]:
    return {name: text for name, text in recipe.conditions.items() if not name.endswith(".sha256")}


def scalings(pipe: Any) -> list[dict[str, float]]:
    parts = (pipe.transformer, pipe.text_encoder)
    return [dict(layer.scaling) for part in parts for layer in part.modules() if hasattr(layer, "lora_alpha")]


@pytest.mark.parametrize(("kind", "text"), [("LoHa", "loha 1"), ("LoKr", "lokr 1"), ("IA3", "ia3 1")])
def test_other_adapters_of_peft_are_recorded(kind: str, text: str) -> None:
    pipe = make_pipe()
    options = {"target_modules": ["to_q"], "init_ia3_weights" if kind == "IA3" else "init_weights": False}
    options |= {"feedforward_modules": []} if kind == "IA3" else {"r": 2, "alpha": 2}
    peft.inject_adapter_in_model(getattr(peft, f"{kind}Config")(**options), pipe.transformer, "style")
    recipe = make_fast(pipe).draft("a boat", seed=1, plan=PLAN).recipes[0]
    assert unhashed(recipe) == {"lora.style": text}
    assert re.fullmatch("[0-9a-f]{64}", recipe.conditions["lora.style.sha256"])


def test_another_lora_of_the_same_name_is_told_apart() -> None:
    pipe = make_pipe()
    fast = make_fast(pipe)
    recipes = []
    for seed in (0, 1, 0):
        pipe.load_lora_weights(lora(seed), adapter_name="style")
        recipes.append(fast.draft("a boat", seed=1, plan=PLAN).recipes[0])
        pipe.unload_lora_weights()
    assert recipes[0].conditions == recipes[2].conditions != recipes[1].conditions
    pipe.load_lora_weights(lora(1), adapter_name="style")
    old = replace(recipes[0], conditions={"lora.style": "1"})  # as versions to 0.1.0 wrote it
    fast.replay(old)
    with pytest.warns(MrFlowWarning, match=r"lora.style.sha256 \w{64}, here \w{64}\."):
        fast.replay(recipes[0])
    with torch.no_grad():
        pipe.transformer.transformer_blocks[0].attn.to_q.lora_A["style"].weight += 1
    with pytest.warns(MrFlowWarning, match=r"lora\.style\.sha256"):
        fast.replay(recipes[1])


def test_weights_stored_in_a_smaller_type_and_compiled_parts_are_recorded() -> None:
    pipe = make_pipe()
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert describe(pipe) == {"cast": "transformer float8_e4m3fn"}
    pipe = make_pipe()
    pipe.transformer.compile_repeated_blocks(backend="eager")
    pipe.vae.decoder.compile(backend="eager")
    assert describe(pipe) == {"compiled": "transformer, vae"}
    pipe = make_pipe()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert describe(pipe) == {"compiled": "transformer"}
