"""The nodes: what is wired in goes through ComfyUI's own functions, with mrflow's numbers and noise."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import ComfyExtension, io
from torch import Tensor

from mrflow.errors import PlanError
from mrflow.images import to_pil
from mrflow.jobs import MAX_SEED, MAX_SIDE
from mrflow.plan import ABOUT, UPSCALER, Plan
from mrflow.sampling import keep_colors, refine_sigmas
from mrflow.upscaler import OVERLAP, TILE, Upscaler

from . import passes
from .passes import Target

PlanType = io.Custom("MRFLOW_PLAN")
INTERPOLATIONS = ["lanczos", "bicubic", "bilinear"]


class Plans(io.ComfyNode):
    """Size and numbers of both passes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node looks like."""
        return io.Schema(
            node_id="MrFlowPlan",
            display_name="MrFlow Plan",
            category="mrflow",
            description="The size of the finished picture and the numbers of both passes. A preset sets the "
            "steps, the sigma and whatever else it names.",
            inputs=[
                *_size(),
                io.Combo.Input("preset", options=[passes.OWN_NUMBERS, *passes.SINGLE], tooltip=_presets()),
                io.Boolean.Input(
                    "switch",
                    default=False,
                    optional=True,
                    tooltip="In place of refine_sigma: steps and refine_steps divide one schedule, and the refine "
                    "pass goes on at its own next sigma. For few-step models; some presets do so.",
                ),
                *(_number(name, default) for name, _, default in passes.numbers()),
            ],
            outputs=[
                PlanType.Output(display_name="plan"),
                io.Int.Output(display_name="draft_width"),
                io.Int.Output(display_name="draft_height"),
                io.Int.Output(display_name="steps"),
                io.Int.Output(display_name="refine_steps"),
                io.Float.Output(display_name="refine_sigma"),
            ],
        )

    @classmethod
    def execute(cls, width: int, height: int, preset: str, **numbers: Any) -> io.NodeOutput:
        """Return the plan, and what other nodes may want of it."""
        target = passes.make_target(width, height, preset, **numbers)
        plan = target.plan
        sigma = 0.0 if plan.switches else plan.refine_sigma
        return io.NodeOutput(target, *target.draft_size, plan.schedule_steps, plan.refine_steps, sigma)


class Lift(io.ComfyNode):
    """A picture enlarged to an exact size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node looks like."""
        return io.Schema(
            node_id="MrFlowLift",
            display_name="MrFlow Lift",
            category="mrflow",
            description="Pictures at exactly this size, by an upscale model or by interpolation.",
            inputs=[
                io.Image.Input("image"),
                *_size(),
                io.Combo.Input("method", options=INTERPOLATIONS, tooltip="Where no upscale model is wired in."),
                io.UpscaleModel.Input("upscale_model", optional=True),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(
        cls, image: Tensor, width: int, height: int, method: str, upscale_model: Any = None
    ) -> io.NodeOutput:
        """Return the enlarged pictures."""
        return io.NodeOutput(_lift(image, width, height, upscale_model, method))


class ColorGuard(io.ComfyNode):
    """The colours of one picture given to another of the same scene."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node looks like."""
        return io.Schema(
            node_id="MrFlowColorGuard",
            display_name="MrFlow Color Guard",
            category="mrflow",
            description="Gives pictures the colours and the light of their drafts, or of what they were made "
            "from, in the low frequencies alone: lines and texture stay.",
            inputs=[
                io.Image.Input("image"),
                io.Image.Input("draft", tooltip="One, or one each; smaller or of the same size."),
                _number("color_guard", 0.0625),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image: Tensor, draft: Tensor, color_guard: float) -> io.NodeOutput:
        """Return the pictures, guarded."""
        return io.NodeOutput(_guarded(color_guard, image, draft))


class Refine(io.ComfyNode):
    """Noise mixed into a picture at its full size, and taken out again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node looks like."""
        return io.Schema(
            node_id="MrFlowRefine",
            display_name="MrFlow Refine",
            category="mrflow",
            description="Mixes noise into pictures and takes it out in a step or a few. Sigma is the noise really "
            "mixed in, whatever the model's shift; SDXL and its kin get the same signal-to-noise ratio.",
            inputs=[
                io.Image.Input("image"),
                *_model(),
                _seed(),
                _number("refine_steps", ABOUT["refine_steps"].absent),
                _number("refine_sigma", ABOUT["refine_sigma"].absent),
                _number("true_cfg_scale", 1.0),
                io.Combo.Input("sampler_name", options=comfy.samplers.SAMPLER_NAMES, default="euler"),
                _negative(),
                _number("tile", passes.USUAL["tile"]),
            ],
            outputs=[io.Latent.Output(), io.Image.Output()],
        )

    @classmethod
    def execute(
        cls,
        image: Tensor,
        model: Any,
        positive: Any,
        vae: Any,
        seed: int,
        sampler_name: str,
        negative: Any = None,
        **numbers: Any,
    ) -> io.NodeOutput:
        """Return the refined latents and pictures."""
        way = _Sampling(model, positive, negative, vae, sampler_name, _seeds(seed, len(image)))
        latents = way.refine(way.encode(image), passes.make_plan(**numbers))
        return io.NodeOutput({"samples": latents}, way.decode(latents))


class Sampler(io.ComfyNode):
    """The whole method: a draft, lifted and refined."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return what the node looks like."""
        return io.Schema(
            node_id="MrFlowSampler",
            display_name="MrFlow Sampler",
            category="mrflow",
            description="Samples a small draft, enlarges it and refines it at full size; picture k of a batch is "
            "that of seed + k.",
            inputs=[
                *_model(),
                PlanType.Input("plan"),
                _seed(),
                io.Int.Input("batch_size", default=1, min=1, max=64),
                io.Combo.Input("sampler_name", options=comfy.samplers.SAMPLER_NAMES, default="euler"),
                io.Combo.Input("scheduler", options=comfy.samplers.SCHEDULER_NAMES, default="simple"),
                _negative(),
                io.UpscaleModel.Input("upscale_model", optional=True, tooltip="Without one: Lanczos."),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="The draft's schedule, instead of the plan's steps by the scheduler. Make it for the "
                    "draft's size where a model's depends on it.",
                ),
                io.Sigmas.Input(
                    "large_sigmas",
                    optional=True,
                    tooltip="The same for the finished size, where the plan switches; else it is `sigmas`.",
                ),
            ],
            outputs=[
                io.Latent.Output(),
                io.Image.Output(),
                io.Image.Output(display_name="draft"),
                io.Image.Output(display_name="lifted"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        vae: Any,
        plan: Target,
        seed: int,
        batch_size: int,
        sampler_name: str,
        scheduler: str,
        negative: Any = None,
        upscale_model: Any = None,
        sigmas: Tensor | None = None,
        large_sigmas: Tensor | None = None,
    ) -> io.NodeOutput:
        """Return latents and pictures, the drafts and the lifted ones."""
        way = _Sampling(model, positive, negative, vae, sampler_name, _seeds(seed, batch_size))
        numbers, size = plan.plan, (plan.width, plan.height)
        small = _schedule(way, numbers, scheduler) if sigmas is None else sigmas
        small, large = passes.divide(numbers, small, small if large_sigmas is None else large_sigmas)
        latents = way.draft(plan, small)
        _show(draft := way.decode(latents))
        if numbers.lift == "latent":
            latents = way.enlarge(latents, plan)
            lifted = way.decode(latents)
        else:
            network, method = (
                (upscale_model, INTERPOLATIONS[0]) if numbers.lift == UPSCALER else (None, numbers.lift)
            )
            lifted = _guarded(numbers.color_guard, _lift(draft, *size, network, method), draft)
            latents = way.encode(lifted)
        _show(lifted)
        latents = way.refine(latents, numbers, large)
        return io.NodeOutput(
            {"samples": latents}, _guarded(numbers.color_guard, way.decode(latents), draft), draft, lifted
        )


class Extension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return them."""
        return [Plans, Lift, ColorGuard, Refine, Sampler]


class _Sampling:
    """A model with all that both passes need of it."""

    def __init__(
        self, model: Any, positive: Any, negative: Any, vae: Any, sampler: str, seeds: Sequence[int]
    ) -> None:
        self.model, self.vae, self.sampler, self.seeds = model, vae, sampler, seeds
        self._positive, self._negative = positive, negative

    def draft(self, target: Target, sigmas: Tensor) -> Tensor:
        """Return small latents, sampled over `sigmas` from the noise of their seeds."""
        cells = self.vae.spacial_compression_encode()
        channels = self.model.get_model_object("latent_format").latent_channels
        sides = [side // cells for side in reversed(target.draft_size)]
        empty = torch.zeros(len(self.seeds), channels, *sides)
        empty = comfy.sample.fix_empty_latent_channels(self.model, empty)
        native = target.height // cells, target.width // cells
        noise = passes.draft_noise(target.plan, self.seeds, empty.shape[1:], native)
        scale = passes.scales(target.plan)[0]
        return self._denoise(empty, noise, sigmas, scale, passes.guided_above(sigmas, target.plan))

    def encode(self, image: Tensor) -> Tensor:
        """Return pictures (B, h, w, 3) as latents, one by one: some take a batch for frames of a video."""
        latents = torch.cat([self.vae.encode(row[None, ..., :3]) for row in image])
        return comfy.sample.fix_empty_latent_channels(self.model, latents)

    def enlarge(self, latents: Tensor, target: Target) -> Tensor:
        """Return a draft's latents interpolated to those of the finished size."""
        if self.model.get_model_object("latent_format").latent_channels == 128:
            raise PlanError("lift is 'latent', and this model's latents are patches. Take upscaler or bicubic.")
        plain = latents.squeeze(2) if latents.ndim == 5 else latents
        made = Upscaler("latent").upscale_latents(plain, target.draft_size, (target.width, target.height))
        return made.unsqueeze(2) if latents.ndim == 5 else made

    def refine(self, latents: Tensor, plan: Plan, levels: Tensor | None = None) -> Tensor:
        """Return latents refined from `plan.refine_sigma` on, or over these levels."""
        if levels is None:
            law = self.model.get_model_object("model_sampling")
            flow = isinstance(law, comfy.model_sampling.CONST)
            sigmas = refine_sigmas(plan.refine_sigma, plan.refine_steps)
            levels = passes.levels(sigmas, flow, float(getattr(law, "sigma_data", 1.0)))
        noise = passes.refine_noise(self.seeds, latents.shape[1:])
        return self._denoise(latents, noise, levels, passes.scales(plan)[1], tile=plan.tile)

    def decode(self, latents: Tensor) -> Tensor:
        """Return latents as pictures (B, h, w, 3)."""
        made = self.vae.decode(latents)
        return made.reshape(-1, *made.shape[-3:])

    def _denoise(
        self,
        latents: Tensor,
        noise: Tensor,
        sigmas: Tensor,
        scale: float,
        above: float = -1.0,
        tile: int | None = None,
    ) -> Tensor:
        passes.check_guidance(scale, self._negative)
        guider = _Guider(
            _in_tiles(self.model, tile, self.vae.spacial_compression_encode()) if tile else self.model
        )
        guider.set_conds(self._positive, self._negative or self._positive)
        guider.scale, guider.above = scale, above
        cuda = [self.model.load_device] if self.model.load_device.type == "cuda" else []
        with torch.random.fork_rng(cuda):  # some samplers seed the global state
            made = guider.sample(
                noise,
                latents,
                _sampler(self.sampler, noise, sigmas, self.seeds),
                sigmas,
                callback=latent_preview.prepare_callback(self.model, len(sigmas) - 1),
                disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
                seed=self.seeds[0],
            )
        return made.to(comfy.model_management.intermediate_device())


class _Guider(comfy.samplers.CFGGuider):
    """Classifier-free guidance by `scale`, in steps that begin above the level `above`."""

    scale, above = 1.0, -1.0

    def predict_noise(self, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.set_cfg(self.scale if float(timestep.max()) > self.above else 1.0)
        return super().predict_noise(x, timestep, *args, **kwargs)


def _in_tiles(model: Any, tile: int, cells: int) -> Any:
    """Return a clone of a model that answers in tiles of `tile` pixels a side, and asks for the memory of one."""
    model, usual = model.clone(), max(passes.MULTIPLE // cells, 1)
    size = getattr(model.get_model_object("diffusion_model"), "patch_size", usual)  # an SDXL's have none
    patch = int(size[-1] if isinstance(size, list | tuple) else size or usual)
    within = model.model_options.get("model_function_wrapper")
    model.set_model_unet_function_wrapper(passes.Tiles(tile // (patch * cells) * patch, patch, within))

    def prepare(run: Any, patcher: Any, shape: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        return run(patcher, [*shape[:-2], *(min(side, tile // cells) for side in shape[-2:])], *args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING
    comfy.patcher_extension.add_wrapper(kind, prepare, model.model_options, is_model_options=True)
    return model


def _sampler(name: str, like: Tensor, sigmas: Tensor, seeds: Sequence[int]) -> Any:
    """Return a sampler; where it adds noise on its way, each picture gets the noise that it would get alone."""
    sampler, above = comfy.samplers.sampler_object(name), sigmas[sigmas > 0]
    if len(above) > 1 and "noise_sampler" in inspect.signature(sampler.sampler_function).parameters:
        noise = comfy.k_diffusion.sampling.BrownianTreeNoiseSampler(
            like, above.min(), above.max(), seed=passes.stream_seeds(seeds), cpu=True
        )
        sampler.extra_options = {**sampler.extra_options, "noise_sampler": noise}
    return sampler


def _schedule(way: _Sampling, plan: Plan, scheduler: str) -> Tensor:
    """Return the sigmas that ComfyUI's own sampler node would take, which leaves one out for some samplers."""
    model, options = way.model, way.model.model_options
    own = comfy.samplers.KSampler(
        model, plan.schedule_steps, model.load_device, way.sampler, scheduler, model_options=options
    )
    return own.sigmas


def _lift(image: Tensor, width: int, height: int, network: Any, method: str = INTERPOLATIONS[0]) -> Tensor:
    """Return pictures (B, h, w, 3) at exactly width x height.

    The network is a copy of the user's, for mrflow runs it in bfloat16 where hardware has that. Smaller tiles are
    tried where memory ends.
    """
    device, tile = image.device, TILE
    if network is not None:
        passes.check_network(network)
        device = comfy.model_management.get_torch_device()
        comfy.model_management.free_memory(comfy.model_management.module_size(network.model), device)
        network = copy.deepcopy(network)
    while True:
        upscaler = Upscaler(method, network, tile=tile)
        rows = []
        try:
            for row in image[..., :3].movedim(-1, 1).split(1):
                comfy.model_management.throw_exception_if_processing_interrupted()
                rows.append(upscaler.upscale(row.to(device), width, height).to(image.device))
            return torch.cat(rows).movedim(1, -1)
        except comfy.model_management.OOM_EXCEPTION:
            tile //= 2
            if tile <= 2 * OVERLAP:
                raise


def _guarded(share: float, image: Tensor, draft: Tensor) -> Tensor:
    """Return pictures with the colours of their drafts in that share of the drafts' frequencies."""
    if not share:
        return image
    pixels = (each[..., :3].movedim(-1, 1).float() for each in (image, draft))
    return keep_colors(*pixels, share).movedim(1, -1)


def _show(image: Tensor) -> None:
    """Show the first picture of a stage on the node that runs."""
    picture = to_pil(image[:1].movedim(-1, 1))[0]
    comfy.utils.ProgressBar(1).update_absolute(1, 1, ("JPEG", picture, latent_preview.MAX_PREVIEW_RESOLUTION))


def _seeds(seed: int, count: int) -> list[int]:
    return [seed + k for k in range(count)]


def _size() -> list[Any]:
    sides = {"default": 1024, "min": passes.MULTIPLE, "max": MAX_SIDE, "step": passes.MULTIPLE}
    return [
        io.Int.Input(side, tooltip="Of the finished picture, in pixels.", **sides) for side in ("width", "height")
    ]


def _model() -> list[Any]:
    return [io.Model.Input("model"), io.Conditioning.Input("positive"), io.Vae.Input("vae")]


def _negative() -> Any:
    return io.Conditioning.Input("negative", optional=True, tooltip="Needed where true_cfg_scale is above 1.")


def _seed() -> Any:
    return io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True)


def _number(name: str, default: Any) -> Any:
    """Return the input of one of a plan's numbers; a socket to be left alone where its default is None."""
    about, kinds = ABOUT[name], {int: io.Int, float: io.Float, str: io.String}
    said = {"tooltip": passes.tooltip(about), "optional": True}  # so that prompts go on working as numbers come
    if about.kind is str and about.choices:
        return io.Combo.Input(name, options=list(about.choices), default=default, **said)
    if default is None:
        return kinds[about.kind].Input(name, force_input=True, **said)
    limits = {} if about.kind is str else passes.bounds(about)
    return kinds[about.kind].Input(name, default=default, **limits, **said)


def _presets() -> str:
    return "\n".join(f"{name}: {preset.about}." for name, preset in passes.SINGLE.items())
