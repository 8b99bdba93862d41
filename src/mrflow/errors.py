"""The exception tree: everything mrflow raises on purpose, and the warnings it gives.

Each class is also the built-in that fits, so `except ValueError` keeps working for callers who do not know
mrflow. A message gives the value, the rule and the way out.
"""

from __future__ import annotations

import sys
import warnings


class MrFlowError(Exception):
    """The root of all errors that mrflow raises."""


class RequestError(MrFlowError, ValueError):
    """What was asked for cannot be done as asked: a seed, a count, a combination."""


class PlanError(RequestError):
    """A plan's numbers are out of range, or a preset is unknown."""


class SizeError(RequestError):
    """A picture size does not fit the model or the plan."""


class PromptError(RequestError):
    """A prompt is empty, of the wrong type or far too long."""


class ImageError(MrFlowError, ValueError):
    """An image cannot be read: not an image, broken, too large, of the wrong kind."""


class MissingImageError(ImageError, RequestError):
    """There is no such image file."""


class RecipeError(MrFlowError, ValueError):
    """A recipe is missing, malformed or written by a later version."""


class OutputError(MrFlowError, OSError):
    """A file cannot be written."""


class FileNameError(OutputError, RequestError):
    """A name that no picture can have: of another kind of file, too long."""


class OutputExistsError(OutputError, FileExistsError):
    """A file is there already and is not overwritten unless asked."""


class ModelError(MrFlowError, RuntimeError):
    """A model cannot be found or loaded."""


class ModelNameError(ModelError, RequestError):
    """A name that stands for no model: neither vista nor a folder nor a hub id."""


class UnsupportedPipelineError(ModelError):
    """No backbone is registered for this pipeline class."""


class UpscalerError(ModelError):
    """An upscaler is unknown, is no upscaler, or holds more than weights."""


class UpscalerNameError(UpscalerError, RequestError):
    """A name that stands for no upscaler: neither a known one nor a file of weights."""


class LoraError(ModelError):
    """A LoRA cannot be read, or does not fit the model."""


class LoraNameError(LoraError, RequestError):
    """A name that stands for no LoRA here."""


class DeviceError(MrFlowError, RuntimeError):
    """A device or dtype is unknown or not available here."""


class DeviceNameError(DeviceError, RequestError):
    """A name that stands for no device, or for no dtype that a model can have."""


class BusyError(MrFlowError, RuntimeError):
    """The pipeline is in the middle of another call."""


class StoppedError(MrFlowError, RuntimeError):
    """The pipeline's own stop signal ended a call before its picture was finished."""


class NonFiniteError(MrFlowError, ArithmeticError):
    """A network gave values that are no numbers, of which no picture can be made."""


class ClusterError(MrFlowError, RuntimeError):
    """Ray can't be reached or started, or its workers can't."""


class BatchError(MrFlowError, RuntimeError):
    """A batch stopped before its end, for a reason that is not one row's."""


def install_command(extra: str) -> str:
    """Return what installs an extra from a clone, quoted for every shell."""
    return f'pip install ".[{extra}]"'


class MissingExtraError(MrFlowError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the missing `package` and the install command of the `extra` that brings it."""
        super().__init__(f"{package} is not installed. In a clone of mrflow: {install_command(extra)}")


class MrFlowWarning(UserWarning):
    """The root of all warnings that mrflow gives."""


class PromptWarning(MrFlowWarning):
    """Part of a prompt is cut off, or holds words that the model does not know."""


def reason(error: BaseException) -> str:
    """Return the first line of somebody else's error, of a heading with the next, or its kind without any."""
    return (str(error).strip().replace(":\n\t", ": ") or type(error).__name__).splitlines()[0][:300]


def warn(text: str, category: type[MrFlowWarning]) -> None:
    """Warn at the line that called mrflow, however deep within it this is."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] == "mrflow":
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)
