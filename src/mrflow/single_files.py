"""Models in a single file: .safetensors, of a transformer or a whole checkpoint, or .gguf.

What a file lacks, tokenizers always, is of its base: a model in diffusers' layout, which has the configurations of
the file's parts, too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mrflow.errors import MissingExtraError, ModelError, MrFlowError, reason
from mrflow.folders import read_index
from mrflow.known_models import find
from mrflow.progress import libraries_silent

TRANSFORMER = "model.diffusion_model."
"""What the keys of the transformer begin with in whole checkpoints."""
_CLIP_L, _CLIP_G, _T5 = (f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl"))
PARTS = {
    "FluxPipeline": {"vae": "vae.", "text_encoder": _CLIP_L, "text_encoder_2": _T5},
    "StableDiffusion3Pipeline": {
        "vae": "first_stage_model.",
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G,
        "text_encoder_3": _T5,
    },
}
"""What those of the others begin with, as the usual checkpoints of a family have them."""

_UNET = "input_blocks."
"""What weights of Stable Diffusion 1, 2 and XL have in their names, which follow no flow."""
_SCALES = ("scale_weight", "weight_scale")
_MARKS = (*_SCALES, "weight_scale_2", "scale_input", "input_scale", "scaled_fp8", "comfy_quant")
"""What weights in 8 bits have beside them, and what says that they are."""


class _Read(torch.Tensor):
    """A weight of a file's header, without data, unlike what a network has that no file filled."""


def find_base(file: Path) -> str:
    """Return the hub id of the known model whose transformer has weights of these names and shapes.

    Raises ModelError for a file that cannot be read, or looks like none that is known.
    """
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    header = read_header(file)
    try:
        found = str(fetch_diffusers_config(header)["pretrained_model_name_or_path"])
    except Exception as error:  # of what its tables of marks do not expect
        raise ModelError(f"{file} is of no model that is known: {reason(error)}. Say base (--base).") from error
    if (known := find(found)) is None:
        text = f"The weights in {file.name} are of no model that is known by them"
        if any(_UNET in key for key in header):  # else it is what diffusers takes all for that it does not know
            text += f"; they look most like {found}"
        raise ModelError(f"{text}. If it follows a flow, say which model has the rest, with base (--base).")
    return known.id


def is_gguf(file: Path) -> bool:
    """Return whether a file's name says so."""
    return file.suffix.lower() == ".gguf"


def packed_size(file: Path) -> int:
    """Return the bytes of the weights in a .gguf file, which stay packed in memory."""
    from gguf import GGUFReader

    return sum(int(each.n_bytes) for each in GGUFReader(file).tensors)


def read_header(file: Path) -> dict[str, torch.Tensor]:
    """Return empty tensors of the names and shapes of a file's weights, which are not read; raises ModelError."""
    kind = file.suffix.lower()
    try:
        with file.open("rb"):  # safetensors (0.6) finds no such file where reading is not allowed
            pass
        if is_gguf(file):
            _check_gguf()
            from gguf import GGUFReader

            shapes = {each.name: tuple(map(int, reversed(each.shape))) for each in GGUFReader(file).tensors}
        else:
            from safetensors import safe_open

            with safe_open(file, "pt") as opened:
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118, it is no mapping
    except MrFlowError:
        raise
    except PermissionError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}.") from error
    except Exception as error:  # damaged files raise many kinds, none for people
        raise ModelError(f"{file} is no whole {kind} file ({reason(error)}). Is its download complete?") from error
    return {name: torch.empty(shape, device="meta").as_subclass(_Read) for name, shape in shapes.items()}


def parts_in(file: Path, pipeline: str) -> dict[str, str]:
    """Return the components of a pipeline class that a file holds, each with what its keys begin with.

    Raises ModelError for a file that cannot be read.
    """
    keys = read_header(file)
    if is_gguf(file) or not any(key.startswith(TRANSFORMER) for key in keys):
        return {"transformer": ""}
    found = {"transformer": TRANSFORMER, **PARTS.get(pipeline, {})}
    return {name: prefix for name, prefix in found.items() if any(key.startswith(prefix) for key in keys)}


def describe(file: Path, base: str) -> str:
    """Return what of a model with this base is in a file, as a sentence; raises ModelError."""
    known = find(base)
    folder = read_index(Path(base))["_class_name"] if os.path.isdir(base) else ""
    parts = ", ".join(parts_in(file, known.pipeline if known else folder))
    return f"{file.name} has the {parts}; the rest is of {base}"


def load_parts(
    file: Path, parts: Mapping[str, str], base: str, dtype: torch.dtype | None, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return these components of a file (see `parts_in`), with the configurations in the folder `base`.

    kwargs: of loading; what its quantisation says of them is done here. dtype: None reads no weights, and makes
    networks without any, to see whether they fit. Raises ModelError.
    """
    from diffusers import DiffusionPipeline

    index, made = DiffusionPipeline.load_config(base), dict[str, Any]()
    configs = getattr(kwargs.get("quantization_config"), "quant_mapping", {})
    for name, prefix in parts.items():
        lacks = f"{file.name} lacks weights of the {name} of {base}. Is it the right base (--base)?"
        library, kind = index[name]
        try:
            with libraries_silent(logs=True):
                load = _load_text_encoder if library == "transformers" else _load_network
                part = load(getattr(import_module(library), kind), file, prefix, base, name, dtype)
        except MrFlowError:
            raise
        except (NotImplementedError, LookupError) as error:  # torch's, of weights still to be read; converters'
            raise ModelError(lacks) from error
        except Exception as error:  # converters trip over foreign keys in many ways
            text = f"{file.name} cannot be loaded as the {name} of {base}: {reason(error).rstrip('. ')}"
            raise ModelError(f"{text}. Is it the right base (--base), and its download complete?") from error
        if any(weight.is_meta and type(weight) is not _Read for weight in part.parameters()):
            raise ModelError(lacks)
        if name in configs:  # which from_single_file (0.42.1) takes for what the file holds already
            from torchao.quantization import quantize_

            quantize_(part, configs[name].quant_type)
        made[name] = part
    return made


def _load_network(kind: Any, file: Path, prefix: str, base: str, name: str, dtype: torch.dtype | None) -> Any:
    """Return a network of diffusers', which knows how others write its keys."""
    from diffusers import GGUFQuantizationConfig

    told: dict[str, Any] = {"config": base, "subfolder": name, "dtype": dtype}
    if is_gguf(file) and dtype:
        config = GGUFQuantizationConfig(compute_dtype=dtype)
        return kind.from_single_file(str(file), quantization_config=config, **told)
    return kind.from_single_file(_read_weights(file, prefix, dtype), device=None if dtype else "meta", **told)


def _load_text_encoder(kind: Any, file: Path, prefix: str, base: str, name: str, dtype: torch.dtype | None) -> Any:
    """Return a network of transformers', whose keys files have as they are.

    CLIP-L's projection is the identity, whatever a file says: Stable Diffusion 3 was trained without one.
    """
    config = kind.config_class.from_pretrained(base, subfolder=name)
    weights = {
        key: each.to(dtype) if each.is_floating_point() else each
        for key, each in _read_weights(file, prefix, dtype).items()
    }
    if prefix == _CLIP_L and kind.__name__ == "CLIPTextModelWithProjection":
        weights["text_projection.weight"] = torch.eye(config.projection_dim, config.hidden_size, dtype=dtype)
    told = {"config": config, "state_dict": weights, "dtype": dtype, "output_loading_info": True}
    made, found = kind.from_pretrained(None, device_map=None if dtype else {"": "meta"}, **told)
    if found["missing_keys"]:
        raise NotImplementedError  # as torch has it for diffusers' own
    return made if dtype else torch.nn.Module()


def _read_weights(file: Path, prefix: str, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Return the weights in a safetensors file whose keys begin so, without that beginning.

    Those in 8 bits with a scale, as ComfyUI keeps them (its convert_old_quants knows both names), times their
    scale and in `dtype`. dtype: None is the header alone. Raises ModelError for other quantisations.
    """
    if dtype is None:
        found = [(key, each) for key, each in read_header(file).items() if key.rpartition(".")[2] not in _MARKS]
        return {key.removeprefix(prefix): each for key, each in found if key.startswith(prefix)}
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        keys = {key.removeprefix(prefix): key for key in opened.keys() if key.startswith(prefix)}  # noqa: SIM118, it is no mapping
        weights = {}
        for name, key in keys.items():
            layer, _, last = name.rpartition(".")
            if last in _MARKS:
                continue
            weight = opened.get_tensor(key)
            scales = [keys[f"{layer}.{each}"] for each in _SCALES if f"{layer}.{each}" in keys]
            if last == "weight" and scales:
                if weight.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2):
                    kind = str(weight.dtype).removeprefix("torch.")
                    text = f"{file.name} has {key} in {kind} with scales, which is not read"
                    raise ModelError(f"{text}. Take the file in bfloat16, in fp8, or a .gguf file.")
                scale = opened.get_tensor(scales[0]).float()
                rows = scale.reshape(-1, *(1,) * (weight.ndim - 1)) if scale.numel() > 1 else scale
                weight = (weight.float() * rows).to(dtype)
            weights[name] = weight
        return weights


def _check_gguf() -> None:
    if find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf")
