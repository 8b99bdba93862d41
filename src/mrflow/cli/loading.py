"""Loading the model that the options name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrflow import vista
from mrflow.cli.reporting import say, stderr_console
from mrflow.errors import ModelError

if TYPE_CHECKING:
    from mrflow import MrFlow


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The options that choose a model; None where a default is to be found.

    recorded: a picture names the model, not the user. Pictures come from anywhere: on their word nothing is
    downloaded, only what is on this machine already is loaded.
    """

    model: str = "vista"
    recorded: bool = False
    upscaler: str | None = None
    device: str | None = None
    dtype: str | None = None

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
                    "trust it, give it as --model."
                ) from error


def _loading(name: str) -> AbstractContextManager[Any]:
    """Say what is loaded: by a spinner, but by a line where the hub's own download bars may follow."""
    if "/" in name and not Path(name).is_dir():
        say(f"loading {name}")
        return nullcontext()
    return stderr_console().status(f"loading {name}")


def best_device() -> str:
    """Return "cuda" where there is one, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
