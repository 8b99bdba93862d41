"""A pipeline with all that is known of it: family, name, defaults, upscaler; what is asked made into jobs."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from mrflow.auto_sigma import fit_sigma
from mrflow.backbones.families import largest_whole
from mrflow.backbones.family import Backbone, Pipeline, Reading, autoencoder_device
from mrflow.errors import (
    ImageError,
    ModelError,
    MrFlowWarning,
    PlanError,
    PromptWarning,
    RequestError,
    SizeError,
    warn,
)
from mrflow.files import load_image
from mrflow.jobs import Asked, Job, Reference, Size, check_size
from mrflow.loras import Loras
from mrflow.plan import AUTO, UPSCALER, Defaults, Plan, get_plan, whole
from mrflow.recipe import ENCODED, Mode, Recipe, finished_conditions, library_versions, warn_of_difference
from mrflow.schedulers import check_switch, resolve_solver
from mrflow.upscaler import Upscaler

_JOB = [each.name for each in fields(Job)]
_MARKUP = re.compile(r"<lora:[^<>]*>|\([^()]+:\s*\d+(?:\.\d+)?\)")  # of prompts for A1111 and ComfyUI
_TEXTS = ("text_encoder", "tokenizer", "processor")  # what the names of components begin with that read prompts
_tried: WeakSet[Any] = WeakSet()  # autoencoders of unusual classes that fit
VAE_TILE = 512
"""Pixels a side of the tiles of an autoencoder for which memory is scarce."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded model. name: "vista", a folder or a hub id. revision: its commit or content hash, if known.

    loras: that pictures may ask for. For memory's sake: side: pixels a side that its networks may be given whole;
    vae_tile: of larger pictures' tiles in the autoencoder, where the plan cuts nothing.
    """

    pipe: Pipeline
    backbone: Backbone
    upscaler: Upscaler
    defaults: Defaults
    name: str
    revision: str | None = None
    loras: Loras = field(default_factory=Loras)
    side: int | None = None
    vae_tile: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes; with offloading, not where its weights lie. diffusers walks all modules."""
        return torch.device(self.pipe._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the transformer, all of whose modules diffusers walks, too."""
        dtype: torch.dtype = self.pipe.transformer.dtype
        return dtype

    @property
    def multiple(self) -> int:
        """The pixels by whose multiples picture sides are whole patches."""
        return self.backbone.multiple(self.pipe)

    def lift(self, plan: Plan) -> Upscaler:
        """Return what makes pictures of this plan larger: the model's upscaler or an interpolation."""
        return self.upscaler if plan.lift == UPSCALER else Upscaler(plan.lift)

    def check_parts(self, *, texts: bool = True) -> None:
        """Raise ModelError for a component that is missing, an autoencoder or latents' upscaler that does not fit.

        texts: ask for those that read prompts, too. An autoencoder of another class than the pipeline's usual one
        is tried, once, on a few grey pixels.
        """
        pipe, vae = self.pipe, getattr(self.pipe, "vae", None)
        spare = {*pipe._optional_components, *self.backbone.spare} - {"vae"}
        parts = [name for name, part in pipe.components.items() if part is None and name not in spare]
        if missing := [name for name in parts if texts or not name.startswith(_TEXTS)]:
            text = f"The pipeline has no {', '.join(missing)} (None), and cannot work without."
            raise ModelError(f"{text} Load it with all of its components.")
        usual = inspect.signature(type(pipe).__init__).parameters.get("vae")
        known: Any = getattr(vae, "config", None)
        channels = getattr(known, "latent_channels", None) or getattr(known, "z_dim", None)
        if self.upscaler.channels not in (None, channels):
            text = f"{self.upscaler.name} enlarges latents of {self.upscaler.channels} channels"
            raise ModelError(f"{text}; this autoencoder's have {channels}. Take the one that was made for it.")
        if vae is not None and vae not in _tried and type(vae).__name__ not in str(usual):
            self._try_autoencoder(type(vae).__name__)
            _tried.add(vae)

    def _try_autoencoder(self, kind: str) -> None:
        pipe, backbone, reason = self.pipe, self.backbone, ""
        try:
            encoded, side = self._encoded_grey()
            with torch.no_grad():
                latents = backbone.pack(pipe, encoded)
                made, again = (backbone.decode(pipe, latents, side, side) for _ in range(2))
            if made.shape != (1, 3, side, side) or pipe.transformer.config.in_channels not in latents.shape[1:]:
                reason = f"latents are {tuple(latents.shape)}, pixels {tuple(made.shape)}"
            elif not torch.allclose(made, again, atol=0.02):
                reason = "it decodes with noise of its own, which no seed holds"
        except Exception as error:  # whatever a class of another shape of answer trips over
            reason = f"{type(error).__name__}: {error}"
        if reason:
            text = f"The autoencoder, {kind}, does not fit {type(pipe).__name__}: {reason:.300}."
            raise ModelError(f"{text} Take the model's own.")

    def _encoded_grey(self) -> tuple[Tensor, int]:
        """Return the latents (1, C, H, W) of a small grey square, and its pixels a side."""
        side = 4 * self.multiple
        with torch.no_grad():
            grey = torch.full((1, 3, side, side), 0.5, device=autoencoder_device(self.pipe, self.device))
            return self.backbone.encode(self.pipe, grey), side

    def check_latents(self, latents: Tensor, pixels: Tensor) -> None:
        """Raise ImageError unless latents are such as the pipeline gives for a draft (1, 3, h, w)."""
        height, width = pixels.shape[-2:]
        grey, side = self._encoded_grey()
        wanted = (1, grey.shape[1], height * grey.shape[2] // side, width * grey.shape[3] // side)
        try:
            found = tuple(self.backbone.unpack(self.pipe, latents.float(), width, height).shape)
        except Exception:  # whatever a tensor of another shape trips over
            found = tuple(latents.shape)
        if found != wanted:
            raise ImageError(f"The draft's latents are {found}; of this model they are {wanted}. Draft it again.")

    def resolve(self, asked: Iterable[Asked], *, native: bool = False, given: bool = False) -> list[Job]:
        """Return what is asked for as jobs, everything settled for this model: plan, size, negative prompt.

        native: for the plain pipeline, of whose plan only steps, guidance and solver count, the last two as given.
        given: for pictures that are there; nothing is drafted.
        Raises ModelError (see `check_parts`), PlanError, SizeError or LoraNameError. Warns (PromptWarning) of what
        the model will not take in: a text's cut-off end, words it does not know, negative prompts in a run
        without classifier-free guidance; and (MrFlowWarning) of steps that a distilled model has not learned.
        """
        self.check_parts()
        asked, jobs, unheard, multiple = list(asked), list[Job](), False, self.backbone.multiple(self.pipe)
        texts: dict[tuple[str, int | None], None] = {}
        plans = {each: self.resolve_plan(each, native=native) for each in dict.fromkeys(one.plan for one in asked)}
        learned = self.defaults.learned_steps
        for plan in plans.values():
            if not given and learned not in (None, plan.schedule_steps):
                text = f"{self.name} has learned to paint in {learned} steps"
                warn(f"{text}; in {plan.schedule_steps} its pictures are worse.", MrFlowWarning)
        for one in asked:
            own, plan = self.defaults, plans[one.plan]
            plan = self.fit(plan, one.prompt)
            guided = plan.guided
            values: dict[str, Any] = {
                "noise_width": one.noise_width,
                "noise_height": one.noise_height,
                "negative_prompt": _first(one.negative_prompt, own.negative_prompt) if guided else None,
                "max_sequence_length": _first(one.max_sequence_length, own.max_sequence_length),
                "loras": self.loras.resolve(one.loras),
                "references": self.check_references(one.references),
            }
            size = _first(one.width, own.width), _first(one.height, own.height)
            width, height = check_size(*size, multiple)
            plan = self.cut(plan, width, height) if not native else self._held(plan, width, height)
            jobs.append(Job(prompt=one.prompt, seed=one.seed, plan=plan, width=width, height=height, **values))
            unheard |= bool(one.negative_prompt) and not guided
            for text in filter(None, (one.prompt, values["negative_prompt"])):
                texts[text, values["max_sequence_length"]] = None
        if unheard:
            text = "The negative prompt has no effect without classifier-free guidance"
            takes = self.backbone.takes_cfg(self.pipe)
            more = ". Set true_cfg_scale above 1." if takes else f", which {self.name} does not take."
            warn(text + more, PromptWarning)
        for text, length in texts:
            if markup := _MARKUP.search(text):
                told = "LoRAs are given apart, and words have no weights."
                warn(f"The prompt has {markup[0]!r}, which is read as mere words. {told}", PromptWarning)
            reading = self.backbone.read_prompt(self.pipe, text, length)
            if reading.cut or reading.unknown:
                self._warn_of_loss(reading)
        return jobs

    def check_references(self, references: tuple[Reference, ...]) -> tuple[Reference, ...]:
        """Return the references; raises RequestError where the pipeline takes none, or not these."""
        if references and not self.backbone.references:
            raise RequestError(f"{type(self.pipe).__name__} takes no reference pictures; FLUX.2 and Klein do.")
        try:
            for each in references:
                self.pipe.image_processor.check_image_input(load_image(each.source))
        except ValueError as error:
            raise RequestError(f"A reference can't be taken: {error}") from None
        return references

    def resolve_size(self, width: int | None = None, height: int | None = None) -> Size:
        """Return the size of finished pictures, each missing side the model's own; raises SizeError."""
        return check_size(_first(width, self.defaults.width), _first(height, self.defaults.height), self.multiple)

    def resolve_plan(self, plan: Plan | str | None = None, *, native: bool = False) -> Plan:
        """Return the plan with guidance and solver filled in: from the plan, else the defaults, else the family's.

        Of the two kinds of guidance, `guidance_scale` stays None for checkpoints that cannot take it. The solver
        of the defaults stands in for plain Euler alone, not for a scheduler that somebody chose.
        Raises PlanError for a solver, a switch or a guidance_stop that the pipeline's scheduler cannot do.
        """
        own, takes_cfg = self.defaults.plan, self.backbone.takes_cfg(self.pipe)
        kind, usual = self.backbone.guidance_field(self.pipe), self.backbone.default_guidance(self.pipe)
        given = plan if isinstance(plan, Plan) else get_plan(plan or replace(own, solver=None))
        solver = resolve_solver(self.pipe, given.solver, None if native else own.solver)
        resolved = replace(given, solver=solver, **self._guidance(given, kind, usual, takes_cfg=takes_cfg))
        if native:
            stop = None if plan is None else given.guidance_stop
            return resolved.native(given.steps, guidance_stop=stop, solver=solver)
        if resolved.switches:
            check_switch(self.pipe)
        return resolved

    def warn_of_steps(self, plan: Plan) -> None:
        """Warn (MrFlowWarning) of a draft of as many steps, given beside no plan, as the plain pipeline has."""
        own, taken = self.defaults, inspect.signature(type(self.pipe).__call__).parameters
        usual = whole(getattr(taken.get("num_inference_steps"), "default", None)) or own.native_steps
        usual = min(own.native_steps, usual)
        if plan.steps >= usual and plan.steps > own.plan.steps and not own.learned_steps:
            text = f"num_inference_steps is {plan.steps}, here the draft's; the plain call has {usual} in all"
            told = f"The plan is {plan.label}: name it, or leave the number out for this model's {own.plan.label}."
            warn(f"{text}. {told}", MrFlowWarning)

    def fit(self, plan: Plan, prompt: str) -> Plan:
        """Return a resolved plan with a number where its refine_sigma was "auto": see `mrflow.auto_sigma`."""
        if isinstance(plan.refine_sigma, float) or plan.switches:
            return plan
        sigmas: Any = tuple(
            fit_sigma(self.pipe, self.backbone, self.lift(each), each, prompt)
            if each.refine_sigma == AUTO
            else each.refine_sigma
            for each in plan.levels
        )
        return replace(plan, refine_sigma=sigmas)

    def cut(self, plan: Plan, width: int, height: int) -> Plan:
        """Return a resolved plan with the size of the tiles, if it names none and the picture is too large whole.

        Raises PlanError where it names one and the transformer can't be cut, or the tile is too small for it, and
        SizeError where memory doesn't allow it.
        """
        tile, reason = plan.tile, self.backbone.uncut(self.pipe)
        large = width * height > largest_whole(type(self.pipe).__name__)
        if tile is None and not reason and (large or width * height > (self.side or math.inf) ** 2):
            trained = min(1024, self.defaults.width, self.defaults.height) if large else math.inf
            tile = int(min(trained, self.side or math.inf))
        if isinstance(tile, int) and max(width, height) > tile:
            if reason:
                raise PlanError(
                    f"tile is {tile}; {type(self.pipe).__name__} can't be cut: {reason}. Leave it out."
                )
            if tile < 4 * self.multiple:
                text = f"tile is {tile}; for this model it must be {4 * self.multiple} at least, 4 patches"
                raise PlanError(f"{text}. Try {min(1024, self.defaults.width)}.")
            plan = replace(plan, tile=tile)
        self._held(plan, *plan.draft_size(width, height, self.multiple))
        return self._held(plan, *((tile, tile) if (tile := plan.cut(width, height)) else (width, height)))

    def _held(self, plan: Plan, width: int, height: int) -> Plan:
        """Return the plan; raises SizeError where memory doesn't allow a picture whole that is this large."""
        if self.side and width * height > self.side**2:
            raise SizeError(
                f"{width}x{height} pixels at a time are more than max_memory allows this model, "
                f"{self.side}x{self.side}. Take smaller drafts (scale, scales), tiles or pictures, or allow more."
            )
        return plan

    def recipe(
        self,
        mode: Mode,
        job: Job,
        batch: int = 1,
        conditions: Mapping[str, str] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **more: Any,
    ) -> Recipe:
        """Return the recipe of one picture. device, dtype: where known. more: fields that others know."""
        lift = None if mode in ("native", "draft") else self.lift(job.plan)
        device = device or self.device
        values: dict[str, Any] = {
            **{name: getattr(job, name) for name in _JOB},
            "mode": mode,
            "model": self.name,
            "revision": self.revision,
            "upscaler": lift and lift.name,
            "upscaler_sha256": lift and lift.sha256,
            "dtype": str(dtype or self.dtype).removeprefix("torch."),
            "device": device.type,
            "batch": batch,
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "conditions": conditions or {},
            "versions": library_versions(),
            "latents": ENCODED if mode == "enhance" and lift and lift.latents else None,
        }
        return Recipe(**values | more)

    def finished_recipe(
        self, base: Job, batch: int, conditions: Mapping[str, str], device: torch.device, pixels_sha256: str
    ) -> Recipe:
        """Return the recipe of a finished picture.

        base: the recipe that a draft or given image was planned with, or a native picture's job. batch, device:
        of the finishing. conditions: of the pipeline while it finished.
        """
        more: dict[str, Any] = {"pixels_sha256": pixels_sha256}
        if not isinstance(base, Recipe):
            return self.recipe("native", base, batch, conditions, device, **more)
        if base.mode != "enhance" and base.conditions != conditions:  # enhancing drafts nothing
            conditions = finished_conditions(base.conditions, conditions)
        if base.threads != (torch.get_num_threads() if device.type == "cpu" else None):
            more["threads"] = None
        more["input_sha256"] = base.input_sha256
        more |= {"latents": base.latents} if base.latents else {}
        mode: Mode = "staged" if base.input_sha256 is None else "finish"
        if base.mode == "enhance":
            mode = "enhance"
        return self.recipe(mode, base, max(batch, base.batch), conditions, device, **more)

    def warn_of_difference(self, recipe: Recipe, here: Mapping[str, str]) -> None:
        """Warn (MrFlowWarning) where a picture had other conditions, or another revision of a model of the hub."""
        recorded, revisions = recipe.conditions, (recipe.revision, self.revision)
        if recipe.model == self.name and "/" in self.name and all(revisions):
            recorded, here = (
                {**each, "revision": str(own)} for each, own in zip((recorded, here), revisions, strict=True)
            )
        warn_of_difference(recorded, here, "The picture")

    def _guidance(self, plan: Plan, kind: str, usual: float, *, takes_cfg: bool) -> dict[str, Any]:
        """Return the fields of a resolved plan that guide it. kind, usual, takes_cfg: as the backbone says."""
        own = self.defaults.plan
        embedded = _first(plan.guidance_scale, own.guidance_scale)
        cfg = _first(plan.true_cfg_scale, own.true_cfg_scale)
        if kind == "guidance_scale":
            embedded, cfg = _first(embedded, usual), _first(cfg, 1.0)
        else:
            if plan.guidance_scale:  # 0 asks for none, as diffusers' examples of FLUX.1-schnell do
                text = f"guidance_scale has no effect: {self.name} has no guidance embeddings."
                warn(f"{text} Set true_cfg_scale instead.", MrFlowWarning)
            embedded, cfg = None, _first(cfg, usual)
        refine = _first(plan.refine_true_cfg_scale, own.refine_true_cfg_scale, cfg)
        stop = _first(plan.guidance_stop, own.guidance_stop, 1.0)
        if not takes_cfg:
            if max(plan.true_cfg_scale or 1.0, plan.refine_true_cfg_scale or 1.0) > 1:
                text = f"true_cfg_scale has no effect: {self.name} takes no classifier-free guidance."
                warn(text, MrFlowWarning)
            cfg = refine = stop = 1.0
        order = getattr(self.pipe.scheduler, "order", 1)
        if stop < 1 and cfg > 1 and order != 1:
            raise PlanError(
                f"guidance_stop is {stop}; it needs a scheduler that asks the model once a step, and "
                f"{type(self.pipe.scheduler).__name__} asks {order} times. Set it to 1."
            )
        return {
            "guidance_scale": embedded,
            "true_cfg_scale": cfg,
            "refine_true_cfg_scale": refine,
            "guidance_stop": stop,
        }

    def _warn_of_loss(self, reading: Reading) -> None:
        if reading.cut:
            text = f"The prompt is too long for {self.name}; this end is cut off: {reading.cut[:500]!r}"
            warn(text, PromptWarning)
        if reading.unknown:
            names = ", ".join(map(repr, reading.unknown[:20]))
            warn(f"{self.name} does not know: {names}", PromptWarning)


def _first(*values: Any) -> Any:
    """Return the first value that is not None, or None."""
    return next((value for value in values if value is not None), None)
