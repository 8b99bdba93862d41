"""LoRA files for the tests' tiny FluxPipeline, in the layouts of diffusers and of trainers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Weights = dict[str, Tensor]
_ATTENTION = [
    f"{block}.0.attn.{layer}"
    for block in ("transformer_blocks", "single_transformer_blocks")
    for layer in ("to_q", "to_v")
]


def _drawn(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def of_diffusers(seed: int = 0) -> Weights:
    """Over attention, of transformer and text encoder."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in [f"transformer.{each}" for each in _ATTENTION]:
        shapes |= {f"{layer}.lora_A.weight": (4, 32), f"{layer}.lora_B.weight": (32, 4)}
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    return _drawn(seed, {**shapes, f"{layer}.lora_A.weight": (4, 16), f"{layer}.lora_B.weight": (16, 4)})


def of_kohya(seed: int = 0) -> Weights:
    """As kohya's sd-scripts writes it, with alphas of half the rank; transformer and text encoder."""
    linear = {"lora_unet_double_blocks_0_img_attn_qkv": (32, 96), "lora_unet_single_blocks_0_linear2": (160, 32)}
    linear |= {f"lora_te1_text_model_encoder_layers_0_self_attn_{each}_proj": (16, 16) for each in ("q", "out")}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (ins, outs) in linear.items():
        shapes |= {f"{name}.lora_down.weight": (4, ins), f"{name}.lora_up.weight": (outs, 4)}
    return _drawn(seed, shapes) | {f"{name}.alpha": torch.tensor(2.0) for name in linear}


def of_xlabs(seed: int = 0) -> Weights:
    """As XLabs' trainer writes it."""
    layer = "double_blocks.0.processor"
    shapes = {f"{layer}.{which}.down.weight": (4, 32) for which in ("qkv_lora1", "qkv_lora2", "proj_lora1")}
    shapes |= {f"{layer}.{which}.up.weight": (96, 4) for which in ("qkv_lora1", "qkv_lora2")}
    return _drawn(seed, {**shapes, f"{layer}.proj_lora1.up.weight": (32, 4)})


def of_dora(seed: int = 0) -> Weights:
    """A DoRA as peft has it: magnitudes beside the two matrices."""
    layers = [f"transformer.{each}" for each in _ATTENTION]
    found = {key: value for key, value in of_diffusers(seed).items() if not key.startswith("text")}
    return found | {f"{each}.lora_magnitude_vector": torch.rand(32) + 0.5 for each in layers}


LAYOUTS: Mapping[str, Callable[..., Weights]] = {
    "diffusers": of_diffusers,
    "kohya": of_kohya,
    "xlabs": of_xlabs,
    "dora": of_dora,
}


def of_family(pipe: Any) -> Weights:
    """Over every linear layer, for whichever transformer."""
    layers = {
        f"transformer.{name}": (part.in_features, part.out_features)
        for name, part in pipe.transformer.named_modules()
        if isinstance(part, torch.nn.Linear)
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (ins, outs) in layers.items():
        shapes |= {f"{name}.lora_A.weight": (2, ins), f"{name}.lora_B.weight": (outs, 2)}
    return _drawn(0, shapes)


def write(path: Path, weights: Weights | None = None) -> Path:
    save_file(of_diffusers() if weights is None else weights, path)
    return path
