"""Arguments of the pipeline's own call that a caller adds to ours: checked by name, fitted to each pass.

    fast("a boat", joint_attention_kwargs={"scale": 0.7}, callback_on_step_end=watch)
    fast("a boat", control_image=edges, controlnet_conditioning_scale=0.6)    # over a ControlNet pipeline

They go to both passes, and are the same for every picture of the call.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mrflow.backbones import Pipeline
from mrflow.errors import RequestError
from mrflow.images import pixels_sha256
from mrflow.plan import Plan
from mrflow.sizes import Size

Arguments = Mapping[str, Any]

_TEXT = "The prompt is encoded once, from its text, for both passes: give prompt and negative_prompt alone."
_STEPS = "The plan has the steps and the sigmas: plan=Plan(steps=..., refine_sigma=...)."
_GUIDANCE = "The plan has the guidance, under one name for all models: plan=Plan(true_cfg_scale=...)."
_LENGTH = "It belongs to the model: MrFlow(pipe, defaults=Defaults(max_sequence_length=...))."
_NOISE = "The noise comes from seed=."
OWNED: Mapping[str, str] = {
    **{each.name: f"It stands in the plan: plan=Plan({each.name}=...)." for each in fields(Plan)},
    **dict.fromkeys(("num_inference_steps", "sigmas", "timesteps", "strength", "denoising_end"), _STEPS),
    **dict.fromkeys(("guidance_scale", "true_cfg_scale", "distilled_guidance_scale"), _GUIDANCE),
    **dict.fromkeys(("complex_human_instruction", "clean_caption", "skip_text_cleaning", "use_pe"), _TEXT),
    **dict.fromkeys(("generator", "latents"), _NOISE),
    "num_images_per_prompt": "Give num_images=.",
    "use_resolution_binning": "Sizes are taken as they are, so that one pass fits the other.",
    **dict.fromkeys(("max_sequence_length", "tokenizer_max_length"), _LENGTH),
    "output_type": "A result's images are Pillow images; with callback= the pixels come as tensors.",
    "return_dict": "The result is always a Result.",
    "callback": "Give callback_on_step_end=, or our own callback=.",
    "callback_steps": "Give callback_on_step_end=, or our own callback=.",
}
_OURS = (
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "plan",
    "seed",
    "num_images",
    "stages",
    "callback",
    "steps",
)
_TEXTS = ("prompt", "attention_mask")  # parts of the names of what encoded prompts are given as
_IMAGES = ("control_image",)  # arguments whose images lie on the picture, place by place


def check_arguments(pipe: Pipeline, extra: Arguments) -> dict[str, Any]:
    """Return the arguments, which the pipeline's call knows and we leave to the caller; raises RequestError."""
    signature = inspect.signature(type(pipe).__call__).parameters
    anything = any(each.kind is each.VAR_KEYWORD for each in signature.values())
    theirs = [name for name in signature if name not in ("self", *_OURS) and not _owner(name)]
    for name in extra:
        if hint := _owner(name):
            raise RequestError(f"{name} is not for the caller to set. {hint}")
        if name not in signature and not anything:
            close = difflib.get_close_matches(name, [*theirs, *_OURS], n=1)
            rest = f"did you mean {close[0]}?" if close else f"beside ours it takes {', '.join(theirs)}."
            raise RequestError(f"There is no argument {name!r}, nor has {type(pipe).__name__} one; {rest}")
    kind = type(pipe).__name__
    if "Control" in kind and "control_image" in signature and extra.get("control_image") is None:
        raise RequestError(f"{kind} needs a control image; give it one: control_image=.")
    return _check_callback(pipe, dict(extra))


def fit_arguments(extra: Arguments, size: Size) -> dict[str, Any]:
    """Return the arguments for a pass at `size`: control images given as tensors are resized to it.

    Images of other kinds are resized by the pipelines themselves. Bilinear: no value leaves the range.
    """
    return {name: _resized(value, size) if name in _IMAGES else value for name, value in extra.items()}


@contextmanager
def text_lora_scale(pipe: Pipeline, extra: Arguments) -> Iterator[None]:
    """Weigh the text encoders' LoRAs meanwhile as the pipeline's call would, which encodes no text for us.

    The scale stands in joint_attention_kwargs or attention_kwargs (diffusers 0.42.1, pipeline_flux.py).
    """
    given = extra.get("joint_attention_kwargs") or extra.get("attention_kwargs") or {}
    scale = given.get("scale")
    with ExitStack() as stack:
        for name, part in pipe.components.items():
            if scale is not None and name.startswith("text_encoder") and hasattr(part, "peft_config"):
                for layer in part.modules():
                    if hasattr(layer, "lora_alpha"):
                        layer.scale_layer(scale)
                        stack.callback(layer.unscale_layer, scale)
        yield


def describe_arguments(extra: Arguments) -> dict[str, str]:
    """Return for each argument a short text that tells values apart: images and tensors by their hash."""
    return {f"argument.{name}": _describe(value) for name, value in extra.items()}


def _owner(name: str) -> str:
    """Return why the argument is ours, or an empty text."""
    if name in OWNED:
        return OWNED[name]
    return _TEXT if any(part in name for part in _TEXTS) else ""


def _check_callback(pipe: Pipeline, extra: dict[str, Any]) -> dict[str, Any]:
    callback = extra.get("callback_on_step_end")
    if callback is None:
        return extra
    if not callable(callback):
        raise RequestError(f"callback_on_step_end is {type(callback).__name__}; it must be a function.")
    wanted = extra.get("callback_on_step_end_tensor_inputs", getattr(callback, "tensor_inputs", None))
    if wanted is None:
        return extra
    known = list(getattr(pipe, "_callback_tensor_inputs", wanted))
    for name in wanted:
        if name not in known:
            raise RequestError(f"callback_on_step_end_tensor_inputs has {name!r}; known are {', '.join(known)}.")
    return {**extra, "callback_on_step_end_tensor_inputs": list(dict.fromkeys(["latents", *wanted]))}


def _resized(value: Any, size: Size) -> Any:
    if isinstance(value, (list, tuple)):  # one image for each of several ControlNets
        return [_resized(each, size) for each in value]
    if not isinstance(value, Tensor) or value.ndim != 4:
        return value
    width, height = size
    return F.interpolate(value.float(), (height, width), mode="bilinear", antialias=True).to(value.dtype)


def _describe(value: Any) -> str:
    if isinstance(value, Image.Image):
        return f"image {pixels_sha256(value)}"
    if isinstance(value, Tensor):
        data = value.detach().float().cpu().contiguous().numpy().tobytes()
        return f"tensor {tuple(value.shape)} {hashlib.sha256(data).hexdigest()}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_describe(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_describe, value)) + "]"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))  # no repr: it may hold an address
