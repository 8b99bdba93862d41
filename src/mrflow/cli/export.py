"""`mrflow export`: pictures for other people's benchmarks, in the layouts that their scorers expect."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mrflow.bench.export import Make, check_sheet, claim, hash_items
from mrflow.bench.export import export as export_items
from mrflow.bench.layouts import LAYOUTS, Layout, get_layout, read_items, scored_folder
from mrflow.cli.loading import ModelOptions
from mrflow.cli.options import HOW, OUTPUT, WHAT, Count, Negative, Size, Streams, Whole
from mrflow.cli.outputs import tell_json, tell_paths
from mrflow.cli.planning import PlanOptions
from mrflow.cli.progress import prompt_bar, silent
from mrflow.cli.reporting import each_warning_once, say
from mrflow.jobs import make_seeds, parse_size

if TYPE_CHECKING:
    from mrflow import MrFlow
    from mrflow.plan import Plan


def export(
    benchmark: Annotated[str, Parameter(help=f"One of {', '.join(LAYOUTS)}.")],
    prompts: Annotated[
        Path,
        Parameter(
            help="Your copy of its prompts: OneIG-Bench.csv, evaluation_metadata.jsonl, the folder "
            "dpg_bench/prompts, or one of T2I-CompBench's *_val.txt."
        ),
    ],
    /,
    *,
    negative: Negative = None,
    size: Size = None,
    seed: Annotated[Whole, Parameter(group=WHAT)] = 42,
    num_images: Annotated[
        Whole | None,
        Parameter(alias="-n", metavar="N", group=WHAT, show_default="the benchmark's: 4, or 10 for t2i-compbench"),
    ] = None,
    limit: Annotated[Count | None, Parameter(metavar="N", group=WHAT)] = None,
    plans: PlanOptions = PlanOptions(),
    native: Annotated[bool, Parameter(group=HOW)] = False,
    model: ModelOptions = ModelOptions(),
    out: Annotated[
        Path | None,
        Parameter(alias="-o", metavar="FOLDER", group=OUTPUT, show_default="one named after the benchmark"),
    ] = None,
    name: Annotated[str | None, Parameter(group=OUTPUT, show_default="mrflow or native")] = None,
    streams: Streams = Streams(),
) -> None:
    """Make the pictures of a benchmark where its own scorer looks for them.

    Run the same command again to go on after a stop: pictures that are there are kept. How they were made is
    written beside them, so that two settings never mix under one name.

    Args:
        seed: Of each prompt's first picture; its others take seed + 1, ...
        num_images: Pictures per prompt.
        limit: Only the first N prompts, to try it.
        native: Run the plain pipeline instead, for comparison.
        out: Folder of all runs of this benchmark.
        name: Name of this run, a folder's.

    Examples:
      mrflow export geneval geneval/prompts/evaluation_metadata.jsonl -m black-forest-labs/FLUX.1-dev
      mrflow export oneig OneIG-Bench.csv --plan 20+1 --name mrflow-20+1 --out images
      mrflow export dpg ELLA/dpg_bench/prompts --native --steps 50 --name native-50
      mrflow export t2i-compbench T2I-CompBench/examples/dataset/color_val.txt --limit 3
    """
    layout = get_layout(benchmark)
    count = layout.num_images if num_images is None else num_images
    name = name or ("native" if native else "mrflow")
    items = read_items(layout, prompts, name, count)
    seeds = make_seeds(seed, count)
    width, height = parse_size(size)
    if native:
        plans.check_native()
    if width is not None and height is not None:
        check_sheet(layout, (width, height), count)
    fast = model.load()
    resolved = plans.resolve_native(fast) if native else plans.resolve(fast)
    settings = _settings(fast, resolved, (width, height), negative, seeds, native=native, steps=plans.steps)
    check_sheet(layout, (settings["width"], settings["height"]), count)
    folder = out or Path(layout.name)
    scored = scored_folder(layout, prompts, name)
    record = folder / f"{'-'.join(scored.parts) or name}.export.json"
    claim(record, {"benchmark": layout.name, "prompts_sha256": hash_items(items), **settings})
    arguments = {
        "negative_prompt": negative,
        "width": settings["width"],
        "height": settings["height"],
        "plan": resolved,
        "callback": silent,
    }
    items = items[:limit]
    with each_warning_once(), prompt_bar(len(items)) as on_item:
        done = export_items(items, folder, _maker(fast, arguments, native, plans.steps), seeds, on_item)
    _tell(layout, folder / scored, record, vars(done), as_json=streams.json)


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
    width, height = model.resolve_size(*size)
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


def _tell(layout: Layout, folder: Path, record: Path, done: dict[str, int], *, as_json: bool) -> None:
    """Say on stdout which folder the scorer is to be given, and on stderr what was done."""
    if as_json:
        tell_json({"benchmark": layout.name, "folder": str(folder), "record": str(record), **done}, indent=None)
    else:
        tell_paths([folder])
    say(f"{done['pictures']} pictures for {done['made']} prompts made, {done['kept']} prompts were there already")
