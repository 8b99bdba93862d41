"""FLUX.2 and FLUX.2 Klein: latents patchified 2x2 into channels and normalised by the autoencoder's batch norm.

Facts from diffusers 0.42.1, src/diffusers/pipelines/flux2/pipeline_flux2.py and pipeline_flux2_klein.py:
`latents=` is (B, 4C, H/2, W/2); FLUX.2 gives tokens for output_type="latent", Klein raw latents of the
autoencoder. FLUX.2 embeds its guidance and has no negative prompt; Klein's base is guided by true CFG, called
`guidance_scale`, above 1; its distilled checkpoints say `is_distilled` and take no guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, chat_template, read_text, to_unit


class _Patchified(Plain):
    about = "patchified 2x2"


class _PatchifiedTokens(_Patchified):
    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        multiple = self.multiple(pipe)
        return latents.transpose(1, 2).reshape(len(latents), -1, height // multiple, width // multiple)


class BatchNormVae:
    """AutoencoderKLFlux2: patchified, then (mode - mean) / std by the running statistics of a batch norm."""

    about = "batch norm"

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """Return pixels as latents (B, 4C, H/2, W/2)."""
        mode = vae.encode((pixels * 2 - 1).to(vae.dtype)).latent_dist.mode().float()
        mean, std = self.statistics(vae, mode)
        return (_patchify(mode) - mean) / std

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return (B, 4C, H/2, W/2) latents as pixels."""
        mean, std = self.statistics(vae, latents)
        raw = _unpatchify(latents * std + mean)
        return to_unit(vae.decode(raw.to(vae.dtype)).sample)

    def enlarge(self, vae: Any, latents: Tensor, larger: Callable[[Tensor], Tensor]) -> Tensor:
        """Return latents made larger by what works on the autoencoder's own, (B, C, H, W)."""
        mean, std = self.statistics(vae, latents)
        return (_patchify(larger(_unpatchify(latents * std + mean))) - mean) / std

    def statistics(self, vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of each channel, as `like` is."""
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        return mean.to(like.device, like.dtype), self.deviation(vae).to(like.device, like.dtype)

    def deviation(self, vae: Any) -> Tensor:
        """Return the standard deviation of each channel."""
        return torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)


class Flux2Backbone(Backbone):
    """Drives diffusers' Flux2Pipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout: Plain = _PatchifiedTokens(patches=2)
    autoencoder = BatchNormVae()
    references = True

    def guidance_field(self, pipe: Pipeline) -> Literal["guidance_scale", "true_cfg_scale"]:
        """Return "guidance_scale"."""
        return "guidance_scale"

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return 4, the pipeline's default."""
        return 4.0

    def takes_cfg(self, pipe: Pipeline) -> bool:
        """Return False."""
        return False

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return guidance_scale."""
        return {} if guidance_scale is None else {"guidance_scale": guidance_scale}

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what is cut off inside the system message's template."""
        parts = [("system", pipe.system_message), ("user", prompt)]
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in parts]
        text = pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=False, tokenize=False)
        before, _, after = text.rpartition(prompt)
        tokenizer = getattr(pipe.tokenizer, "tokenizer", pipe.tokenizer)  # the processor's
        limit = max_sequence_length or self.text_length
        return read_text(tokenizer, prompt, limit, before, after, special=False)

    def resume(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return the loop's tokens as the patches that the pipeline makes them of."""
        multiple = self.multiple(pipe)
        rows, columns = height // multiple, width // multiple
        return latents.transpose(1, 2).reshape(len(latents), -1, rows, columns)

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return prompt_embeds (B, T, D)."""
        embeds, _ = pipe.encode_prompt(texts, max_sequence_length=length)
        return {"prompt_embeds": embeds}


class Flux2KleinBackbone(Flux2Backbone):
    """Drives diffusers' Flux2KleinPipeline. See mrflow.backbones.family.Backbone for the methods."""

    layout = _Patchified(patches=2)

    def guidance_field(self, pipe: Pipeline) -> Literal["guidance_scale", "true_cfg_scale"]:
        """Return "true_cfg_scale"."""
        return "true_cfg_scale"

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return 4, the pipeline's default, for distilled checkpoints 1: no guidance."""
        return 1.0 if pipe.config.is_distilled else 4.0

    def takes_cfg(self, pipe: Pipeline) -> bool:
        """Return False for distilled checkpoints."""
        return not pipe.config.is_distilled

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return true CFG under Klein's name for it."""
        return {"guidance_scale": true_cfg_scale}

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what is cut off inside the chat template."""
        before, after = chat_template(pipe.tokenizer, prompt, enable_thinking=False)
        return read_text(pipe.tokenizer, prompt, max_sequence_length or self.text_length, before, after)

    def unpack(self, pipe: Pipeline, given: Tensor, width: int, height: int) -> Tensor:
        """Return Klein's latents, which it gives as the autoencoder's own, as patches."""
        mean, std = self.autoencoder.statistics(pipe.vae, given)
        return (_patchify(given) - mean) / std

    def decode(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return Klein's latents, which it gives as the autoencoder's own, as pixels."""
        return to_unit(pipe.vae.decode(latents.to(pipe.vae.dtype)).sample)


def _patchify(latents: Tensor) -> Tensor:
    return torch.nn.functional.pixel_unshuffle(latents, 2)


def _unpatchify(latents: Tensor) -> Tensor:
    return torch.nn.functional.pixel_shuffle(latents, 2)
