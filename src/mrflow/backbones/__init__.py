"""Model families: the only room where they differ.

A backbone says how one family turns prompts into conditioning, pixels into latents and back, and what it
calls its guidance. A new family is one module here, or one `register_backbone` call elsewhere:

    class MyBackbone:                      # the methods of Backbone
        ...

    register_backbone("MyPipeline", MyBackbone())
    MrFlow(my_pipe)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mrflow.errors import UnsupportedPipelineError

if TYPE_CHECKING:
    from torch import Tensor

Pipeline = Any
"""A diffusers text-to-image pipeline. Its classes share no typed interface, hence Any."""

Conditioning = dict[str, Any]
"""Encoded prompts as call arguments of the pipeline: name to tensor, one row per picture."""


@dataclass(frozen=True)
class Reading:
    """How a model reads a prompt: `cut` is the end that it does not see, `unknown` the words it lacks."""

    cut: str = ""
    unknown: tuple[str, ...] = ()


class Backbone(Protocol):
    """What staged sampling needs to know of a family. Methods are stateless; `pipe` is the user's own."""

    def multiple(self, pipe: Pipeline) -> int:
        """Return the pixels by whose multiples picture sides are whole patches."""

    def guidance_field(self, pipe: Pipeline) -> Literal["guidance_scale", "true_cfg_scale"]:
        """Return the Plan field by which this checkpoint is guided."""

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return the value of that field when nobody says."""

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what of the prompt the model does not take in."""

    def encode_prompts(
        self,
        pipe: Pipeline,
        prompts: list[str],
        negative_prompts: list[str] | None,
        max_sequence_length: int | None,
    ) -> Conditioning:
        """Return conditioning with one row per prompt; negatives, if any, under their own names."""

    def guidance_arguments(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return the pipeline's call arguments for these guidance strengths."""

    def latent_shape(self, pipe: Pipeline, width: int, height: int) -> tuple[int, int, int]:
        """Return (C, H, W) of one picture's latents."""

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return (B, C, H, W) latents in the form that the pipeline takes as `latents=`."""

    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return what the pipeline gives for output_type="latent" as (B, C, H, W) latents."""

    def encode(self, pipe: Pipeline, pixels: Tensor) -> Tensor:
        """Return (B, 3, h, w) pixels in [0, 1] as (B, C, H, W) float32 latents, the posterior's mode."""

    def decode(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return (B, C, H, W) latents as (B, 3, h, w) float32 pixels in [0, 1]."""


_registered: dict[str, Backbone] = {}


def register_backbone(pipeline_class: str, backbone: Backbone) -> None:
    """Make `backbone` drive pipelines of the class with this name, also where one is built in."""
    _registered[pipeline_class] = backbone


def supported() -> tuple[str, ...]:
    """Return the names of the pipeline classes that have a backbone."""
    return tuple(sorted({"FluxPipeline", *_registered}))


def get_backbone(pipeline_class: str) -> Backbone:
    """Return the backbone for a pipeline class name; raises UnsupportedPipelineError, naming those known."""
    if pipeline_class in _registered:
        return _registered[pipeline_class]
    if pipeline_class == "FluxPipeline":
        from mrflow.backbones.flux import FluxBackbone

        return FluxBackbone()
    raise UnsupportedPipelineError(
        f"The pipeline is a {pipeline_class}; supported are {', '.join(supported())}. "
        "Another family needs a backbone: see mrflow.backbones and register_backbone."
    )
