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

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, cast

from mrflow.backbones.families import FAMILIES, NOT_POSSIBLE, NOT_YET, VARIANTS, WRONG_ARGUMENTS
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
    """Return the backbone for a pipeline class name; raises UnsupportedPipelineError, naming those known.

    Also where one is registered for a class that edits pictures, with which it would be silently wrong.
    """
    reason = "" if pipeline_class in FAMILIES else _wrong_argument(pipeline_class)
    if pipeline_class in _registered and not reason:
        return _registered[pipeline_class]
    if pipeline_class in FAMILIES or pipeline_class in VARIANTS:
        place = VARIANTS[pipeline_class][1] if pipeline_class in VARIANTS else FAMILIES[pipeline_class].backbone
        module, _, name = place.partition(":")
        return cast("Backbone", getattr(import_module(f"mrflow.backbones.{module}"), name)())
    reason = NOT_POSSIBLE.get(pipeline_class) or reason
    why = reason and f"cannot work: {reason}"
    if pipeline_class in NOT_YET:
        why = f"is not driven yet: it has {NOT_YET[pipeline_class]}"
    if why:
        text = f"The pipeline is a {pipeline_class}, which {why}"
        raise UnsupportedPipelineError(f"{text}. mrflow models lists those that can work.")
    raise UnsupportedPipelineError(
        f"The pipeline is a {pipeline_class}; supported are {', '.join(supported())}. "
        "Another family needs a backbone: see mrflow.backbones and register_backbone."
    )


def _wrong_argument(pipeline_class: str) -> str:
    """Return why a class of diffusers' cannot work by an argument that its call takes, or an empty text."""
    kind = getattr(import_module("diffusers"), pipeline_class, None)
    taken = inspect.signature(kind.__call__).parameters if isinstance(kind, type) else ()
    return next((why for name, why in WRONG_ARGUMENTS.items() if name in taken), "")
