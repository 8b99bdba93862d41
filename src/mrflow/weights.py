"""Files of weights held against the networks that they are for, by names and shapes alone: no weight is read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from warnings import catch_warnings

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mrflow.errors import MissingExtraError, ModelError, reason
from mrflow.folders import AGAIN, INDEX, WEIGHTS, check_parts, check_shards, components, read_json
from mrflow.progress import libraries_silent

Weights = Mapping[str, Tensor]
"""By name; without data (on the device meta) nearly everywhere here."""


def check_folder(folder: Path, given: Collection[str] = (), variant: str | None = None) -> None:
    """Raise ModelError where a pipeline's folder lacks what loading it takes, or its weights fit no configuration.

    given: components that come from elsewhere. variant: of the files of weights; a part without it has others.
    """
    index = check_parts(folder, given)
    check_shards(folder)
    parts, pipeline = components(index), getattr(import_module("diffusers"), index["_class_name"], None)
    wanted = pipeline._get_signature_keys(pipeline)[0] if pipeline else ()
    if lacking := sorted({*wanted}.difference(parts, given, getattr(pipeline, "_optional_components", ()))):
        text = f"{folder / INDEX} has no {lacking[0]}, which a {index['_class_name']} expects. {AGAIN}"
        raise ModelError(f"{text} In Python it can be given: {lacking[0]}=...")
    for name, (library, kind) in parts.items():
        network = getattr(import_module(library), kind, None) if library in ("diffusers", "transformers") else None
        if name not in given and isinstance(network, type) and issubclass(network, torch.nn.Module):
            weights = _header(folder / name, variant)
            if weights is not None and "quantization_config" not in read_json(folder / name / "config.json"):
                check_fit(network, folder / name, weights, f"The {name} of {folder}", AGAIN)


def check_fit(kind: Any, part: Path, weights: Weights, who: str, advice: str, *, foreign: bool = False) -> Any:
    """Return a network of this class without data; raises ModelError unless weights fit it by name and shape.

    part: the folder with its configuration. who: has the weights. advice: what may help. foreign: names may be as
    their authors have them.
    """
    from transformers import PreTrainedModel

    compare = _compare_transformers if issubclass(kind, PreTrainedModel) else _compare_diffusers
    try:
        with libraries_silent(logs=True), _Equal():
            made, missing, wrong = compare(kind, part, dict(weights), foreign)
    except Exception as error:  # of what is no configuration of a network, in many ways
        raise ModelError(f"{part}/config.json describes no {kind.__name__} ({reason(error)}). {AGAIN}") from error
    if missing:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise ModelError(f"{who} lacks weights, such as {missing[0]}{more}. {advice}")
    for name, found, wanted in wrong:
        shapes = f"{tuple(found)}, where {part}/config.json wants {tuple(wanted)}"
        raise ModelError(f"{who} has {name} of shape {shapes}. Are both of the same model? {advice}")
    return made


def fits(kind: Any, config: Mapping[str, Any], weights: Weights) -> bool:
    """Return whether weights, named as by anybody, fit a network of diffusers' of this configuration."""
    # converters that are given another network's weights raise errors of many kinds
    with suppress(Exception), catch_warnings(action="ignore"), libraries_silent(logs=True):
        _, missing, wrong = _compare_diffusers(kind, config, dict(weights), True)
        return not missing and not wrong
    return False


class _Equal(TorchFunctionMode):
    """Weights without data are equal, as transformers up to 5.16 asks of those that a file has twice."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func is torch.equal or func(*args, **kwargs or {})


def _compare_transformers(kind: Any, part: Path, weights: Weights, _: bool) -> tuple[Any, list[str], Any]:
    """Return a network, what it misses, and what has another shape, as loading says, which knows tied weights."""
    told = {"config": kind.config_class.from_pretrained(part), "state_dict": weights, "device_map": "meta"}
    made, found = kind.from_pretrained(None, **told, output_loading_info=True, ignore_mismatched_sizes=True)
    own = {name for name, _ in made.named_parameters() if "lm_head" not in name}  # which encodes no text
    return made, sorted(own.intersection(found["missing_keys"])), sorted(found["mismatched_keys"])


def _compare_diffusers(kind: Any, part: Any, weights: Weights, foreign: bool) -> tuple[Any, list[str], Any]:
    from accelerate import init_empty_weights
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES as known

    config = read_json(part / "config.json") if isinstance(part, Path) else part
    with init_empty_weights(include_buffers=True):
        made = kind.from_config(config)
    own = dict(made.named_parameters())
    made._fix_state_dict_keys_on_load(weights)  # older names of attention
    if foreign and own.keys() - weights.keys() and kind.__name__ in known:
        try:
            other = known[kind.__name__]["checkpoint_mapping_fn"](dict(weights), config=config)
            weights = max(weights, other, key=lambda each: len(own.keys() & each.keys()))
        except Exception as error:  # converters trip over missing and foreign names in many ways
            if isinstance(error, KeyError) and not own.keys() & weights.keys():
                return made, [error.args[0]], []
    both = {name: (weights[name].shape, own[name].shape) for name in own if name in weights}
    return made, sorted(own.keys() - both), [(name, *each) for name, each in both.items() if each[0] != each[1]]


def _header(part: Path, variant: str | None) -> Weights | None:
    """Return the weights of a component, in one file or several; None where none has a name that is usual."""
    ends, names = [f".{variant}", ""] if variant else [""], ("diffusion_pytorch_model", "model", "pytorch_model")
    for end, suffix, name in product(ends, WEIGHTS, names):
        whole, index = part / f"{name}{end}{suffix}", part / f"{name}{suffix}.index{end}.json"
        if index.is_file() and (name == names[0] or not whole.is_file()):  # as the two libraries choose
            files = sorted(set(read_json(index)["weight_map"].values()))
            return {key: each for file in files for key, each in read_header(part / file).items()}
        if whole.is_file():
            return read_header(whole)
    if not any(each.suffix in WEIGHTS for each in part.iterdir()):
        raise ModelError(f"{part} has no weights ({' or '.join(WEIGHTS)}). {AGAIN}")
    return None


def read_header(file: Path) -> Weights:
    """Return a file's weights, of a .gguf file as if unpacked, without reading them; raises ModelError."""
    kind = file.suffix.lower()
    if kind == ".gguf" and find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf")
    try:
        file.open("rb").close()  # safetensors (0.6) finds no such file where reading is not allowed
        if kind == ".bin":
            return dict(torch.load(file, map_location="meta", weights_only=True))
        if kind == ".gguf":
            from gguf import GGUFReader

            found = GGUFReader(file).tensors
            return {each.name: torch.empty(each.shape.tolist()[::-1], device="meta") for each in found}
        from safetensors import safe_open
        from safetensors.torch import _getdtype

        with safe_open(file, "pt") as opened:  # of which a tensor, even an empty one, has the whole file mapped
            found = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
            told = ((name, each.get_shape(), _getdtype(each.get_dtype())) for name, each in found.items())
            return {name: torch.empty(shape, dtype=kind, device="meta") for name, shape, kind in told}
    except UnpicklingError:
        raise ModelError(f"{file} is damaged, or holds more than weights. Take .safetensors files.") from None
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}. {AGAIN}") from error
    except Exception as error:  # damaged files raise many kinds, none for people
        raise ModelError(f"{file} is no whole {kind} file ({reason(error)}). {AGAIN}") from error
