"""Arguments of a call in the field's words: ours read, the pipeline's own checked by name, fitted to each pass.

    fast("a boat", num_inference_steps=8, guidance_scale=3.5, generator=torch.manual_seed(7), output_type="pt")
    fast("a boat", steps=8, refine_sigma=0.2)                               # any field of Plan
    fast("a boat", joint_attention_kwargs={"scale": 0.7}, callback_on_step_end=watch)
    fast("a boat", control_image=edges, controlnet_conditioning_scale=0.6)  # over a ControlNet pipeline

The pipeline's own go to both passes, those that shape embeddings to where texts are encoded, once; they are the
same for every picture of the call.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mrflow.backbones.family import Backbone, Pipeline
from mrflow.errors import RequestError
from mrflow.files import load_image
from mrflow.images import pixels_sha256
from mrflow.jobs import Lora, Reference, Seeds, Size, read_loras
from mrflow.plan import ABOUT, DEFAULT_PLAN, FINISHING, Plan, get_plan, real, shown
from mrflow.upscaler import resize

Arguments = Mapping[str, Any]

OUTPUTS = ("pil", "pt", "np")
_TEXT = "The prompt is encoded once, from its text, for both passes: give prompt and negative_prompt alone."
_STEPS = "The plan has the steps and the sigmas: give num_inference_steps, refine_steps and refine_sigma."
_GUIDANCE = "Guidance has one name for all models: give true_cfg_scale."
OWNED: Mapping[str, str] = {
    **dict.fromkeys(("sigmas", "timesteps", "strength", "denoising_end"), _STEPS),
    "distilled_guidance_scale": _GUIDANCE,
    **dict.fromkeys(("skip_text_cleaning", "use_pe", "caption_upsample_temperature"), _TEXT),
    "output_resolution": "Give width and height.",
    "stages": "Give keep_upscaled=.",
    "latents": "The noise comes from seed= or generator=.",
    "use_resolution_binning": "Sizes are taken as they are, so that one pass fits the other.",
    "tokenizer_max_length": "Give max_sequence_length.",
    **dict.fromkeys(("callback", "callback_steps"), "Give callback_on_step_end=, or our own callback=."),
}
_OURS = ("prompt", "negative_prompt", "width", "height", "plan", "seed", "num_images", "keep_upscaled", "callback")
REFINING = {"guidance_scale", "true_cfg_scale", *FINISHING}
DRAFTING = {"num_inference_steps", *(set(ABOUT) - REFINING)}
SEEDING = {"generator", "num_images_per_prompt", "max_sequence_length", "loras"}
GIVING = {"output_type", "return_dict"}
_READ = (  # ours in the field's words
    *(
        "num_inference_steps",
        "num_images_per_prompt",
        "generator",
        "max_sequence_length",
        "loras",
        "output_type",
        "return_dict",
        "references",
    ),
    *ABOUT,
)
_TEXTS = ("prompt", "attention_mask")  # parts of the names of what encoded prompts are given as
_IMAGES = ("control_image",)  # arguments whose images lie on the picture, place by place
_SHARES = (  # of the way from noise to picture
    *("control_guidance_start", "control_guidance_end", "cfg_trunc_ratio"),
    *("skip_layer_guidance_start", "skip_layer_guidance_stop"),
)
MAX_REFERENCES = 10  # FLUX.2's makers name as many
_MAX_TEXT = 2000  # characters of one entry in a recipe


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of one call, read.

    plan: as it was given, by name or whole, with the numbers that were given one by one; None if nothing was.
    numbers: those. seed: a number, several, or generators. loras: None for the usual. references: also as the
    pipeline's own image. extra: of the pipeline's own call.
    """

    plan: Plan | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    seed: Seeds = None
    num_images: int = 1
    max_sequence_length: int | None = None
    loras: tuple[Lora, ...] | None = None
    references: tuple[Reference, ...] = ()
    output_type: str = "pil"
    return_dict: bool = True
    extra: Arguments = field(default_factory=dict)


def read_call(
    pipe: Pipeline,
    backbone: Backbone,
    others: Arguments,
    *,
    plan: Plan | str | None = None,
    base: Plan | None = DEFAULT_PLAN,
    seed: Seeds = None,
    num_images: int = 1,
    verb: str = "The call",
    without: Collection[str] = (),
) -> Call:
    """Return the arguments of a call; others: those that its verb has no name for. base: what mere numbers change,
    None where others say that.

    verb, without: what the call is, and names that it has no use for and refuses.
    The field's names mean what they mean to the pipeline: num_inference_steps (the draft's), guidance_scale (of
    whichever kind the pipeline so calls), num_images_per_prompt, generator. Raises RequestError for names that
    nobody knows, for what is not the caller's to set, and for the same thing said twice with different values.
    """
    for name in others:
        if name in _OURS or (name in without and others[name] is not None):
            raise RequestError(f"{verb} takes no {name}. Leave it out.")
    rest = dict(others)
    signature = inspect.signature(type(pipe).__call__).parameters
    numbers = {name: rest.pop(name) for name in ABOUT if rest.get(name) is not None}
    for name in ABOUT:
        rest.pop(name, None)  # given as None, which says nothing
    if "guidance_scale" in numbers and "true_cfg_scale" not in signature:
        _put(numbers, "true_cfg_scale", *_as_true_cfg(pipe, backbone, numbers.pop("guidance_scale")))
    if (steps := rest.pop("num_inference_steps", None)) is not None:
        _put(numbers, "steps", steps, "num_inference_steps")
    if (count := rest.pop("num_images_per_prompt", None)) is not None:
        num_images = _same("num_images", num_images, "num_images_per_prompt", count, unsaid=1)
    if (generator := rest.pop("generator", None)) is not None:
        seed = _same("seed", seed, "generator", generator, unsaid=None)
    references = rest.pop("references", None)
    if (images := rest.pop("image", None)) is not None:
        references = _same("references", references, "image", images, unsaid=None)
    return Call(  # the rest of the arguments last: what the others take is no longer among them
        numbers=numbers,
        seed=seed,
        num_images=num_images,
        max_sequence_length=rest.pop("max_sequence_length", None),
        loras=None if (loras := rest.pop("loras", None)) is None else read_loras(loras),
        references=read_references(references),
        output_type=_check_output(rest.pop("output_type", None) or "pil"),
        return_dict=bool(rest.pop("return_dict", True)),
        extra=_check_extra(pipe, signature, rest),
        plan=_chosen(plan, base, numbers),
    )


def lora_scale(extra: Arguments) -> float | None:
    """Return the weight that the caller gives LoRAs for a call (diffusers 0.42.1, pipeline_flux.py)."""
    given = extra.get("joint_attention_kwargs") or extra.get("attention_kwargs")
    return given.get("scale") if isinstance(given, Mapping) else None


def told_encoder(pipe: Pipeline, extra: Arguments) -> dict[str, Any]:
    """Return the pipeline's `encode_prompt` with those of a call's arguments that it takes, such as clip_skip.

    By that name, for lending it to the pipeline; empty where it takes none.
    """
    encode: Any = getattr(pipe, "encode_prompt", None)
    told = {name: extra[name] for name in inspect.signature(encode).parameters if name in extra} if encode else {}
    return {"encode_prompt": lambda *args, **kwargs: encode(*args, **kwargs | told)} if told else {}


def fit_arguments(
    extra: Arguments, size: Size, begin: float = 0.0, end: float = 1.0, part: Sequence[int] = (0,), whole: int = 1
) -> dict[str, Any]:
    """Return the arguments for a run of the pipeline at `size` that goes from share `begin` of the way to `end`.

    part, whole: the pictures of the run, of how many of the call; of several control images each gets its own.
    Control images given as tensors are resized; those of other kinds the pipelines resize themselves. Bilinear: no
    value leaves the range. Shares of the way from noise to picture become shares of the run.
    """
    images = {name: _dealt(extra[name], part, whole) for name in _IMAGES if name in extra}
    fitted = {**extra, **{name: _resized(value, size) for name, value in images.items()}}
    shares = {name: _in_run(extra[name], begin, end) for name in _SHARES if extra.get(name) is not None}
    return fitted | shares


def describe_arguments(extra: Arguments) -> dict[str, str]:
    """Return for each argument a short text that tells values apart: images and tensors by their hash."""
    return {f"argument.{name}": _describe(value)[:_MAX_TEXT] for name, value in extra.items()}


def _put(numbers: dict[str, Any], name: str, value: Any, called: str) -> None:
    numbers[name] = _same(name, numbers.get(name), called, value, unsaid=None)


def _same(name: str, said: Any, called: str, value: Any, *, unsaid: Any) -> Any:
    """Return what two names of one thing say; raises RequestError if they say different things."""
    if said is not None and _plain(said) not in (unsaid, _plain(value)):
        both = f"{name} is {shown(said)} and {called} is {shown(value)}"
        raise RequestError(f"{both}; they mean the same. Give one.")
    return value


def _plain(value: Any) -> Any:
    """Return numbers, one or several, of whatever kind, as they can be compared; generators by their seeds."""
    if hasattr(value, "initial_seed"):
        return value.initial_seed()
    if isinstance(value, (list, tuple, range)) or getattr(value, "shape", None):
        return [_plain(each) for each in value]
    number = real(value)
    return value if number is None else number


def _as_true_cfg(pipe: Pipeline, backbone: Backbone, value: Any) -> tuple[Any, str]:
    """Return a pipeline's own guidance_scale in our scale: Z-Image counts from 0 where others do from 1."""
    own = real(value)
    if own is None or backbone.guidance_field(pipe) != "true_cfg_scale":
        return value, "guidance_scale"
    none, one = (backbone.guidance(None, cfg).get("guidance_scale", cfg) for cfg in (0.0, 1.0))
    return (own - none) / (one - none), "guidance_scale"


def _chosen(plan: Plan | str | None, base: Plan | None, numbers: Mapping[str, Any]) -> Plan | None:
    """Return the plan that is asked for, if any; raises RequestError for a number that it says otherwise."""
    if plan is None:
        return base.changed(**numbers) if base and numbers else None
    chosen = get_plan(plan)
    if not numbers:
        return chosen
    said = {name for name in ABOUT if getattr(chosen, name) != getattr(DEFAULT_PLAN, name)}
    if isinstance(plan, str):
        said = {*said, "steps", "refine_steps"} - {"scales"}  # how many there are, the name says, not which
    for name in said & set(numbers):
        if ABOUT[name].check(name, numbers[name]) != getattr(chosen, name):
            value = f"{name} is {shown(numbers[name])} and the plan says {getattr(chosen, name)!r}"
            raise RequestError(f"{value}; they mean the same. Give one.")
    return chosen.changed(**numbers)


def _check_output(name: object) -> str:
    if name == "latent":
        raise RequestError("output_type is 'latent'; finished pictures are pixels. Give 'pt' for a tensor.")
    if name not in OUTPUTS:
        raise RequestError(f"output_type is {shown(name)}; it must be one of {', '.join(OUTPUTS)}.")
    return str(name)


def _check_extra(
    pipe: Pipeline, signature: Mapping[str, inspect.Parameter], extra: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments, which the pipeline's call knows and we leave to the caller; raises RequestError."""
    kind = type(pipe).__name__
    anything = any(each.kind is each.VAR_KEYWORD for each in signature.values())
    anything &= not type(pipe).__module__.startswith("diffusers.")  # HiDream's does nothing with them (0.42.1)
    theirs = [name for name in signature if name not in ("self", *_OURS, *_READ) and not _owner(name)]
    for name in [each for each in extra if extra[each] is None]:  # which says nothing where it is the default
        if (signature[name].default is None) if name in signature else _owner(name):
            del extra[name]
    for name in extra:
        if hint := _owner(name):
            raise RequestError(f"{name} is not for the caller to set. {hint}")
        if name not in signature and not anything:
            close = difflib.get_close_matches(name, [*theirs, *_OURS, *_READ], n=1)
            rest = f"did you mean {close[0]}?" if close else f"beside ours it takes {', '.join(theirs)}."
            raise RequestError(f"There is no argument {name!r}, nor has {kind} one; {rest}")
    if "Control" in kind and "control_image" in signature and extra.get("control_image") is None:
        raise RequestError(f"{kind} needs a control image; give it one: control_image=.")
    if extra.get("skip_guidance_layers") is not None:  # whose shares have defaults of the whole way, too
        extra = {name: signature[name].default for name in _SHARES if name in signature} | extra
    for name in filter(extra.get, _SHARES):  # those that are given, and not 0
        value = extra[name]
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if not 0 <= (-1 if (share := real(each)) is None else share) <= 1:
                raise RequestError(f"{name} is {shown(value)}; it must be a share of the way, from 0 to 1.")
    if (images := extra.get("control_image")) is not None:
        several = hasattr(getattr(pipe, "controlnet", None), "nets") and isinstance(images, list)
        extra = {**extra, "control_image": [_one_each(each) for each in images] if several else _one_each(images)}
    _check_adapters(pipe, extra)
    return _check_callback(pipe, extra)


def _check_adapters(pipe: Pipeline, extra: Arguments) -> None:
    """Raise RequestError unless each IP-Adapter has its image, or images, which guide all pictures of a call."""
    transformer = getattr(pipe, "transformer", None)
    several = getattr(getattr(transformer, "encoder_hid_proj", None), "num_ip_adapters", 0)
    loaded = several or int(getattr(transformer, "image_proj", None) is not None)  # SD3 has one at most
    for name in (name for name in extra if "ip_adapter_image" in name and extra[name] is not None):
        count = len(extra[name]) if isinstance(extra[name], list) else 1
        if count != loaded:
            hint = "Give each its own." if loaded else "Load one: pipe.load_ip_adapter()."
            raise RequestError(f"{name} is for {count} IP-Adapters, and the pipeline has {loaded}. {hint}")


def check_images(extra: Arguments, whole: int) -> None:
    """Raise RequestError for control images that cannot be divided over the pictures of a call."""
    value = extra.get("control_image")
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, tuple) and whole % len(each):
            raise RequestError(f"control_image has {len(each)} images for {whole} pictures; give one or one each.")


def _one_each(value: Any) -> Any:
    """Return a control image as RGB or (1, 3, h, w), of several a tuple, one for each picture."""
    made: list[Any] = []
    if isinstance(value, Image.Image):
        made = [load_image(value)]
    elif isinstance(value, Tensor) and value.ndim in (3, 4) and value.numel():
        rows: Any = value if value.ndim == 4 else value[None]
        made = list(torch.split(rows.expand(-1, 3, -1, -1) if rows.shape[1] == 1 else rows, 1))
    elif isinstance(value, np.ndarray) and value.ndim in (2, 3, 4) and value.size and value.dtype.kind in "fu":
        levels = (value.clip(0, 1) * 255).round().astype(np.uint8) if value.dtype.kind == "f" else value
        rows = levels if value.ndim == 4 else levels[None]
        made = [load_image(Image.fromarray(row.squeeze())) for row in rows]
    elif isinstance(value, (list, tuple)):
        made = [each for one in map(_one_each, value) for each in (one if isinstance(one, tuple) else [one])]
    if not made:
        kind = f"{type(value).__name__} {tuple(getattr(value, 'shape', ()))}"
        rule = "it must be a Pillow image, an array of bytes or of floats in [0, 1], or a (B, C, h, w) tensor"
        raise RequestError(f"A control image is {kind}; {rule}, of one pixel or more.")
    return made[0] if len(made) == 1 else tuple(made)


def read_references(given: Any) -> tuple[Reference, ...]:
    """Return Pillow images or their paths, one or several, as references; raises RequestError or ImageError."""
    values = list(given) if isinstance(given, (list, tuple)) else [] if given is None else [given]
    if odd := [each for each in values if not isinstance(each, (str, Path, Image.Image, Reference))]:
        raise RequestError(f"A reference is {type(odd[0]).__name__}; it must be a Pillow image or its path.")
    if len(values) > MAX_REFERENCES:
        raise RequestError(f"{len(values)} references are given; a picture takes at most {MAX_REFERENCES}.")
    read = [each if isinstance(each, Reference) else load_image(each) for each in values]
    return tuple(each if isinstance(each, Reference) else Reference(pixels_sha256(each), each) for each in read)


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


def _in_run(value: Any, begin: float, end: float) -> Any:
    if isinstance(value, (list, tuple)):  # one for each of several ControlNets
        return [_in_run(each, begin, end) for each in value]
    return (value - begin) / max(end - begin, 1e-9)  # below 0 or above 1 where it lies before or after


def _dealt(value: Any, part: Sequence[int], whole: int) -> Any:
    """Return what the pictures of a run get of several images, which are repeated as the pipelines repeat them."""
    if isinstance(value, list):  # for each of several ControlNets
        return [_dealt(each, part, whole) for each in value]
    if not isinstance(value, tuple):
        return value
    mine = [value[k * len(value) // whole] for k in part]
    return torch.cat(mine) if isinstance(mine[0], Tensor) else mine


def _resized(value: Any, size: Size) -> Any:
    if isinstance(value, (list, tuple)):  # one image for each of several ControlNets
        return [_resized(each, size) for each in value]
    if not isinstance(value, Tensor) or value.ndim != 4:
        return value
    return resize(value.float(), *size, "bilinear").to(value.dtype)


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
        return shown(value) if type(value) is int else repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))  # no repr: it may hold an address
