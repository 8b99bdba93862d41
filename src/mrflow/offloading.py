"""How a model is held where memory is scarce: quantised, offloaded, its autoencoder tiled; chosen by arithmetic.

Quantising belongs to torchao and bitsandbytes, moving weights to diffusers and accelerate, arithmetic to
`mrflow.costs`. A way is chosen for one picture at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mrflow.backbones.family import Pipeline
from mrflow.errors import DeviceError, DeviceNameError, MissingExtraError, reason
from mrflow.single_files import is_gguf

if TYPE_CHECKING:
    from mrflow.costs import Estimate

QUANTIZATIONS = {"int8": "8-bit", "fp8": "8-bit", "nf4": "4-bit"}
"""Names of known_models.BITS by those of ways to quantise."""
OFFLOADS = {"none": "whole", "model": "with model offload", "group": "with group offload"}
AUTO, SEQUENTIAL = "auto", "sequential"
_WEIGHTS = {"Int8Tensor": "int8", "Float8Tensor": "fp8", "Params4bit": "nf4"}  # as recipes have them
_ROOM = 0.95  # of what is free: allocators lose some between their blocks; recorded peaks were up to 7% above ours


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A way to hold a model. bytes: on the device, at most; it has `free`. waiting: of weights that come from the
    machine's memory, which has `room`. instead: what would be faster, or fit if this does not; "" for nothing.
    """

    offload: str
    tiled: bool
    bytes: int
    free: int
    waiting: int = 0
    room: int = 0
    instead: str = ""

    @property
    def fits(self) -> bool:
        """Whether the device has room for it."""
        return self.bytes <= _ROOM * self.free

    @property
    def waits(self) -> bool:
        """Whether the machine's memory has room for the weights that wait in it."""
        return self.waiting <= _ROOM * self.room

    @property
    def works(self) -> bool:
        """Whether both have."""
        return self.fits and self.waits

    @property
    def fastest(self) -> bool:
        """Whether nothing is moved and nothing cut."""
        return self.offload == "none" and not self.tiled

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """Of ways, lower for those that work and then for the faster."""
        return not self.works, [*OFFLOADS, SEQUENTIAL].index(self.offload), self.tiled

    def __str__(self) -> str:
        tiles = ", its autoencoder in tiles" if self.tiled else ""
        how = OFFLOADS.get(self.offload, f"with {self.offload} offload")
        return f"{how}{tiles}: {self.bytes / 1e9:.1f} GB of {self.free / 1e9:.1f} GB free"

    @property
    def ram(self) -> str:
        """What waits where, as a sentence."""
        return f"{self.waiting / 1e9:.1f} GB of weights wait in RAM; {self.room / 1e9:.1f} GB are available"


def check_quantize(kind: str | None, device: torch.device, file: Path | None = None) -> str | None:
    """Return a way to quantise, None for "none". file: a single one, which has weights that are to be quantised.

    Raises DeviceError for one that there is not, or not on this device; MissingExtraError.
    """
    if kind in (None, "none"):
        return None
    if kind not in QUANTIZATIONS:
        raise DeviceNameError(f"quantize is {kind!r:.80}; it must be one of none, {', '.join(QUANTIZATIONS)}.")
    if (kind == "nf4" and device.type != "cuda") or (kind == "fp8" and device.type == "mps"):
        raise DeviceNameError(f"quantize is {kind}, which {device} cannot do. Try int8.")
    if kind == "nf4" and not _takes_nf4(device, file):
        raise DeviceNameError("quantize is nf4, which takes no .safetensors file. Take int8, or a .gguf file.")
    package = "bitsandbytes" if kind == "nf4" else "torchao"
    if find_spec(package) is None:
        raise MissingExtraError(package, "quantization")
    return kind


def _takes_nf4(device: torch.device, file: Path | None) -> bool:
    return device.type == "cuda" and (file is None or is_gguf(file))


def check_offload(offload: str, device: torch.device, quantize: str | None = None) -> None:
    """Raise DeviceNameError for a way to offload that there is not, or not on this device or quantised so."""
    known = (*OFFLOADS, SEQUENTIAL, AUTO)
    if offload not in known:
        raise DeviceNameError(f"offload is {offload!r:.80}; it must be one of {', '.join(known)}.")
    if offload not in ("none", AUTO) and device.type in ("cpu", "mps"):
        raise DeviceNameError(f"offload is {offload}; {device} has the machine's own memory. Try none.")
    if (offload == SEQUENTIAL and quantize) or (offload == "group" and quantize == "nf4"):
        raise DeviceNameError(f"offload is {offload}, which moves no weights in {quantize}. Try model.")


def quantization(kind: str, parts: Iterable[str], dtype: torch.dtype) -> Any:
    """Return diffusers' PipelineQuantizationConfig of these networks; dtype: what they compute in."""
    import diffusers
    import transformers

    if kind == "nf4":
        told: dict[str, Any] = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
        }
        name = "BitsAndBytesConfig"
    else:
        from torchao import quantization as torchao

        int8 = kind == "int8"  # its version 1 is what torchao 0.17 still has by default, and says that it goes
        config = torchao.Int8WeightOnlyConfig(version=2) if int8 else torchao.Float8WeightOnlyConfig()
        told = {"quant_type": config}
        name = "TorchAoConfig"
    mapping = {}
    for part in parts:
        library = transformers if part.startswith("text_encoder") else diffusers
        mapping[part] = getattr(library, name)(**told)
    return diffusers.PipelineQuantizationConfig(quant_mapping=mapping)


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device; a Mac's GPU has the machine's own."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def choose(
    costs: Estimate,
    device: torch.device,
    quantize: str | None = None,
    allowed: int | None = None,
    offload: str = AUTO,
    file: Path | None = None,
) -> Holding:
    """Return the first way that fits: whole, model offload, group offload, each at need with tiles; else the last.

    costs: of which the first plan counts. allowed: bytes of what is free; None is all. offload: one way alone.
    file: the single one of which the model is, if it is.
    """
    free = min(free_memory(device), allowed or 2**60)
    found = _first(costs, device, quantize, free, OFFLOADS if offload == AUTO else [offload])
    best, instead = found, list[str]()
    for kind in ("none", "int8", *(["nf4"] if _takes_nf4(device, file) else [])):
        way = _first(costs, device, None if kind == "none" else kind, free, OFFLOADS)
        if way.works and way.rank < best.rank and (quantize is None or not found.works):
            best = way
            instead.append(f"quantize {kind}, {way}")
    if instead:
        return replace(found, instead=f"{'faster' if found.works else 'these fit'}: {'; '.join(instead)}")
    return found if found.works else replace(found, instead="a .gguf file, a smaller size or model may fit")


def _first(
    costs: Estimate, device: torch.device, quantize: str | None, free: int, offloads: Iterable[str]
) -> Holding:
    """Return the first of these ways that fits on the device, else the last."""
    held, room = QUANTIZATIONS[quantize] if quantize else "whole", free_memory(torch.device("cpu"))
    for offload in offloads:
        try:
            check_offload(offload, device, quantize)
        except DeviceNameError:
            continue
        waiting = 0 if offload == "none" else sum(costs.weights(part, held) for part in costs.parameters)
        for tiled in (False,) if device.type in ("cpu", "mps") else (False, True):  # as loading has it
            needed = costs.memory(costs.ways[1], held, offload=offload, tiled=tiled, device=device.type)
            size: dict[str, Any] = {"bytes": max(needed.values()), "free": free, "waiting": waiting, "room": room}
            way = Holding(offload=offload, tiled=tiled, **size)
            if way.fits:
                return way
    return way


def place(pipe: Pipeline, device: torch.device, offload: str = "none") -> None:
    """Put a pipeline on a device, or have its weights moved there as they are needed. Raises DeviceError."""
    try:
        if offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif offload == SEQUENTIAL:
            pipe.enable_sequential_cpu_offload(device=device)
        elif offload == "group":  # the next layer travels while one computes
            streams = device.type == "cuda"
            pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=streams)
        else:
            pipe.to(device)
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"The model does not fit on {device}. {next_choice(pipe, offload)}") from error
    except (ValueError, RuntimeError, NotImplementedError) as error:  # what a pipeline or its quantisation lacks
        text = f"{type(pipe).__name__} cannot be held so on {device} (offload {offload}): {reason(error)}"
        raise DeviceError(f"{text} Try another offload.") from error


def offloading(pipe: Pipeline) -> str:
    """Return how a pipeline's weights are moved, one of OFFLOADS or "sequential"."""
    hooks = [hook for part in pipe.components.values() if (hook := getattr(part, "_hf_hook", None))]
    if any(type(hook).__name__ == "CpuOffload" for hook in hooks):
        return "model"
    if pipe._maybe_raise_error_if_group_offload_active():
        return "group"
    return SEQUENTIAL if hooks else "none"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error says that the device's, or the machine's, memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def advise(pipe: Pipeline, error: BaseException) -> None:
    """Add what to try next to an error, if it says that memory ran out."""
    if is_out_of_memory(error):
        error.add_note(next_choice(pipe))


def next_choice(pipe: Pipeline, offload: str | None = None) -> str:
    """Return what to try where memory has run out on a pipeline that is held as it is, or as `offload` says."""
    offload, ladder = offload or offloading(pipe), list(OFFLOADS)
    kinds = {type(each).__name__ for each in pipe.transformer.parameters()}
    tries = [] if kinds - {"Parameter"} else ["quantize int8"]
    if pipe._execution_device.type != "cpu" and offload in ladder[:-1]:
        unpacked = " without quantize" if offload == "model" and "Params4bit" in kinds else ""
        tries.insert(0, f"offload {ladder[ladder.index(offload) + 1]}{unpacked}")
    tries += ["tiles (tile=512)", "fewer pictures at once, a smaller size"]
    return f"The model is held {OFFLOADS.get(offload, offload)}. Next: {', '.join(tries)}."


def quantized_as(kinds: Iterable[str]) -> str | None:
    """Return how weights of these classes were quantised, one of QUANTIZATIONS, or None."""
    return next((_WEIGHTS[kind] for kind in kinds if kind in _WEIGHTS), None)
