"""Step-distilled checkpoints: known by what a pipeline says of itself, run by a preset without being told."""

from __future__ import annotations

from dataclasses import dataclass

from mrflow.backbones.families import TABLES, VARIANTS
from mrflow.backbones.family import Pipeline
from mrflow.plan import PRESETS, Defaults


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

    def matches(self, pipe: Pipeline, name: str) -> bool:
        """Return whether this is the checkpoint of `pipe`, whose model is called `name`."""
        kind = type(pipe).__name__
        if self.pipeline not in (kind, VARIANTS.get(kind, [kind])[0]):
            return False
        if self.flag:
            return bool(pipe.config.get(self.flag))
        return self.word in name.lower()


DISTILLED = tuple(Distilled(**table) for table in TABLES["distilled"])


def checkpoint_defaults(pipe: Pipeline, name: str) -> Defaults:
    """Return the defaults of a checkpoint: those of its preset if it is known to be distilled.

    A LoRA that distils, such as Qwen-Image-Lightning, may come and go: its preset is chosen by hand.
    """
    for each in DISTILLED:
        if each.matches(pipe, name):
            plan = PRESETS[each.preset].plan
            return Defaults(plan=plan, native_steps=plan.steps)
    return Defaults()
