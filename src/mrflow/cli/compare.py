"""`mrflow compare`: methods side by side on many prompts, scored, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from mrflow import vista
from mrflow.bench.compare import EQUAL_TIME_RUNS, Course, count_runs, missing, run_turns, steps_of_equal_time
from mrflow.bench.environment import describe_environment
from mrflow.bench.ledger import Ledger, read_course
from mrflow.bench.methods import Method, others, read_methods
from mrflow.bench.plots import check_plotting
from mrflow.bench.prompts import read_questions
from mrflow.cli.loading import ModelOptions
from mrflow.cli.options import HOW, OUTPUT, WHAT, Count, Size, Streams, Whole
from mrflow.cli.outputs import tell_json, tell_paths
from mrflow.cli.progress import run_bar, silent
from mrflow.cli.report_tables import print_scores
from mrflow.cli.reporting import each_warning_once, say
from mrflow.errors import OutputError
from mrflow.jobs import make_seeds, parse_size

if TYPE_CHECKING:
    from mrflow import MrFlow
    from mrflow.jobs import Size as Pixels

METHODS = (
    *("native", "native:25", "native:12", "native:6,solver=unipc", "12+1", "20+1", "6+1:solver=unipc"),
    *("12+1:upscaler=bicubic", "12+1:upscaler=lanczos", "12+1:upscaler=latent", "12+0"),
    *("native:cache=first-block@0.1", "native:cache=taylorseer@4"),
)


def compare(
    *method: Annotated[
        str,
        Parameter(
            help="native:25, native:cache=first-block@0.1, 12+1, 12+1:refine_sigma=0.2, 12+1:upscaler=lanczos, "
            "12+1:upscaler=latent, 12+0 (not refined); the first is the baseline. docs/benchmarks.md has all.",
            show_default=" ".join(METHODS),
        ),
    ],
    prompts: Annotated[
        Path | None, Parameter(metavar="FILE", group=WHAT, show_default="256 captions of vista's world")
    ] = None,
    limit: Annotated[Count | None, Parameter(metavar="N", group=WHAT)] = None,
    seeds: Annotated[Whole, Parameter(metavar="N", group=WHAT)] = 1,
    seed: Annotated[Whole, Parameter(group=WHAT)] = 0,
    size: Size = None,
    equal_time: Annotated[
        bool, Parameter(negative="--no-equal-time", group=HOW, show_default="equal-time")
    ] = True,
    metric: Annotated[
        tuple[str, ...],
        Parameter(
            metavar="NAME",
            help="Scores by further networks: clip, lpips (of the extra metrics), image-reward "
            "(of the extra image-reward); their weights are downloaded. Several times for several.",
            group=HOW,
            show_default="none",
        ),
    ] = (),
    model: ModelOptions = ModelOptions(),
    out: Annotated[Path, Parameter(alias="-o", metavar="FOLDER", group=OUTPUT)] = Path("compare"),
    show: Annotated[Whole, Parameter(metavar="N", group=OUTPUT, validator=Number(gte=0))] = 12,
    report_only: Annotated[bool, Parameter(group=OUTPUT)] = False,
    streams: Streams = Streams(),
) -> None:
    """Run methods side by side on many prompts and score them: speed, quality, sharpness, colour.

    For each prompt all methods run in turn, and who begins rotates. Every picture is kept with its seconds:
    stop it when you like, the same command goes on. More methods can be added later to what is there.

    Args:
        prompts: One prompt a line, or .jsonl objects with "prompt" and perhaps "labels".
        limit: Only the first N prompts.
        seeds: Pictures per prompt.
        seed: Of the first picture.
        equal_time: Add the native run that takes as long as the first plan; its steps are measured first.
        out: Pictures, seconds and report.
        show: Prompts with pictures in the report.
        report_only: Make no pictures: write the report on the prompts that are complete in --out.

    Examples:
      mrflow compare --limit 8 native:12 4+1 4+0 --out quick
      mrflow compare --out vista
      mrflow compare native 12+1 20+1 12+1:upscaler=bicubic -m black-forest-labs/FLUX.1-dev --prompts mine.txt
    """
    from mrflow.metrics import learned
    from mrflow.metrics.pixels import check_similarity

    check_plotting()
    check_similarity()
    chosen = learned.choose(list(metric))
    course = Course(
        methods=read_methods(method or METHODS),
        questions=read_questions(prompts, limit),
        seeds=seeds,
        seed=make_seeds(seed, 1)[0],
    )
    if report_only and read_course(out) is None:
        raise OutputError(f"{out} holds no comparison to report on. Leave out --report-only to begin one.")
    fast = model.load()
    pixels = fast.model.resolve_size(*parse_size(size))
    head = {"format": 1, **_describe(fast, course.methods), "size": list(pixels)}
    if report_only:  # of pictures as they were made, perhaps elsewhere
        begun = read_course(out) or {}
        head |= {name: begun.get(name) for name in ("environment", "model")}
    with each_warning_once():
        course, equal = _add_equal_time(fast, course, pixels, out) if equal_time else (course, None)
        head["equal_time"] = equal
        names = [method.name for method in course.methods]
        ledger = Ledger(out, {**head, **course.to_dict(), "methods": names})
        if not report_only:
            _make(fast, course, ledger, pixels)
        scores = _score(fast, course, ledger, pixels, chosen)
    from mrflow.bench.report import write_report

    paths = write_report(out, course, ledger, head, scores, show)
    print_scores(scores)
    if streams.json:
        tell_json({**head, "scores": scores}, indent=None)
    else:
        tell_paths(paths)


def _make(fast: MrFlow, course: Course, ledger: Ledger, size: Pixels) -> None:
    """Make the pictures that are missing."""
    turns = missing(course, ledger)
    if ledger.runs:
        say(f"{len(ledger.runs)} runs are there from before and are kept")
    if turns:
        with run_bar(count_runs(turns)) as on_run:
            run_turns(fast, course, ledger, turns, size, on_run)


def _score(fast: MrFlow, course: Course, ledger: Ledger, size: Pixels, chosen: list[Any]) -> dict[str, Any]:
    from mrflow.bench.environment import source_commit
    from mrflow.bench.report import score_course
    from mrflow.metrics import learned

    networks = {one.name: learned.load(one, fast.model.device) for one in chosen}
    inspected = fast.model.name in vista.DEFAULTS or any(each.labels for each in course.questions)
    say("scoring")
    with run_bar(len(course.methods) * len(course.items)) as on_picture:
        scores = score_course(course, ledger, networks, on_picture, size if inspected else None)
    return {**scores, "commit": source_commit()}


def _add_equal_time(
    fast: MrFlow, course: Course, size: Pixels, folder: Path
) -> tuple[Course, dict[str, Any] | None]:
    """Return the course with the native run that takes the time of its first plan, and what was found.

    What an earlier run of the same command found is kept: a second measurement would give other steps.
    """
    reference = course.first_plan
    if reference is None or course.methods[0].plan is not None:
        return course, None
    before = (read_course(folder) or {}).get("equal_time")
    if isinstance(before, dict) and before.get("method") == reference.name:
        steps = int(before["steps"])
    else:
        say(f"measuring how many native steps take the time of {reference.name}")
        question, seed = course.items[0]
        settings = {"prompt": question.prompt, "seed": seed, "width": size[0], "height": size[1]}
        with run_bar(EQUAL_TIME_RUNS) as on_run:
            steps = steps_of_equal_time(fast, reference, {**settings, "callback": silent}, on_run)
    equal = {"method": reference.name, "steps": steps}
    native = Method(name=f"native:{steps}", steps=steps)
    if native in course.methods:
        return course, equal
    return replace(course, methods=[*course.methods, native]), equal


def _describe(fast: MrFlow, methods: Sequence[Method]) -> dict[str, Any]:
    model = fast.model
    return {
        "environment": describe_environment(model.device, model.dtype),
        "model": {
            "name": model.name,
            "revision": model.revision,
            "upscaler": model.upscaler.name,
            "upscaler_sha256": model.upscaler.sha256,
            **others(fast, methods),
        },
    }
