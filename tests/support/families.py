"""A tiny random pipeline of every family that is built in, and how its own call is told what ours is told.

families.json has the parts of each pipeline, and how diffusers' classes are made tiny; CASES has the facts that
tests hold against it. Where a checkpoint's text encoder is a large vision-language model, a tiny language model
that answers the same call stands in.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
from mrflow.sampling import draft_generators

SIZE = (128, 64)
SIGMA = 0.3

HEAD = "a " * 34  # as many tokens as the head of Qwen-Image's template
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endif %} and {% endfor %}"
    "{% if add_generation_prompt %}at {% endif %}"
)

if not is_ftfy_available():  # what mends broken characters for PRX Pixel; here there are none
    pipeline_prx_pixel.ftfy = SimpleNamespace(fix_text=str)

TINY = json.loads(Path(__file__).with_suffix(".json").read_text())


@dataclass(frozen=True, kw_only=True)
class Case:
    """A family under test: how its pipeline is made, then what tests know of it.

    own: further arguments of the pipeline's class. attributes: set on the pipeline. filled: parameters of the
    transformer whose names hold the word are left uninitialised by its class; they are drawn with this spread.
    by_size: whether the pipeline can shift its schedule by size.

    plan: guidance of the guided test. by_hand: the same as arguments of the pipeline's own call.
    normalise: (pipe, mode of the posterior) to latents, as the pipeline has it. pack: (pipe, latents) to the
    transformer's hidden states. sign: of the velocity that the transformer gives. velocity: (hidden states, what
    the transformer gives) at a sigma to velocity, where a sign alone doesn't say it.
    text_length: of the text, None where the call has none. length: its name there.
    """

    own: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    filled: tuple[str, float] = ("", 0.0)
    by_size: bool = True

    plan: Mapping[str, float] = field(default_factory=lambda: {"true_cfg_scale": 2.0})
    by_hand: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 2.0, "negative_prompt": [""]})
    normalise: Callable[[Any, Tensor], Tensor]
    pack: Callable[[Any, Tensor], Tensor]
    sign: int = 1
    velocity: Callable[[Tensor, Tensor, float], Tensor] | None = None
    text_length: int | None = 16
    length: str = "max_sequence_length"

    @property
    def name(self) -> str:
        """The pipeline's class."""
        return next(name for name, case in CASES.items() if case is self)

    def make(self, **options: Any) -> Any:
        """Return the pipeline, the same each time. options: of its class, or else of its scheduler."""
        if self.name == "FluxPipeline":
            return make_pipe(**options)
        kind = getattr(d, self.name)
        known = inspect.signature(kind.__init__).parameters
        own = {**self.own, **{name: options.pop(name) for name in list(options) if name in known}}
        torch.manual_seed(0)
        parts = {name: make_part(part) for name, part in TINY["pipelines"][self.name].items()}
        word, spread = self.filled
        for name, parameter in parts["transformer"].named_parameters() if word else ():
            if word in name:
                torch.nn.init.normal_(parameter, std=spread)
        options["use_dynamic_shifting"] = self.by_size and options.get("use_dynamic_shifting", True)
        pipe = kind(scheduler=d.FlowMatchEulerDiscreteScheduler(**options), **parts, **own)
        for name, value in self.attributes.items():
            setattr(pipe, name, value)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def flow(self, hidden: Tensor, given: Tensor, sigma: float) -> Tensor:
        """Return the velocity that the transformer's answer means."""
        if self.velocity is not None:
            return self.velocity(hidden, given, sigma)
        return self.sign * given[:, -hidden.shape[1] :]  # Qwen-Image 2.1 gives its texts' part too

    def run(self, pipe: Any, size: tuple[int, int], steps: int, prompt: str = "a red boat") -> Tensor:
        """Return the pixels (1, 3, h, w) of the pipeline's own call, guided, from seed 7."""
        if self.name == "HiDreamImagePipeline":  # which paints this area whatever it is asked for
            own = pipe.default_sample_size
            pipe.default_sample_size = (size[0] * size[1]) ** 0.5 / 8 + 1e-6
        length = {} if self.text_length is None else {self.length: self.text_length}
        pixels = pipe(
            prompt=[prompt],
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            generator=draft_generators([7]),
            output_type="pt",
            **copy.deepcopy(dict(self.by_hand)),  # ZImagePipeline writes into a list of prompts
            **length,
        ).images
        if self.name == "HiDreamImagePipeline":
            pipe.default_sample_size = own
        if self.name == "PRXPixelPipeline":  # whose tensors are still in [-1, 1]
            pixels = (pixels / 2 + 0.5).clamp(0, 1)
        return pixels[:, :3]


def make_fast(case: Case, pipe: Any, **options: Any) -> MrFlow:
    defaults = Defaults(
        width=SIZE[0],
        height=SIZE[1],
        plan=Plan(steps=2, refine_sigma=SIGMA, **case.plan),
        max_sequence_length=case.text_length,
    )
    return MrFlow(pipe, "bicubic", defaults=defaults, **options)


# --- parts ---

SMALL = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
CAUSAL = {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": 0}


def make_part(part: str | list[Any]) -> Any:
    """Return a part by the name of its class or stand-in, or by that and what of it is otherwise."""
    kind, changed = (part, {}) if isinstance(part, str) else part
    if kind in STAND_INS:
        made = STAND_INS[kind](**changed)
    else:
        made = getattr(d, kind)(**{**TINY["classes"][kind], **changed})
    if kind == "AutoencoderKLFlux2":  # whose statistics would be nought and one
        torch.nn.init.normal_(made.bn.running_mean)
        torch.nn.init.uniform_(made.bn.running_var, 0.5, 2.0)
    return made.eval() if isinstance(made, torch.nn.Module) else made


def causal_model(layers: int = 2) -> Any:
    return t.Qwen3ForCausalLM(t.Qwen3Config(**{**CAUSAL, "num_hidden_layers": layers}, head_dim=8))


def language_model(**changed: int) -> Any:
    return t.Qwen3Model(t.Qwen3Config(**{**CAUSAL, **changed}, head_dim=8))


def vision_language_model() -> Any:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    return t.Qwen3VLTextModel(t.Qwen3VLTextConfig(**CAUSAL, head_dim=8, rope_parameters=rope))


def llama() -> Any:
    return t.LlamaForCausalLM(t.LlamaConfig(**CAUSAL))


def t5(width: int = 16) -> Any:
    small = {"d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return t.T5EncoderModel(t.T5Config(vocab_size=len(WORDS), d_model=width, **small))


def clip() -> Any:
    small = {**SMALL, "num_hidden_layers": 2, "projection_dim": 8}
    return t.CLIPTextModelWithProjection(t.CLIPTextConfig(**small, max_position_embeddings=16, eos_token_id=2))


def tokenizer(max_length: int = 64) -> Any:
    made = make_tokenizer(max_length)
    made.chat_template = CHAT
    return made


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


class Cleaner:
    """PRX's own needs a further library; here texts are clean."""

    def clean_text(self, text: str) -> str:
        return text.strip().lower()


STAND_INS: Mapping[str, Callable[..., Any]] = {
    "causal_model": causal_model,
    "language_model": language_model,
    "vision_language_model": vision_language_model,
    "llama": llama,
    "t5": t5,
    "clip": clip,
    "tokenizer": tokenizer,
    "processor": Processor,
    "chat": Chat,
}


# --- what tests know ---


def scaled(pipe: Any, mode: Tensor) -> Tensor:
    return (mode - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor


def unshifted(pipe: Any, mode: Tensor) -> Tensor:
    return mode * pipe.vae.config.scaling_factor


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


TRUE_CFG = {"true_cfg_scale": 2.0, "negative_prompt": [""]}
OFFSET_CFG = {"guidance_scale": 1.0, "negative_prompt": [""]}  # a scale in which 0 is no guidance
AS_ASKED = {"guidance_scale": 2.0, "negative_prompt": [""], "use_resolution_binning": False}

CASES: dict[str, Case] = {
    "FluxPipeline": Case(by_hand=TRUE_CFG, normalise=scaled, pack=packed),
    "ChromaPipeline": Case(normalise=scaled, pack=packed),
    "StableDiffusion3Pipeline": Case(normalise=scaled, pack=plain),
    "QwenImagePipeline": Case(
        attributes={"prompt_template_encode": HEAD + "{} at"},
        by_hand=TRUE_CFG,
        normalise=standardised,
        pack=packed,
    ),
    "QwenImage21Pipeline": Case(by_hand=TRUE_CFG, normalise=standardised, pack=packed, text_length=None),
    "Krea2Pipeline": Case(
        own={"text_encoder_select_layers": (1, 2)},
        attributes={"prompt_template_encode_prefix": HEAD, "prompt_template_encode_suffix": "a at a at"},
        by_hand=OFFSET_CFG,
        normalise=standardised,
        pack=packed,
    ),
    "ZImagePipeline": Case(filled=("pad_token", 1.0), by_hand=OFFSET_CFG, normalise=scaled, pack=plain, sign=-1),
    "Lumina2Pipeline": Case(attributes={"system_prompt": "a lake"}, normalise=scaled, pack=plain, sign=-1),
    "AuraFlowPipeline": Case(by_size=False, normalise=scaled, pack=plain),
    "OvisImagePipeline": Case(
        attributes={"system_prompt": "a " * 26},  # with the template's head as many tokens as the pipeline drops
        normalise=scaled,
        pack=packed,
    ),
    "CogView4Pipeline": Case(normalise=scaled, pack=plain),
    "SanaPipeline": Case(by_size=False, by_hand=AS_ASKED, normalise=unshifted, pack=plain),
    "ErnieImagePipeline": Case(by_size=False, normalise=batch_normed, pack=plain, text_length=None),
    "BriaPipeline": Case(by_hand={"guidance_scale": 2.0, "negative_prompt": ""}, normalise=scaled, pack=packed),
    "PRXPipeline": Case(
        attributes={"text_preprocessor": Cleaner()},
        by_size=False,
        by_hand=AS_ASKED,
        normalise=scaled,
        pack=plain,
        length="tokenizer_max_length",
    ),
    "NucleusMoEImagePipeline": Case(
        filled=("experts", 0.2),
        normalise=standardised,
        pack=lambda pipe, latents: pipe._pack_latents(latents, *latents.shape, 2),
        sign=-1,
    ),
    "HiDreamImagePipeline": Case(normalise=scaled, pack=plain, sign=-1),
    "LuminaPipeline": Case(
        by_size=False,
        by_hand={"guidance_scale": 2.0, "negative_prompt": [""], "clean_caption": False},
        normalise=unshifted,
        pack=plain,
        velocity=lambda hidden, given, sigma: -given[:, :4],  # the other four are a variance
        text_length=None,
    ),
    "PRXPixelPipeline": Case(
        own={"prompt_max_tokens": 20},
        by_size=False,
        by_hand=AS_ASKED,
        normalise=lambda pipe, pixels: pixels / pipe.config.noise_scale,
        pack=lambda pipe, latents: latents * pipe.config.noise_scale,
        velocity=lambda hidden, given, sigma: (hidden - given) / sigma,  # it says what the picture is
        text_length=None,
    ),
    "BriaFiboPipeline": Case(
        normalise=standardised,
        pack=lambda pipe, latents: pipe._pack_latents_no_patch(latents, *latents.shape),
    ),
    "Flux2Pipeline": Case(
        attributes={"system_message": "a lake"},
        plan={"guidance_scale": 3.0},
        by_hand={"guidance_scale": 3.0},
        normalise=batch_normed,
        pack=lambda pipe, latents: pipe._pack_latents(latents),
    ),
    "Flux2KleinPipeline": Case(
        by_hand={"guidance_scale": 2.0},
        normalise=batch_normed,
        pack=lambda pipe, latents: pipe._pack_latents(latents),
    ),
}
