"""A model by name: vista or its student, a folder, a single file or a Hugging Face id; device, dtype, upscaler."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mrflow import vista
from mrflow.backbones import get_backbone
from mrflow.backbones.checkpoints import checkpoint_defaults
from mrflow.backbones.family import Pipeline
from mrflow.errors import (
    DeviceError,
    DeviceNameError,
    ModelError,
    ModelNameError,
    MrFlowError,
    MrFlowWarning,
    reason,
    warn,
)
from mrflow.folders import INDEX, identify, read_index
from mrflow.hub import MODULAR, explain, is_offline
from mrflow.known_models import FILES, HUB_ID, full_name, is_file, meant
from mrflow.known_upscalers import METHODS
from mrflow.model import VAE_TILE, Model
from mrflow.offloading import AUTO, check_offload, check_quantize, choose, free_memory, place, quantization
from mrflow.plan import Defaults
from mrflow.progress import libraries_silent
from mrflow.single_files import find_base, is_gguf, load_parts, packed_size, parts_beside, parts_for
from mrflow.upscaler import Upscaler, has_bfloat16
from mrflow.weights import check_folder

if TYPE_CHECKING:
    from mrflow.costs import Estimate

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    source: str | Path,
    *,
    base: str | Path | None = None,
    upscaler: Upscaler | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    offload: str | None = None,
    width: int | None = None,
    height: int | None = None,
    allowed: int | None = None,
    **kwargs: Any,
) -> Model:
    """Return the pipeline named "vista", "vista-turbo" or as known, of a folder in diffusers' layout or a hub id.

    source may also be a .safetensors or .gguf file: of a transformer, or of a whole checkpoint. base: known name,
    folder or hub id of the model that has the rest, and the configurations of the file's parts; None is the known
    one whose weights look like the file's (`single_files.find_base`).
    upscaler: see Upscaler.load; None is the model's own, else the method's, Real-ESRGAN. device: None is the CPU.
    dtype: None is float32 on the CPU, where half precision is emulated and many times slower, else bfloat16, or
    float16 on GPUs that only emulate it (T4, V100, GTX 16).
    quantize: "int8" or "fp8" (torchao), "nf4" (bitsandbytes, CUDA alone) or "none", of the weights of transformer
    and large text encoders. offload: "model", "group" or "sequential" moves weights to the device as they are
    needed; "none" has them there; "auto", usual on a GPU, takes the first of none, model and group that has room
    for a picture of width x height (None: the model's own), at need with the autoencoder in tiles, and warns
    unless all is whole. It counts for `device` alone. allowed: bytes that it may take for free, at most.
    kwargs: for DiffusionPipeline.from_pretrained, such as revision or variant.
    Raises ModelError, UpscalerError or DeviceError, the cheap checks before any weights are read.
    """
    where = check_device("cpu" if device is None else device)
    precision = check_dtype(kwargs.pop("torch_dtype", None) if dtype is None else dtype, where)
    file = Path(source) if is_file(source) else None
    quantize = check_quantize(quantize, where, file)
    offload = ("none" if where.type in ("cpu", "mps") else AUTO) if offload is None else offload
    check_offload(offload, where, quantize)
    with libraries_silent(logs=True):
        import diffusers.pipelines.pipeline_utils  # noqa: F401  # which imports what is there of quantisation
    name, revision = str(source), kwargs.get("revision")
    if name in vista.DEFAULTS:
        _refuse_base(base)
        path, revision = str(vista.folder(name)), vista.revision(name)
        upscaler = upscaler or vista.upscaler()
    elif file:
        path = check_source(find_base(file) if base is None else base)
    else:
        path = check_source(source, base)
    if not os.path.isdir(path) and not kwargs.get("local_files_only") and is_offline():
        kwargs["local_files_only"] = True  # what is cached is used, the rest is said at once
    network = choose_upscaler(upscaler)
    folder, parts = _fetch(path, kwargs, file)

    lift = "bicubic" if network.name in METHODS else None
    count = cache(partial(count_costs, folder, precision, file, width=width, height=height, upscaler=lift))
    tiled = False
    if device is not None:
        here = [each.stat().st_size for each in (file, *Path(folder).rglob("*")) if each and each.is_file()]
        how = {"quantize": quantize, "allowed": allowed, "file": file}
        offload, tiled = _hold(path, where, offload, 4 * sum(here), count, **how)
    if quantize and (wanted := [part for part in count().quantised if part not in count().stored]):
        kwargs["quantization_config"] = quantization(quantize, wanted, precision)
    if file:
        with _explained(str(file)):
            kwargs |= load_parts(file, parts, folder, precision, kwargs)
    pipe = _load_pipeline(path, folder, precision, kwargs)
    if device is not None:  # else where diffusers put it: the CPU, or as a device_map says
        place(pipe, where, offload)
    if name in vista.DEFAULTS:  # its convolutions are narrow: on a CPU they run up to twice as fast in this layout
        pipe.vae.to(memory_format=torch.channels_last)
    defaults = vista.DEFAULTS.get(name) or checkpoint_defaults(pipe, path)
    backbone = get_backbone(type(pipe).__name__)
    if name not in vista.DEFAULTS:
        name, revision = identify(str(file or folder), revision)
    known: dict[str, Any] = {"defaults": defaults, "name": name, "revision": revision}
    model = Model(pipe=pipe, backbone=backbone, upscaler=network, vae_tile=VAE_TILE if tiled else None, **known)
    model.check_parts()
    return model


def count_costs(name: str, dtype: torch.dtype, file: Path | None = None, **asked: Any) -> Estimate:
    """Return what a picture costs, by which `offloading.choose` holds a model; see `costs.estimate`.

    file: a single one that goes with it.
    """
    from mrflow.costs import estimate

    stored = {"transformer": packed_size(file)} if file and is_gguf(file) else {}
    with libraries_silent(logs=True):
        return estimate(name, dtype=dtype, stored=stored, **asked)


def _hold(
    name: str, where: torch.device, offload: str, at_most: int, count: Callable[[], Estimate], **how: Any
) -> tuple[str, bool]:
    """Return how to offload a model, for "auto" the first way that fits, and if its autoencoder works in tiles.

    Warns of what fits neither the device nor the machine's memory, for "auto" also of what is not the fastest.
    at_most: bytes of its weights; with room for them only "auto" is to be counted. how: see `offloading.choose`.
    """
    offload = "none" if where.type in ("cpu", "mps") else offload
    if offload != AUTO and at_most < free_memory(torch.device("cpu")):
        return offload, False
    found = choose(count(), where, offload=offload, **how)
    if not found.works or (offload == AUTO and not found.fastest):
        text = f"{name} {'is held' if found.fits else 'may not fit, held'} {found}, on {where}"
        text += "" if found.waits else f", and {found.ram}"
        warn(f"{text}; {found.instead}." if found.instead else f"{text}.", MrFlowWarning)
    return found.offload, found.tiled and offload == AUTO


def wrap_pipeline(
    pipe: Pipeline, upscaler: Upscaler | str | Path | None = None, defaults: Defaults | None = None
) -> Model:
    """Return the model around a pipeline that the caller has loaded; nothing is moved or changed.

    defaults: None is those of the checkpoint, as far as the pipeline says which it is.
    Raises UnsupportedPipelineError for a family without a backbone, UpscalerError as Upscaler.load does.
    """
    backbone = get_backbone(type(pipe).__name__)
    source = str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
    name, revision = identify(_snapshot(pipe, source))
    return Model(
        pipe=pipe,
        backbone=backbone,
        upscaler=choose_upscaler(upscaler),
        defaults=defaults or checkpoint_defaults(pipe, source),
        name=name,
        revision=revision,
    )


def _snapshot(pipe: Pipeline, name: str) -> str:
    """Return the folder in the hub's cache that a pipeline of this id came from, else the id."""
    configs = (getattr(part, "config", None) for part in getattr(pipe, "components", {}).values())
    folders = (Path(str(getattr(each, "_name_or_path", ""))).parent for each in configs)
    cached = (str(each) for each in folders if each.parent.name == "snapshots")
    return next((each for each in cached if identify(each)[0] == name), name)


def choose_upscaler(upscaler: Upscaler | str | Path | None) -> Upscaler:
    """Return the upscaler, for None the method's own: see `Upscaler.usual`.

    Interpolation scores alike on GenEval (.87 against .86 for Real-ESRGAN, Qwen-Image, arXiv 2607.01642) but
    leaves pictures softer.
    """
    return Upscaler.usual() if upscaler is None else Upscaler.load(upscaler)


def check_device(device: str | torch.device) -> torch.device:
    """Return the torch device; raises DeviceError if it is unknown or not available here."""
    try:
        checked = torch.device(device)
    except RuntimeError:
        raise DeviceNameError(f"device is {device!r:.80}; there is none of that name. Try cpu.") from None
    try:
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        text = f"device is {device}; it is not available here: this machine has none, or torch is built without it"
        raise DeviceError(f"{text} ({reason(error).partition('. ')[0]}). Try cpu.") from None
    if checked.type == "meta":
        raise DeviceNameError("device is meta; it holds no data. Try cpu.")
    return checked


def check_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the torch dtype, chosen for the device if None; raises DeviceError if it is not one of three."""
    if dtype is None:
        half = torch.bfloat16 if has_bfloat16(device) else torch.float16
        return torch.float32 if device.type == "cpu" else half
    checked = DTYPES.get(str(dtype).removeprefix("torch."))
    if checked is None:
        raise DeviceNameError(f"dtype is {str(dtype)!r}; it must be one of {', '.join(DTYPES)}.")
    if checked == torch.bfloat16 and device.type in ("cuda", "mps") and not has_bfloat16(device):
        warn(f"{device} does not compute in bfloat16 itself, so that it is slow. Try float16.", MrFlowWarning)
    return checked


def check_source(source: str | Path, base: str | Path | None = None) -> str:
    """Return the folder or hub id; raises ModelError for what can be neither, or a folder without an index.

    And for a base beside one that is good.
    """
    found = _find_source(source)
    _refuse_base(base)
    return found


def _refuse_base(base: str | Path | None) -> None:
    """Raise ModelNameError for a base beside a model that needs none."""
    if base is not None:
        raise ModelNameError(f"base is {base}; it goes with a {' or '.join(FILES)} file alone. Leave it out.")


def _find_source(source: str | Path) -> str:
    path, name = Path(source), str(source)
    if name.strip() and os.path.isdir(path):  # os.path, for it takes any text, however long
        if not os.path.lexists(path / INDEX) and os.access(path, os.X_OK):
            raise ModelError(
                f"The folder {path} holds no model_index.json; it must be in diffusers' layout. {MODULAR}"
            )
        read_index(path)
        return str(path.resolve())
    name = name if isinstance(source, Path) else full_name(name)
    if is_file(name):
        raise ModelNameError(
            f"{name} is a single file, which has no configuration. Give a folder, a name or an id."
        )
    if name.strip() and os.path.isfile(path):
        raise ModelNameError(
            f"{name} ends in {path.suffix[:20]!r}; a single file must be one of {', '.join(FILES)}. Others can "
            "run code when they are read: take one of these, or convert it."
        )
    if re.fullmatch(r"(stabilityai/)?(stable-diffusion-xl-|sdxl)[\w.-]*", name, flags=re.ASCII | re.IGNORECASE):
        get_backbone("StableDiffusionXLPipeline")  # which says so
    if name in vista.DEFAULTS:
        raise ModelNameError(f"{name} is in this package, whole; no file goes with it. Give another model.")
    if isinstance(source, Path) or not HUB_ID.fullmatch(name):
        raise ModelNameError(
            f"There is no model {name[:200]!r}.{meant(name)} Give 'vista', a name that mrflow models lists, an "
            f"existing folder in diffusers' layout, a {' or '.join(FILES)} file, a name in a folder of models "
            "(--models-dir), or a Hugging Face id such as 'black-forest-labs/FLUX.1-dev'."
        )
    return name


def _fetch(path: str, kwargs: Mapping[str, Any], file: Path | None) -> tuple[str, dict[str, str]]:
    """Return the folder of a model, fetched where it is not here, and the parts that a file has, which are not."""
    from diffusers import DiffusionPipeline, ModelMixin

    hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
    with _explained(path, file):
        config = DiffusionPipeline.load_config(path, **hub)
        get_backbone(str(config.get("_class_name")))  # before gigabytes are read in vain
        parts = parts_for(file, config, kwargs)
        given, folder = {*kwargs, *parts}, path
        if not os.path.isdir(path):
            folder = str(DiffusionPipeline.download(path, **kwargs, **dict.fromkeys(parts)))
            for part in parts:
                ModelMixin.load_config(path, subfolder=part, **hub)
        check_folder(Path(folder), given, kwargs.get("variant"))
        return folder, parts


def _load_pipeline(name: str, folder: str, dtype: torch.dtype, kwargs: Mapping[str, Any]) -> Pipeline:
    from diffusers import DiffusionPipeline

    with _explained(name), libraries_silent(logs="quantization_config" in kwargs):
        return DiffusionPipeline.from_pretrained(folder, dtype=dtype, **kwargs)


@contextmanager
def _explained(path: str, file: Path | None = None) -> Iterator[None]:
    try:
        yield
    except MrFlowError:
        raise
    except Exception as error:  # damaged files raise many kinds, safetensors' own among them
        known = explain(path, error, parts_beside(path, file))
        kind = ModelNameError if known.startswith("There is no") else ModelError
        raise kind(known or f"The model {path} cannot be loaded: {reason(error)}") from error
