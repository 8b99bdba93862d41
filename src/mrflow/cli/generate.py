"""`mrflow generate`: prompts in, finished pictures out; also the plain pipeline, and the two side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from cyclopts import Parameter

from mrflow.cli.both_ways import make_both
from mrflow.cli.loading import ModelOptions
from mrflow.cli.options import HOW, Count, Pictures, Prompt, Streams
from mrflow.cli.outputs import StagedOutput, Written, tell_pictures
from mrflow.cli.planning import PlanOptions
from mrflow.cli.progress import StageBars


def generate(
    *prompt: Prompt,
    pictures: Pictures = Pictures(),
    plans: PlanOptions = PlanOptions(),
    native: Annotated[bool, Parameter(group=HOW)] = False,
    compare: Annotated[bool, Parameter(group=HOW)] = False,
    repeats: Annotated[Count, Parameter(group=HOW)] = 3,
    model: ModelOptions = ModelOptions(),
    output: StagedOutput = StagedOutput(),
    streams: Streams = Streams(),
) -> None:
    """Make pictures from prompts: draft small, upscale, refine.

    Args:
        native: Run the plain pipeline instead; --steps are then its own, 50 by default.
        compare: Run both, in turn and timed, and draw them side by side.
        repeats: Timed runs of each with --compare.

    Examples:
      mrflow generate "a snowy lake at sunset with mountains and a red hot air balloon on the left"
      mrflow generate "a beach at night" --size 320x192 --seed 7 -n 4 --out "beach-{seed}.webp"
      mrflow generate "a lighthouse at dusk" --model black-forest-labs/FLUX.1-dev --plan 20+1
      mrflow generate "a desert at noon" --compare --stages --out desert.png
    """
    wanted = pictures.of(prompt)
    model = replace(model, **{side: wanted.arguments[side] for side in ("width", "height")})
    if native:
        plans.check_native({"--compare": compare, "--stages": output.stages})
    if compare:
        make_both(wanted, plans, model, output, repeats=repeats, as_json=streams.json)
        return
    kept = ("draft", "upscaled") if output.stages else ()
    paths = output.paths("{prompt}-{seed}.png", wanted.jobs, companions=kept)
    fast = model.load()
    with Written(paths, stages=kept, force=output.force) as written, StageBars() as bars:
        arguments: dict[str, Any] = {**wanted.arguments, "callback": bars, "on_picture": written}
        if native:
            result = fast.native(**arguments, plan=plans.resolve_native(fast), steps=plans.steps)
        else:
            result = fast(**arguments, plan=plans.resolve(fast), keep_upscaled=output.stages)
    tell_pictures(written.entries, result.seconds, as_json=streams.json)
