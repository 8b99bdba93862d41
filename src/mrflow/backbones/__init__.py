"""Model families: the only room where they differ.

A backbone says how one family turns prompts into conditioning, pixels into latents and its output into
pixels, and what it calls its guidance. A new family is one small module here, or one `register_backbone`
call elsewhere:

    class MyBackbone(Family):              # mrflow.backbones.family answers what most families share
        layout = Packed()
        autoencoder = ScaledVae()

        def encode_texts(self, pipe, texts, length): ...

    register_backbone("MyPipeline", MyBackbone())
    MrFlow(my_pipe)
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from mrflow.backbones.families import FAMILIES, NOT_POSSIBLE, NOT_YET, VARIANTS
from mrflow.errors import UnsupportedPipelineError

if TYPE_CHECKING:
    from torch import Tensor

Pipeline = Any
"""A diffusers text-to-image pipeline. Its classes share no typed interface, hence Any."""

Conditioning = dict[str, Any]
"""One encoded prompt: name to tensor, each with a batch dimension of 1."""


@dataclass(frozen=True)
class Reading:
    """How a model reads a prompt: `cut` is the end that it does not see, `unknown` the words it lacks."""

    cut: str = ""
    unknown: tuple[str, ...] = ()


class Backbone(Protocol):
    """What staged sampling needs to know of a family. Methods are stateless; `pipe` is the user's own.

    Guidance means the same everywhere: `guidance_scale` is what a guidance-embedded transformer is told,
    `true_cfg_scale` is s in uncond + s (cond - uncond), 1 being none, whatever the pipeline calls it.
    """

    def multiple(self, pipe: Pipeline) -> int:
        """Return the pixels by whose multiples picture sides are whole patches."""

    def guidance_field(self, pipe: Pipeline) -> Literal["guidance_scale", "true_cfg_scale"]:
        """Return the Plan field by which this checkpoint is guided."""

    def default_guidance(self, pipe: Pipeline) -> float:
        """Return the value of that field when nobody says."""

    def takes_cfg(self, pipe: Pipeline) -> bool:
        """Return whether the pipeline can run classifier-free guidance with this checkpoint."""

    def read_prompt(self, pipe: Pipeline, prompt: str, max_sequence_length: int | None) -> Reading:
        """Return what of the prompt the model does not take in."""

    def encode_prompts(
        self,
        pipe: Pipeline,
        prompts: list[str],
        negative_prompts: list[str] | None,
        max_sequence_length: int | None,
    ) -> list[Conditioning]:
        """Return one row of conditioning per prompt; negatives, if any, under names of their own."""

    def batch_key(self, row: Conditioning) -> Hashable:
        """Return what must be equal for rows to share a batch."""

    def call_arguments(
        self,
        pipe: Pipeline,
        rows: Sequence[Conditioning],
        guidance_scale: float | None,
        true_cfg_scale: float,
    ) -> dict[str, Any]:
        """Return the pipeline's call arguments, in both passes, for these prompts so guided."""

    def draft_arguments(self, pipe: Pipeline, steps: int) -> dict[str, Any]:
        """Return the arguments by which the pipeline takes `steps` steps on the model's own schedule."""

    def settings(self, pipe: Pipeline, width: int, height: int) -> dict[str, Any]:
        """Return attributes of the pipeline, by name, that a picture of this size needs other values of."""

    def timesteps(
        self, pipe: Pipeline, sigmas: Sequence[float], width: int, height: int
    ) -> Sequence[float] | None:
        """Return the times with which its own scheduler would step at these sigmas, at this size.

        None where they are the sigmas times the number of training timesteps, as for all but CogView4.
        """

    def encode(self, pipe: Pipeline, pixels: Tensor) -> Tensor:
        """Return (B, 3, h, w) pixels in [0, 1] as float32 latents to mix noise into: the posterior's mode."""

    def pack(self, pipe: Pipeline, latents: Tensor) -> Tensor:
        """Return what `encode` gave in the form that the pipeline takes as `latents=`."""

    def resume(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return what the pipeline's loop holds, of a width x height picture, as it takes `latents=`."""

    def decode(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        """Return what the pipeline gave for output_type="latent" as (B, 3, h, w) float32 pixels in [0, 1]."""


_registered: dict[str, Backbone] = {}


def register_backbone(pipeline_class: str, backbone: Backbone) -> None:
    """Make `backbone` drive pipelines of the class with this name, also where one is built in."""
    _registered[pipeline_class] = backbone


def supported() -> tuple[str, ...]:
    """Return the names of the pipeline classes that have a backbone."""
    return tuple(sorted({*FAMILIES, *VARIANTS, *_registered}))


def get_backbone(pipeline_class: str) -> Backbone:
    """Return the backbone for a pipeline class name; raises UnsupportedPipelineError, naming those known."""
    if pipeline_class in _registered:
        return _registered[pipeline_class]
    if pipeline_class in FAMILIES or pipeline_class in VARIANTS:
        place = VARIANTS[pipeline_class][1] if pipeline_class in VARIANTS else FAMILIES[pipeline_class].backbone
        module, _, name = place.partition(":")
        return cast("Backbone", getattr(import_module(f"mrflow.backbones.{module}"), name)())
    reason = f", which cannot work: {NOT_POSSIBLE[pipeline_class]}" if pipeline_class in NOT_POSSIBLE else ""
    if pipeline_class in NOT_YET:
        reason = f", which is not driven yet: it has {NOT_YET[pipeline_class]}"
    raise UnsupportedPipelineError(
        f"The pipeline is a {pipeline_class}{reason}; supported are {', '.join(supported())}. "
        "Another family needs a backbone: see mrflow.backbones and register_backbone."
    )
