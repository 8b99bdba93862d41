"""`mrflow export`: pictures for other people's benchmarks, in the layouts that their scorers expect."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from mrflow.bench.export import Make, check_sheet, claim, hash_items
from mrflow.bench.export import export as export_items
from mrflow.bench.layouts import LAYOUTS, Layout, get_layout, read_items
from mrflow.cli import options
from mrflow.cli.loading import ModelOptions
from mrflow.cli.planning import PlanOptions, check_native
from mrflow.cli.reporting import each_warning_once, reporting, say, stderr_console
from mrflow.cli.writing import tell_paths
from mrflow.jobs import make_seeds, parse_size

if TYPE_CHECKING:
    from mrflow import MrFlow, Progress
    from mrflow.plan import Plan

_WHAT, _HOW, _WHERE = "What", "How", "Output"


def export(
    benchmark: Annotated[str, typer.Argument(help=f"One of {', '.join(LAYOUTS)}.", show_default=False)],
    prompts: Annotated[
        Path,
        typer.Argument(
            help="Your copy of its prompts: OneIG-Bench.csv, evaluation_metadata.jsonl, the folder "
            "dpg_bench/prompts, or one of T2I-CompBench's *_val.txt.",
            show_default=False,
        ),
    ],
    negative: options.Negative = None,
    size: options.Size = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", help="Of each prompt's first picture; its others take seed + 1, ...", rich_help_panel=_WHAT
        ),
    ] = 42,
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num-images",
            "-n",
            metavar="N",
            help="Pictures per prompt.",
            rich_help_panel=_WHAT,
            show_default="the benchmark's: 4, or 10 for t2i-compbench",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, help="Only the first N prompts, to try it.", rich_help_panel=_WHAT
        ),
    ] = None,
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
        typer.Option("--native", help="Run the plain pipeline instead, for comparison.", rich_help_panel=_HOW),
    ] = False,
    model: options.Model = "vista",
    upscaler: options.Upscaler = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Folder of all runs of this benchmark.",
            rich_help_panel=_WHERE,
            show_default="one named after the benchmark",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="Name of this run, a folder's.", rich_help_panel=_WHERE, show_default="mrflow or native"
        ),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Make the pictures of a benchmark where its own scorer looks for them.

    Run the same command again to go on after a stop: pictures that are there are kept. How they were made is
    written beside them, so that two settings never mix under one name.

    Examples:
      mrflow export geneval geneval/prompts/evaluation_metadata.jsonl -m black-forest-labs/FLUX.1-dev
      mrflow export oneig OneIG-Bench.csv --plan 20+1 --name mrflow-20+1 --out images
      mrflow export dpg ELLA/dpg_bench/prompts --native --steps 50 --name native-50
      mrflow export t2i-compbench T2I-CompBench/examples/dataset/color_val.txt --limit 3
    """
    with reporting(debug):
        layout = get_layout(benchmark)
        count = layout.num_images if num_images is None else num_images
        name = name or ("native" if native else "mrflow")
        items = read_items(layout, prompts, name, count)
        seeds = make_seeds(seed, count)
        width, height = parse_size(size)
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
        if native:
            check_native(plans)
        if width is not None and height is not None:
            check_sheet(layout, (width, height), count)
        fast = ModelOptions(model=model, upscaler=upscaler, device=device, dtype=dtype).load()
        resolved = plans.resolve_native(fast) if native else plans.resolve(fast)
        settings = _settings(fast, resolved, (width, height), negative, seeds, native=native, steps=steps)
        check_sheet(layout, (settings["width"], settings["height"]), count)
        folder = out or Path(layout.name)
        record = folder / f"{'-'.join(layout.folder(prompts, name).parts) or name}.export.json"
        claim(record, {"benchmark": layout.name, "prompts_sha256": hash_items(items), **settings})
        arguments = {
            "negative_prompt": negative,
            "width": settings["width"],
            "height": settings["height"],
            "plan": resolved,
            "callback": _ignore,
        }
        items = items[:limit]
        with each_warning_once(), _prompt_bar(len(items)) as on_item:
            done = export_items(items, folder, _maker(fast, arguments, native, steps), seeds, on_item)
        _tell(layout, folder / layout.folder(prompts, name), record, vars(done), as_json=as_json)


def _maker(fast: MrFlow, arguments: dict[str, Any], native: bool, steps: int | None) -> Make:
    if native:
        return lambda prompt, seeds: fast.native(prompt, seed=seeds, steps=steps, **arguments)
    return lambda prompt, seeds: fast(prompt, seed=seeds, **arguments)


def _settings(
    fast: MrFlow,
    plan: Plan,
    size: tuple[int | None, int | None],
    negative: str | None,
    seeds: list[int],
    *,
    native: bool,
    steps: int | None,
) -> dict[str, Any]:
    """Return what decides how the pictures look, as JSON values. Raises SizeError or PlanError."""
    model = fast.model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each call warns by itself
        made = model.resolve_plan(plan)
    width, height = model.resolve_size(*size, None if native else made)
    plain = {
        "steps": model.defaults.native_steps if steps is None else steps,
        "guidance": made.true_cfg_scale,
        "guidance_scale": made.guidance_scale,
        "guidance_stop": made.guidance_stop,
        "solver": made.solver,
    }
    return {
        "mode": "native" if native else "staged",
        "plan": plain if native else made.to_dict(),
        "width": width,
        "height": height,
        "seeds": seeds,
        "negative_prompt": negative,
        "model": model.name,
        "revision": model.revision,
        "upscaler": None if native else model.upscaler.name,
        "upscaler_sha256": None if native else model.upscaler.sha256,
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _ignore(_news: Progress) -> None:
    """Keep the pipeline's own bar silent."""


@contextmanager
def _prompt_bar(total: int) -> Iterator[Any]:
    """Give a function that draws how many prompts are done, and the time left."""
    console = stderr_console()
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("", total=total)
        yield lambda done: bars.update(task, completed=done)


def _tell(layout: Layout, folder: Path, record: Path, done: dict[str, int], *, as_json: bool) -> None:
    """Say on stdout which folder the scorer is to be given, and on stderr what was done."""
    if as_json:
        typer.echo(json.dumps({"benchmark": layout.name, "folder": str(folder), "record": str(record), **done}))
    else:
        tell_paths([folder])
    say(f"{done['pictures']} pictures for {done['made']} prompts made, {done['kept']} prompts were there already")
