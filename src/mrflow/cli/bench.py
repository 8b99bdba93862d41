"""`mrflow bench`: what the plain pipeline and plans cost on this machine, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mrflow.bench.environment import describe_environment
from mrflow.bench.measure import Course, check_batches, measure_group, missing_groups, open_report, save_report
from mrflow.bench.methods import others, read_methods
from mrflow.bench.plots import check_plotting, draw_bars
from mrflow.cli.loading import ModelOptions, best_device
from mrflow.cli.options import HOW, MODEL, OUTPUT, WHAT, Streams, Text, Whole
from mrflow.cli.outputs import tell_json, tell_paths
from mrflow.cli.progress import run_bar
from mrflow.cli.report_tables import print_group, print_overview
from mrflow.cli.reporting import each_warning_once, say
from mrflow.errors import RequestError
from mrflow.files import check_output, save_image
from mrflow.jobs import check_prompts, make_seeds, parse_size

if TYPE_CHECKING:
    from mrflow import MrFlow
    from mrflow.jobs import Size

_PROMPT = "a lake at sunset with mountains, many pine trees and a red boat"


def bench(
    *method: Annotated[str, Parameter(show_default="native 12+1")],
    prompt: Annotated[Text, Parameter(group=WHAT, allow_leading_hyphen=True)] = _PROMPT,
    size: Annotated[
        str | None, Parameter(alias="-s", metavar="SIZES", group=WHAT, show_default="the model's")
    ] = None,
    batch: Annotated[str, Parameter(metavar="SIZES", group=WHAT)] = "1",
    seed: Annotated[Whole, Parameter(group=WHAT)] = 0,
    repeats: Annotated[Whole, Parameter(group=HOW)] = 5,
    warm_up: Annotated[Whole, Parameter(group=HOW)] = 1,
    model: ModelOptions = ModelOptions(),
    random_weights: Annotated[str | None, Parameter(metavar="NAME", group=MODEL)] = None,
    out: Annotated[Path | None, Parameter(alias="-o", metavar="FILE.json", group=OUTPUT)] = None,
    plot: Annotated[Path | None, Parameter(metavar="FILE.png", group=OUTPUT)] = None,
    force: Annotated[bool, Parameter(group=OUTPUT)] = False,
    streams: Streams = Streams(),
) -> None:
    """Measure methods against each other: each stage, steps, memory, batches and sizes.

    All methods are warmed up, then run in turn, and medians are given with the smallest and largest value. Text
    encoding is included. Whatever runs out of memory is reported as such.

    Args:
        method: native, native:25 (steps), 12+1, 12+1:scale=1.5,refine_sigma=0.2; the first is the baseline.
        prompt: Of every picture.
        size: Pixels: 256, 320x192, or several, as 256,512,1024.
        batch: Pictures at once; several as 1,2,4.
        seed: Of the first picture.
        repeats: Timed runs of each method, in turn.
        warm_up: Short runs of each before.
        random_weights: Instead of a model: a full-size architecture with random weights, such as flux-dev.
        out: Write the report here as it grows; the same command goes on after a stop.
        plot: Draw the stages as stacked bars; needs matplotlib, of the extra bench.
        force: Overwrite what --plot names.

    Examples:
      mrflow bench
      mrflow bench native:50 native:12 12+1 20+1 --repeats 7 --plot bench.png
      mrflow bench native 12+1 --size 256,320,512 --batch 1,2,4 --out bench.json --json
      mrflow bench native:50 12+1 4+1 --random-weights flux-dev --size 1024 --device cuda
    """
    course = Course(
        methods=read_methods(list(method) or ["native", "12+1"]),
        prompt=check_prompts(prompt)[0],
        repeats=repeats,
        warm_up=warm_up,
        seed=make_seeds(seed, 1)[0],
    )
    pixels = [parse_size(text) for text in size.split(",")] if size else [(None, None)]
    counts = _read_batches(batch)
    if plot is not None:
        check_plotting()
        check_output(plot, overwrite=force)
    fast, described = _load(model) if random_weights is None else _draw(random_weights, model)
    groups = _resolve_sizes(fast, pixels)
    head = {
        "environment": describe_environment(fast.model.device, fast.model.dtype),
        "model": {**described, "parameters": _parameters(fast), "upscaler": fast.model.upscaler.name}
        | others(fast, course.methods),
        "course": course.to_dict(),
    }
    report = open_report(out, head)
    _measure(fast, course, report, missing_groups(report, groups, counts), out)
    if plot is not None:
        save_image(draw_bars(report), plot, overwrite=force)
    print_overview(report)
    if streams.json:
        tell_json(report, indent=None)
    else:
        tell_paths([path for path in (out, plot) if path is not None])


def _measure(
    fast: MrFlow, course: Course, report: dict[str, Any], missing: list[tuple[Size, int]], out: Path | None
) -> None:
    """Add the missing groups to the report, writing it after each."""
    if kept := len(report["groups"]):
        say(f"{kept} of {kept + len(missing)} groups were measured before and are kept")
    with each_warning_once(), run_bar(course.runs(len(missing))) as on_run:
        for size, batch in missing:
            report["groups"].append(measure_group(fast, course, size, batch, on_run))
            save_report(report, out)
    for group in report["groups"]:
        print_group(group)


def _load(model: ModelOptions) -> tuple[MrFlow, dict[str, Any]]:
    """Return the model that the options name, and what the report says of it."""
    fast = model.load()
    return fast, {"name": fast.model.name, "revision": fast.model.revision, "random_weights": False}


def _draw(name: str, model: ModelOptions) -> tuple[MrFlow, dict[str, Any]]:
    """Return the architecture of this name, placed as the options say, and what the report says of it."""
    from mrflow.architectures import read_architecture
    from mrflow.bench.random_weights import make_random
    from mrflow.loading import check_device, check_dtype

    if model.quantize or model.offload:
        raise RequestError("--quantize and --offload are for models in files; leave out --random-weights.")
    spec = read_architecture(name)
    place = check_device(model.device or best_device())
    say(f"drawing random weights for {spec['name']} on {place}")
    fast = make_random(spec, place, check_dtype(model.dtype, place), model.upscaler)
    return fast, {"name": f"{name}, random weights", "source": spec["source"], "random_weights": True}


def _parameters(fast: MrFlow) -> dict[str, int]:
    parts = {name: part for name, part in fast.pipe.components.items() if hasattr(part, "parameters")}
    return {name: sum(each.numel() for each in part.parameters()) for name, part in parts.items()}


def _resolve_sizes(fast: MrFlow, pixels: list[Any]) -> list[Size]:
    """Return the sizes, each of which fits the model; raises SizeError."""
    sizes = [fast.model.resolve_size(*each) for each in pixels]
    if len(set(sizes)) < len(sizes):
        raise RequestError("A size is given twice. Leave one out.")
    return sizes


def _read_batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"--batch is {text[:80]!r}; it must be numbers such as 1 or 1,2,4.") from None
    check_batches(batches)
    if len(set(batches)) < len(batches):
        raise RequestError(f"--batch {text} names a number twice. Leave one out.")
    return batches
