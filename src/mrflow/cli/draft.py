"""`mrflow draft`: many cheap drafts, to choose from."""

from __future__ import annotations

from mrflow.cli import options
from mrflow.cli.jobs import PictureOptions
from mrflow.cli.loading import ModelOptions
from mrflow.cli.planning import PlanOptions
from mrflow.cli.progress import StageBars
from mrflow.cli.reporting import reporting
from mrflow.cli.writing import describe, tell_pictures


def draft(
    prompt: options.Prompts,
    negative: options.Negative = None,
    size: options.Size = None,
    seed: options.Seed = None,
    num_images: options.NumImages = 4,
    plan: options.PlanName = None,
    steps: options.Steps = None,
    refine_steps: options.RefineSteps = None,
    sigma: options.Sigma = None,
    scale: options.Scale = None,
    guidance: options.Guidance = None,
    true_cfg_scale: options.TrueCfgScale = None,
    guidance_stop: options.GuidanceStop = None,
    solver: options.Solver = None,
    model: options.Model = "vista",
    device: options.Device = None,
    dtype: options.Dtype = None,
    out: options.Out = None,
    force: options.Force = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make many cheap drafts to choose from; 'mrflow finish' makes the chosen ones large.

    A draft carries its recipe, the finished size and the refine pass included.

    Examples:
      mrflow draft "a snowy lake at sunset with a red hot air balloon" -n 8
      mrflow draft "a meadow at dawn" "a beach at night" --size 320x192 --out drafts/
      mrflow finish a-meadow-at-dawn-7-draft.png
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
        paths = wanted.outputs(out, "{prompt}-{seed}-draft.png", force=force)
        # drafting upscales nothing; bicubic keeps the model from asking for a network
        fast = ModelOptions(model=model, upscaler="bicubic", device=device, dtype=dtype).load()
        with StageBars() as bars:
            drafts = fast.draft(**wanted.arguments(), plan=plans.resolve(fast), callback=bars)
        pictures = [
            describe(each.save(path, overwrite=force), each.recipe)
            for each, path in zip(drafts, paths, strict=True)
        ]
        tell_pictures(pictures, drafts.seconds, as_json=as_json)
