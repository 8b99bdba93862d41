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
from mrflow.hub import explain, is_offline
from mrflow.jobs import Lora, split_weight
from mrflow.progress import libraries_silent

MAX_BYTES = 4 * 2**30  # the largest published ones, of rank 256 in float32, have 3 GB
SUFFIX = ".safetensors"
_PREFIX = "mrflow_"  # of the names of our adapters
_MOST_LOADED = 8  # adapters that stay in memory; a file of a large model may have a gigabyte
_DOWN = re.compile(
    r"transformer\.(.+?)\.(?:(?:lora_A|lora_down|lora\.down)\.|lokr_w1(?:_a)?$)"
)  # one key of each layer
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(/.+)?", flags=re.ASCII)


@dataclass(frozen=True)
class Loras:
    """The files that pictures may name. usual: the LoRAs of those that say nothing."""

    files: Mapping[str, Path] = field(default_factory=dict)
    usual: tuple[Lora, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files)

    def resolve(self, asked: Sequence[Lora] | None) -> tuple[Lora, ...]:
        """Return what is asked for, or the usual, each with its file's hash. Raises LoraNameError, LoraError."""
        if asked is None:
            return self.usual
        return tuple(replace(each, sha256=file_hash(self.find(each))) for each in asked)

    def usual_weight(self, name: str) -> float:
        """Return the strength on pictures that say nothing: 0 is off."""
        return next((each.weight for each in self.usual if each.name == name), 0.0)

    def find(self, lora: Lora) -> Path:
        """Return the file of that hash, whatever its name, or where none is known, of that name."""
        named = [self.files[lora.name]] if lora.name in self.files else []
        if lora.sha256 is None and named:
            return named[0]
        for path in (*named, *self.files.values()) if lora.sha256 else ():
            if file_hash(path) == lora.sha256:
                return path
        known = ", ".join(list(self.files)[:20]) or "none"
        which = f"LoRA {lora.name[:80]!r}" + (f" of the hash {lora.sha256[:12]}" if lora.sha256 else "")
        raise LoraNameError(
            f"There is no {which}; known are: {known}. Load its file (--lora), or name its folder (--loras-dir)."
        )


def find_loras(given: Iterable[str | Path], folders: Iterable[str | Path] = ()) -> Loras:
    """Return the LoRAs of these files, hub ids and folders; the given ones are the usual.

    given: .safetensors files, names of files in the folders without their suffix, or Hugging Face ids
    (owner/name, or owner/name/file.safetensors), each perhaps with :WEIGHT. Ids are fetched unless cached.
    Raises LoraNameError for what is none of these, LoraError for what cannot be read, MissingExtraError without
    peft.
    """
    files: dict[str, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise LoraNameError(f"There is no folder {folder} of LoRAs. Give one that exists.")
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
    _check_file(path)
    _check_fit(pipe, name, path)
    idle = [each for each in loaded(pipe) if each not in keep]
    unload(pipe, idle[: max(len(idle) + 1 - _MOST_LOADED, 0)])
    before = {
        layer: (list(layer.active_adapters), dict(getattr(layer, "scaling", {}))) for layer in _adapted(pipe)
    }
    try:
        with libraries_silent(logs=True), warnings.catch_warnings():
            # of adapters that could not be merged, and of several: nothing is ever fused, and several are meant
            warnings.filterwarnings("ignore", "TorchaoLoraLinear|Already found a `peft_config`")
            pipe.load_lora_weights(str(path), adapter_name=adapter, use_safetensors=True)
        if adapter not in loaded(pipe):
            raise ValueError("none of its keys was taken")
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


def _check_fit(pipe: Pipeline, name: str, path: Path) -> None:
    """Raise LoraError unless the file fits the transformer or a text encoder; warn where parts of it do not.

    diffusers itself enlarges weights, the model's or the file's, where shapes differ, and only warns of keys.
    """
    from safetensors.torch import load_file

    kind = type(pipe).__name__
    if not hasattr(pipe, "load_lora_weights"):
        raise LoraError(f"{kind} takes no LoRA in the installed diffusers. Leave the LoRA {name} out.")
    weights = load_file(path)
    doras = [key for key in weights if key.endswith("dora_scale")]
    with libraries_silent(logs=True):
        try:
            made = pipe.lora_state_dict(weights)
        except Exception as error:
            raise LoraError(f"The LoRA {name} has no layout that {kind} knows: {reason(error)}") from error
    made = made if isinstance(made, dict) else made[0]
    parts = dict(pipe.transformer.named_modules())
    downs = {key: parts.get(found[1]) for key in made if (found := _DOWN.match(key))}
    if fused := next((key for key in made if re.search(r"to_(added_)?qkv\.lokr_", key)), None):
        text = f"The LoRA {name} is a LoKr of queries, keys and values in one ({fused!r})"
        raise LoraError(f"{text}, for which diffusers fuses the model's own for good. Take a LoRA.")
    missing = [key for key, layer in downs.items() if layer is None]
    if len(missing) == len(downs) and not any(key.startswith("text_encoder") for key in made):
        text = f"None of the {len(weights)} keys of the LoRA {name} fits {kind}, such as {next(iter(weights))!r}"
        if any("lokr_" in key for key in weights):
            raise LoraError(f"{text}. It is a LoKr, which diffusers reads for FLUX.2 and Z-Image alone.")
        raise LoraError(f"{text}. It is made for another model; take one for {kind}.")
    for key, layer in downs.items():
        width = None if "lokr_" in key else getattr(layer, "in_features", None)
        if width is not None and made[key].shape[1] != width:
            text = f"the LoRA {name} expects {made[key].shape[1]} values in {key}, and the model has {width}"
            raise LoraError(f"Another size of model: {text}. Take one for this model.")
    if any("norm" in key.rsplit(".", 2)[-2] for key in made):
        raise LoraError(
            f"The LoRA {name} replaces weights of the model (a control LoRA), so it can't be taken off."
        )
    if missing or doras:
        what = f"{len(missing)} of its {len(downs)} layers" if missing else "the magnitudes of a DoRA"
        warn(
            f"The LoRA {name} fits in part: {what} are left out, such as {(missing or doras)[0]!r}.", MrFlowWarning
        )


def _adapted(pipe: Pipeline) -> list[Any]:
    """Return peft's layers."""
    parts = [part for part in pipe.components.values() if hasattr(part, "peft_config")]
    return [layer for part in parts for layer in part.modules() if hasattr(layer, "adapter_layer_names")]


def _check_file(path: Path) -> None:
    """Raise LoraError unless the file may be a LoRA: a safetensors file, not too large, with keys of one."""
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
            keys = list(file.keys())
    except PermissionError as error:
        raise LoraError(f"{path.name} cannot be read: {error.strerror}.") from error
    except Exception as error:  # damaged files raise safetensors' own kind and OSError
        raise LoraError(f"{path.name} cannot be read as safetensors: it is damaged. Fetch it again.") from error
    if any("hada_" in key for key in keys):
        raise LoraError(f"{path.name} is a LoHa, which diffusers does not read. Take a LoRA.")
    if not any("lora" in key or "lokr" in key for key in keys):
        shown = repr(keys[0]) if keys else "none at all"
        raise LoraError(f"{path.name} is no LoRA: none of its {len(keys)} keys is one's, such as {shown}.")


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
        )
    from huggingface_hub import hf_hub_download

    owner, repo, *inner = source.split("/", 2)
    try:
        cached = is_offline()
        files = inner or _hub_files(f"{owner}/{repo}", cached=cached)
        path = ""
        if len(files) == 1:
            path = hf_hub_download(f"{owner}/{repo}", files[0], local_files_only=cached)
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
