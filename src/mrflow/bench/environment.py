"""Where a measurement was taken and of what: device, dtype, threads, versions, commit, model, plan and size."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrflow.recipe import library_versions

if TYPE_CHECKING:
    import torch

    from mrflow.jobs import Size
    from mrflow.pipeline import MrFlow
    from mrflow.plan import Plan

_PACKAGE = Path(__file__).parents[1]


def describe_environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return what a figure must be quoted with, as JSON values."""
    import torch

    return {
        "device": device.type,
        "device_name": _device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "platform": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **library_versions(),
            **({"cuda": torch.version.cuda} if device.type == "cuda" else {}),
        },
        "commit": source_commit(),
    }


def describe_run(fast: MrFlow, plan: Plan | None = None, size: Size | None = None) -> dict[str, Any]:
    """Return the head of a script's report, as JSON values. plan, size: None are the model's own."""
    defaults = fast.model.defaults
    return {
        "environment": describe_environment(fast.model.device, fast.model.dtype),
        "model": fast.model.name,
        "revision": fast.model.revision,
        "plan": asdict(plan or defaults.plan),
        "size": list(size or (defaults.width, defaults.height)),
    }


def source_commit() -> str | None:
    """Return the commit of mrflow's source, "+changes" added if its files differ; None outside a checkout."""
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")  # else an installation inside somebody's repository
        commit = _git("rev-parse", "HEAD")
        return f"{commit}+changes" if _git("status", "--porcelain", "--untracked-files=no", ".") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_PACKAGE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
