"""Published architectures, cut down to run in milliseconds."""

from __future__ import annotations

import copy
from typing import Any

from mrflow.architectures import read_architecture

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
    "flux2-klein-base-9b": {
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


def small_flux() -> dict:
    """Return FLUX.1-dev's description with every width and depth cut down, all else as published."""
    spec = copy.deepcopy(read_architecture("flux-dev"))
    parts = {name: part.get("config") for name, part in spec["components"].items()}
    parts["transformer"].update(
        attention_head_dim=16,
        axes_dims_rope=[4, 4, 8],
        joint_attention_dim=16,
        num_attention_heads=2,
        num_layers=1,
        num_single_layers=1,
        pooled_projection_dim=16,
    )
    parts["vae"].update(block_out_channels=[4, 4, 4, 4], layers_per_block=1, norm_num_groups=1)
    parts["text_encoder"].update(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=300
    )
    parts["text_encoder_2"].update(d_ff=16, d_kv=8, d_model=16, num_heads=2, num_layers=1, vocab_size=300)
    spec["components"]["tokenizer_2"]["words"] = 32
    spec["upscaler"].update(features=4, blocks=1)
    return spec
