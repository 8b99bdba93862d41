"""`mrflow bench`: what the plain pipeline and plans cost on this machine, stage by stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrflow.bench.environment import describe_environment
from mrflow.bench.measure import (
    Course,
    check_batches,
    measure_group,
    missing_groups,
    open_report,
    save_report,
)
from mrflow.bench.methods import read_methods
from mrflow.bench.plots import check_plotting, draw_bars
from mrflow.cli import options
from mrflow.cli.bench_tables import print_group, print_overview
from mrflow.cli.loading import ModelOptions, best_device
from mrflow.cli.progress import run_bar
from mrflow.cli.reporting import each_warning_once, reporting, say, stderr_console
from mrflow.cli.writing import tell_paths
from mrflow.errors import RequestError
from mrflow.files import check_output, save_image
from mrflow.request import check_prompts, make_seeds
from mrflow.sizes import parse_size

if TYPE_CHECKING:
    from mrflow import MrFlow
    from mrflow.sizes import Size

_WHAT, _HOW, _WHERE, _MODEL = "What", "How", "Output", "Model"
_PROMPT = "a lake at sunset with mountains, many pine trees and a red boat"


def bench(
    methods: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="METHOD",
            help="native, native:25 (steps), 12+1, 12+1:scale=1.5,refine_sigma=0.2; the first is the baseline.",
            show_default="native 12+1",
        ),
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="Of every picture.", rich_help_panel=_WHAT)] = _PROMPT,
    sizes: Annotated[
        str | None,
        typer.Option(
            "--size",
            "-s",
            metavar="SIZES",
            help="Pixels: 256, 320x192, or several, as 256,512,1024.",
            rich_help_panel=_WHAT,
            show_default="the model's",
        ),
    ] = None,
    batches: Annotated[
        str,
        typer.Option(
            "--batch", metavar="SIZES", help="Pictures at once; several as 1,2,4.", rich_help_panel=_WHAT
        ),
    ] = "1",
    seed: Annotated[int, typer.Option("--seed", help="Of the first picture.", rich_help_panel=_WHAT)] = 0,
    repeats: Annotated[
        int, typer.Option("--repeats", help="Timed runs of each method, in turn.", rich_help_panel=_HOW)
    ] = 5,
    warm_up: Annotated[
        int, typer.Option("--warm-up", help="Short runs of each before.", rich_help_panel=_HOW)
    ] = 1,
    model: options.Model = "vista",
    random_weights: Annotated[
        str | None,
        typer.Option(
            "--random-weights",
            metavar="NAME",
            help="Instead of a model: a full-size architecture with random weights, such as flux1-dev.",
            rich_help_panel=_MODEL,
            show_default=False,
        ),
    ] = None,
    upscaler: options.Upscaler = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.json",
            help="Write the report here as it grows; the same command goes on after a stop.",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw the stages as stacked bars; needs mrflow\\[bench].",
            rich_help_panel=_WHERE,
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite what --plot names.", rich_help_panel=_WHERE)
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure methods against each other: each stage, steps, memory, batches and sizes.

    All methods are warmed up, then run in turn, and medians are given with the smallest and largest value. Text
    encoding is included. Whatever runs out of memory is reported as such.

    Examples:
      mrflow bench
      mrflow bench native:50 native:12 12+1 20+1 --repeats 7 --plot bench.png
      mrflow bench native 12+1 --size 256,320,512 --batch 1,2,4 --out bench.json --json
      mrflow bench native:50 12+1 4+1 --random-weights flux1-dev --size 1024 --device cuda
    """
    with reporting(debug):
        course = Course(
            methods=read_methods(methods or ["native", "12+1"]),
            prompt=check_prompts(prompt)[0],
            repeats=repeats,
            warm_up=warm_up,
            seed=make_seeds(seed, 1)[0],
        )
        pixels = [parse_size(text) for text in sizes.split(",")] if sizes else [(None, None)]
        counts = _read_batches(batches)
        if plot is not None:
            check_plotting()
            check_output(plot, overwrite=force)
        fast, described = _load(model, random_weights, upscaler, device, dtype)
        groups = _resolve_sizes(fast, course, pixels)
        head = {
            "environment": describe_environment(fast.model.device, fast.model.dtype),
            "model": described,
            "course": course.to_dict(),
        }
        report = open_report(out, head)
        _measure(fast, course, report, missing_groups(report, groups, counts), out)
        if plot is not None:
            save_image(draw_bars(report), plot, overwrite=force)
        print_overview(report, stderr_console())
        if as_json:
            typer.echo(json.dumps(report, allow_nan=False))
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
        print_group(group, stderr_console())


def _load(
    model: str, random_weights: str | None, upscaler: str | None, device: str | None, dtype: str | None
) -> tuple[MrFlow, dict[str, Any]]:
    """Return the model that the options name, and what the report says of it."""
    if random_weights is None:
        fast = ModelOptions(model=model, upscaler=upscaler, device=device, dtype=dtype).load()
        described = {"name": fast.model.name, "revision": fast.model.revision, "random_weights": False}
    else:
        from mrflow.bench.random_weights import make_random, read_architecture
        from mrflow.loading import check_device, check_dtype

        spec = read_architecture(random_weights)
        place = check_device(device or best_device())
        say(f"drawing random weights for {spec['name']} on {place}")
        fast = make_random(spec, place, check_dtype(dtype, place), upscaler)
        described = {"name": f"{random_weights}, random weights", "source": spec["source"], "random_weights": True}
    parameters = {
        name: sum(each.numel() for each in part.parameters())
        for name, part in fast.pipe.components.items()
        if hasattr(part, "parameters")
    }
    return fast, {**described, "parameters": parameters, "upscaler": fast.model.upscaler.name}


def _resolve_sizes(fast: MrFlow, course: Course, pixels: list[Any]) -> list[Size]:
    """Return the sizes, each of which fits the model and all plans; raises SizeError."""
    sizes: list[Size] = []
    for width, height in pixels:
        for method in course.methods:
            size = fast.model.resolve_size(width, height, method.plan)
        sizes.append(size)
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
