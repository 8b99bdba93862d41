"""The flow itself: text encoders and a FLUX-architecture transformer, and the conventions of its pipeline."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, PreTrainedTokenizerFast, T5EncoderModel

from mrflow.vista import DEFAULTS
from training.latents import LATENTS
from training.text import TextPair, make_encoders
from training.world import MAX_TOKENS

WEIGHTS = Path("src/mrflow/vista/weights")
GUIDANCE = DEFAULTS["vista"].plan.true_cfg_scale or 1.0
BASE_SHIFT, MAX_SHIFT = 0.5, 1.5
SMALL_TOKENS, LARGE_TOKENS = 64, 1024
"""Tokens of 128x128 and of 512x512: the two ends of the resolution-dependent shift."""


def make_transformer() -> FluxTransformer2DModel:
    """Return the transformer, random but for output and modulation at zero (diffusers leaves those random)."""
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4 * LATENTS, num_layers=2, num_single_layers=6, attention_head_dim=64,
        num_attention_heads=4, joint_attention_dim=128, pooled_projection_dim=128, guidance_embeds=False,
        axes_dims_rope=(8, 28, 28),
    )  # fmt: skip
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        if name == "proj_out" or ("norm" in name and name.endswith("linear")):
            nn.init.zeros_(layer.weight)
        elif "time_text_embed" in name:
            nn.init.normal_(layer.weight, std=0.02)
        else:
            nn.init.xavier_uniform_(layer.weight)
    return model


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Return the scheduler that the pipeline ships with."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=BASE_SHIFT, max_shift=MAX_SHIFT,
        base_image_seq_len=SMALL_TOKENS, max_image_seq_len=LARGE_TOKENS,
    )  # fmt: skip


def shift(sigma: Tensor, tokens: int) -> Tensor:
    """Return sigma shifted towards noise as the scheduler does it for so many image tokens."""
    mu = BASE_SHIFT + (MAX_SHIFT - BASE_SHIFT) * (tokens - SMALL_TOKENS) / (LARGE_TOKENS - SMALL_TOKENS)
    return math.exp(mu) * sigma / (1 + (math.exp(mu) - 1) * sigma)


def pack(latents: Tensor) -> Tensor:
    """Return (B, H/2 * W/2, 4 C) tokens of (B, C, H, W) latents, as FluxPipeline packs them."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return (B, C, height, width) latents of packed tokens."""
    b, c = len(tokens), tokens.shape[2] // 4
    grid = tokens.view(b, height // 2, width // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(b, c, height, width)


def image_ids(rows: int, columns: int) -> Tensor:
    """Return the positions (rows * columns, 3) of image tokens."""
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] += torch.arange(rows)[:, None]
    ids[..., 2] += torch.arange(columns)[None]
    return ids.reshape(-1, 3)


class Flow(nn.Module):
    """The text encoders and the transformer: everything that is trained here."""

    def __init__(self, t5: T5EncoderModel, clip: CLIPTextModel, transformer: FluxTransformer2DModel):
        super().__init__()
        self.t5, self.clip, self.transformer = t5, clip, transformer

    def text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return (T5 states (B, T, 128), CLIP's pooled (B, 128))."""
        return TextPair(self.t5, self.clip)(tokens)

    def forward(self, x: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor], rows: int, columns: int) -> Tensor:
        """Return the velocity (noise - picture) at packed latents x (B, rows * columns, 4 C), sigma (B,)."""
        return self.transformer(
            hidden_states=x, encoder_hidden_states=text[0], pooled_projections=text[1], timestep=sigma,
            img_ids=image_ids(rows, columns).to(x.device), txt_ids=torch.zeros(MAX_TOKENS, 3, device=x.device),
            return_dict=False,
        )[0]  # fmt: skip

    def matrices(self) -> list[nn.Parameter]:
        """Return the weights of the transformer's blocks that multiply tokens: what Muon trains."""
        return [
            p for name, p in self.transformer.named_parameters()
            if p.ndim == 2 and "transformer_blocks" in name and "norm" not in name
        ]  # fmt: skip


def load_flow(folder: Path = WEIGHTS) -> tuple[Flow, bool]:
    """Return the flow of a pipeline's folder and True; or a fresh one and False."""
    if not (folder / "transformer" / "config.json").exists():
        return Flow(*make_encoders(), make_transformer()), False
    parts = {
        "text_encoder_2": T5EncoderModel,
        "text_encoder": CLIPTextModel,
        "transformer": FluxTransformer2DModel,
    }
    return Flow(*(cls.from_pretrained(folder / name).float() for name, cls in parts.items())), True


def save_pipeline(flow: Flow, vae: AutoencoderKL, tokenizer: PreTrainedTokenizerFast, out: Path = WEIGHTS) -> None:
    """Write the whole pipeline to a folder, in half precision and diffusers' layout."""
    half = copy.deepcopy(flow).cpu().half()
    pipeline = FluxPipeline(
        scheduler=make_scheduler(), vae=copy.deepcopy(vae).half(), transformer=half.transformer,
        text_encoder=half.clip, tokenizer=tokenizer, text_encoder_2=half.t5, tokenizer_2=tokenizer,
    )  # fmt: skip
    pipeline.save_pretrained(out)
