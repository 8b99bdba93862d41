"""`mrflow generate`: prompts in, finished pictures out; also the plain pipeline, and the two side by side."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mrflow.cli import options
from mrflow.cli.both_ways import make_both
from mrflow.cli.jobs import PictureOptions
from mrflow.cli.loading import ModelOptions
from mrflow.cli.planning import PlanOptions, check_native
from mrflow.cli.progress import StageBars
from mrflow.cli.reporting import reporting
from mrflow.cli.writing import Written, tell_pictures


def generate(
    prompt: options.Prompts,
    negative: options.Negative = None,
    size: options.Size = None,
    seed: options.Seed = None,
    num_images: options.NumImages = 1,
    plan: options.PlanName = None,
    steps: options.Steps = None,
    refine_steps: options.RefineSteps = None,
    sigma: options.Sigma = None,
    scale: options.Scale = None,
    guidance: options.Guidance = None,
    true_cfg_scale: options.TrueCfgScale = None,
    guidance_stop: options.GuidanceStop = None,
    solver: options.Solver = None,
    native: Annotated[
        bool,
        typer.Option(
            "--native",
            help="Run the plain pipeline instead; --steps are then its own, 50 by default.",
            rich_help_panel="How",
        ),
    ] = False,
    compare_native: Annotated[
        bool,
        typer.Option(
            "--compare", help="Run both, in turn and timed, and draw them side by side.", rich_help_panel="How"
        ),
    ] = False,
    repeats: Annotated[
        int,
        typer.Option("--repeats", min=1, help="Timed runs of each with --compare.", rich_help_panel="How"),
    ] = 3,
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
    """Make pictures from prompts: draft small, upscale, refine.

    Examples:
      mrflow generate "a snowy lake at sunset with mountains and a red hot air balloon on the left"
      mrflow generate "a beach at night" --size 320x192 --seed 7 -n 4 --out "beach-{seed}.webp"
      mrflow generate "a lighthouse at dusk" --model black-forest-labs/FLUX.1-dev --plan 20+1
      mrflow generate "a desert at noon" --compare --stages --out desert.png
    """
    with reporting(debug):
        wanted = PictureOptions(prompt, negative, size, seed, num_images)
        plans = PlanOptions(
            plan=plan,
            steps=steps,
            refine_steps=refine_steps,
            refine_sigma=sigma,
            scale=scale,
            guidance=guidance,
            true_cfg_scale=true_cfg_scale,
            guidance_stop=guidance_stop,
            solver=solver,
        )
        models = ModelOptions(model=model, upscaler=upscaler, device=device, dtype=dtype)
        if native:
            check_native(plans, {"--compare": compare_native, "--stages": stages})
        if compare_native:
            make_both(wanted, plans, models, repeats=repeats, out=out, force=force, stages=stages, as_json=as_json)
            return
        kept = ("draft", "upscaled") if stages else ()
        paths = wanted.outputs(out, "{prompt}-{seed}.png", companions=kept, force=force)
        fast = models.load()
        with Written(paths, stages=kept, force=force) as written, StageBars() as bars:
            heard: dict[str, Any] = {"callback": bars, "on_picture": written}
            if native:
                plain = plans.resolve_native(fast)
                result = fast.native(**wanted.arguments(), plan=plain, steps=steps, **heard)
            else:
                result = fast(**wanted.arguments(), plan=plans.resolve(fast), stages=stages, **heard)
        tell_pictures(written.entries, result.seconds, as_json=as_json)
