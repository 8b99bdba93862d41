"""A tiny random pipeline of every family that is built in, and how its own call is told what ours is told.

The classes are diffusers' and transformers' own, with a few thousand parameters; where a checkpoint's text
encoder is a large vision-language model, a tiny language model that answers the same call stands in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers as d
import torch
import transformers as t
from diffusers.pipelines.prx import pipeline_prx_pixel
from diffusers.utils import is_ftfy_available
from torch import Tensor

from conftest import WORDS, make_pipe, make_tokenizer
from mrflow import Defaults, MrFlow, Plan

SMALL = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %} and {% endfor %}"
    "{% if add_generation_prompt %}at {% endif %}"
)
HEAD = "a " * 34  # as many tokens as the head of Qwen-Image's template

SIZE = (128, 64)
SIGMA = 0.3

Make = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """A family under test.

    make: scheduler options to pipeline. cfg: Plan guidance of the guided test. by_hand: the same as arguments of
    the pipeline's own call. normalise: (pipe, mode of the posterior) to latents, as the pipeline has it.
    pack: (pipe, latents) to the transformer's hidden states. sigma: the transformer's timestep to sigma.
    sign: of the velocity that the transformer gives. velocity: (hidden states, what the transformer gives) at the
    first sigma to velocity, where a sign alone doesn't say it.
    text_length: of the text, None where the call has none. length: its name there.
    """

    make: Make
    normalise: Callable[[Any, Tensor], Tensor]
    pack: Callable[[Any, Tensor], Tensor]
    plan: dict[str, float] = field(default_factory=lambda: {"true_cfg_scale": 2.0})
    by_hand: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 2.0, "negative_prompt": [""]})
    sigma: Callable[[float], float] = float
    sign: int = 1
    velocity: Callable[[Tensor, Tensor, float], Tensor] | None = None
    text_length: int | None = 16
    length: str = "max_sequence_length"


def tokenizer(max_length: int = 64) -> Any:
    made = make_tokenizer(max_length)
    made.chat_template = CHAT
    return made


def scheduler(**options: Any) -> Any:
    return d.FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **options})


def language_model(layers: int = 2, vocabulary: int = len(WORDS)) -> Any:
    small = {**SMALL, "vocab_size": vocabulary}
    config = t.Qwen3Config(**small, num_hidden_layers=layers, num_key_value_heads=2, head_dim=8, pad_token_id=0)
    return t.Qwen3ForCausalLM(config).eval()


def t5() -> Any:
    config = t.T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return t.T5EncoderModel(config).eval()


def clip() -> Any:
    config = t.CLIPTextConfig(
        **SMALL, num_hidden_layers=2, max_position_embeddings=16, projection_dim=8, eos_token_id=2
    )
    return t.CLIPTextModelWithProjection(config).eval()


def image_vae(channels: int = 16, **options: Any) -> Any:
    return d.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=1,
        **{"shift_factor": 0.1159, "scaling_factor": 0.3611, **options},
    ).eval()


def video_vae() -> Any:
    return d.AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def assemble(pipeline: type, *args: Any, **parts: Any) -> Any:
    parts = {name: part.eval() if isinstance(part, torch.nn.Module) else part for name, part in parts.items()}
    pipe = pipeline(*args, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux(**options: Any) -> Any:
    return make_pipe(**options)


def chroma(**options: Any) -> Any:
    torch.manual_seed(0)
    return assemble(
        d.ChromaPipeline,
        scheduler=scheduler(**options),
        vae=image_vae(),
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=d.ChromaTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
            approximator_num_channels=8,
            approximator_hidden_dim=8,
            approximator_layers=1,
        ),
    )


def stable_diffusion_3(**options: Any) -> Any:
    torch.manual_seed(0)
    return assemble(
        d.StableDiffusion3Pipeline,
        scheduler=scheduler(**options),
        vae=image_vae(),
        text_encoder=clip(),
        tokenizer=make_tokenizer(16),
        text_encoder_2=clip(),
        tokenizer_2=make_tokenizer(16),
        text_encoder_3=t.T5EncoderModel(
            t.T5Config(vocab_size=len(WORDS), d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        tokenizer_3=tokenizer(),
        transformer=d.SD3Transformer2DModel(
            sample_size=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=16,
        ),
    )


def qwen_image(**options: Any) -> Any:
    torch.manual_seed(0)
    pipe = assemble(
        d.QwenImagePipeline,
        scheduler=scheduler(**options),
        vae=video_vae(),
        text_encoder=language_model(),
        tokenizer=tokenizer(),
        transformer=d.QwenImageTransformer2DModel(
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    pipe.prompt_template_encode = HEAD + "{} at"
    return pipe


class Processor:
    """A tokenizer that answers as a vision-language model's processor does."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer()
        self.tokenizer.add_tokens("<|image_pad|>", special_tokens=True)

    def __call__(self, text: list[str], **options: Any) -> Any:
        return self.tokenizer(text, **options)

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        return [self.tokenizer.apply_chat_template(messages, **options)]


class Chat(Processor):
    """One whose template gives a text, not a list of one."""

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        del messages[0]  # the pipeline's long system prompt
        return self.tokenizer.apply_chat_template(messages, **options)


def qwen_image_21(*, sample_sigmas: list[float] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    vae = d.AutoencoderKLQwenImage21(
        base_dim=4, decoder_base_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1, z_dim=64
    )
    return assemble(
        d.QwenImage21Pipeline,
        scheduler=scheduler(**options),
        vae=vae,
        text_encoder=language_model(),
        processor=Processor(),
        transformer=d.QwenImage21Transformer2DModel(
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=16,
            axes_dims_rope=(4, 4, 8),
        ),
        sample_sigmas=sample_sigmas,
    )


def krea2(*, is_distilled: bool = False, **options: Any) -> Any:
    torch.manual_seed(0)
    config = t.Qwen3VLTextConfig(
        **SMALL,
        num_hidden_layers=2,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    )
    pipe = assemble(
        d.Krea2Pipeline,
        scheduler=scheduler(**options),
        vae=video_vae(),
        text_encoder=t.Qwen3VLTextModel(config),
        tokenizer=tokenizer(),
        transformer=d.Krea2Transformer2DModel(
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=16,
            timestep_embed_dim=16,
            text_hidden_dim=16,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        text_encoder_select_layers=(1, 2),
        is_distilled=is_distilled,
    )
    pipe.prompt_template_encode_prefix, pipe.prompt_template_encode_suffix = HEAD, "a at a at"
    return pipe


def z_image(**options: Any) -> Any:
    torch.manual_seed(0)
    pipe = assemble(
        d.ZImagePipeline,
        scheduler=scheduler(**options),
        vae=image_vae(),
        text_encoder=language_model().model,
        tokenizer=tokenizer(),
        transformer=d.ZImageTransformer2DModel(
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[256, 64, 64],
        ),
    )
    for name in ("x_pad_token", "cap_pad_token"):  # left uninitialised by the class
        torch.nn.init.normal_(getattr(pipe.transformer, name))
    return pipe


def _flux2_parts(layers: int, options: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    vae = d.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
    )
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    transformer = d.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=layers == 30,
    )
    return {
        "scheduler": scheduler(**options),
        "vae": vae,
        "text_encoder": language_model(layers),
        "tokenizer": tokenizer(),
        "transformer": transformer,
    }


def flux2(**options: Any) -> Any:
    pipe = assemble(d.Flux2Pipeline, **_flux2_parts(30, options))
    pipe.system_message = "a lake"
    return pipe


def klein(*, is_distilled: bool = False, **options: Any) -> Any:
    return assemble(d.Flux2KleinPipeline, **_flux2_parts(27, options), is_distilled=is_distilled)


def lumina2(**options: Any) -> Any:
    torch.manual_seed(0)
    pipe = assemble(
        d.Lumina2Pipeline,
        scheduler=scheduler(**options),
        vae=image_vae(),
        text_encoder=language_model().model,
        tokenizer=tokenizer(),
        transformer=d.Lumina2Transformer2DModel(
            hidden_size=32,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(64, 64, 64),
            cap_feat_dim=16,
        ),
    )
    pipe.system_prompt = "a lake"
    return pipe


def aura_flow(**options: Any) -> Any:
    torch.manual_seed(0)
    return assemble(
        d.AuraFlowPipeline,
        scheduler=scheduler(**{**options, "use_dynamic_shifting": False}),  # the pipeline knows no other
        vae=image_vae(4, shift_factor=0.0),
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=d.AuraFlowTransformer2DModel(
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        ),
    )


def ovis_image(**options: Any) -> Any:
    torch.manual_seed(0)
    pipe = assemble(
        d.OvisImagePipeline,
        scheduler=scheduler(**options),
        vae=image_vae(),
        text_encoder=language_model().model,
        tokenizer=tokenizer(),
        transformer=d.OvisImageTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
        ),
    )
    pipe.system_prompt = "a " * 26  # with the template's head as many tokens as the pipeline drops
    return pipe


def fixed(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a scheduler for a pipeline that knows no shift by size."""
    return {**options, "use_dynamic_shifting": False}


def cogview4(**options: Any) -> Any:
    torch.manual_seed(0)
    return assemble(
        d.CogView4Pipeline,
        scheduler=scheduler(**options),
        vae=image_vae(4, shift_factor=0.0),
        text_encoder=language_model().model,
        tokenizer=tokenizer(),
        transformer=d.CogView4Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=16,
            time_embed_dim=16,
            condition_dim=4,
        ),
    )


def sana(**options: Any) -> Any:
    torch.manual_seed(0)
    vae = d.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return assemble(
        d.SanaPipeline,
        scheduler=scheduler(**fixed(options)),
        vae=vae,
        text_encoder=language_model().model,
        tokenizer=tokenizer(4096),
        transformer=d.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
            sample_size=32,
        ),
    )


def ernie_image(**options: Any) -> Any:
    parts = _flux2_parts(2, fixed(options))
    parts["vae"].register_to_config(batch_norm_eps=1e-5)
    parts["text_encoder"] = parts["text_encoder"].model
    parts["transformer"] = d.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=16,
        rope_axes_dim=(4, 6, 6),
    )
    return assemble(d.ErnieImagePipeline, **parts)


def bria(**options: Any) -> Any:
    torch.manual_seed(0)
    return assemble(
        d.BriaPipeline,
        scheduler=scheduler(**options),
        vae=image_vae(4),
        text_encoder=t5(),
        tokenizer=tokenizer(),
        transformer=d.BriaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=[4, 4, 8],
        ),
    )


class Cleaner:
    """PRX's own needs a further library; here texts are clean."""

    def clean_text(self, text: str) -> str:
        return text.strip().lower()


def prx(**options: Any) -> Any:
    torch.manual_seed(0)
    pipe = assemble(
        d.PRXPipeline,
        scheduler=scheduler(**fixed(options)),
        vae=image_vae(),
        text_encoder=language_model().model,
        tokenizer=tokenizer(16),
        transformer=d.PRXTransformer2DModel(
            context_in_dim=16,
            hidden_size=32,
            num_heads=2,
            depth=1,
            axes_dim=[8, 8],
            mlp_ratio=1.0,
        ),
    )
    pipe.text_preprocessor = Cleaner()
    return pipe


def nucleusmoe_image(**options: Any) -> Any:
    torch.manual_seed(0)
    pipe = assemble(
        d.NucleusMoEImagePipeline,
        scheduler=scheduler(**options),
        vae=video_vae(),
        text_encoder=language_model(9).model,
        processor=Chat(),
        transformer=d.NucleusMoEImageTransformer2DModel(
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
            mlp_ratio=1.0,
            dense_moe_strategy="none",
            num_experts=2,
            moe_intermediate_dim=8,
            capacity_factors=1.0,
        ),
    )
    for name, parameter in pipe.transformer.named_parameters():
        if "experts" in name:  # left uninitialised by the class
            torch.nn.init.normal_(parameter, std=0.2)
    return pipe


def hidream_image(**options: Any) -> Any:
    torch.manual_seed(0)
    llama = t.LlamaConfig(**SMALL, num_hidden_layers=2, num_key_value_heads=2, pad_token_id=0)
    return assemble(
        d.HiDreamImagePipeline,
        scheduler=scheduler(**options),
        vae=image_vae(),
        text_encoder=clip(),
        tokenizer=make_tokenizer(16),
        text_encoder_2=clip(),
        tokenizer_2=make_tokenizer(16),
        text_encoder_3=t5(),
        tokenizer_3=tokenizer(),
        text_encoder_4=t.LlamaForCausalLM(llama).eval(),
        tokenizer_4=tokenizer(),
        transformer=d.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=[16, 16],
            text_emb_dim=16,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(16, 16),
            llama_layers=[0, 1],
        ),
    )


def lumina(**options: Any) -> Any:
    torch.manual_seed(0)
    return assemble(
        d.LuminaPipeline,
        scheduler=scheduler(**fixed(options)),
        vae=image_vae(4, shift_factor=None),
        text_encoder=language_model().model,
        tokenizer=tokenizer(),
        transformer=d.LuminaNextDiT2DModel(
            sample_size=16,
            hidden_size=32,
            num_layers=1,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=8,
            cross_attention_dim=16,
        ),
    )


def prx_pixel(**options: Any) -> Any:
    torch.manual_seed(0)
    if not is_ftfy_available():  # what mends broken characters; here there are none
        pipeline_prx_pixel.ftfy = SimpleNamespace(fix_text=str)
    return assemble(
        d.PRXPixelPipeline,
        scheduler=scheduler(**fixed(options)),
        text_encoder=language_model().model,
        tokenizer=tokenizer(20),
        transformer=d.PRXTransformer2DModel(
            in_channels=3,
            patch_size=16,
            context_in_dim=16,
            hidden_size=32,
            num_heads=2,
            depth=1,
            axes_dim=[8, 8],
            mlp_ratio=1.0,
        ),
        prompt_max_tokens=20,
    )


def bria_fibo(**options: Any) -> Any:
    torch.manual_seed(0)
    return assemble(
        d.BriaFiboPipeline,
        scheduler=scheduler(**options),
        vae=d.AutoencoderKLWan(
            base_dim=4, dim_mult=[1, 1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False] * 4
        ),
        text_encoder=language_model(vocabulary=128_001).model,  # an empty text is token 128,000
        tokenizer=tokenizer(),
        transformer=d.BriaFiboTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=[4, 4, 8],
            text_encoder_dim=16,
        ),
    )


def scaled(pipe: Any, mode: Tensor) -> Tensor:
    return (mode - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor


def standardised(pipe: Any, mode: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(x).view(1, -1, 1, 1, 1) for x in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
    )
    return ((mode - mean) / std)[:, :, 0]


def batch_normed(pipe: Any, mode: Tensor) -> Tensor:
    patches = pipe._patchify_latents(mode)
    bn = pipe.vae.bn
    std = torch.sqrt(bn.running_var + pipe.vae.config.batch_norm_eps)
    return (patches - bn.running_mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)


def packed(pipe: Any, latents: Tensor) -> Tensor:
    return pipe._pack_latents(latents, *latents.shape)


def plain(pipe: Any, latents: Tensor) -> Tensor:
    return latents


CASES: dict[str, Case] = {
    "FluxPipeline": Case(flux, scaled, packed, by_hand={"true_cfg_scale": 2.0, "negative_prompt": [""]}),
    "ChromaPipeline": Case(chroma, scaled, packed),
    "StableDiffusion3Pipeline": Case(stable_diffusion_3, scaled, plain, sigma=lambda step: step / 1000),
    "QwenImagePipeline": Case(
        qwen_image, standardised, packed, by_hand={"true_cfg_scale": 2.0, "negative_prompt": [""]}
    ),
    "QwenImage21Pipeline": Case(
        qwen_image_21,
        standardised,
        packed,
        by_hand={"true_cfg_scale": 2.0, "negative_prompt": [""]},
        text_length=None,
    ),
    "Krea2Pipeline": Case(krea2, standardised, packed, by_hand={"guidance_scale": 1.0, "negative_prompt": [""]}),
    "ZImagePipeline": Case(
        z_image,
        scaled,
        plain,
        by_hand={"guidance_scale": 1.0, "negative_prompt": [""]},
        sigma=lambda step: 1 - step,
        sign=-1,
    ),
    "Lumina2Pipeline": Case(lumina2, scaled, plain, sigma=lambda step: 1 - step, sign=-1),
    "AuraFlowPipeline": Case(aura_flow, scaled, plain),
    "OvisImagePipeline": Case(ovis_image, scaled, packed),
    "CogView4Pipeline": Case(cogview4, scaled, plain, sigma=lambda step: step / 1000),
    "SanaPipeline": Case(
        sana,
        lambda pipe, latent: latent * pipe.vae.config.scaling_factor,
        plain,
        by_hand={"guidance_scale": 2.0, "negative_prompt": [""], "use_resolution_binning": False},
        sigma=lambda step: step / 1000,
    ),
    "ErnieImagePipeline": Case(ernie_image, batch_normed, plain, sigma=lambda step: step / 1000, text_length=None),
    "BriaPipeline": Case(
        bria,
        scaled,
        packed,
        by_hand={"guidance_scale": 2.0, "negative_prompt": ""},
        sigma=lambda step: step / 1000,
    ),
    "PRXPipeline": Case(
        prx,
        scaled,
        plain,
        by_hand={"guidance_scale": 2.0, "negative_prompt": [""], "use_resolution_binning": False},
        length="tokenizer_max_length",
    ),
    "NucleusMoEImagePipeline": Case(
        nucleusmoe_image,
        standardised,
        lambda pipe, latents: pipe._pack_latents(latents, *latents.shape, 2),
        sign=-1,
    ),
    "HiDreamImagePipeline": Case(hidream_image, scaled, plain, sigma=lambda step: step / 1000, sign=-1),
    "LuminaPipeline": Case(
        lumina,
        lambda pipe, latent: latent * pipe.vae.config.scaling_factor,
        plain,
        by_hand={"guidance_scale": 2.0, "negative_prompt": [""], "clean_caption": False},
        sigma=lambda step: 1 - step,
        velocity=lambda hidden, given, sigma: -given[:, :4],  # the other four are a variance
        text_length=None,
    ),
    "PRXPixelPipeline": Case(
        prx_pixel,
        lambda pipe, pixels: pixels / pipe.config.noise_scale,
        lambda pipe, latents: latents * pipe.config.noise_scale,
        by_hand={"guidance_scale": 2.0, "negative_prompt": [""], "use_resolution_binning": False},
        velocity=lambda hidden, given, sigma: (hidden - given) / sigma,  # it says what the picture is
        text_length=None,
    ),
    "BriaFiboPipeline": Case(
        bria_fibo,
        standardised,
        lambda pipe, latents: pipe._pack_latents_no_patch(latents, *latents.shape),
        sigma=lambda step: step / 1000,
    ),
    "Flux2Pipeline": Case(
        flux2,
        batch_normed,
        lambda pipe, latents: pipe._pack_latents(latents),
        plan={"guidance_scale": 3.0},
        by_hand={"guidance_scale": 3.0},
    ),
    "Flux2KleinPipeline": Case(
        klein, batch_normed, lambda pipe, latents: pipe._pack_latents(latents), by_hand={"guidance_scale": 2.0}
    ),
}


def make_fast(case: Case, pipe: Any, **options: Any) -> MrFlow:
    defaults = Defaults(
        width=SIZE[0],
        height=SIZE[1],
        plan=Plan(steps=2, refine_sigma=SIGMA, **case.plan),
        max_sequence_length=case.text_length,
    )
    return MrFlow(pipe, "bicubic", defaults=defaults, **options)
