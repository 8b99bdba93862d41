"""The peak of memory, so far or of one run, as honestly as each device allows, with the name of what was read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from mrflow.progress import Progress

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes so far: on CUDA what torch allocated there, else the process's; None if unknown."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident()


class PeakMemory:
    """A gauge for `time_in_turn`, in bytes; as a callback of MrFlow's verbs it samples where it must.

    what: the name of the number: it means something else on each kind of device.
    """

    def __init__(self, device: torch.device) -> None:
        """Choose what can be read for `device` here."""
        self._device = device
        self._sampled = 0
        if device.type == "cuda":
            self.what = "torch.cuda.max_memory_allocated, of each run"
        elif device.type == "mps":
            self.what = "torch.mps.driver_allocated_memory, highest at the ends of steps of each run"
        elif _forget_peak():
            self.what = "resident memory of the whole process, highest during each run"
        else:
            self.what = "resident memory of the whole process, highest since it began"

    def reset(self) -> None:
        """Begin anew, before a run."""
        import torch

        self._sampled = 0
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu":
            _forget_peak()

    def __call__(self, _news: Progress) -> None:
        """Sample the device that keeps no peak of its own."""
        if self._device.type == "mps":
            import torch

            self._sampled = max(self._sampled, torch.mps.driver_allocated_memory())

    def read(self) -> int | None:
        """Return the bytes, None where nothing could be measured."""
        return (self._sampled or None) if self._device.type == "mps" else peak_memory(self._device)


def _forget_peak() -> bool:
    """Make Linux count the process's highest resident memory anew (man 5 proc, clear_refs); say if it did."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return _STATUS.is_file()


def _peak_resident() -> int | None:
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
