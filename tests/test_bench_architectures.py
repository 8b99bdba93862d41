"""The described architectures: their published sizes without memory, and each scaled down, end to end."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from mrflow import MrFlow, Plan
from mrflow.bench.random_weights import architectures, make_component, make_random, read_architecture

TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 300}
QWEN = {**TEXT, "head_dim": 8, "num_key_value_heads": 1}
MROPE = {"mrope_section": [2, 1, 1], "rope_type": "default"}
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
SMALL_VAE = {"block_out_channels": [4, 4, 4, 4], "layers_per_block": 1, "norm_num_groups": 1}
SMALL_VIDEO_VAE = {"base_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
CLIP = {**TEXT, "num_hidden_layers": 2, "projection_dim": 8}
T5 = {"d_ff": 16, "d_kv": 8, "d_model": 32, "num_heads": 2, "num_layers": 1, "vocab_size": 300}
ROPE = {"axes_dims_rope": [4, 6, 6], "attention_head_dim": 16, "num_attention_heads": 2}

# what is made small, widths and depths; all else stays as published
SHRUNK: dict[str, dict[str, dict[str, Any]]] = {
    "qwen-image": {
        "transformer": {**ROPE, "joint_attention_dim": 16, "num_layers": 1},
        "vae": SMALL_VIDEO_VAE,
        "text_encoder": {
            "text_config": {**TEXT, "num_key_value_heads": 1, "num_hidden_layers": 1, "rope_scaling": MROPE},
            "vision_config": {**VISION, "fullatt_block_indexes": [0]},
        },
    },
    "flux2-klein-9b": {
        "transformer": {
            **{"axes_dims_rope": [4, 4, 4, 4], "attention_head_dim": 16, "num_attention_heads": 2},
            **{"joint_attention_dim": 48, "num_layers": 1, "num_single_layers": 1},
        },
        "vae": SMALL_VAE,
        "text_encoder": QWEN,  # the pipeline takes its 9th, 18th and 27th layer
    },
    "z-image": {
        "transformer": {
            **{"axes_dims": [4, 6, 6], "cap_feat_dim": 16, "dim": 32, "n_heads": 2, "n_kv_heads": 2},
            **{"n_layers": 1, "n_refiner_layers": 1},
        },
        "vae": SMALL_VAE,
        "text_encoder": {**QWEN, "num_hidden_layers": 2},
    },
    "sd3.5-large": {
        "transformer": {
            **{"attention_head_dim": 8, "caption_projection_dim": 16, "joint_attention_dim": 32, "num_layers": 1},
            **{"num_attention_heads": 2, "pooled_projection_dim": 16, "pos_embed_max_size": 16, "sample_size": 16},
        },
        "vae": SMALL_VAE,
        "text_encoder": CLIP,
        "text_encoder_2": CLIP,
        "text_encoder_3": T5,
    },
    "krea2": {
        "transformer": {
            **{**ROPE, "intermediate_size": 16, "num_key_value_heads": 1, "num_layers": 1, "text_hidden_dim": 16},
            **{"num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1, "text_intermediate_size": 16},
            **{"text_num_attention_heads": 2, "text_num_key_value_heads": 2, "timestep_embed_dim": 8},
        },
        "vae": SMALL_VIDEO_VAE,
        "text_encoder": {  # the pipeline takes twelve of its 36 layers
            "text_config": {**QWEN, "rope_scaling": {**MROPE, "mrope_interleaved": True}},
            "vision_config": {**VISION, "deepstack_visual_indexes": [0], "num_position_embeddings": 4},
        },
    },
}


def shrink(name: str) -> dict[str, Any]:
    spec = copy.deepcopy(read_architecture(name))
    for part, changes in SHRUNK[name].items():
        config = spec["components"][part]["config"]
        for key, value in changes.items():
            if isinstance(value, dict) and key.endswith("_config"):
                config[key].update(value)
            else:
                config[key] = value
    spec["upscaler"].update(features=4, blocks=1)
    return spec


def test_all_are_described() -> None:
    assert set(architectures()) == {"flux1-dev", *SHRUNK}


@pytest.mark.parametrize(
    ("name", "billions"),
    [("qwen-image", 20.43), ("flux2-klein-9b", 9.08), ("z-image", 6.15), ("sd3.5-large", 8.06), ("krea2", 12.9)],
)
def test_transformers_have_their_published_size(name: str, billions: float) -> None:
    """As their makers give it, in billions; none of it is given memory here."""
    model = make_component(read_architecture(name)["components"]["transformer"])
    assert all(each.is_meta for each in model.parameters())
    assert sum(each.numel() for each in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part", "billions"),
    [
        ("qwen-image", "text_encoder", 8.29),
        ("flux2-klein-9b", "text_encoder", 8.19),
        ("z-image", "text_encoder", 4.02),
        ("krea2", "text_encoder", 4.44),
        ("sd3.5-large", "text_encoder_2", 0.695),
    ],
)
def test_text_encoders_have_their_published_size(name: str, part: str, billions: float) -> None:
    model = make_component(read_architecture(name)["components"][part])
    unique = {id(each): each for each in model.parameters()}.values()
    assert sum(each.numel() for each in unique) / 1e9 == pytest.approx(billions, rel=0.02)


@pytest.mark.parametrize("name", list(SHRUNK))
def test_scaled_down_they_run_through_all_stages(name: str, recwarn: pytest.WarningsRecorder) -> None:
    fast: MrFlow = make_random(shrink(name), torch.device("cpu"), torch.float32)
    for part in fast.pipe.components.values():
        if hasattr(part, "parameters"):
            assert all(bool(torch.isfinite(each).all()) for each in (*part.parameters(), *part.buffers()))
    result = fast("a lake at dusk, with 2 boats", width=64, height=64, plan=Plan(steps=2), seed=1)
    assert result.images[0].size == (64, 64)
    assert len(set(result.images[0].tobytes())) > 2  # a picture, not one clamped colour
    assert set(result.seconds) >= {"text", "draft", "upscale", "refine", "decode"}
    assert not [each for each in recwarn if "does not know" in str(each.message)]
    native = fast.native("a lake", width=64, height=64, steps=1, seed=1)
    assert native.images[0].size == (64, 64)


def test_texts_have_about_as_many_tokens_as_the_real_vocabulary_makes() -> None:
    """The head of Qwen-Image's template has 34 tokens: the pipeline drops as many."""
    tokenizer = make_component(read_architecture("qwen-image")["components"]["tokenizer"])
    head = (
        "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
        "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
    )
    assert len(tokenizer(head)["input_ids"]) == 34
    assert len(tokenizer("a lake at dusk, with 12 boats")["input_ids"]) == 9
    assert tokenizer.unk_token_id is None
