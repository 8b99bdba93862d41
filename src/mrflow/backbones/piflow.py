"""pi-Flow over FLUX.1 and Qwen-Image: a network predicts a policy for a whole step, followed in many sub-steps.

The pipelines are those of an installed LakonLab (github.com/Lakonik/LakonLab, Apache-2.0; arXiv 2510.14974). Facts
from its lakonlab/pipelines/pipeline_piflux.py, pipeline_piqwen.py and lakonlab/models/diffusions/schedulers/
flow_map_sde.py: the calls are those of diffusers' pipelines without true CFG, sigmas or negative texts, latents
are float32, and FlowMapSDEScheduler gives each step a beginning and a destination.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import Tensor

from mrflow.backbones.family import Packed, Pipeline, StandardisedVae
from mrflow.backbones.flux import FluxControlBackbone
from mrflow.backbones.qwen_image import QwenImageBackbone
from mrflow.errors import ModelError

_INSTALL = "git clone https://github.com/Lakonik/LakonLab && pip install -e LakonLab --no-build-isolation"
_PIPELINES = {
    "black-forest-labs/FLUX.1-dev": ("lakonlab.pipelines.pipeline_piflux", "PiFluxPipeline"),
    "Qwen/Qwen-Image": ("lakonlab.pipelines.pipeline_piqwen", "PiQwenImagePipeline"),
}
SHIFT = 3.2  # of all published adapters; with the half last step: LakonLab, demo/example_*_pipeline.py
FINAL_STEP = 0.5
_POLICY = "its transformer answers with a policy for many steps, not with a velocity"


def load_piflow(model: str, adapter: str, subfolder: str, steps: int = 4, **kwargs: Any) -> Pipeline:
    """Return LakonLab's pipeline over `model` with a pi-Flow adapter and its scheduler, for MrFlow.

    model: "black-forest-labs/FLUX.1-dev" or "Qwen/Qwen-Image". adapter, subfolder: "Lakonik/pi-FLUX.1" and
    "gmflux_k8_piid_4step", say; a subfolder that begins with "dx" is of the DX policy, others of GMFlow.
    steps: those the adapter was distilled for. kwargs: for the pipeline's from_pretrained, such as dtype.
    Raises ModelError without LakonLab, and for another model.
    """
    if model not in _PIPELINES:
        raise ModelError(f"pi-Flow has no adapter for {model!r:.80}. Known: {', '.join(_PIPELINES)}.")
    place, name = _PIPELINES[model]
    try:
        pipeline = getattr(import_module(place), name)
        scheduler = import_module("lakonlab.models.diffusions.schedulers").FlowMapSDEScheduler
    except ImportError as error:
        raise ModelError(f"LakonLab is not installed ({error}). Install it with: {_INSTALL}") from error
    if subfolder.startswith("dx"):
        segment = 1 / (steps - 1 + FINAL_STEP)
        kwargs |= {"policy_type": "DX", "policy_kwargs": {"segment_size": segment, "shift": SHIFT}}
    pipe = pipeline.from_pretrained(model, **kwargs)
    pipe.load_piflow_adapter(adapter, subfolder=subfolder, target_module_name="transformer")
    fixed = {"shift": SHIFT, "use_dynamic_shifting": False, "final_step_size_scale": FINAL_STEP}
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **fixed)
    return pipe


class PiFluxBackbone(FluxControlBackbone):
    """Drives LakonLab's PiFluxPipeline: FLUX.1 with its embedded guidance, without true CFG."""

    def uncut(self, pipe: Pipeline) -> str:
        """Return that it answers with more than a velocity."""
        return _POLICY


class _Picture(Packed):
    def unpack(self, pipe: Pipeline, latents: Tensor, width: int, height: int) -> Tensor:
        return super().unpack(pipe, latents, width, height).unsqueeze(2)  # LakonLab's leaves the frame out


class _Times(StandardisedVae):
    def scaled(self, latents: Tensor, std: Tensor) -> Tensor:
        return latents * std


class PiQwenImageBackbone(QwenImageBackbone):
    """Drives LakonLab's PiQwenImagePipeline: Qwen-Image distilled with its guidance, which takes none."""

    layout = _Picture()
    autoencoder = _Times()
    usual_cfg = 1.0

    def uncut(self, pipe: Pipeline) -> str:
        """Return that it answers with more than a velocity."""
        return _POLICY

    def takes_cfg(self, pipe: Pipeline) -> bool:
        """Return False."""
        return False

    def guidance(self, guidance_scale: float | None, true_cfg_scale: float) -> dict[str, float]:
        """Return nothing."""
        return {}
