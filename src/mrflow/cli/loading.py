"""The options that choose a model, and loading it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mrflow import vista
from mrflow.cli.options import MODEL
from mrflow.cli.reporting import say, stderr_console
from mrflow.errors import ModelError, RequestError
from mrflow.known_models import full_name
from mrflow.known_upscalers import KNOWN, METHODS
from mrflow.recipe import Recipe

if TYPE_CHECKING:
    from mrflow import MrFlow

_Model = Annotated[
    str, Parameter(alias="-m", help="vista, a name that mrflow models lists, a folder or a Hugging Face id.")
]
_Upscaler = Annotated[
    str | None,
    Parameter(
        metavar="FILE",
        help="A super-resolution file (.safetensors, .pth), a known name (mrflow models), bicubic, bilinear or "
        "lanczos.",
        show_default="the model's own, else bicubic",
    ),
]
_Device = Annotated[
    str | None, Parameter(help="cpu, cuda, cuda:1, mps.", show_default="cuda where there is one, else cpu")
]
_Dtype = Annotated[
    str | None, Parameter(help="float32, bfloat16 or float16.", show_default="float32 on a CPU, else bfloat16")
]
RECORDED = Parameter(show_default="the recipe's")
_NO_OPTION = Parameter(parse=False)


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options that choose a model; None where a default is to be found.

    recorded: a picture names the model, not the user. Pictures come from anywhere: on their word nothing is
    downloaded, only what is on this machine already is loaded.
    """

    model: _Model = "vista"
    upscaler: _Upscaler = None
    device: _Device = None
    dtype: _Dtype = None
    recorded: Annotated[bool, _NO_OPTION] = False

    def load(self) -> MrFlow:
        """Return the model, ready to run. Raises ModelError, UpscalerError or DeviceError.

        Unlike in Python, where None is the CPU, a CUDA device is used where there is one: whoever types a
        command wants the picture, and can say --device cpu.
        """
        if self.model == "vista":  # found missing before torch is imported, which takes seconds
            vista.folder()
            vista.upscaler()
        with _loading(self.model):
            from mrflow import MrFlow

            local: dict[str, Any] = {"local_files_only": True} if self.recorded else {}
            device = self.device or best_device()
            try:
                return MrFlow.from_pretrained(
                    self.model, upscaler=self.upscaler, device=device, dtype=self.dtype, **local
                )
            except ModelError as error:
                if not self.recorded:
                    raise
                raise ModelError(
                    f"{error} It stands in the picture, and nothing is downloaded on a picture's word: if you "
                    "trust it, give it as --model. Or say with --models-dir where models are kept."
                ) from error


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class DraftModel(ModelOptions):
    """The same without an upscaler: drafting needs none, and bicubic keeps the model from asking for a network."""

    upscaler: Annotated[str | None, _NO_OPTION] = "bicubic"


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class RecordedModel(ModelOptions):
    """The same for drafts; no name means that their recipes have it."""

    model: Annotated[_Model, RECORDED] = ""
    models_dir: Annotated[
        tuple[Path, ...],
        Parameter(
            name="--models-dir",
            metavar="DIR",
            env_var="MRFLOW_MODELS_DIR",
            show_default=False,
            help="Where to look for a local model by the name and hash in the recipe; several times for several.",
        ),
    ] = ()

    def named(self, recipe: Recipe) -> ModelOptions:
        """Return these options with the recorded model, unless one was given."""
        if self.model:
            return self
        from mrflow.loading import find_model

        found = find_model(recipe.model, recipe.revision, self.models_dir) if self.models_dir else None
        return replace(self, model=found or recipe.model, recorded=True)


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class ReplayModel(RecordedModel):
    """The same for making a picture again: what is not given is as its recipe has it."""

    upscaler: Annotated[_Upscaler, RECORDED] = None
    device: Annotated[_Device, RECORDED] = None
    dtype: Annotated[_Dtype, RECORDED] = None

    def of(self, recipe: Recipe) -> ModelOptions:
        """Return what the picture is made with; raises RequestError for an upscaler that cannot be found."""
        return replace(
            self.named(recipe),
            upscaler=_recorded_upscaler(recipe) if self.upscaler is None else self.upscaler,
            device=self.device or recipe.device,
            dtype=self.dtype or recipe.dtype,
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
        Parameter(name="--device", metavar="DEVICE", show_default="cuda where there is one, else cpu"),
    ] = ()
    alias: Annotated[tuple[str, ...], Parameter(metavar="NAME", show_default=False)] = ()


def _recorded_upscaler(recipe: Recipe) -> str | None:
    if recipe.upscaler is None or recipe.upscaler in (*METHODS, *KNOWN):
        return recipe.upscaler or "bicubic"  # drafts and native pictures are not upscaled: any will do
    if recipe.model == "vista":
        return None  # its own
    raise RequestError(f"The picture was upscaled with {recipe.upscaler}. Give that file as --upscaler.")


def _loading(name: str) -> AbstractContextManager[Any]:
    """Say what is loaded: by a spinner, but by a line where the hub's own download bars may follow."""
    if "/" in (full := full_name(name)) and not Path(name).is_dir():
        say(f"loading {full}")
        return nullcontext()
    return stderr_console().status(f"loading {name}")


def best_device() -> str:
    """Return "cuda" where there is one, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
