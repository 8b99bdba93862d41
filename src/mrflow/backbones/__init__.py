"""Model families: the only room where they differ.

A backbone says how one family turns prompts into embeddings, pixels into latents and its output into
pixels, and what it calls its guidance. A new family is one small module here, or one `register_backbone`
call elsewhere:

    from mrflow.backbones.family import Backbone, Packed, ScaledVae

    class MyBackbone(Backbone):              # which answers what most families share
        layout = Packed()
        autoencoder = ScaledVae()

        def encode_texts(self, pipe, texts, length): ...

    register_backbone("MyPipeline", MyBackbone())
    MrFlow(my_pipe)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from mrflow.backbones.families import FAMILIES, NOT_POSSIBLE, NOT_YET, VARIANTS
from mrflow.errors import UnsupportedPipelineError

if TYPE_CHECKING:
    from mrflow.backbones.family import Backbone

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
    reasons = {name: f"cannot work: {why}" for name, why in NOT_POSSIBLE.items()}
    reasons |= {name: f"is not driven yet: it has {why}" for name, why in NOT_YET.items()}
    if pipeline_class in reasons:
        text = f"The pipeline is a {pipeline_class}, which {reasons[pipeline_class]}"
        raise UnsupportedPipelineError(f"{text}. Take one that follows a flow: mrflow models lists them.")
    raise UnsupportedPipelineError(
        f"The pipeline is a {pipeline_class}; supported are {', '.join(supported())}. "
        "Another family needs a backbone: see mrflow.backbones and register_backbone."
    )
