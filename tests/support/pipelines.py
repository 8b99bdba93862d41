"""A pipeline's own call, and what it is like before and after a call."""

from __future__ import annotations

from typing import Any

import torch

from mrflow.sampling import draft_generators


def own_call(pipe: Any, width: int = 32, height: int = 32, steps: int = 2, **options: Any) -> Any:
    """Return what the pipeline itself paints of a red boat with our draft's noise of seed 7, without mrflow."""
    usual = {"prompt": "a red boat", "generator": draft_generators([7]), "max_sequence_length": 16}
    shape = {"width": width, "height": height, "num_inference_steps": steps, "output_type": "pt"}
    return pipe(**{**usual, **shape, **options}).images


def aligned(pipe: Any) -> Any:
    """Return the pipeline, its weights copied from a file's memory to where torch puts its own tensors.

    Some processors' kernels round by where weights lie: not at multiples of 64 bytes, in a mapped file.
    """
    for part in pipe.components.values():
        for weight in (*part.parameters(), *part.buffers()) if isinstance(part, torch.nn.Module) else ():
            weight.data = weight.data.clone()
    return pipe


def state_of(pipe: Any) -> dict[str, Any]:
    """Return what must be as before: components by identity, configurations, schedules, settings, modes."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {
        "training": {name: [each.training for each in part.modules()] for name, part in parts.items()},
        "patched": [(n, key) for n, part in parts.items() for key in vars(part) if hasattr(type(part), key)],
        "size": vars(pipe).get("default_sample_size"),
        "components": {name: id(part) for name, part in pipe.components.items()},
        "config": dict(pipe.config),
        "scheduler": dict(pipe.scheduler.config),
        "timesteps": pipe.scheduler.timesteps.tolist(),
        "sigmas": pipe.scheduler.sigmas.tolist(),
        "steps": (pipe.scheduler.step_index, pipe.scheduler.begin_index),
        "bar": getattr(pipe, "_progress_bar_config", None),
    }
