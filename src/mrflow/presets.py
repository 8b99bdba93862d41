"""Plans by name: the published presets, any "N+M", and the files that `mrflow tune` writes.

    {"format": 1, "plan": {"steps": 8, "refine_sigma": 0.2, ...}, "measured": {...}}

Only commands read files: a name in a row of prompts or in a request is never taken for a path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mrflow.errors import PlanError
from mrflow.plan import Plan

FORMAT = 1
SUFFIX = ".json"
_MAX_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published plan: its name, when to take it and where its numbers come from."""

    name: str
    plan: Plan
    about: str
    source: str


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                name="12+1",
                plan=Plan(steps=12),
                about="fast: 8.25 times faster than 50 steps on FLUX.1-dev, 10.3 times on Qwen-Image",
                source="arXiv 2607.01642: FLUX.1-dev GenEval .66 -> .63; Qwen-Image .88 -> .86",
            ),
            Preset(
                name="20+1",
                plan=Plan(steps=20),
                about="careful: 5.78 times faster on FLUX.1-dev, 6.98 times on Qwen-Image",
                source="arXiv 2607.01642: FLUX.1-dev GenEval .66 -> .65; Qwen-Image .88 -> .87",
            ),
            Preset(
                name="4+1",
                plan=Plan(steps=4),
                about="for few-step distilled checkpoints: 25.1 times on Qwen-Image with Pi-Flow, 11.3 on FLUX.1",
                source="arXiv 2607.01642: Qwen-Image + Pi-Flow GenEval .85; FLUX.1 + Pi-Flow .69",
            ),
            Preset(
                name="schnell-4+1",
                plan=Plan(steps=4, true_cfg_scale=1.0),
                about="FLUX.1-schnell in the steps it was distilled for",
                source="steps, no guidance: diffusers 0.42.1, pipeline_flux.py; no staged figures published",
            ),
            Preset(
                name="schnell-1+1",
                plan=Plan(steps=1, true_cfg_scale=1.0),
                about="FLUX.1-schnell at its fastest: 19.5 times faster than FLUX.1-dev",
                source="arXiv 2607.01642: GenEval .71",
            ),
            Preset(
                name="z-image-turbo-8+1",
                plan=Plan(steps=8, true_cfg_scale=1.0),
                about="Z-Image-Turbo: 21.0 times faster",
                source="arXiv 2607.01642; steps, no guidance: diffusers 0.42.1, pipeline_z_image.py, example. "
                "The paper's sigma there is an index into a schedule; ours is .12 itself",
            ),
            Preset(
                name="klein-4+1",
                plan=Plan(steps=4, true_cfg_scale=1.0),
                about="FLUX.2 Klein, step-distilled",
                source="steps: fal.ai/learn/devs/flux-2-klein-user-guide; no guidance: diffusers 0.42.1, "
                "pipeline_flux2_klein.py, is_distilled; no staged figures published",
            ),
            Preset(
                name="krea-2-turbo-8+1",
                plan=Plan(steps=8, true_cfg_scale=1.0),
                about="Krea 2 Turbo, step-distilled",
                source="steps, no guidance: diffusers 0.42.1, pipeline_krea2.py; no staged figures published",
            ),
            *(
                Preset(
                    name=f"qwen-image-lightning-{steps}+1",
                    plan=Plan(steps=steps, true_cfg_scale=1.0),
                    about=f"Qwen-Image with the {steps}-step Lightning LoRA and the scheduler its card gives",
                    source="no guidance, shift 3: huggingface.co/lightx2v/Qwen-Image-Lightning; "
                    "no staged figures published",
                )
                for steps in (4, 8)
            ),
        )
    }
)

DEFAULT_PLAN = PRESETS["12+1"].plan


def get_plan(plan: Plan | str | None = None) -> Plan:
    """Return a plan from a preset's name, any "N+M" text, a Plan (as it is) or None (12+1).

    Raises PlanError for other text, naming the presets.
    """
    if plan is None:
        return DEFAULT_PLAN
    if isinstance(plan, Plan):
        return plan
    if not isinstance(plan, str):
        raise PlanError(f"plan is {type(plan).__name__}; it must be a Plan or a name such as '12+1'.")
    name = plan.strip()
    if name in PRESETS:
        return PRESETS[name].plan
    match = re.fullmatch(r"(\d{1,4})\s*\+\s*(\d{1,4})", name, flags=re.ASCII)
    if match is None:
        raise PlanError(
            f"There is no plan {name[:80]!r}. Known: {', '.join(PRESETS)}; "
            "or give your own as draft steps + refine steps, such as '16+1'."
        )
    return Plan(steps=int(match[1]), refine_steps=int(match[2]))


def named_plan(name: str | None) -> Plan:
    """Return the plan of a file, if the name ends in .json, else what `get_plan` gives. Raises PlanError."""
    if name is not None and name.strip().lower().endswith(SUFFIX):
        return read_plan(Path(name.strip()))
    return get_plan(name)


def read_plan(path: Path) -> Plan:
    """Return the plan in a file; raises PlanError if it is missing, no plan or written by a later version."""
    if not os.path.isfile(path):  # os.path, for it takes any text, however long
        raise PlanError(f"There is no plan file {str(path)[:200]}. Make one with: mrflow tune")
    try:
        with open(path, "rb") as file:
            data = json.loads(file.read(_MAX_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise PlanError(f"{path} is no JSON that can be read. Make a plan file with: mrflow tune") from None
    if not isinstance(data, dict) or not isinstance(data.get("plan"), dict):
        raise PlanError(f'{path} holds no "plan". Make a plan file with: mrflow tune')
    version = data.get("format")
    if version != FORMAT:
        raise PlanError(f"{path} has format {version!r:.40}; known is {FORMAT}. Upgrade mrflow.")
    try:
        return Plan.from_dict(data["plan"])
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None


def plan_to_json(plan: Plan, measured: Mapping[str, Any]) -> str:
    """Return the text of a plan file. measured: on what grounds, for people to read."""
    return json.dumps({"format": FORMAT, "plan": plan.to_dict(), "measured": dict(measured)}, indent=2) + "\n"
