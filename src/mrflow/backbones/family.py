"""Family: the answers that most families share; a family's module overrides where its facts differ."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

from torch import Tensor

from mrflow.backbones import Conditioning, Pipeline, Reading
from mrflow.backbones.latents import Autoencoder, Layout
from mrflow.backbones.prompts import split_rows, stack_rows


class Family:
    """A Backbone (see there for the methods) but for `encode_texts`, by default one guided by true CFG.

    layout, autoencoder: how its latents look. usual_cfg: true_cfg_scale when nobody says.
    text_length: text tokens when nobody says; the default of the pipeline's call.
    """

    layout: Layout
    autoencoder: Autoencoder
    usual_cfg: float = 1.0
    text_length: int = 512

    def encode_texts(self, pipe: Pipeline, texts: list[str], length: int) -> Conditioning:
        """Return the texts, encoded by the pipeline, as call arguments: name to tensor, a row per text."""
        raise NotImplementedError

    def multiple(self, pipe: Pipeline) -> int:
        """Return the pixels by whose multiples picture sides are whole patches."""
        return self.layout.multiple(pipe)

    def guidance_field(self, pipe: Pipeline) -> Literal["guidance_scale", "true_cfg_scale"]:
        """Return "true_cfg_scale"."""
        return "true_cfg_scale"

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return `usual_cfg`."""
        return self.usual_cfg

    def takes_cfg(self, pipe: Pipeline) -> bool:
        """Return True."""
        return True

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return the pipeline's arguments for these guidance strengths; most call true CFG `guidance_scale`."""
        return {"guidance_scale": true_cfg_scale}

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return that nothing is lost."""
        return Reading()

    def encode_prompts(
        self,
        pipe: Pipeline,
        prompts: list[str],
        negative_prompts: list[str] | None,
        max_sequence_length: int | None,
    ) -> list[Conditioning]:
        """Return a row per prompt; what its negative adds has the same names after `negative_`."""
        length = max_sequence_length or self.text_length
        rows = self.encode_rows(pipe, prompts, length)
        if negative_prompts is None:
            return rows
        negatives = self.encode_rows(pipe, negative_prompts, length)
        return [
            row | {f"negative_{name}": value for name, value in negative.items()}
            for row, negative in zip(rows, negatives, strict=True)
        ]

    def encode_rows(self, pipe: Pipeline, texts: list[str], length: int) -> list[Conditioning]:
        """Return the encoded texts as one row each."""
        return split_rows(self.encode_texts(pipe, list(texts), length))

    def batch_key(self, row: Conditioning) -> Hashable:
        """Return the names and shapes; a family that tells the model where its padding is has the names alone."""
        return tuple(sorted((name, tuple(value.shape)) for name, value in row.items()))

    def call_arguments(
        self,
        pipe: Pipeline,
        rows: Sequence[Conditioning],
        guidance_scale: float | None,
        true_cfg_scale: float,
    ) -> dict[str, Any]:
        """Return the rows as a batch, without negatives where they have no part, and the guidance."""
        if true_cfg_scale <= 1:
            rows = [{k: v for k, v in row.items() if not k.startswith("negative_")} for row in rows]
        return {**self.stack(rows), **self.guidance(guidance_scale, true_cfg_scale)}

    def stack(self, rows: Sequence[Conditioning]) -> dict[str, Any]:
        """Return rows as the pipeline takes a batch of them."""
        return stack_rows(rows)

    def draft_arguments(self, pipe: Pipeline, steps: int) -> dict[str, Any]:
        """Return the number of steps."""
        return {"num_inference_steps": steps}

    def settings(self, pipe: Pipeline, width: int, height: int) -> dict[str, Any]:
        """Return none."""
        return {}

    def timesteps(
        self, pipe: Pipeline, sigmas: Sequence[float], width: int, height: int
    ) -> Sequence[float] | None:
        """Return None."""
        return None

    def encode(self, pipe: Pipeline, pixels: Tensor) -> Tensor:
        """Return pixels as latents."""
        return self.autoencoder.encode(pipe.vae, pixels)

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return latents as the pipeline takes them."""
        return self.layout.pack(pipe, latents)

    def resume(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return the loop's latents, which most pipelines take as they are."""
        return latents

    def decode(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return the pipeline's latents as pixels."""
        return self.autoencoder.decode(pipe.vae, self.layout.unpack(pipe, latents, width, height))
