"""Finding a model by name: vista, a folder or a Hugging Face id, its device, dtype and upscaler."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mrflow import vista
from mrflow.backbones import get_backbone
from mrflow.backbones.checkpoints import checkpoint_defaults
from mrflow.backbones.family import Pipeline
from mrflow.errors import DeviceError, ModelError, MrFlowError, UpscalerWarning
from mrflow.model import Model
from mrflow.plan import Defaults
from mrflow.upscaler import Upscaler

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    source: str | Path,
    *,
    upscaler: Upscaler | str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **kwargs: Any,
) -> Model:
    """Return the pipeline named "vista", or from a folder in diffusers' layout, or by a hub id "owner/name".

    upscaler: see Upscaler.load; None is the model's own, if it has one. device: None is the CPU. dtype: None
    is float32 on the CPU, where half precision is emulated and many times slower, else bfloat16.
    kwargs: for DiffusionPipeline.from_pretrained, such as revision or variant.
    Raises ModelError, UpscalerError or DeviceError, the cheap checks before any weights are read.
    """
    place = check_device(device or "cpu")
    precision = check_dtype(kwargs.pop("torch_dtype", None) if dtype is None else dtype, place)
    name = str(source)
    revision: str | None
    if name == "vista":
        path, revision = str(vista.folder()), vista.revision()
        upscaler = upscaler or vista.upscaler()
    else:
        path, revision = _check_source(source), kwargs.get("revision")
    network = choose_upscaler(upscaler)
    pipe = _load_pipeline(path, precision, kwargs)
    if device is not None:  # else where diffusers put it: the CPU, or as a device_map says
        pipe.to(place)
    if name == "vista":  # its convolutions are narrow: on a CPU they run up to twice as fast in this layout
        pipe.vae.to(memory_format=torch.channels_last)
    defaults = vista.DEFAULTS if name == "vista" else checkpoint_defaults(pipe, name)
    backbone = get_backbone(type(pipe).__name__)
    return Model(pipe=pipe, backbone=backbone, upscaler=network, defaults=defaults, name=name, revision=revision)


def wrap_pipeline(
    pipe: Pipeline, upscaler: Upscaler | str | Path | None = None, defaults: Defaults | None = None
) -> Model:
    """Return the model around a pipeline that the caller has loaded; nothing is moved or changed.

    defaults: None is those of the checkpoint, as far as the pipeline says which it is.
    Raises UnsupportedPipelineError for a family without a backbone, UpscalerError as Upscaler.load does.
    """
    name = str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)
    return Model(
        pipe=pipe,
        backbone=get_backbone(type(pipe).__name__),
        upscaler=choose_upscaler(upscaler),
        defaults=defaults or checkpoint_defaults(pipe, name),
        name=name,
    )


def choose_upscaler(upscaler: Upscaler | str | Path | None) -> Upscaler:
    """Return the upscaler, or for None the bicubic baseline with an UpscalerWarning.

    No network is bundled for models at large. Interpolation scores alike on GenEval (.87 against .86 for
    Real-ESRGAN, Qwen-Image, arXiv 2607.01642) but leaves pictures softer.
    """
    if upscaler is None:
        warnings.warn(
            "No upscaler is given: bicubic stands in and pictures come out softer. Pass upscaler='realesrgan-x2', "
            "which is fetched once, or the path of a file; or 'bicubic' to be content with it.",
            UpscalerWarning,
            stacklevel=4,
        )
        upscaler = "bicubic"
    return Upscaler.load(upscaler)


def check_device(device: str | torch.device) -> torch.device:
    """Return the torch device; raises DeviceError if it is unknown or not available here."""
    try:
        checked = torch.device(device)
        torch.empty(0, device=checked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"device is {device}; it is not available here ({reason}). Try cpu.") from None
    if checked.type == "meta":
        raise DeviceError("device is meta; it holds no data. Try cpu.")
    return checked


def check_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the torch dtype, chosen for the device if None; raises DeviceError if it is not one of three."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    checked = DTYPES.get(str(dtype).removeprefix("torch."))
    if checked is None:
        raise DeviceError(f"dtype is {dtype}; it must be one of {', '.join(DTYPES)}.")
    return checked


def _check_source(source: str | Path) -> str:
    """Return the folder or hub id; raises ModelError for what can be neither."""
    path, name = Path(source), str(source)
    if name.strip() and os.path.isdir(path):  # os.path, for it takes any text, however long
        if not (path / "model_index.json").is_file():
            raise ModelError(f"The folder {path} holds no model_index.json; it must be in diffusers' layout.")
        return str(path.resolve())
    if isinstance(source, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name, flags=re.ASCII):
        raise ModelError(
            f"There is no model {name[:200]!r}. Give 'vista', an existing folder in diffusers' layout, "
            "or a Hugging Face id such as 'black-forest-labs/FLUX.1-dev'."
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
