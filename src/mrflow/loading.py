"""Finding a model by name: vista, a folder or a Hugging Face id, its device, dtype and upscaler."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    UpscalerWarning,
    warn,
)
from mrflow.known_models import full_name, meant
from mrflow.model import Model
from mrflow.plan import Defaults
from mrflow.upscaler import Upscaler, has_bfloat16

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_INDEX = "model_index.json"
_HASHED = (".json", ".txt", ".model", ".safetensors", ".bin")
_SAMPLE = 2**18  # bytes


def load_model(
    source: str | Path,
    *,
    upscaler: Upscaler | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **kwargs: Any,
) -> Model:
    """Return the pipeline named "vista", of a known name, a folder in diffusers' layout or a hub id "owner/name".

    upscaler: see Upscaler.load; None is the model's own, if it has one. device: None is the CPU. dtype: None
    is float32 on the CPU, where half precision is emulated and many times slower, else bfloat16, or float16 on
    GPUs that only emulate it (T4, V100, GTX 16).
    kwargs: for DiffusionPipeline.from_pretrained, such as revision or variant.
    Raises ModelError, UpscalerError or DeviceError, the cheap checks before any weights are read.
    """
    place = check_device(device or "cpu")
    precision = check_dtype(kwargs.pop("torch_dtype", None) if dtype is None else dtype, place)
    name, revision = str(source), kwargs.get("revision")
    if name == "vista":
        path, revision = str(vista.folder()), vista.revision()
        upscaler = upscaler or vista.upscaler()
    else:
        path = _check_source(source)
    network = choose_upscaler(upscaler)
    pipe = _load_pipeline(path, precision, kwargs)
    if device is not None:  # else where diffusers put it: the CPU, or as a device_map says
        pipe.to(place)
    if name == "vista":  # its convolutions are narrow: on a CPU they run up to twice as fast in this layout
        pipe.vae.to(memory_format=torch.channels_last)
    defaults = vista.DEFAULTS if name == "vista" else checkpoint_defaults(pipe, path)
    backbone = get_backbone(type(pipe).__name__)
    name, revision = (name, revision) if name == "vista" else identify(path, revision)
    model = Model(pipe=pipe, backbone=backbone, upscaler=network, defaults=defaults, name=name, revision=revision)
    model.check_parts()
    return model


def identify(source: str, revision: str | None = None) -> tuple[str, str | None]:
    """Return the name and revision that recipes hold of a model, which tell no path of this machine.

    Of a folder its own name and 12 digits of a hash: of its configuration, and of the sizes and samples of its
    weights. Of one in the hub's cache its id and commit, of anything else `source` and `revision`.
    """
    folder = Path(os.path.abspath(source)) if os.path.isdir(source) else None
    if folder is None:
        return source, revision
    if folder.parent.name == "snapshots":
        return folder.parents[1].name.removeprefix("models--").replace("--", "/"), folder.name
    digest = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.suffix in _HASHED):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()} {size} ".encode())
        with path.open("rb") as file:
            for begin in (0, size // 2, max(size - _SAMPLE, 0)):
                file.seek(begin)
                digest.update(file.read(_SAMPLE))
    return folder.name, digest.hexdigest()[:12]


def find_model(name: str, revision: str | None, folders: Iterable[Path]) -> str | None:
    """Return the model of that name and revision in one of the folders, up to two levels down; else None."""
    found = (path.parent for each in folders for depth in ("", "*/", "*/*/") for path in each.glob(depth + _INDEX))
    return next((str(each) for each in found if each.name == name and identify(str(each))[1] == revision), None)


def wrap_pipeline(
    pipe: Pipeline, upscaler: Upscaler | str | Path | None = None, defaults: Defaults | None = None
) -> Model:
    """Return the model around a pipeline that the caller has loaded; nothing is moved or changed.

    defaults: None is those of the checkpoint, as far as the pipeline says which it is.
    Raises UnsupportedPipelineError for a family without a backbone, UpscalerError as Upscaler.load does.
    """
    source = str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
    name, revision = identify(source)
    return Model(
        pipe=pipe,
        backbone=get_backbone(type(pipe).__name__),
        upscaler=choose_upscaler(upscaler),
        defaults=defaults or checkpoint_defaults(pipe, source),
        name=name,
        revision=revision,
    )


def choose_upscaler(upscaler: Upscaler | str | Path | None) -> Upscaler:
    """Return the upscaler, or for None the bicubic baseline with an UpscalerWarning.

    No network is bundled for models at large. Interpolation scores alike on GenEval (.87 against .86 for
    Real-ESRGAN, Qwen-Image, arXiv 2607.01642) but leaves pictures softer.
    """
    if upscaler is None:
        text = (
            "No upscaler is given: bicubic stands in and pictures come out softer. Pass upscaler='realesrgan-x2', "
            "which is fetched once, or the path of a file; or 'bicubic' to be content with it."
        )
        warn(text, UpscalerWarning)
        upscaler = "bicubic"
    return Upscaler.load(upscaler)


def check_device(device: str | torch.device) -> torch.device:
    """Return the torch device; raises DeviceError if it is unknown or not available here."""
    try:
        checked = torch.device(device)
    except RuntimeError:
        raise DeviceNameError(f"device is {device!r:.80}; there is none of that name. Try cpu.") from None
    try:
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"device is {device}; it is not available here ({reason}). Try cpu.") from None
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
        raise DeviceNameError(f"dtype is {dtype}; it must be one of {', '.join(DTYPES)}.")
    return checked


def _check_source(source: str | Path) -> str:
    """Return the folder or hub id; raises ModelError for what can be neither."""
    path, name = Path(source), str(source)
    if name.strip() and os.path.isdir(path):  # os.path, for it takes any text, however long
        if not (path / _INDEX).is_file():
            raise ModelError(f"The folder {path} holds no model_index.json; it must be in diffusers' layout.")
        return str(path.resolve())
    name = name if isinstance(source, Path) else full_name(name)
    if name.strip() and os.path.isfile(path):
        raise ModelNameError(
            f"{name} is one file; a model here is a folder in diffusers' layout or a hub id. Load it in Python: "
            "MrFlow(FluxPipeline.from_single_file(...)), or its family's pipeline; a GGUF file or one of the "
            "transformer alone with FluxTransformer2DModel.from_single_file(...), given to from_pretrained."
        )
    if isinstance(source, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name, flags=re.ASCII):
        raise ModelNameError(
            f"There is no model {name[:200]!r}.{meant(name)} Give 'vista', a name that mrflow models lists, an "
            "existing folder in diffusers' layout, or a Hugging Face id such as 'black-forest-labs/FLUX.1-dev'."
        )
    return name


def _load_pipeline(path: str, dtype: torch.dtype, kwargs: dict[str, Any]) -> Pipeline:
    from diffusers import DiffusionPipeline

    hub = {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}
    try:
        config = DiffusionPipeline.load_config(path, **hub)
        get_backbone(str(config.get("_class_name")))  # before gigabytes are read in vain
        with _without_bars():
            return DiffusionPipeline.from_pretrained(path, dtype=dtype, **kwargs)
    except MrFlowError:
        raise
    except Exception as error:  # damaged files raise many kinds, safetensors' own among them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"The model {path} cannot be loaded: {reason}") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silence the libraries' bars over files on the disk meanwhile; the hub's over downloads stay."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
