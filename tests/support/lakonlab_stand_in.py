"""A stand-in for LakonLab's pi-Flow over FLUX.1, written to its public interface, not taken from it.

Its network predicts one velocity for the whole step, so that any number of sub-steps gives one Euler step.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConfigMixin, FluxPipeline, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.pipelines.flux.pipeline_flux import FluxPipelineOutput


class FlowMapSDEScheduler(SchedulerMixin, ConfigMixin):
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        final_step_size_scale: float = 1.0,
    ) -> None:
        self.sigmas = torch.linspace(1, 0.001, num_train_timesteps)
        self.timesteps = self.sigmas * num_train_timesteps
        self.step_index = self.begin_index = None

    def set_begin_index(self, index: int = 0) -> None:
        self.begin_index = index

    def set_timesteps(self, num_inference_steps: int, seq_len: int | None = None, device: Any = None) -> None:
        count = num_inference_steps + self.config.final_step_size_scale - 1
        raw = 1 - torch.arange(num_inference_steps, device=device) / count
        shift = self.config.shift
        sigmas = shift * raw / (1 + (shift - 1) * raw)
        self.sigmas = torch.cat([sigmas, torch.zeros(1)])
        self.timesteps = sigmas * 1000
        destinations, self.m_vals = self.calculate_sigmas_dst(self.sigmas)
        self.timesteps_dst = destinations * 1000

    def calculate_sigmas_dst(self, sigmas: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return sigmas[1:], torch.ones_like(sigmas[1:])

    def step(self, reached: torch.Tensor, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        return (reached,)


class PiFluxPipeline(FluxPipeline):
    def __init__(
        self,
        scheduler: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        text_encoder_2: Any,
        tokenizer_2: Any,
        transformer: Any,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        policy_type: str = "GMFlow",
        policy_kwargs: Any = None,
    ) -> None:
        texts = (text_encoder, tokenizer, text_encoder_2, tokenizer_2)
        super().__init__(scheduler, vae, *texts, transformer, image_encoder, feature_extractor)
        self.policy = (policy_type, policy_kwargs)

    def load_piflow_adapter(self, name: str, target_module_name: str = "transformer", **where: Any) -> str:
        self.adapter = (name, where["subfolder"])
        return "transformer_piflow"

    @torch.no_grad()
    def __call__(
        self,
        prompt: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 4,
        total_substeps: int = 128,
        temperature: float | str = "auto",
        guidance_scale: float = 3.5,
        generator: Any = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        pooled_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        joint_attention_kwargs: Any = None,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Any = ("latents",),
        max_sequence_length: int = 512,
    ) -> Any:
        embeds, pooled, text_ids = self.encode_prompt(
            prompt, None, "cpu", 1, prompt_embeds, pooled_prompt_embeds, max_sequence_length
        )
        latents, image_ids = self.prepare_latents(
            len(embeds), 16, height, width, torch.float32, "cpu", generator, latents
        )
        self.scheduler.set_timesteps(num_inference_steps, seq_len=latents.shape[1], device="cpu")
        self.scheduler.set_begin_index(0)
        guidance = torch.full([len(latents)], guidance_scale) if self.transformer.config.guidance_embeds else None
        pairs = zip(self.scheduler.timesteps, self.scheduler.timesteps_dst, strict=True)
        for index, (source, destination) in enumerate(pairs):
            velocity = self.transformer(
                hidden_states=latents,
                timestep=source.expand(len(latents)) / 1000,
                guidance=guidance,
                pooled_projections=pooled,
                encoder_hidden_states=embeds,
                txt_ids=text_ids,
                img_ids=image_ids,
            )[0]
            for _ in range(total_substeps):
                latents = latents + (destination - source) / 1000 / total_substeps * velocity
            latents = self.scheduler.step(latents, source, latents, return_dict=False)[0]
            if callback_on_step_end is not None:
                latents = callback_on_step_end(self, index, source, {"latents": latents}).pop("latents", latents)
        if output_type != "latent":
            vae = self.vae.config
            raw = self._unpack_latents(latents, height, width, self.vae_scale_factor)
            latents = self.vae.decode(raw / vae.scaling_factor + vae.shift_factor, return_dict=False)[0]
            latents = self.image_processor.postprocess(latents, output_type=output_type)
        self.maybe_free_model_hooks()
        return FluxPipelineOutput(images=latents)
