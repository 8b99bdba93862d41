"""Staged low-to-high-resolution sampling for flow-matching text-to-image models, without training.

    from mrflow import MrFlow

    fast = MrFlow(pipe)                                   # any supported diffusers pipeline
    image = fast("a lighthouse at dusk", seed=7).images[0]

Names are imported when they are first used, so that `import mrflow` is instant and takes no torch along.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mrflow import errors as errors
    from mrflow.backbones import register_backbone as register_backbone
    from mrflow.backbones.family import Backbone as Backbone
    from mrflow.drafts import Draft as Draft
    from mrflow.drafts import Drafts as Drafts
    from mrflow.drafts import Result as Result
    from mrflow.errors import MrFlowError as MrFlowError
    from mrflow.files import load_image as load_image
    from mrflow.files import read_recipe as read_recipe
    from mrflow.files import save_image as save_image
    from mrflow.pipeline import MrFlow as MrFlow
    from mrflow.plan import PRESETS as PRESETS
    from mrflow.plan import Defaults as Defaults
    from mrflow.plan import Plan as Plan
    from mrflow.plan import Preset as Preset
    from mrflow.plan import get_plan as get_plan
    from mrflow.progress import Progress as Progress
    from mrflow.recipe import Recipe as Recipe
    from mrflow.upscaler import Upscaler as Upscaler

__version__ = "0.1.0"

_HOME = {
    "MrFlow": "pipeline",
    "Plan": "plan",
    "Preset": "plan",
    "PRESETS": "plan",
    "get_plan": "plan",
    "Defaults": "plan",
    "Draft": "drafts",
    "Drafts": "drafts",
    "Result": "drafts",
    "Progress": "progress",
    "Recipe": "recipe",
    "Upscaler": "upscaler",
    "Backbone": "backbones.family",
    "register_backbone": "backbones",
    "load_image": "files",
    "save_image": "files",
    "read_recipe": "files",
    "MrFlowError": "errors",
}

__all__ = [*_HOME, "errors", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("mrflow.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'mrflow' has no attribute {name!r}")
    return getattr(import_module(f"mrflow.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
