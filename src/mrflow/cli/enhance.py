"""`mrflow enhance`: any picture, upscaled and refined."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mrflow.cli.loading import ModelOptions
from mrflow.cli.options import WHAT, Negative, References, Seed, Streams, Text
from mrflow.cli.outputs import StagedOutput, Written, tell_pictures
from mrflow.cli.planning import EnhanceOptions
from mrflow.cli.progress import StageBars
from mrflow.files import load_image
from mrflow.jobs import ask, parse_size


def enhance(
    *image: Annotated[Path, Parameter(required=True)],
    prompt: Annotated[Text, Parameter(group=WHAT, allow_leading_hyphen=True)],
    negative: Negative = None,
    size: Annotated[
        str | None,
        Parameter(
            alias="-s", metavar="SIZE", group=WHAT, show_default="the image's own times --scale, in patches"
        ),
    ] = None,
    seed: Seed = None,
    references: References = (),
    plans: EnhanceOptions = EnhanceOptions(),
    model: ModelOptions = ModelOptions(),
    output: StagedOutput = StagedOutput(),
    streams: Streams = Streams(),
) -> None:
    """Upscale and refine any picture, as a draft is finished.

    Args:
        image: PNG, JPEG, WebP and others.
        prompt: What the pictures show.
        size: Pixels of the finished picture, which is cropped to that shape.

    Examples:
      mrflow enhance photo.jpg --prompt "a lake at noon with mountains and pine trees"
      mrflow enhance old/*.png --prompt "a beach at sunset" --sigma 0.2 --out new/
    """
    jobs = ask([prompt] * len(image), negative, seed)
    width, height = parse_size(size)
    kept = ("upscaled",) if output.stages else ()
    paths = output.paths("{name}-enhanced.png", jobs, image, companions=kept)
    pictures, seen = ([load_image(path) for path in paths] for paths in (image, references))
    fast = model.load()
    with Written(paths, stages=kept, force=output.force) as written, StageBars() as bars:
        result = fast.enhance(
            pictures,
            prompt,
            negative_prompt=negative,
            width=width,
            height=height,
            plan=plans.resolve(fast),
            seed=[job.seed for job in jobs],
            references=seen,
            keep_upscaled=output.stages,
            callback=bars,
            on_picture=written,
        )
    tell_pictures(written.entries, result.seconds, as_json=streams.json)
