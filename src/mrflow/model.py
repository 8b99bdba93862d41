"""A pipeline with all that is known of it: its family, name, defaults and upscaler; plans and sizes made whole."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mrflow.backbones import Backbone, Pipeline
from mrflow.errors import MrFlowWarning, PlanError, PromptWarning
from mrflow.plan import Defaults, Plan
from mrflow.presets import get_plan
from mrflow.recipe import Mode, Recipe, library_versions
from mrflow.request import Job
from mrflow.schedulers import check_solver, is_plain_euler
from mrflow.sizes import Size, check_size
from mrflow.upscaler import Upscaler


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded model. name: "vista", a folder or a hub id. revision: its commit or content hash, if known."""

    pipe: Pipeline
    backbone: Backbone
    upscaler: Upscaler
    defaults: Defaults
    name: str
    revision: str | None = None

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes; with offloading, not where its weights lie. diffusers walks all modules."""
        return torch.device(self.pipe._execution_device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the transformer."""
        dtype: torch.dtype = self.pipe.transformer.dtype
        return dtype

    def resolve_plan(self, plan: Plan | str | None) -> Plan:
        """Return the plan with guidance and solver filled in: from the plan, else the defaults, else the family's.

        Of the two kinds of guidance, `guidance_scale` stays None for checkpoints that cannot take it. The solver
        of the defaults stands in for plain Euler alone, not for a scheduler that somebody chose.
        Raises PlanError for a solver or a guidance_stop that the pipeline's scheduler cannot do.
        """
        own = self.defaults.plan
        plan = replace(own, solver=None) if plan is None else get_plan(plan)
        check_solver(self.pipe, plan.solver)
        if plan.solver is None and is_plain_euler(self.pipe):
            plan = replace(plan, solver=own.solver)
        field = self.backbone.guidance_field(self.pipe)
        usual = self.backbone.default_guidance(self.pipe)
        embedded = _first(plan.guidance_scale, own.guidance_scale)
        cfg = _first(plan.true_cfg_scale, own.true_cfg_scale)
        if field == "guidance_scale":
            embedded, cfg = _first(embedded, usual), _first(cfg, 1.0)
        else:
            if plan.guidance_scale is not None:
                text = f"guidance_scale has no effect: {self.name} has no guidance embeddings."
                warnings.warn(f"{text} Set true_cfg_scale instead.", MrFlowWarning, stacklevel=4)
            embedded, cfg = None, _first(cfg, usual)
        if not self.backbone.takes_cfg(self.pipe):
            if max(plan.true_cfg_scale or 1.0, plan.refine_true_cfg_scale or 1.0) > 1:
                text = f"true_cfg_scale has no effect: {self.name} takes no classifier-free guidance."
                warnings.warn(text, MrFlowWarning, stacklevel=4)
            return replace(
                plan, guidance_scale=embedded, true_cfg_scale=1.0, refine_true_cfg_scale=1.0, guidance_stop=1.0
            )
        refine = _first(plan.refine_true_cfg_scale, own.refine_true_cfg_scale, cfg)
        stop = _first(plan.guidance_stop, own.guidance_stop, 1.0)
        if stop < 1 and cfg > 1 and getattr(self.pipe.scheduler, "order", 1) != 1:
            raise PlanError(
                f"guidance_stop is {stop}; it needs a scheduler that asks the model once a step, and "
                f"{type(self.pipe.scheduler).__name__} asks {self.pipe.scheduler.order} times. Set it to 1."
            )
        return replace(
            plan, guidance_scale=embedded, true_cfg_scale=cfg, refine_true_cfg_scale=refine, guidance_stop=stop
        )

    def resolve_size(self, width: int | None, height: int | None, plan: Plan | None) -> Size:
        """Return the size to make, each missing side from the defaults; raises SizeError if it does not fit.

        plan: whose draft must fit too; None for a native run.
        """
        size = (_first(width, self.defaults.width), _first(height, self.defaults.height))
        check_size(*size, self.backbone.multiple(self.pipe), plan)
        return size

    def resolve_jobs(self, jobs: Iterable[Job], *, guided: bool) -> list[Job]:
        """Return the jobs with the negative prompts that will be used: the defaults' where guided, else None.

        Warns (PromptWarning) of what the model will not take in: a text's cut-off end, words it does not know,
        negative prompts in a run without classifier-free guidance.
        """
        jobs = list(jobs)
        if not guided and any(job.negative_prompt for job in jobs):
            text = "The negative prompt has no effect without classifier-free guidance."
            warnings.warn(f"{text} Set true_cfg_scale above 1.", PromptWarning, stacklevel=4)
        resolved = [
            replace(
                job, negative_prompt=_first(job.negative_prompt, self.defaults.negative_prompt) if guided else None
            )
            for job in jobs
        ]
        for text in dict.fromkeys(t for job in resolved for t in (job.prompt, job.negative_prompt) if t):
            self._warn_of_loss(text)
        return resolved

    def recipe(
        self,
        mode: Mode,
        job: Job,
        size: Size,
        plan: Plan,
        batch: int = 1,
        conditions: Mapping[str, str] | None = None,
        device: torch.device | None = None,
    ) -> Recipe:
        """Return the recipe of one picture, as yet without its pixels' hash. device: where that is known."""
        upscales = mode not in ("native", "draft")
        device = device or self.device
        return Recipe(
            mode=mode,
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            seed=job.seed,
            width=size[0],
            height=size[1],
            plan=plan,
            model=self.name,
            revision=self.revision,
            upscaler=self.upscaler.name if upscales else None,
            upscaler_sha256=self.upscaler.sha256 if upscales else None,
            max_sequence_length=self.defaults.max_sequence_length,
            dtype=str(self.dtype).removeprefix("torch."),
            device=device.type,
            batch=batch,
            threads=torch.get_num_threads() if device.type == "cpu" else None,
            conditions=conditions or {},
            versions=library_versions(),
        )

    def _warn_of_loss(self, text: str) -> None:
        reading = self.backbone.read_prompt(self.pipe, text, self.defaults.max_sequence_length)
        if reading.cut:
            warnings.warn(
                f"The prompt is too long for {self.name}; this end is cut off: {reading.cut[:500]!r}",
                PromptWarning,
                stacklevel=5,
            )
        if reading.unknown:
            names = ", ".join(map(repr, reading.unknown[:20]))
            warnings.warn(f"{self.name} does not know: {names}", PromptWarning, stacklevel=5)


def _first(*values: Any) -> Any:
    """Return the first value that is not None, or None."""
    return next((value for value in values if value is not None), None)
