"""The options that choose a model, and loading it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mrflow import vista
from mrflow.cli.options import MODEL
from mrflow.cli.reporting import say, stderr_console
from mrflow.errors import ModelError, ModelNameError, RequestError
from mrflow.folders import find_model, is_readable, models_in
from mrflow.hub import has_revision
from mrflow.jobs import parse_bytes
from mrflow.known_models import HUB_ID, full_name, is_file, meant
from mrflow.known_upscalers import KNOWN, METHODS
from mrflow.recipe import Recipe

if TYPE_CHECKING:
    from mrflow import MrFlow

_Model = Annotated[
    str,
    Parameter(
        alias="-m", help="vista, a name that mrflow models lists, a folder, a Hugging Face id, or a single file."
    ),
]
Base = Annotated[
    str | None,
    Parameter(
        metavar="MODEL",
        show_default="known by its weights",
        help="Of a .safetensors or .gguf file: the model that has the rest, named as --model.",
    ),
]
_Upscaler = Annotated[
    str | None,
    Parameter(
        metavar="FILE",
        help="A super-resolution file (.safetensors, .pth), a known name (mrflow models), bicubic, bilinear or "
        "lanczos.",
        show_default="the model's own, else Real-ESRGAN",
    ),
]
DEVICE = "cuda or mps where there is one, else cpu"
_Device = Annotated[str | None, Parameter(help="cpu, cuda, cuda:1, mps.", show_default=DEVICE)]
_Quantize = Annotated[
    str | None,
    Parameter(
        help="int8, fp8 (half the memory) or nf4 (a quarter, CUDA alone), of the transformer and large text "
        "encoders.",
        show_default="none",
    ),
]
_Offload = Annotated[
    str | None,
    Parameter(
        help="Move weights to the GPU as they are needed: none, model, group, sequential, or auto, the first of "
        "these that fits.",
        show_default="auto",
    ),
]
_Dtype = Annotated[
    str | None, Parameter(help="float32, bfloat16 or float16.", show_default="float32 on a CPU, else bfloat16")
]
_Memory = Annotated[
    str | None,
    Parameter(
        metavar="SIZE",
        show_default="no bound",
        help="Memory for the work, such as 24GB: larger pictures are made in tiles, on a GPU weights are "
        "offloaded where they must be.",
    ),
]
_Lora = Annotated[
    tuple[str, ...],
    Parameter(
        name="--lora",
        metavar="LORA",
        show_default="none",
        help="A .safetensors file, a name in --loras-dir or a Hugging Face id, perhaps with :WEIGHT; repeatable.",
    ),
]
_LorasDir = Annotated[
    tuple[Path, ...],
    Parameter(
        name="--loras-dir",
        metavar="DIR",
        show_default=False,
        help="LoRAs that may be named by --lora, by rows and requests, and by a picture's recipe.",
    ),
]
ModelsDir = Annotated[
    tuple[Path, ...],
    Parameter(
        name="--models-dir",
        metavar="DIR",
        show_default=False,
        help="Where to look for local models and single files by name, or as a recipe names them; several times.",
    ),
]
RECORDED = Parameter(show_default="the recipe's")
_NO_OPTION = Parameter(parse=False)


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options that choose a model; None where a default is to be found.

    recorded: a picture names the model, not the user. Pictures come from anywhere: on their word nothing is
    downloaded, only what is on this machine already is loaded. revision: the recorded one, where it is here.
    width, height: of the pictures, for --offload auto.
    """

    model: _Model = "vista"
    base: Base = None
    models_dir: ModelsDir = ()
    upscaler: _Upscaler = None
    device: _Device = None
    dtype: _Dtype = None
    quantize: _Quantize = None
    offload: _Offload = None
    max_memory: _Memory = None
    lora: _Lora = ()
    loras_dir: _LorasDir = ()
    recorded: Annotated[bool, _NO_OPTION] = False
    revision: Annotated[str | None, _NO_OPTION] = None
    width: Annotated[int | None, _NO_OPTION] = None
    height: Annotated[int | None, _NO_OPTION] = None

    def load(self) -> MrFlow:
        """Return the model, ready to run. Raises ModelError, UpscalerError or DeviceError.

        Unlike in Python, where None is the CPU, a GPU is used where there is one: whoever types a command wants
        the picture, and can say --device cpu.
        """
        self.check_loras()
        allowed = parse_bytes(self.max_memory, "--max-memory")
        if self.model in vista.DEFAULTS:  # found missing before torch is imported, which takes seconds
            vista.folder(self.model)
            vista.upscaler()
        source = self.model if self.recorded else find_local(self.model, self.models_dir)
        base = self.base if self.base is None else find_local(self.base, self.models_dir)
        if base is None and is_file(source):
            from mrflow.single_files import describe, find_base

            base = find_base(Path(source))
            say(describe(Path(source), base, found=True))
        with _loading(base if base and is_file(source) else source):
            from mrflow import MrFlow

            names = ("upscaler", "dtype", "quantize", "offload", "width", "height")
            told: dict[str, Any] = {name: getattr(self, name) for name in names}
            told |= {"base": base, "device": _first(self.device, best_device()), "max_memory": allowed}
            told |= {"local_files_only": True} if self.recorded else {}
            told |= {"revision": self.revision} if self.revision else {}
            try:
                fast = MrFlow.from_pretrained(source, **told)
            except ModelError as error:
                if not self.recorded or os.path.exists(source):
                    raise
                other = find_model(source, None, self.models_dir)
                seen = f" {other} has that name, and other weights." if other else ""
                raise type(error)(
                    f"{error}{seen} It stands in the picture, and nothing is downloaded on a picture's word: if "
                    "you trust it, give it as --model. Or say with --models-dir where models are kept."
                ) from error
            if self.lora or self.loras_dir:
                fast.load_loras(*self.lora, folders=self.loras_dir)
            return fast

    def check_loras(self, recipes: Sequence[Recipe] = ()) -> None:
        """Raise LoraError, before gigabytes are read, for LoRAs that are not here, those of recipes among them."""
        wanted = [lora for recipe in recipes for lora in recipe.loras]
        if self.lora or self.loras_dir or wanted:
            from mrflow.loras import find_loras

            hint = " Give its file (--lora) or its folder (--loras-dir)."
            find_loras(self.lora, self.loras_dir).resolve(wanted, hint)


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class DraftModel(ModelOptions):
    """The same without an upscaler: drafting needs none, and bicubic keeps the model from asking for a network."""

    upscaler: Annotated[str | None, _NO_OPTION] = "bicubic"


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class TunedModel(ModelOptions):
    """The same where a bound of memory is a target to be measured."""

    max_memory: Annotated[str | None, _NO_OPTION] = None


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class RecordedModel(ModelOptions):
    """The same for drafts; no name means that their recipes have it."""

    model: Annotated[_Model, RECORDED] = ""

    def named(self, recipe: Recipe) -> ModelOptions:
        """Return these options with the recorded model, unless one was given."""
        if self.model:
            return self
        found = find_local(recipe.model, self.models_dir, recipe.revision)
        cached = found == recipe.model and has_revision(recipe.model, recipe.revision)
        return replace(self, model=found, recorded=True, revision=recipe.revision if cached else None)


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class ReplayModel(RecordedModel):
    """The same for making a picture again: what is not given is as its recipe has it."""

    upscaler: Annotated[_Upscaler, RECORDED] = None
    device: Annotated[_Device, RECORDED] = None
    dtype: Annotated[_Dtype, RECORDED] = None
    quantize: Annotated[_Quantize, RECORDED] = None

    def of(self, recipe: Recipe) -> ModelOptions:
        """Return what the picture is made with; raises RequestError for an upscaler that cannot be found."""
        from mrflow.offloading import quantized_as

        return replace(
            self.named(recipe),
            quantize=_first(self.quantize, quantized_as(recipe.conditions.get("weights", "").split(", "))),
            upscaler=_recorded_upscaler(recipe) if self.upscaler is None else self.upscaler,
            device=_first(self.device, recipe.device),
            dtype=_first(self.dtype, recipe.dtype),
            width=recipe.width,
            height=recipe.height,
        )


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class ServedModel(ModelOptions):
    """The model, on each of several devices.

    Args:
        devices: cpu, cuda, cuda:1, mps; several times for several workers.
        alias: A further name for the model in requests, such as gpt-image-1; several times for several.
    """

    device: Annotated[str | None, _NO_OPTION] = None
    devices: Annotated[
        tuple[str, ...],
        Parameter(name="--device", metavar="DEVICE", show_default=DEVICE),
    ] = ()
    alias: Annotated[tuple[str, ...], Parameter(metavar="NAME", show_default=False)] = ()


def find_local(name: str, folders: Sequence[Path], revision: str | None = None) -> str:
    """Return the folder or file of that name in one of these folders, else the name.

    Raises ModelNameError for a folder that there is not or that cannot be read.
    """
    if name in vista.DEFAULTS or (revision is None and os.path.exists(name)):
        return name
    for folder in folders:
        if not is_readable(folder):
            where = "--models-dir or MRFLOW_MODELS_DIR"
            raise ModelNameError(f"There is no folder {folder} of models ({where}) that can be read. Give one.")
    found = find_model(name, revision, folders)
    here = [] if found or revision or HUB_ID.fullmatch(full_name(name)) else models_in(folders)
    if hint := meant(name, [path.stem if path.is_file() else path.name for path in here]):
        raise ModelNameError(f"There is no model {name[:200]!r} in the folders of --models-dir.{hint}")
    return found or name


def _recorded_upscaler(recipe: Recipe) -> str | None:
    if recipe.upscaler is None or recipe.upscaler in (*METHODS, *KNOWN):
        return recipe.upscaler or "bicubic"  # drafts and native pictures are not upscaled: any will do
    if recipe.model in vista.DEFAULTS:
        return None  # its own
    raise RequestError(f"The picture was upscaled with {recipe.upscaler}. Give that file as --upscaler.")


def _loading(name: str) -> AbstractContextManager[Any]:
    """Say what is loaded: by a spinner, but by a line where the hub's own download bars may follow."""
    if HUB_ID.fullmatch(full := full_name(name)) and not Path(name).exists():
        say(f"loading {full}")
        return nullcontext()
    return stderr_console().status(f"loading {name}")


def _first(given: str | None, usual: str | None) -> str | None:
    return usual if given is None else given


def best_device() -> str:
    """Return "cuda" or, on Apple's, "mps" where there is one, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
