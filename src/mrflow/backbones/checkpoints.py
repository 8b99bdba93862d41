"""Step-distilled checkpoints: known by what a pipeline says of itself, run by a preset without being told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mrflow.backbones.families import TABLES, VARIANTS
from mrflow.known_models import BY_ID, KnownModel
from mrflow.plan import PRESETS, Defaults

if TYPE_CHECKING:
    from mrflow.backbones.family import Pipeline


@dataclass(frozen=True, kw_only=True)
class Distilled:
    """How a distilled checkpoint is known, and its preset.

    flag: an entry of the pipeline's configuration that is true; word: a part of the model's name, in any case.
    Without either, the class of the pipeline tells.
    """

    pipeline: str
    preset: str
    flag: str = ""
    word: str = ""

    def matches(self, pipeline: str, config: Mapping[str, Any], name: str) -> bool:
        """Return whether this is the checkpoint of a `pipeline` class whose model is called `name`."""
        if self.pipeline not in (pipeline, VARIANTS.get(pipeline, [pipeline])[0]):
            return False
        if self.flag:
            return bool(config.get(self.flag))
        return self.word in name.lower()


DISTILLED = tuple(Distilled(**table) for table in TABLES["distilled"])


def checkpoint_defaults(pipe: Pipeline, name: str) -> Defaults:
    """Return the defaults of a checkpoint: those of its preset if it is known to be distilled.

    A LoRA that distils, such as Qwen-Image-Lightning, may come and go: its preset is chosen by hand.
    """
    return _defaults(type(pipe).__name__, pipe.config, name)


def known_defaults(known: KnownModel) -> Defaults:
    """Return the same of a known model, which need not be here."""
    return _defaults(known.pipeline, known.options, known.id)


def _defaults(pipeline: str, config: Mapping[str, Any], name: str) -> Defaults:
    known = BY_ID.get(name.lower())
    for each in DISTILLED:
        if each.matches(pipeline, config, name):
            plan = PRESETS[each.preset].plan
            return Defaults(plan=plan, native_steps=plan.steps)
    return Defaults(native_steps=known.steps) if known else Defaults()
