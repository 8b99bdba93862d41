"""Models in a single file: .safetensors, of a transformer or a whole checkpoint, or .gguf.

What a file lacks, tokenizers always, is of its base: a model in diffusers' layout, which has the configurations of
the file's parts, too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from mrflow.architectures import read_architecture
from mrflow.errors import ModelError, reason
from mrflow.folders import read_index
from mrflow.known_models import KNOWN, KnownModel, find
from mrflow.progress import libraries_silent
from mrflow.weights import Weights, check_fit, fits, read_header

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
_NEAR = 0.1  # of a network's weights, by how many a file of it may have more or fewer
_SAY = "say which model has the rest, with base= or --base."
_ADVICE = "Is it the right base (--base), and its download complete?"


def find_base(file: Path) -> str:
    """Return the hub id of the known model whose transformer has weights of these names and shapes.

    Of several the one that the file is named after, else the usual one; `describe` names the others.
    Raises ModelError for a file that cannot be read, or looks like none that is known.
    """
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    header = read_header(file)
    if fitting := _find_fitting(header):
        return max(fitting, key=lambda each: _likeness(each, file)).id
    try:
        found = str(fetch_diffusers_config(header)["pretrained_model_name_or_path"])
    except Exception as error:  # of what its tables of marks do not expect
        raise ModelError(f"{file} is of no model that is known: {reason(error)}; {_SAY}") from error
    if (known := find(found)) is None:
        text = f"The weights in {file.name} are of no model that is known by them"
        if any(_UNET in key for key in header):  # else it is what diffusers takes all for that it does not know
            text += f"; they look most like {found}"
        raise ModelError(f"{text}. If it follows a flow, {_SAY}")
    return known.id


def _find_fitting(header: Weights) -> list[KnownModel]:
    """Return the known models whose transformer a file's weights are, by names and shapes; the usual one first."""
    weights = _of_part(header, TRANSFORMER if any(key.startswith(TRANSFORMER) for key in header) else "")
    weights = {key: each for key, each in weights.items() if key.rpartition(".")[2] not in _MARKS}
    count = sum(each.numel() for each in weights.values()) / 1e9
    known = {each.architecture: each for each in KNOWN.values() if each.architecture}
    apart = {name: abs(count / each.parameters["transformer"] - 1) for name, each in known.items()}
    for name in sorted((name for name in apart if apart[name] < _NEAR), key=apart.__getitem__):
        part = read_architecture(known[name].name)["components"]["transformer"]
        library, _, kind = part["class"].partition(".")
        if fits(getattr(import_module(library), kind), part["config"], weights):
            return [each for each in KNOWN.values() if each.architecture == name]
    return []


def _likeness(known: KnownModel, file: Path) -> int:
    """Return how many letters of a file's name are the model's."""
    texts = (file.stem, known.name, known.id.rpartition("/")[2])
    own, *names = (re.sub(r"[\W_]", "", each.lower()) for each in texts)
    return max(len(each) * (each in own) for each in names)


def _of_part(header: Weights, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): each for key, each in header.items() if key.startswith(prefix)}


def is_gguf(file: Path) -> bool:
    """Return whether a file's name says so."""
    return file.suffix.lower() == ".gguf"


def packed_size(file: Path) -> int:
    """Return the bytes of the weights in a .gguf file, which stay packed in memory."""
    from gguf import GGUFReader

    return sum(int(each.n_bytes) for each in GGUFReader(file).tensors)


def parts_in(file: Path, pipeline: str) -> dict[str, str]:
    """Return the components of a pipeline class that a file holds, each with what its keys begin with.

    Raises ModelError for a file that cannot be read, or that nobody reads of such a pipeline.
    """
    import diffusers
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES as loadable

    types = getattr(getattr(diffusers, pipeline, None), "_get_signature_types", dict[str, Any])()
    kinds = types.get("transformer", ())
    if kinds and not any(kind.__name__ in loadable for kind in kinds):
        raise ModelError(f"diffusers reads no single files of a {pipeline}. Take the model's folder, name or id.")
    keys = read_header(file)
    if is_gguf(file) or not any(key.startswith(TRANSFORMER) for key in keys):
        return {"transformer": ""}
    found = {"transformer": TRANSFORMER, **PARTS.get(pipeline, {})}
    return {name: prefix for name, prefix in found.items() if any(key.startswith(prefix) for key in keys)}


def parts_for(file: Path | None, index: Mapping[str, Any], given: Container[str] = ()) -> dict[str, str]:
    """Return what a file has (see `parts_in`) of a pipeline of this index, less what is given."""
    inside = parts_in(file, str(index.get("_class_name"))) if file else {}
    return {name: prefix for name, prefix in inside.items() if name not in given and any(index.get(name) or ())}


def parts_beside(base: str, file: Path | None) -> dict[str, int]:
    """Return the components of a base, here or not, that a file has, each with its number of weights."""
    if file is None:
        return {}
    known, header = find(base), read_header(file)
    folder = read_index(Path(base))["_class_name"] if os.path.isdir(base) else ""
    parts = parts_in(file, known.pipeline if known else folder)
    return {name: sum(each.numel() for each in _of_part(header, parts[name]).values()) for name in parts}


def describe(file: Path, base: str, found: bool = False) -> str:
    """Return what of a model with this base is in a file, as a sentence; raises ModelError.

    found: by its weights; then the models that have the same shapes are named.
    """
    text = f"{file.name} has the {', '.join(parts_beside(base, file))}; the rest is of {base}"
    if not found or (known := find(base)) is None:
        return text
    others = [each.name for each in KNOWN.values() if each.architecture == known.architecture and each != known]
    return f"{text}, unless --base says otherwise" + f" (it may be of {' or '.join(others)})" * bool(others)


def check_file(file: Path, parts: Mapping[str, str], base: str) -> dict[str, Any]:
    """Return these components of a file (see `parts_for`), without data, as the folder `base` configures them.

    Raises ModelError unless the file's weights fit them.
    """
    index, header, made = read_index(Path(base)), read_header(file), dict[str, Any]()
    for name, prefix in parts.items():
        kind, part = getattr(import_module(index[name][0]), index[name][1]), Path(base) / name
        weights = _of_part(header, prefix)
        for key, each in weights.items():
            packed = each.dtype not in (torch.float8_e4m3fn, torch.float8_e5m2) and key.endswith(".weight")
            if packed and any(f"{key.removesuffix('weight')}{scale}" in weights for scale in _SCALES):
                text = f"{file.name} has {prefix}{key} in {str(each.dtype).removeprefix('torch.')} with scales"
                raise ModelError(f"{text}, which is not read. Take the file in bfloat16, in fp8, or a .gguf file.")
        weights = {key: each for key, each in weights.items() if key.rpartition(".")[2] not in _MARKS}
        who = f"{file.name}, as the {name} of {base},"
        made[name] = check_fit(kind, part, _project(weights, kind, prefix, part), who, _ADVICE, foreign=True)
    return made


def load_parts(
    file: Path, parts: Mapping[str, str], base: str, dtype: torch.dtype, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return these components of a file (see `parts_in`), with the configurations in the folder `base`.

    kwargs: of loading; what its quantisation says of them is done here. Raises ModelError.
    """
    made, configs = dict[str, Any](), getattr(kwargs.get("quantization_config"), "quant_mapping", {})
    for name, network in check_file(file, parts, base).items():
        load = _load_network if hasattr(network, "from_single_file") else _load_text_encoder
        with libraries_silent(logs=True):
            part = load(network, file, parts[name], Path(base) / name, dtype)
        if name in configs:  # which from_single_file (0.42.1) takes for what the file holds already
            from torchao.quantization import quantize_

            quantize_(part, configs[name].quant_type)
        made[name] = part
    return made


def _load_network(network: Any, file: Path, prefix: str, part: Path, dtype: torch.dtype) -> Any:
    """Return a network of diffusers' with a file's weights, whose names it may know as others write them.

    Where all of its own are there, it (0.42) still takes one more for others' writing: that is left out.
    """
    from diffusers import GGUFQuantizationConfig
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    told: dict[str, Any] = {"config": str(part), "torch_dtype": dtype}
    weights = load_gguf_checkpoint(file) if is_gguf(file) else _read_weights(file, prefix, dtype)
    if (own := network.state_dict().keys()) <= weights.keys():
        weights = {key: weights[key] for key in own}
    if not is_gguf(file):
        return type(network).from_single_file(weights, **told)
    packed = GGUFQuantizationConfig(compute_dtype=dtype)
    return _unpacked(type(network).from_single_file(weights, quantization_config=packed, **told), dtype)


def _unpacked(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Return a network of whose weights only those of linear layers are packed; others are used as they are."""
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    for module in network.modules():
        for name, each in list(module.named_parameters(recurse=False)):
            if isinstance(each, GGUFParameter) and not (isinstance(module, GGUFLinear) and name == "weight"):
                value = torch.nn.Parameter(dequantize_gguf_tensor(each).to(dtype), requires_grad=False)
                module.register_parameter(name, value)
    return network


def _load_text_encoder(network: Any, file: Path, prefix: str, part: Path, dtype: torch.dtype) -> Any:
    """Return a network of transformers', whose keys files have as they are."""
    read = _read_weights(file, prefix, dtype)
    weights = {key: each.to(dtype) if each.is_floating_point() else each for key, each in read.items()}
    weights, config = _project(weights, type(network), prefix, part), network.config
    return type(network).from_pretrained(None, config=config, state_dict=weights, dtype=dtype)


def _project(weights: dict[str, torch.Tensor], kind: Any, prefix: str, part: Path) -> dict[str, torch.Tensor]:
    """Return CLIP-L's weights with the identity as its projection: Stable Diffusion 3 was trained without one."""
    if prefix == _CLIP_L and kind.__name__ == "CLIPTextModelWithProjection":
        config = kind.config_class.from_pretrained(part)
        weights["text_projection.weight"] = torch.eye(config.projection_dim, config.hidden_size)
    return weights


def _read_weights(file: Path, prefix: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the weights in a safetensors file whose keys begin so, without that beginning.

    Those in 8 bits with a scale, as ComfyUI keeps them (its convert_old_quants knows both names), times their
    scale and in `dtype`.
    """
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
                scale = opened.get_tensor(scales[0]).float()
                rows = scale.reshape(-1, *(1,) * (weight.ndim - 1)) if scale.numel() > 1 else scale
                weight = (weight.float() * rows).to(dtype)
            weights[name] = weight
        return weights
