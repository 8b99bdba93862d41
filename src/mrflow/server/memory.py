"""The highest memory that a device has used so far."""

from __future__ import annotations

import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Return bytes: on CUDA what torch allocated there, else the process's resident memory; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
