"""CogView4: plain latents of 16 channels in float32, a GLM text encoder, true CFG called `guidance_scale`.

Facts from diffusers 0.42.1, src/diffusers/pipelines/cogview4/pipeline_cogview4.py: texts are padded on the left,
to a multiple of 16 and to the longest of their batch, without a mask; guidance runs above 1; the decoder's input
is scaled, not shifted; the transformer's timestep counts to 1000 and is the one before the shift, while sigma is
shifted, by the size: at 1024x1024 with the published scheduler, a sigma of .12 belongs with 40.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence

import numpy as np

from mrflow.backbones.family import Backbone, Embeds, Pipeline, Plain, Reading, ScaledVae, read_text


class CogView4Backbone(Backbone):
    """Drives diffusers' CogView4Pipeline. See mrflow.backbones.Backbone for the methods."""

    layout = Plain(patches=2)
    autoencoder = ScaledVae()
    usual_cfg = 5.0  # the pipeline's default
    text_length = 1024

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what the text encoder does not take in."""
        return read_text(pipe.tokenizer, prompt, max_sequence_length or self.text_length)

    def encode_rows(self, pipe: Pipeline, texts: list[str], length: int) -> list[Embeds]:
        """Return prompt_embeds (1, T, D) of each text by itself: a longer one beside it would pad it."""
        return [
            {"prompt_embeds": pipe.encode_prompt(text, None, False, max_sequence_length=length)[0]}
            for text in texts
        ]

    def timesteps(
        self, pipe: Pipeline, sigmas: Sequence[float], width: int, height: int
    ) -> Sequence[float] | None:
        """Return the times that the pipeline's own scheduler shifts to these sigmas.

        A copy of it is asked for all of its times, whatever it makes of them, and the answer is read backwards;
        None for one that takes no times, with which the pipeline's own call fails.
        """
        from diffusers.pipelines.cogview4.pipeline_cogview4 import calculate_shift

        scheduler = copy.deepcopy(pipe.scheduler)
        if "timesteps" not in inspect.signature(scheduler.set_timesteps).parameters:
            return None
        config, patch = scheduler.config, pipe.transformer.config.patch_size
        tokens = (height // pipe.vae_scale_factor) * (width // pipe.vae_scale_factor) // patch**2
        mu = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("base_shift", 0.25),
            config.get("max_shift", 0.75),
        )
        times = np.arange(config.num_train_timesteps, 0, -1, dtype=np.float32)
        scheduler.set_timesteps(timesteps=times, sigmas=times / config.num_train_timesteps, mu=mu)
        shifted, times = scheduler.sigmas[:-1].double().numpy(), scheduler.timesteps.double().numpy()
        order = np.argsort(shifted)
        return [float(t) for t in np.interp(sigmas, [0.0, *shifted[order]], [0.0, *times[order]])]
