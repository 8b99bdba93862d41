"""What the options ask for, picture by picture, known before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrflow.cli.outputs import plan_outputs, subjects_of
from mrflow.cli.reporting import say
from mrflow.jobs import Job, Size, parse_size


@dataclass(frozen=True)
class PictureOptions:
    """The options that say what pictures to make. Checked on creation: raises RequestError and its kin.

    Seeds are drawn here rather than by the model, so that they can stand in the names of files.
    """

    prompts: list[str]
    negative: str | None
    size: str | None
    seed: int | None
    num_images: int
    jobs: list[Job] = field(init=False)
    pixels: Size | tuple[None, None] = field(init=False)

    def __post_init__(self) -> None:
        jobs = make_jobs(self.prompts, self.negative, self.seed, self.num_images)
        object.__setattr__(self, "jobs", jobs)
        object.__setattr__(self, "pixels", parse_size(self.size))
        if len(self.prompts) > 1 and not any(" " in prompt.strip() for prompt in self.prompts):
            say(
                f"{len(self.prompts)} prompts of one word each are taken. Quote a longer one.", "Warning", "yellow"
            )

    def outputs(
        self, out: str | None, default: str, *, companions: Sequence[str] = (), force: bool = False
    ) -> list[Path]:
        """Return where each picture goes; see `plan_outputs`."""
        return plan_outputs(out, default, subjects_of(self.jobs), companions=companions, force=force)

    def arguments(self) -> dict[str, Any]:
        """Return what MrFlow's verbs take of these."""
        width, height = self.pixels
        return {
            "prompt": self.prompts,
            "negative_prompt": self.negative,
            "width": width,
            "height": height,
            "seed": [job.seed for job in self.jobs],
            "num_images": self.num_images,
        }
