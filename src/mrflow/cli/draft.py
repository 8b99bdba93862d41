"""`mrflow draft`: many cheap drafts, to choose from."""

from __future__ import annotations

from mrflow.cli.loading import DraftModel
from mrflow.cli.options import Drafts, Prompt, Streams
from mrflow.cli.outputs import Output, describe, tell_pictures
from mrflow.cli.planning import PlanOptions
from mrflow.cli.progress import StageBars


def draft(
    *prompt: Prompt,
    drafts: Drafts = Drafts(),
    plans: PlanOptions = PlanOptions(),
    model: DraftModel = DraftModel(),
    output: Output = Output(),
    streams: Streams = Streams(),
) -> None:
    """Make many cheap drafts to choose from; 'mrflow finish' makes the chosen ones large.

    A draft carries its recipe, the finished size and the refine pass included.

    Examples:
      mrflow draft "a snowy lake at sunset with a red hot air balloon" -n 8
      mrflow draft "a meadow at dawn" "a beach at night" --size 320x192 --out drafts/
      mrflow finish a-meadow-at-dawn-7-draft.png
    """
    wanted = drafts.of(prompt)
    paths = output.paths("{prompt}-{seed}-draft.png", wanted.jobs)
    fast = model.load()
    with StageBars() as bars:
        made = fast.draft(**wanted.arguments, plan=plans.resolve(fast), callback=bars)
    pictures = [
        describe(each.save(path, overwrite=output.force), each.recipe)
        for each, path in zip(made, paths, strict=True)
    ]
    tell_pictures(pictures, made.seconds, as_json=streams.json)
