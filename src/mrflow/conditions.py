"""What of a pipeline besides its checkpoint shapes a picture: LoRAs, the scheduler, caches, quantised weights.

Recipes carry it as short texts. Making a picture again needs the same; nothing here can put it back.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from mrflow.arguments import Arguments, describe_arguments
from mrflow.backbones import Pipeline
from mrflow.caches import describe_cache
from mrflow.errors import MrFlowWarning

_MAX_TEXT = 2000  # characters of one entry in a recipe
_USUAL_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_PLAIN_WEIGHTS = ("Parameter", "Tensor")


def describe(pipe: Pipeline, extra: Arguments) -> dict[str, str]:
    """Return what shapes a picture besides checkpoint, plan and prompt, name to short text; usually nothing.

    lora.NAME: its weight, or weights where layers differ. lora: those fused into the weights. scheduler, cache,
    weights: where they are not the usual ones. vae: "tiled". argument.NAME: of the caller's own arguments.
    """
    found = {f"lora.{name}": weight for name, weight in _adapters(pipe).items()}
    if fused := sorted(getattr(pipe, "fused_loras", ())):
        found["lora"] = "fused " + ", ".join(fused)
    if type(pipe.scheduler).__name__ != _USUAL_SCHEDULER:
        found["scheduler"] = type(pipe.scheduler).__name__
    if cache := describe_cache(pipe):
        found["cache"] = cache
    kinds = {type(each).__name__ for each in pipe.transformer.parameters()}
    if quantised := sorted(kinds.difference(_PLAIN_WEIGHTS)):
        found["weights"] = ", ".join(quantised)
    if getattr(getattr(pipe, "vae", None), "use_tiling", False):
        found["vae"] = "tiled"
    found |= describe_arguments(extra)
    return {name: text[:_MAX_TEXT] for name, text in found.items()}


def finished_conditions(draft: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Return those of a picture whose draft may have been made under others, which then begin with "draft."."""
    names = sorted({name for name in (*draft, *now) if draft.get(name) != now.get(name)})
    return {**now, **{f"draft.{name}": draft.get(name, "none") for name in names}}


def warn_of_difference(recorded: Mapping[str, str], here: Mapping[str, str], whose: str) -> None:
    """Warn (MrFlowWarning) where what shaped a picture is not what is here."""
    names = [name for name in {**recorded, **here} if recorded.get(name) != here.get(name)]
    if names:
        told = "; ".join(f"{n} {recorded.get(n, 'none')[:80]}, here {here.get(n, 'none')[:80]}" for n in names)
        text = f"{whose} was made with other settings than the pipeline has now, and its pixels depend on them"
        warnings.warn(f"{text}: {told}.", MrFlowWarning, stacklevel=4)


def _adapters(pipe: Pipeline) -> dict[str, str]:
    """Return the active LoRAs and their weights, 1 being the file's own; several where layers differ."""
    found: dict[str, set[float]] = {}
    for part in pipe.components.values():
        if not hasattr(part, "peft_config"):
            continue
        for layer in part.modules():
            for name in getattr(layer, "active_adapters", ()) if hasattr(layer, "lora_alpha") else ():
                if name in layer.scaling and not layer.disable_adapters:
                    found.setdefault(name, set()).add(_weight(layer, name))
    return {
        name: ", ".join(f"{weight:g}" for weight in sorted(weights)) for name, weights in sorted(found.items())
    }


def _weight(layer: Any, name: str) -> float:
    rank = layer.r[name] ** 0.5 if layer.use_rslora.get(name) else layer.r[name]
    return round(float(layer.scaling[name] * rank / layer.lora_alpha[name]), 6)
