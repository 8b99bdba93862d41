"""`mrflow enhance`: any picture, upscaled and refined."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mrflow.cli import options
from mrflow.cli.loading import ModelOptions
from mrflow.cli.outputs import plan_outputs, subjects_of
from mrflow.cli.planning import PlanOptions
from mrflow.cli.progress import StageBars
from mrflow.cli.reporting import reporting
from mrflow.cli.writing import Written, tell_pictures
from mrflow.files import load_image
from mrflow.jobs import parse_size


def enhance(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="PNG, JPEG, WebP and others.", show_default=False)
    ],
    prompt: Annotated[
        str, typer.Option("--prompt", help="What the pictures show.", rich_help_panel="What", show_default=False)
    ],
    negative: options.Negative = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            "-s",
            metavar="SIZE",
            help="Pixels of the finished picture, which is cropped to that shape.",
            rich_help_panel="What",
            show_default="the image's own times --scale",
        ),
    ] = None,
    seed: options.Seed = None,
    refine_steps: options.RefineSteps = None,
    sigma: options.Sigma = None,
    scale: options.Scale = None,
    guidance: options.Guidance = None,
    true_cfg_scale: options.TrueCfgScale = None,
    model: options.Model = "vista",
    upscaler: options.Upscaler = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    out: options.Out = None,
    force: options.Force = False,
    stages: options.Stages = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Upscale and refine any picture, as a draft is finished.

    Examples:
      mrflow enhance photo.jpg --prompt "a lake at noon with mountains and pine trees"
      mrflow enhance old/*.png --prompt "a beach at sunset" --sigma 0.2 --out "new/{name}.png"
    """
    with reporting(debug):
        plans = PlanOptions(
            refine_steps=refine_steps,
            refine_sigma=sigma,
            scale=scale,
            guidance=guidance,
            true_cfg_scale=true_cfg_scale,
        )
        jobs = make_jobs([prompt] * len(images), negative, seed)
        width, height = parse_size(size)
        kept = ("upscaled",) if stages else ()
        subjects = subjects_of(jobs, images)
        paths = plan_outputs(out, "{name}-enhanced.png", subjects, companions=kept, force=force)
        pictures = [load_image(path) for path in images]
        fast = ModelOptions(model=model, upscaler=upscaler, device=device, dtype=dtype).load()
        with Written(paths, stages=kept, force=force) as written, StageBars() as bars:
            result = fast.enhance(
                pictures,
                prompt,
                negative_prompt=negative,
                width=width,
                height=height,
                plan=plans.resolve(fast),
                seed=[job.seed for job in jobs],
                stages=stages,
                callback=bars,
                on_picture=written,
            )
        tell_pictures(written.entries, result.seconds, as_json=as_json)
