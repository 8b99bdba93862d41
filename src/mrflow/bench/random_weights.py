"""Full-size models with random weights, made on the device: latency at true scale without any download.

What a model paints depends on its weights; what a step costs depends on its architecture alone (see
mrflow.architectures). Weights are drawn where they will be used, in the dtype they will have, so that memory never
holds them twice. No vocabulary is at hand: where a pipeline pads texts to a fixed
length, as FLUX.1 does, prompts are read byte by byte, and the text encoders' work is the same; where texts keep
their own length, a word, a sign or a line's end is one token, about what the real vocabularies make of English.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrflow.architectures import Spec, assemble, make_component, make_upscaler
from mrflow.errors import ModelError

if TYPE_CHECKING:
    import torch

    from mrflow.backbones.family import Pipeline
    from mrflow.pipeline import MrFlow
    from mrflow.upscaler import Upscaler


def make_random(
    spec: Spec, device: torch.device, dtype: torch.dtype, upscaler: Upscaler | str | Path | None = None
) -> MrFlow:
    """Return MrFlow over the described pipeline with random weights.

    upscaler: None is the described one, with random weights too. Raises ModelError if memory does not suffice,
    UnsupportedPipelineError for a family without a backbone.
    """
    import torch

    from mrflow.backbones import get_backbone
    from mrflow.pipeline import MrFlow

    get_backbone(spec["pipeline"])  # before gigabytes are drawn in vain
    try:
        pipe = make_pipeline(spec, device, dtype)
        return MrFlow(pipe, make_upscaler(spec["upscaler"]) if upscaler is None else upscaler)
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{spec['name']} does not fit into the memory of {device}.") from error


def make_pipeline(spec: Spec, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """Return the described pipeline, each component built empty and filled with random numbers on `device`.

    Raises ModelError before anything is drawn if they are more than is free there.
    """
    from mrflow.offloading import free_memory

    parts = {name: make_component(part) for name, part in spec["components"].items()}
    networks = [part for part in parts.values() if hasattr(part, "parameters")]
    needed = sum(each.numel() for part in networks for each in part.parameters()) * dtype.itemsize
    if needed > (free := free_memory(device)):
        kind = str(dtype).removeprefix("torch.")
        raise ModelError(
            f"{spec['name']} in {kind} is {needed / 1e9:.3g} GB; {free / 1e9:.3g} GB are free on {device}. "
            f"Try {'dtype bfloat16 or ' if dtype.itemsize > 2 else ''}a smaller architecture."
        )
    for part in networks:
        fill(part, device, dtype)
    pipe = assemble(spec, parts)
    pipe.register_to_config(_name_or_path=f"{spec['name']}, random weights")
    return pipe


def fill(model: Any, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
    """Give an empty model random parameters on `device` in `dtype`, and make it ready to run.

    Matrices are scaled by their inputs, gains are 1 and biases 0, so that activations stay finite.
    """
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    made: dict[int, torch.nn.Parameter] = {}  # parameters that are shared stay shared
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(empty) not in made:
                data = torch.empty_like(empty, device=device, dtype=dtype, requires_grad=False)
                if data.ndim > 1:
                    data.normal_(0.0, data[0].numel() ** -0.5, generator=generator)
                else:
                    data.fill_(0.0 if name.endswith("bias") else 1.0)
                made[id(empty)] = torch.nn.Parameter(data, requires_grad=False)
            module._parameters[name] = made[id(empty)]
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # building empty has torn them apart
    model.to(device)  # the buffers
    model.eval()
