"""What model families share: layouts of latents, autoencoders, prompts as rows of tensors, and the usual answers.

A layout knows how latents (B, C, H, W) go into a pipeline and come out of it; an autoencoder how pixels become
latents in which a sigma means what it says, that is with about unit variance, and back. A family's module says
which it has, and overrides where its facts differ.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

Pipeline = Any
"""A diffusers text-to-image pipeline. Its classes share no typed interface, hence Any."""

Embeds = dict[str, Any]
"""One encoded prompt: name of a call's argument to tensor, each with a batch dimension of 1."""

_PUNCTUATION = string.punctuation + string.whitespace  # too little meaning to warn of its loss


@dataclass(frozen=True)
class Reading:
    """How a model reads a prompt: `cut` is the end that it does not see, `unknown` the words it lacks."""

    cut: str = ""
    unknown: tuple[str, ...] = ()


class Backbone:
    """What staged sampling needs to know of a model family, answered as most of them do: by default true CFG.

    A family says its layout, autoencoder and `encode_texts`, and overrides where its facts differ. Methods are
    stateless; `pipe` is the user's own. Guidance means the same everywhere: `guidance_scale` is what a
    guidance-embedded transformer is told, `true_cfg_scale` is s in uncond + s (cond - uncond), 1 being none,
    whatever the pipeline calls it.

    layout, autoencoder: how its latents look. usual_cfg: true_cfg_scale when nobody says.
    text_length: text tokens when nobody says; the default of the pipeline's call. spare: components that it can
    do without, beside those that its class calls optional. references: whether its call's `image=` takes pictures
    that the transformer sees beside the one it makes, at any size.
    """

    layout: Layout
    autoencoder: Autoencoder
    usual_cfg: float = 1.0
    text_length: int = 512
    spare: tuple[str, ...] = ()
    references: bool = False

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Embeds:
        """Return the texts, encoded by the pipeline, as call arguments: name to tensor, a row per text."""
        raise NotImplementedError

    def multiple(self, pipe: Pipeline) -> int:
        """Return the pixels by whose multiples picture sides are whole patches."""
        return self.layout.multiple(pipe)

    def patch(self, pipe: Pipeline) -> int:
        """Return the pixels a side of the transformer's patches, of which tiles are cut."""
        return self.multiple(pipe)

    def uncut(self, pipe: Pipeline) -> str:
        """Return why the transformer can't be given a picture in tiles (mrflow.tiling), or an empty text."""
        return ""

    def guidance_field(self, pipe: Pipeline) -> Literal["guidance_scale", "true_cfg_scale"]:
        """Return the Plan field by which this checkpoint is guided."""
        return "true_cfg_scale"

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return the value of that field when nobody says."""
        return self.usual_cfg

    def takes_cfg(self, pipe: Pipeline) -> bool:
        """Return whether the pipeline can run classifier-free guidance with this checkpoint."""
        return True

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return the pipeline's arguments for these guidance strengths; most call true CFG `guidance_scale`."""
        return {"guidance_scale": true_cfg_scale}

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what of the prompt the model does not take in: here nothing is lost."""
        return Reading()

    def encode_prompts(
        self,
        pipe: Pipeline,
        prompts: list[str],
        negative_prompts: list[str] | None,
        max_sequence_length: int | None,
    ) -> list[Embeds]:
        """Return one row of embeddings per prompt; what its negative adds has the same names after `negative_`."""
        length = max_sequence_length or self.text_length
        rows = self.encode_rows(pipe, prompts, length)
        if negative_prompts is None:
            return rows
        negatives = self.encode_rows(pipe, negative_prompts, length)
        return [
            row | {f"negative_{name}": value for name, value in negative.items()}
            for row, negative in zip(rows, negatives, strict=True)
        ]

    def encode_rows(self, pipe: Pipeline, texts: list[str], length: int) -> list[Embeds]:
        """Return the encoded texts as one row each."""
        return split_rows(self.encode_texts(pipe, list(texts), length))

    def batch_key(self, row: Embeds) -> Hashable:
        """Return what rows of a batch must share: names and shapes; names alone where padding is masked."""
        return tuple(sorted((name, tuple(value.shape)) for name, value in row.items()))

    def call_arguments(
        self,
        pipe: Pipeline,
        rows: Sequence[Embeds],
        guidance_scale: float | None,
        true_cfg_scale: float,
    ) -> dict[str, Any]:
        """Return what the pipeline is called with in both passes: rows, without unused negatives, and guidance."""
        if true_cfg_scale <= 1:
            rows = [{k: v for k, v in row.items() if not k.startswith("negative_")} for row in rows]
        return {**self.stack(rows), **self.guidance(guidance_scale, true_cfg_scale)}

    def stack(self, rows: Sequence[Embeds]) -> dict[str, Any]:
        """Return rows as the pipeline takes a batch of them."""
        return stack_rows(rows)

    def draft_arguments(self, pipe: Pipeline, steps: int) -> dict[str, Any]:
        """Return the arguments by which the pipeline takes `steps` steps on the model's own schedule."""
        return {"num_inference_steps": steps}

    def settings(self, pipe: Pipeline, width: int, height: int) -> dict[str, Any]:
        """Return attributes of the pipeline, by name, that a picture of this size needs other values of."""
        return {}

    def timesteps(
        self, pipe: Pipeline, sigmas: Sequence[float], width: int, height: int
    ) -> Sequence[float] | None:
        """Return the times with which its own scheduler would step at these sigmas, at this size.

        None where they are the sigmas times the number of training timesteps, as for all but CogView4.
        """
        return None

    def encode(self, pipe: Pipeline, pixels: Tensor) -> Tensor:
        """Return (B, 3, h, w) pixels in [0, 1] as float32 latents to mix noise into: the posterior's mode."""
        return self.autoencoder.encode(pipe.vae, pixels)

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return what `encode` gave in the form that the pipeline takes as `latents=`."""
        return self.layout.pack(pipe, latents)

    def unpack(self, pipe: Pipeline, given: Tensor, width: int, height: int) -> Tensor:
        """Return what the pipeline gave for output_type="latent" as `pack` takes it; after no step, its noise."""
        latents = self.layout.unpack(pipe, given, width, height)
        return latents.squeeze(2) if latents.ndim == 5 else latents

    def enlarge(self, pipe: Pipeline, latents: Tensor, larger: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what `pack` takes made larger by what works on the autoencoder's own latents, scaled or not."""
        enlarge = getattr(self.autoencoder, "enlarge", None)
        return larger(latents) if enlarge is None else cast("Tensor", enlarge(pipe.vae, latents, larger))

    def resume(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return what the pipeline's loop holds, of a width x height picture, as it takes `latents=`."""
        return latents

    def decode(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return what the pipeline gave for output_type="latent" as (B, 3, h, w) float32 pixels in [0, 1]."""
        return self.autoencoder.decode(pipe.vae, self.layout.unpack(pipe, latents, width, height))


class Layout(Protocol):
    """How a pipeline takes and gives latents. about: a few words for the documentation."""

    about: str

    def multiple(self, pipe: Pipeline) -> int:
        """Return the pixels by whose multiples picture sides are whole patches."""

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return (B, C, H, W) latents as the pipeline takes them."""

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return what the pipeline gives as latents for the autoencoder, of a width x height picture."""


class Packed:
    """Tokens of 2x2 latents, (B, H/2 * W/2, 4C), by the pipeline's own `_pack_latents`."""

    about = "packed 2x2"

    def multiple(self, pipe: Pipeline) -> int:
        """Return 16 for an autoencoder of factor 8."""
        return int(pipe.vae_scale_factor) * 2

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return (B, C, H, W) latents as tokens."""
        return cast("Tensor", pipe._pack_latents(latents, *latents.shape))

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return tokens as (B, C, H, W) latents, (B, C, 1, H, W) where the autoencoder is one of videos."""
        return cast("Tensor", pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor))


class Plain:
    """Latents as they are. patches: latents per side of a patch.

    cast: to the transformer's dtype, for pipelines that draw them so and do not look at what they are given.
    """

    about = "plain"

    def __init__(self, patches: int = 1, *, cast: bool = False) -> None:
        self._patches, self._cast = patches, cast

    def multiple(self, pipe: Pipeline) -> int:
        """Return the autoencoder's factor times the transformer's patch."""
        return int(pipe.vae_scale_factor) * self._patches

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return the latents."""
        return latents.to(pipe.transformer.dtype) if self._cast else latents

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return the latents."""
        return latents


class Autoencoder(Protocol):
    """Pixels in [0, 1] to latents of about unit variance, and back. about: a few words for the documentation."""

    about: str

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """Return (B, 3, h, w) pixels as float32 latents (B, C, H, W): the posterior's mode, normalised."""

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents, as a layout unpacks them, as float32 pixels in [0, 1]."""


class ScaledVae:
    """AutoencoderKL: (mode - shift_factor) * scaling_factor. Those without a posterior (DC, Tiny) alike."""

    about = "scale and shift"

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """Return pixels as latents: (mode - shift) * scale."""
        mode = posterior_mode(vae.encode((pixels * 2 - 1).to(vae.dtype)))
        return (mode.float() - _shift(vae)) * float(vae.config.scaling_factor)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return latents as pixels."""
        raw = latents / vae.config.scaling_factor + _shift(vae)
        return to_unit(vae.decode(raw.to(vae.dtype)).sample)


class StandardisedVae:
    """A video autoencoder with a mean and a deviation per channel; a picture is a video of one frame."""

    about = "mean and std per channel, 5-D"

    def encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """Return pixels as latents: (mode - mean) / std."""
        mode = posterior_mode(vae.encode((pixels * 2 - 1).unsqueeze(2).to(vae.dtype))).float()
        mean, std = _statistics(vae, mode)
        return ((mode - mean) / std).squeeze(2)

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return (B, C, 1, H, W) latents as pixels."""
        mean, std = _statistics(vae, latents)
        raw = self.scaled(latents, std) + mean
        return to_unit(vae.decode(raw.to(vae.dtype)).sample[:, :, 0])

    def enlarge(self, vae: Any, latents: Tensor, larger: Callable[[Tensor], Tensor]) -> Tensor:
        """Return latents (B, C, H, W) made larger by what works on the autoencoder's own."""
        mean, std = (each.squeeze(2) for each in _statistics(vae, latents))
        return (larger(latents * std + mean) - mean) / std

    def scaled(self, latents: Tensor, std: Tensor) -> Tensor:
        """Return latents * std, as most pipelines compute it to the last bit."""
        return latents / (1.0 / std)


def autoencoder_device(pipe: Pipeline, device: torch.device) -> torch.device:
    """Return where the autoencoder computes, which a `device_map` may have put apart from the transformer.

    device: where the pipeline computes; so does the autoencoder where it is offloaded, or there is none.
    """
    vae = getattr(pipe, "vae", None)
    if hook := getattr(vae, "_hf_hook", None):  # of accelerate's: the weights may lie elsewhere
        return getattr(hook, "execution_device", None) or device
    return device if hasattr(vae, "_diffusers_hook") else getattr(vae, "device", device)


def posterior_mode(encoded: Any) -> Tensor:
    """Return the latents in an encoder's answer: a posterior's mode, or what diffusers calls latent or latents."""
    made = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else next(iter(encoded.values()))
    return cast("Tensor", made)


def to_unit(pixels: Tensor) -> Tensor:
    """Return pixels in [-1, 1] as float32 in [0, 1], clamped; what is not finite becomes nan, not white."""
    unit = (pixels.float() / 2).add_(0.5)
    return unit.clamp(0, 1).add_(unit.mul_(0))


def _shift(vae: Any) -> float:
    return float(getattr(vae.config, "shift_factor", None) or 0.0)


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(values).view(shape) for values in (vae.config.latents_mean, vae.config.latents_std))
    return mean.to(like.device, like.dtype), std.to(like.device, like.dtype)


def split_rows(embeds: Embeds) -> list[Embeds]:
    """Return a batch's embeds as one row per prompt, cloned: a draft keeps its own row, not the batch."""
    count = len(next(iter(embeds.values())))
    return [{name: value[k : k + 1].clone() for name, value in embeds.items()} for k in range(count)]


def split_masked(encoded: Sequence[Tensor | None]) -> list[Embeds]:
    """Return rows of what some pipelines encode: embeddings, their mask, the same of the negatives or None."""
    names = ("prompt_embeds", "prompt_attention_mask")
    named = zip((*names, *(f"negative_{name}" for name in names)), encoded, strict=True)
    return split_rows({name: value for name, value in named if value is not None})


def stack_rows(rows: Sequence[Embeds]) -> Embeds:
    """Return rows, which must have the same names, as one batch, shorter texts padded with zeros at the end."""
    return {name: torch.cat(_padded([row[name] for row in rows])) for name in rows[0]}


def trim(row: Embeds, mask: str, *others: str) -> Embeds:
    """Return a row whose texts end with their last token: the tensors `mask` (1, T) and `others` (1, T, ...)."""
    length = int(row[mask].bool().sum())
    return {name: value[:, :length] if name in (mask, *others) else value for name, value in row.items()}


def read_text(
    tokenizer: Any, prompt: str, limit: int, before: str = "", after: str = "", *, special: bool = True
) -> Reading:
    """Return what of a prompt is lost where a filled template is cut after `limit` tokens.

    before, after: the template around the prompt. special: the tokenizer adds its special tokens to it.
    Only fast tokenizers say where a token stands; of others nothing is said.
    """
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        return Reading()
    text, end = before + prompt + after, len(before) + len(prompt)
    room = limit - (tokenizer.num_special_tokens_to_add() if special else 0)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans, ids = tokens["offset_mapping"], tokens["input_ids"]
    cut = text[max(spans[room][0], len(before)) : end] if len(ids) > room else ""
    missed = (
        text[a:b]
        for (a, b), token in zip(spans, ids, strict=True)
        if token == tokenizer.unk_token_id and len(before) <= a < end
    )
    unknown = dict.fromkeys(word.strip() for word in missed if word.strip(_PUNCTUATION))
    return Reading(cut.strip(), tuple(unknown))


def chat_template(tokenizer: Any, prompt: str, **options: Any) -> tuple[str, str]:
    """Return the texts before and after the prompt in a tokenizer's chat template for one user's message."""
    messages = [{"role": "user", "content": prompt}]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    before, _, after = text.rpartition(prompt)
    return before, after


def _padded(values: Sequence[Tensor]) -> list[Tensor]:
    longest = max(value.shape[1] for value in values)
    return [
        value
        if value.shape[1] == longest
        else pad(value, (0, 0) * (value.ndim - 2) + (0, longest - value.shape[1]))
        for value in values
    ]
