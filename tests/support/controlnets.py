"""Tiny random pipelines that take a control image, and such an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxTransformer2DModel,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
)
from PIL import Image

from conftest import make_pipe
from support.families import CASES, HEAD


def controlled(*, guidance_embeds: bool = False) -> Any:
    pipe = make_pipe(guidance_embeds=guidance_embeds)
    torch.manual_seed(1)
    controlnet = FluxControlNetModel.from_transformer(
        pipe.transformer, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2
    )
    for parameter in (*controlnet.controlnet_blocks.parameters(), *controlnet.controlnet_x_embedder.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)  # zeros in a fresh one
    pipe = FluxControlNetPipeline(**pipe.components, controlnet=controlnet.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edges(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def flux_control() -> Any:
    parts = make_pipe(guidance_embeds=True).components
    torch.manual_seed(1)
    known = {name: value for name, value in parts["transformer"].config.items() if not name.startswith("_")}
    config = {**known, "in_channels": 128, "out_channels": 64}
    parts["transformer"] = FluxTransformer2DModel.from_config(config).eval()
    return FluxControlPipeline(
        **{k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    )


def qwen_controlnet() -> Any:
    parts = CASES["QwenImagePipeline"].make().components
    torch.manual_seed(1)
    controlnet = QwenImageControlNetModel.from_transformer(
        parts["transformer"], num_layers=1, attention_head_dim=16, num_attention_heads=2
    )
    for parameter in (*controlnet.controlnet_blocks.parameters(), *controlnet.controlnet_x_embedder.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)  # zeros in a fresh one
    pipe = QwenImageControlNetPipeline(**parts, controlnet=controlnet.eval())
    pipe.prompt_template_encode = HEAD + "{} at"
    return pipe


def z_image_controlnet() -> Any:
    parts = CASES["ZImagePipeline"].make().components
    torch.manual_seed(1)
    controlnet = ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=16,
        add_control_noise_refiner="control_noise_refiner",
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )
    for parameter in controlnet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # zeros, some of them, in a fresh one
    return ZImageControlNetPipeline(**parts, controlnet=controlnet.eval())
