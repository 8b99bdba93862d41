"""LoRA files: found and checked, put on a pipeline for one pass, and taken off again by value.

Reading their many layouts and adding them to the weights belongs to diffusers and peft. An adapter stays in the
pipeline once it is loaded, switched off between passes: its layers then give what they gave before, bit for bit.
Nothing is ever fused.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mrflow.backbones.family import Pipeline
from mrflow.errors import LoraError, LoraNameError, MissingExtraError, MrFlowWarning, reason, warn
from mrflow.folders import is_readable
from mrflow.hub import explain, is_offline
from mrflow.jobs import Lora, split_weight
from mrflow.known_models import meant
from mrflow.progress import libraries_silent

MAX_BYTES = 4 * 2**30  # the largest published ones, of rank 256 in float32, have 3 GB
SUFFIX = ".safetensors"
_PREFIX = "mrflow_"  # of the names of our adapters
_MOST_LOADED = 8  # adapters that stay in memory; a file of a large model may have a gigabyte
_Weights = dict[str, Any]
_LAYER = re.compile(r"(.+)\.(?:lora_A\.|lokr_w1(?:_a)?$)")  # matches one key of each layer
_ADAPTER = re.compile(r"(?<=\.)(lora_[AB]|lora_magnitude_vector|lokr_\w+)\.(?!(?:weight|bias)$)[^.]+")
_PREFIXES = re.compile(r"^(transformer\.|diffusion_model\.|base_model\.model\.|lora_unet_|lora_transformer_)+")
_TRAINERS = {"base_model.model.": "peft", "lora_unet_": "kohya", "lora_transformer_": "OneTrainer"}
_ENCODERS = ("text_encoder", "lora_te")  # what their keys begin with
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(/.+)?", flags=re.ASCII)


@dataclass(frozen=True)
class Loras:
    """The files that pictures may name. usual: the LoRAs of those that say nothing."""

    files: Mapping[str, Path] = field(default_factory=dict)
    usual: tuple[Lora, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files)

    def resolve(self, asked: Sequence[Lora] | None, hint: str = "") -> tuple[Lora, ...]:
        """Return what is asked for, or the usual, each with its file's hash.

        hint: what helps where one is not known. Raises LoraNameError with it, LoraError.
        """
        if asked is None:
            return self.usual
        return tuple(replace(each, sha256=file_hash(self.find(each, hint))) for each in asked)

    def usual_weight(self, name: str) -> float:
        """Return the strength on pictures that say nothing: 0 is off."""
        return next((each.weight for each in self.usual if each.name == name), 0.0)

    def find(self, lora: Lora, hint: str = "") -> Path:
        """Return the file of that hash, whatever its name, or where none is known, of that name."""
        named = [self.files[lora.name]] if lora.name in self.files else []
        if lora.sha256 is None and named:
            return named[0]
        for path in (*named, *self.files.values()) if lora.sha256 else ():
            if file_hash(path) == lora.sha256:
                return path
        known = ", ".join(list(self.files)[:20]) or "none"
        which = f"LoRA {lora.name[:80]!r}" + (f" of the hash {lora.sha256[:12]}" if lora.sha256 else "")
        raise LoraNameError(f"There is no {which}; known are: {known}.{hint or meant(lora.name, self.files)}")


def find_loras(given: Iterable[str | Path], folders: Iterable[str | Path] = ()) -> Loras:
    """Return the LoRAs of these files, hub ids and folders; the given ones are the usual.

    given: .safetensors files, names of files in the folders without their suffix, or Hugging Face ids
    (owner/name, or owner/name/file.safetensors), each perhaps with :WEIGHT. Ids are fetched unless cached.
    Raises LoraNameError for what is none of these, LoraError for what cannot be read, MissingExtraError without
    peft.
    """
    files: dict[str, Path] = {}
    for folder in map(Path, folders):
        if not is_readable(folder):
            raise LoraNameError(f"There is no folder {folder} of LoRAs that can be read. Give one.")
        found = sorted(path for path in folder.rglob(f"*{SUFFIX}") if path.is_file())
        files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in found} | files
    usual = list[Lora]()
    for source, weight in (split_weight(str(each)) for each in given):
        name, path = (source, files[source]) if source in files else _from_source(source, files)
        if files.setdefault(name, path) != path:
            raise LoraNameError(f"{path} and {files[name]} are both called {name!r}. Rename one.")
        _check_file(path)
        if name in (lora.name for lora in usual):
            raise LoraNameError(f"The LoRA {name} is given twice; give it once, with the sum of the weights.")
        usual.append(Lora(name=name, weight=weight, sha256=file_hash(path)))
    if files and find_spec("peft") is None:
        raise MissingExtraError("peft", "lora")
    return Loras(files, tuple(usual))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, read once for as long as it is the same. Raises LoraError."""
    try:
        state = path.stat()
        return _hash(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise LoraError(f"{path.name} cannot be read: {error.strerror}.") from error


@contextmanager
def worn(pipe: Pipeline, loras: Sequence[Lora], known: Loras) -> Iterator[None]:
    """Have the pipeline wear these LoRAs beside the caller's own; afterwards it has those as they were.

    Loads what is not loaded yet. Raises LoraError for a file that does not fit.
    """
    adapters = {_PREFIX + str(lora.sha256)[:16]: lora for lora in loras}
    for adapter, lora in adapters.items():
        if adapter not in loaded(pipe):
            load(pipe, adapter, lora.name, known.find(lora), keep=adapters)
    with ExitStack() as stack:
        for layer in _adapted(pipe):
            theirs = [] if layer.disable_adapters else list(layer.active_adapters)
            stack.callback(layer.enable_adapters, not layer.disable_adapters)
            stack.callback(layer.set_adapter, list(layer.active_adapters), inference_mode=True)
            layer.enable_adapters(True)
            layer.set_adapter([*theirs, *adapters], inference_mode=True)
            for adapter, lora in adapters.items():
                layer.set_scale(adapter, lora.weight)
        yield


def loaded(pipe: Pipeline) -> list[str]:
    """Return our adapters in the pipeline, the oldest first."""
    parts = [getattr(part, "peft_config", None) or {} for part in pipe.components.values()]
    return list(dict.fromkeys(name for part in parts for name in part if name.startswith(_PREFIX)))


def load(pipe: Pipeline, adapter: str, name: str, path: Path, keep: Iterable[str] = ()) -> None:
    """Load a file as an adapter that is switched off. keep: adapters that must stay loaded. Raises LoraError."""
    keys = _check_file(path)
    weights, made = _read(pipe, name, path)
    _check_fit(pipe, name, weights, made)
    idle = [each for each in loaded(pipe) if each not in keep]
    unload(pipe, idle[: max(len(idle) + 1 - _MOST_LOADED, 0)])
    before = {each: (list(each.active_adapters), dict(getattr(each, "scaling", {}))) for each in _adapted(pipe)}
    try:
        with libraries_silent(logs=True), warnings.catch_warnings():
            # of adapters that could not be merged, and of several: nothing is ever fused, and several are meant
            warnings.filterwarnings("ignore", "TorchaoLoraLinear|Already found a `peft_config`")
            source = str(path) if weights.keys() == keys else weights  # a file's header may have alphas, too
            pipe.load_lora_weights(source, adapter_name=adapter, use_safetensors=True)
        if adapter not in loaded(pipe):
            raise ValueError("none of its keys was taken")
        _check_taken(pipe, adapter, made)
    except Exception as error:  # diffusers' converters and peft raise many kinds
        unload(pipe, [adapter])
        raise LoraError(f"The LoRA {name} does not fit {type(pipe).__name__} here: {reason(error)}") from error
    finally:
        for layer in _adapted(pipe):  # transformers switches new ones on, diffusers scales those of text encoders
            active, scaling = before.get(layer, ([], {}))
            layer.set_adapter(active, inference_mode=True)
            getattr(layer, "scaling", {}).update(scaling)


def unload(pipe: Pipeline, adapters: Sequence[str]) -> None:
    """Take adapters out of memory; with the last of all, peft's layers are gone, too."""
    here = [adapter for adapter in adapters if adapter in loaded(pipe)]
    if not here:
        return
    pipe.delete_adapters(here)
    for part in pipe.components.values():
        for adapter in here:
            getattr(part, "peft_config", {}).pop(adapter, None)  # diffusers forgets the text encoders'
    if not any(pipe.get_list_adapters().values()):
        pipe.unload_lora_weights()


def _read(pipe: Pipeline, name: str, path: Path) -> tuple[_Weights, _Weights]:
    """Return a file's weights under keys that diffusers reads, and what it makes of them, under `_plain` keys.

    Of all readings that which fits most layers. Raises LoraError where none fits any.
    """
    from safetensors.torch import load_file

    kind = type(pipe).__name__
    if not hasattr(pipe, "load_lora_weights"):
        raise LoraError(f"{kind} takes no LoRA in the installed diffusers. Leave the LoRA {name} out.")
    weights = load_file(path)
    if any("lokr_" in key for key in weights) and not kind.startswith(("Flux2", "ZImage")):
        raise LoraError(f"{name} is a LoKr, which diffusers reads for FLUX.2 and Z-Image alone. Take a LoRA.")
    plain = {_ADAPTER.sub(r"\1", key): weight for key, weight in weights.items()}
    if len(plain) < len(weights):
        raise LoraError(f"The LoRA {name} holds several adapters. Save each in a file of its own.")
    best, most, failed, layers = None, 0, None, _layers(pipe)
    for given in _readings(plain, [each for each, _ in pipe.transformer.named_modules()]):
        try:
            with libraries_silent(logs=True):
                found = pipe.lora_state_dict(dict(given))
        except Exception as error:  # diffusers' converters raise many kinds
            failed = error
            continue
        made = {_plain(key): each for key, each in (found if isinstance(found, dict) else found[0]).items()}
        if any(re.search(r"to_(added_)?qkv\.lokr_", key) for key in made):
            raise LoraError(f"{name}, a LoKr of queries, keys and values in one, changes the model. Take a LoRA.")
        fits = [hasattr(layers.get(match[1]), "weight") for key in made if (match := _LAYER.match(key))]
        if sum(fits) > most and not any(key.endswith(".alpha") for key in made):
            best, most = (given, made), sum(fits)
            if all(fits):
                break
    if best:
        return best
    text = f"None of the {len(weights)} keys of the LoRA {name} fits {kind}, such as {min(weights)!r}"
    prefix = next((begin[1] for key in weights if (begin := _PREFIXES.match(key))), "transformer.")
    if prefix != "transformer.":
        layout = f"{_TRAINERS.get(prefix, 'ComfyUI')}'s layout ({prefix}*), which is not known for {kind}"
        raise LoraError(f"{text}. It is for another model than this, or in {layout}.") from failed
    raise LoraError(f"{text}. It is for another model than this.") from failed


def _readings(weights: _Weights, layers: Iterable[str]) -> Iterator[_Weights]:
    """Yield a file's weights under the keys that diffusers may know, their own first.

    Then with diffusers' names of the transformer's layers, whatever the prefix and the dots; then as converters
    of diffusers (0.42) want published names. Alphas are multiplied in, but for a LoKr's, which diffusers knows.
    """
    yield weights
    bare, flat = {}, {each.replace(".", "_"): each for each in layers}
    for key, weight in weights.items():
        plain = key if key.startswith("text_encoder") else _plain(_PREFIXES.sub("", key))
        layer, *rest = re.split(r"\.(?=lora_|alpha$)", plain, maxsplit=1)
        bare[".".join([flat.get(layer.replace(".", "_"), layer), *rest])] = weight
    for key in [each for each in bare if each.endswith(".lora_A.weight")]:
        if (alpha := bare.pop(key.replace(".lora_A.weight", ".alpha"), None)) is not None:
            bare[key] = bare[key] * (alpha / len(bare[key]))
    for prefix in ("", "transformer.", "diffusion_model."):
        named = {key if key.startswith(_ENCODERS) else prefix + key: weight for key, weight in bare.items()}
        yield named
    yield {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): each for key, each in named.items()}


def _plain(key: str) -> str:
    """Return a key with peft's words for the two matrices and layers of CLIP as transformers now names them."""
    key = re.sub(r"\.to_(\w+)_lora\.", r".\1_proj.lora.", key).replace("text_model.", "")
    return re.sub(r"\.lora(?:_linear_layer)?[._](down|up)\.", lambda at: f".lora_{'BA'[at[1] == 'down']}.", key)


def _layers(pipe: Pipeline) -> dict[str, Any]:
    """Return the modules of all parts of the pipeline by their names in `_plain` keys."""
    parts = {name: part for name, part in pipe.components.items() if hasattr(part, "named_modules")}
    return {_plain(f"{part}.{name}"): each for part in parts for name, each in parts[part].named_modules()}


def _check_fit(pipe: Pipeline, name: str, weights: _Weights, made: _Weights) -> None:
    """Raise LoraError unless what is made of a file's weights fits the model; warn where parts of it do not.

    diffusers itself enlarges weights, the model's or the file's, where shapes differ, and only warns of keys.
    """
    if any(re.search(r"norm[^.]*\.[^.]*$", key) for key in made):
        raise LoraError(f"The LoRA {name} replaces weights of the model (a control LoRA). It can't be taken off.")
    layers = _layers(pipe)
    downs = {key: layers.get(found[1]) for key in made if (found := _LAYER.match(key))}
    for key, weight in made.items():
        other = re.sub(r"(?<=\.lora_)[AB](?=\.weight)", lambda found: "BA"["AB".index(found[0])], key)
        if other not in made:
            raise LoraError(f"The LoRA {name} has {key} without {other}. Is its download complete?")
        if not weight.is_floating_point():
            raise LoraError(f"The LoRA {name} has {key} in {weight.dtype}. Take one in float16 or float32.")
        if downs.get(key) is not None and other != key:
            _check_shapes(name, downs[key], {key: weight.shape, other: made[other].shape})
    missing = [key for key, layer in downs.items() if layer is None]
    doras = [key for key in weights if key.endswith("dora_scale")]
    for what, keys in ((f"of its {len(downs)} layers", missing), ("magnitudes of a DoRA", doras)):
        if keys:
            warn(f"The LoRA {name} fits in part, without {len(keys)} {what}, such as {keys[0]!r}.", MrFlowWarning)


def _check_shapes(name: str, layer: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise LoraError unless the two matrices, (rank, in) and (out, rank), fit each other and the layer."""
    (down, first), (up, second) = shapes.items()
    if len(first) < 2 or len(second) < 2 or first[0] != second[1]:
        text = f"{down} of the shape {tuple(first)} and {up} of {tuple(second)} have two ranks"
        raise LoraError(f"The LoRA {name} is damaged: {text}. Fetch it again.")
    for key, has, side in ((down, first[1], "in_features"), (up, second[0], "out_features")):
        if has != (width := getattr(layer, side, has)):
            text = f"the LoRA {name} expects {has} values in {key}, and the model has {width}"
            raise LoraError(f"Another size of model: {text}. Take one for this model.")


def _check_taken(pipe: Pipeline, adapter: str, made: _Weights) -> None:
    """Raise ValueError where a weight of an adapter is not the file's: peft leaves it on "meta", or anyhow."""
    known = {key.removesuffix(".weight") for key in made}
    for name, part in pipe.components.items():
        for key, weight in part.named_parameters() if hasattr(part, "peft_config") else ():
            whole = _plain(f"{name}.{key.replace(f'.{adapter}', '')}").removesuffix(".weight")
            empty = weight.is_meta and not hasattr(part, "_hf_hook")  # accelerate's, which fetches it in time
            if f".{adapter}" in key and (empty or whole not in known):
                raise ValueError(f"it has no weights for {whole}. Take one in diffusers' layout.")


def _adapted(pipe: Pipeline) -> list[Any]:
    """Return peft's layers."""
    parts = [part for part in pipe.components.values() if hasattr(part, "peft_config")]
    return [layer for part in parts for layer in part.modules() if hasattr(layer, "adapter_layer_names")]


def _check_file(path: Path) -> set[str]:
    """Return the keys of a file; raises LoraError unless it may be a LoRA: safetensors, not too large."""
    from safetensors import safe_open

    if path.suffix.lower() != SUFFIX:
        raise LoraError(f"{path.name} is no {SUFFIX} file. Others can run code when they are read: convert it.")
    size = path.stat().st_size if path.is_file() else 0
    if size > MAX_BYTES:
        raise LoraError(f"{path.name} has {size} bytes; a LoRA may have at most {MAX_BYTES}.")
    try:
        with path.open("rb"):  # safetensors (0.6) finds no such file where reading is not allowed
            pass
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
    except PermissionError as error:
        raise LoraError(f"{path.name} cannot be read: {error.strerror}.") from error
    except Exception as error:  # damaged files raise safetensors' own kind and OSError
        raise LoraError(f"{path.name} cannot be read as safetensors: it is damaged. Fetch it again.") from error
    if any("hada_" in key for key in keys):
        raise LoraError(f"{path.name} is a LoHa, which diffusers does not read. Take a LoRA.")
    if not any("lora" in key or "lokr" in key for key in keys):
        shown = repr(min(keys)) if keys else "none at all"
        raise LoraError(f"{path.name} is no LoRA: none of its {len(keys)} keys is one's, such as {shown}.")
    return keys


def _from_source(source: str, known: Iterable[str]) -> tuple[str, Path]:
    """Return the name and path of a LoRA from a file or the hub. known: names of those in folders."""
    if os.path.isfile(source):  # os.path, for it takes any text, however long
        return Path(source).stem, Path(source)
    before, _, weight = source.rpartition(":")
    if before in known or os.path.isfile(before):
        raise LoraNameError(f"The LoRA {before} has the weight {weight[:40]!r}; it must be a number, such as 0.8.")
    if not _HUB_ID.fullmatch(source) or (source.endswith(SUFFIX) and source.count("/") < 2):
        raise LoraNameError(
            f"There is no LoRA {source[:200]!r}. Give a {SUFFIX} file, the name of one in the folder of LoRAs "
            f"({', '.join(list(known)[:20]) or 'there are none'}), or a Hugging Face id such as owner/name."
            + meant(source, known)
        )
    from huggingface_hub import hf_hub_download

    owner, repo, *inner = source.split("/", 2)
    try:
        cached = is_offline()
        files = inner or _hub_files(f"{owner}/{repo}", cached=cached)
        path = hf_hub_download(f"{owner}/{repo}", files[0], local_files_only=cached) if len(files) == 1 else ""
    except Exception as error:  # the hub's own kinds, and requests'
        text = f"The LoRA {source} cannot be fetched: {reason(error)} Or give the path of its file."
        raise LoraError(explain(f"{owner}/{repo}", error) or text) from error
    if not path:
        shown = ", ".join(files[:10]) or "none"
        raise LoraNameError(f"{source} has {len(files)} {SUFFIX} files: {shown}. Give one, as owner/name/file.")
    return (Path(inner[0]).stem if inner else repo), Path(path)


def _hub_files(repo: str, *, cached: bool) -> list[str]:
    """Return the names of a repository's safetensors files. cached: of those that are here."""
    from huggingface_hub import list_repo_files, snapshot_download

    if cached:
        folder = Path(snapshot_download(repo, local_files_only=True))
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    else:
        names = list_repo_files(repo)
    return [name for name in names if name.endswith(SUFFIX)]


@lru_cache(maxsize=4096)
def _hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
