"""The method as blocks of Modular Diffusers: plan, draft, lift, noise, refine, and pipelines made of them.

    from mrflow.modular import FluxBlocks

    pipe = FluxBlocks().init_pipeline("black-forest-labs/FLUX.1-dev")
    pipe.load_components(dtype=torch.bfloat16)
    image = pipe(prompt="a lighthouse at dusk", width=1024, height=1024, seed=7, plan="12+1").images[0]

Both passes run diffusers' own blocks of the family, each on a copy of the state: one state has a single height,
width, generator and latents. Scheduler and guider are exchanged for a pass and put back, also after an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, cast

import diffusers
import torch
from diffusers.modular_pipelines import (
    LoopSequentialPipelineBlocks,
    ModularPipelineBlocks,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline import PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import ConfigSpec, InputParam, OutputParam
from torch import Tensor

from mrflow.backbones import get_backbone
from mrflow.backbones.family import Backbone
from mrflow.borrowing import settings
from mrflow.errors import PlanError
from mrflow.jobs import Size, check_size, make_seeds
from mrflow.plan import NATIVE, UPSCALER, Plan, get_plan
from mrflow.sampling import draft_generators, mix_noise, refine_sigmas, shrink_noise
from mrflow.schedulers import draft_scheduler, exact_scheduler, take_head
from mrflow.upscaler import Upscaler

_PLAN = InputParam("plan", type_hint=Plan | str, default="12+1", description="A plan, a preset's name or N+M.")
_SEEDS = InputParam("seeds", type_hint=list[int], required=True, description="One for each picture.")
_WIDTH = InputParam("width", type_hint=int, default=1024, description="Of the finished pictures, in pixels.")
_HEIGHT = InputParam("height", type_hint=int, default=1024, description="Of the finished pictures, in pixels.")
_load = lru_cache(maxsize=2)(Upscaler.load)


class _Family(ModularPipelineBlocks):  # type: ignore[misc]  # untyped, hence Any
    """A block that knows its family. pipeline: the name of its pipeline's class in diffusers."""

    def __init__(self, pipeline: str, model_name: str) -> None:
        super().__init__()
        self.pipeline, self.model_name = pipeline, model_name

    @property
    def backbone(self) -> Backbone:
        """Of the family."""
        return get_backbone(self.pipeline)

    def pipe(self, components: Any) -> Any:
        """Return the components as a backbone knows them."""
        return _Pipe(components, getattr(diffusers, self.pipeline))


class _Pipe:
    """Components that also have the pipeline class's own functions, which pack latents."""

    def __init__(self, components: Any, kind: type) -> None:
        self._components, self._kind = components, kind

    def __getattr__(self, name: str) -> Any:
        if hasattr(self._components, name):
            return getattr(self._components, name)
        return inspect.getattr_static(self._kind, name).__get__(self, self._kind)


class PlanStep(_Family):
    """What both passes are to do."""

    description = "Checks size and plan, and gives each picture its seed."

    @property
    def inputs(self) -> list[InputParam]:
        """Return plan, size, seed and what says how many pictures."""
        return [
            _PLAN,
            _WIDTH,
            _HEIGHT,
            InputParam("seed", type_hint=int, description="Of the first picture, or one each; drawn if left out."),
            InputParam.template("num_images_per_prompt"),
            InputParam("prompt_embeds", required=True, description="Their number is that of the prompts."),
        ]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Return plan and seeds."""
        return [OutputParam("plan", type_hint=Plan), OutputParam("seeds", type_hint=list[int])]

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Set them; raises PlanError, SizeError or RequestError."""
        block = self.get_block_state(state)
        block.plan = get_plan(block.plan)
        if block.plan.scales:
            raise PlanError(f"The plan is {block.plan.label}; these blocks lift once. Give scale, or call MrFlow.")
        if isinstance(block.plan.refine_sigma, str):
            raise PlanError(f"refine_sigma is {block.plan.refine_sigma!r}; these blocks take numbers. Try 0.12.")
        if block.plan.lift != UPSCALER or block.plan.color_guard:
            raise PlanError("These blocks lift by the upscaler alone and guard no colours. Leave both out.")
        if block.plan.cut(block.width, block.height):
            raise PlanError(f"tile is {block.plan.tile}; these blocks work whole. Leave it out, or call MrFlow.")
        check_size(block.width, block.height, self.backbone.multiple(self.pipe(components)))
        block.seeds = make_seeds(block.seed, len(block.prompt_embeds) * block.num_images_per_prompt)
        self.set_block_state(state, block)
        return components, state


class LiftStep(_Family):
    """Drafts enlarged to the exact size."""

    description = "Enlarges drafts by the upscaler that the configuration names."

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        """Return the upscaler."""
        text = "A file, a known name or a method, as for MrFlow."
        return [ConfigSpec("upscaler", default=Upscaler.usual().name, description=text)]

    @property
    def inputs(self) -> list[InputParam]:
        """Return drafts and size."""
        drafts = InputParam("drafts", type_hint=Tensor, required=True, description="(B, 3, h, w) in [0, 1].")
        return [drafts, _WIDTH, _HEIGHT]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Return the enlarged pictures."""
        return [OutputParam("upscaled", type_hint=Tensor, description="(B, 3, height, width), float32.")]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Enlarge them."""
        block = self.get_block_state(state)
        block.upscaled = _load(components.config.upscaler).upscale(block.drafts[:, :3], block.width, block.height)
        self.set_block_state(state, block)
        return components, state


class NoiseStep(_Family):
    """Pictures as latents with noise mixed in."""

    description = "Encodes pictures and mixes noise in, each of its seed, at the plan's sigma."

    @property
    def inputs(self) -> list[InputParam]:
        """Return pictures, plan and seeds."""
        pictures = InputParam("upscaled", type_hint=Tensor, required=True, description="(B, 3, height, width).")
        return [pictures, _PLAN, _SEEDS]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Return what the refine pass begins with."""
        return [OutputParam("noised", description="Latents as the family packs them, sigmas and generators.")]

    @torch.no_grad()
    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Encode and mix."""
        block, pipe = self.get_block_state(state), self.pipe(components)
        latents = self.backbone.encode(pipe, block.upscaled)
        plan = get_plan(block.plan)
        sigmas = refine_sigmas(plan.refine_sigma, plan.refine_steps)
        noised = mix_noise(latents, sigmas, block.seeds)
        block.noised = noised._replace(latents=self.backbone.pack(pipe, noised.latents))
        self.set_block_state(state, block)
        return components, state


class _Pass(SequentialPipelineBlocks):  # type: ignore[misc]
    """One run of a family's own denoising and decoding, on a copy of the state.

    sets: inputs of these that the pass itself gives.
    """

    sets: ClassVar[set[str]] = {"latents", "generator", "num_inference_steps", "timesteps", "sigmas", "mu"}
    gives: ClassVar[OutputParam]

    def __init__(self, family: _Family, denoise: Any, decode: Any) -> None:
        self.block_names, self.block_classes = ["denoise", "decode"], [denoise, decode]
        super().__init__()
        self.family = family

    @property
    def inputs(self) -> list[InputParam]:
        """Return the family's and ours."""
        own = [each for each in super().inputs if each.name not in {*self.sets, "width", "height", "plan"}]
        return [*own, _PLAN, _SEEDS, _WIDTH, _HEIGHT]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        """Return the pictures alone: all else stays in the copy."""
        return [self.gives]

    outputs = intermediate_outputs

    def settings(self, components: Any, state: PipelineState) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return values of the state, and components, that the pass has of its own."""
        raise NotImplementedError

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run it and put back what was exchanged."""
        values, parts = self.settings(components, state)
        with settings(components, parts):
            _, inner = super().__call__(components, self.copy(state, values))
        state.set(self.gives.name, inner.get("images"))
        return components, state

    @staticmethod
    def copy(state: PipelineState, values: dict[str, Any]) -> PipelineState:
        """Return a copy of the state with the plan's guidance and these values."""
        guidance_scale = get_plan(state.get("plan")).guidance_scale
        scale = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
        mapping = {kind: list(names) for kind, names in state.kwargs_mapping.items()}
        return PipelineState({**state.values, **scale, **values}, mapping)


class DraftStep(_Pass):
    """Small pictures, on the model's own schedule."""

    description = "Samples and decodes small pictures."
    sets: ClassVar[set[str]] = {*_Pass.sets, "output_type"}
    gives = OutputParam("drafts", type_hint=Tensor, description="(B, 3, h, w) in [0, 1].")

    def settings(self, components: Any, state: PipelineState) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a small size, the draft's noise and a scheduler of its own."""
        plan, multiple = state.get("plan"), self.family.backbone.multiple(self.family.pipe(components))
        native = state.get("width"), state.get("height")
        width, height = size = plan.draft_size(*native, multiple)
        steps = {"num_inference_steps": plan.steps, "generator": draft_generators(state.get("seeds"))}
        given = self._noise(components, state, native, size) if plan.noise == NATIVE and size != native else None
        stop = plan.guided_steps / plan.steps + 1e-9  # diffusers' guiders round down
        guider = _guided(components, plan.true_cfg_scale, stop)
        values = {"width": width, "height": height, "output_type": "pt", "latents": given, **steps}
        return values, {"scheduler": draft_scheduler(components, plan.solver), **guider}

    def _noise(self, components: Any, state: PipelineState, native: Size, size: Size) -> Tensor:
        """Return the noise that the family's blocks draw at `native` size, brought down to `size`, packed."""
        backbone, pipe, scheduler = self.family.backbone, self.family.pipe(components), draft_scheduler(components)
        take_head(scheduler, 0)
        values: dict[str, Any] = {"width": native[0], "height": native[1], "latents": None}
        values["generator"] = draft_generators(state.get("seeds"))
        denoise = self.sub_blocks["denoise"]
        with ExitStack() as stack:
            stack.enter_context(settings(components, {"scheduler": scheduler}))
            for loop in _loops(denoise):  # some miss what no step has left in the state
                stack.enter_context(settings(loop, {"set_block_state": lambda *_: None}))
            _, inner = denoise(components, self.copy(state, values))
        given = inner.get("latents")
        unpacked = backbone.unpack(pipe, given, *native) if given.ndim == 3 else given  # some unpack it themselves
        noise = unpacked.squeeze(2) if unpacked.ndim == 5 else unpacked
        rows, columns = noise.shape[-2] * size[1] // native[1], noise.shape[-1] * size[0] // native[0]
        return backbone.pack(pipe, shrink_noise(noise, rows, columns).to(given.dtype))


def _loops(block: Any) -> Iterator[Any]:
    """Yield the loops over steps inside a block."""
    if isinstance(block, LoopSequentialPipelineBlocks):
        yield block
    for inner in block.sub_blocks.values():
        yield from _loops(inner)


class RefineStep(_Pass):
    """Finished pictures, by plain Euler over the plan's sigmas."""

    description = "Refines noised latents at full size and decodes them."
    gives = OutputParam.template("images")

    @property
    def inputs(self) -> list[InputParam]:
        """Return what the noise step gives, too."""
        noised = InputParam("noised", required=True, description="What the noise step gives.")
        return [*super().inputs, noised]

    def settings(self, components: Any, state: PipelineState) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the noised latents and a scheduler that holds exactly their sigmas."""
        plan, noised = get_plan(state.get("plan")), state.get("noised")
        pipe, size = self.family.pipe(components), (state.get("width"), state.get("height"))
        timesteps = self.family.backbone.timesteps(pipe, noised.sigmas[:-1], *size)
        strength = plan.true_cfg_scale if plan.refine_true_cfg_scale is None else plan.refine_true_cfg_scale
        values = {"latents": noised.latents, "generator": noised.generators}
        parts = {"scheduler": exact_scheduler(components, noised.sigmas, timesteps)}
        return {**values, "num_inference_steps": plan.refine_steps}, {**parts, **_guided(components, strength)}


def _guided(components: Any, true_cfg_scale: float | None, stop: float = 1.0) -> dict[str, Any]:
    """Return a guider of the user's kind with the plan's strength, for a model that has one; None keeps theirs."""
    guider = getattr(components, "guider", None)
    if guider is None:
        return {}
    changed: dict[str, Any] = {} if stop >= 1 else {"stop": stop}
    if true_cfg_scale is not None:
        original = getattr(guider, "use_original_formulation", False)
        changed["guidance_scale"] = true_cfg_scale - 1 if original else true_cfg_scale
        changed["enabled"] = true_cfg_scale != 1  # Z-Image's is off unless somebody asks
    return {"guider": guider.new(**changed)}


class Blocks(SequentialPipelineBlocks):  # type: ignore[misc]
    """The whole method for one family, which its subclasses name.

    pipeline: a pipeline class in diffusers that treats latents as the family does. auto: the family's blocks, of
        which denoising and decoding serve here, and those that come before: `own`.
    """

    pipeline: ClassVar[str]
    auto: ClassVar[str]
    own: ClassVar[tuple[str, ...]] = ("text_encoder",)

    def __init__(self) -> None:
        family = getattr(diffusers, self.auto)()
        known, parts = (self.pipeline, family.model_name), family.sub_blocks
        denoise, decode = parts["denoise"], parts["decode"]
        steps = {
            **{name: parts[name] for name in self.own},
            "plan": PlanStep(*known),
            "draft": DraftStep(_Family(*known), denoise, decode),
            "lift": LiftStep(*known),
            "noise": NoiseStep(*known),
            "refine": RefineStep(_Family(*known), denoise, decode),
        }
        self.block_names, self.block_classes = list(steps), list(steps.values())
        self._model_name: str = family.model_name
        super().__init__()

    @property
    def model_name(self) -> str:
        """Return the family's, by which diffusers finds its pipeline's class."""
        return self._model_name

    @property
    def description(self) -> str:
        """Say what they do."""
        return f"Staged low-to-high-resolution sampling with {self.auto.removesuffix('AutoBlocks')}."

    @property
    def outputs(self) -> list[OutputParam]:
        """Return the pictures."""
        return [OutputParam.template("images")]

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        """Run them; the guider is the plan's already where the text encoder asks whether it needs a negative."""
        for name, value in state.values.items():
            if name.endswith("prompt") and isinstance(value, list):  # Z-Image's writes its template into the list
                state.values[name] = list(value)
        plan = get_plan(state.get("plan"))
        with settings(components, _guided(components, plan.true_cfg_scale)):
            return cast("tuple[Any, PipelineState]", super().__call__(components, state))

    def save_config(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Write what `ModularPipeline.from_pretrained(folder, trust_remote_code=True)` finds them by, too."""
        super().save_config(save_directory, *args, **kwargs)
        name = type(self).__name__
        Path(save_directory, "modular.py").write_text(
            f"from mrflow.modular import {name}\n\n__all__ = [{name!r}]\n"
        )


class FluxBlocks(Blocks):
    """FLUX.1."""

    pipeline, auto = "FluxPipeline", "FluxAutoBlocks"


class Flux2Blocks(Blocks):
    """FLUX.2."""

    pipeline, auto = "Flux2Pipeline", "Flux2AutoBlocks"


class Flux2KleinBlocks(Blocks):
    """FLUX.2 Klein, distilled."""

    pipeline, auto = "Flux2KleinPipeline", "Flux2KleinAutoBlocks"


class Flux2KleinBaseBlocks(Blocks):
    """FLUX.2 Klein Base."""

    pipeline, auto = "Flux2KleinPipeline", "Flux2KleinBaseAutoBlocks"


class Flux3Blocks(Blocks):
    """FLUX.3, which has FLUX.2's autoencoder, no pipeline beside its blocks, and a model that rewrites prompts."""

    pipeline, auto = "Flux2Pipeline", "Flux3AutoBlocks"
    own = ("prompt_upsampler", "text_encoder", "vae_encoder")


class Flux3DistilledBlocks(Blocks):
    """FLUX.3, distilled to 16 steps, each of which is told where it ends."""

    pipeline, auto, own = "Flux2Pipeline", "Flux3DistilledAutoBlocks", Flux3Blocks.own


class QwenImageBlocks(Blocks):
    """Qwen-Image."""

    pipeline, auto = "QwenImagePipeline", "QwenImageAutoBlocks"


class QwenImage21Blocks(Blocks):
    """Qwen-Image 2.1."""

    pipeline, auto = "QwenImage21Pipeline", "QwenImage21AutoBlocks"


class ZImageBlocks(Blocks):
    """Z-Image."""

    pipeline, auto = "ZImagePipeline", "ZImageAutoBlocks"


class StableDiffusion3Blocks(Blocks):
    """Stable Diffusion 3 and 3.5."""

    pipeline, auto = "StableDiffusion3Pipeline", "StableDiffusion3AutoBlocks"


class Krea2Blocks(Blocks):
    """Krea 2."""

    pipeline, auto = "Krea2Pipeline", "Krea2AutoBlocks"


class Krea2TurboBlocks(Blocks):
    """Krea 2 Turbo, distilled."""

    pipeline, auto = "Krea2Pipeline", "Krea2TurboAutoBlocks"


FAMILIES: Sequence[type[Blocks]] = tuple(Blocks.__subclasses__())
"""The assembled pipelines."""
