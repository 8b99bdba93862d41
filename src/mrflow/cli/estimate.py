"""`mrflow estimate`: what plans will cost, before anything is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console, Group
from rich.table import Table

from mrflow.bench.methods import read_methods
from mrflow.bench.plots import check_plotting, draw_operations
from mrflow.cli.options import HOW, MODEL, OUTPUT, WHAT, Streams, Text, Whole
from mrflow.cli.outputs import tell_json
from mrflow.cli.report_tables import gigabytes, make_table, print_fitting
from mrflow.cli.reporting import stderr_console
from mrflow.errors import RequestError
from mrflow.files import check_output, save_image
from mrflow.jobs import check_prompts, parse_bytes, parse_size
from mrflow.known_models import BITS
from mrflow.plan import Plan
from mrflow.progress import WORDS

if TYPE_CHECKING:
    from mrflow.costs import Estimate, Way


def estimate(
    model: str,
    *,
    size: Annotated[str | None, Parameter(alias="-s", group=WHAT, show_default="the model's")] = None,
    prompt: Annotated[Text | None, Parameter(group=WHAT, show_default="one of 40 words")] = None,
    plan: Annotated[tuple[str, ...], Parameter(alias="-p", group=HOW, show_default="the model's")] = (),
    native: Annotated[Whole | None, Parameter(metavar="N", group=HOW, show_default="the model's")] = None,
    upscaler: Annotated[str | None, Parameter(group=MODEL, show_default="Real-ESRGAN x2")] = None,
    max_memory: Annotated[str | None, Parameter(metavar="SIZE", group=HOW, show_default="no bound")] = None,
    plot: Annotated[Path | None, Parameter(metavar="FILE.png", group=OUTPUT)] = None,
    force: Annotated[bool, Parameter(group=OUTPUT)] = False,
    streams: Streams = Streams(),
) -> None:
    """Say what plans will gain, and what memory they need, before anything is fetched.

    The operations of the true architecture are counted, text encoders, autoencoder and upscaler among them. Times
    faster is what they alone would give: at equal utilisation, which small drafts don't reach.

    Args:
        model: A name that mrflow models lists, vista or a folder.
        size: Pixels: 1024, or 1280x768.
        prompt: Whose length counts for models that don't pad texts.
        plan: 12+1, a preset, or 12+1:scale=4; several times for several.
        native: Steps of the plain pipeline.
        upscaler: A file, a known name, bicubic, bilinear or lanczos.
        max_memory: Such as 24GB; plans that say nothing of tiles take those that fit, with the weights held best.
        plot: Draw the operations as stacked bars; needs matplotlib, of the extra bench.
        force: Overwrite what --plot names.

    Examples:
      mrflow estimate flux-dev --plan 12+1 --plan 8+1
      mrflow estimate qwen-image --size 2048 --plan 12+1 --plan 12+1:scale=4 --json
    """
    plans, (width, height) = _read_plans(plan), parse_size(size)
    allowed = parse_bytes(max_memory, "--max-memory")
    if native == 0:
        raise RequestError("--native is 0; the plain pipeline takes at least 1 step. Try 50.")
    if plot is not None:
        check_plotting()
        check_output(plot, overwrite=force)
    with stderr_console().status(f"counting {model}"):
        from mrflow.costs import PROMPT
        from mrflow.costs import estimate as count

        wanted: dict[str, Any] = {"width": width, "height": height, "plans": plans, "native_steps": native}
        text = PROMPT if prompt is None else check_prompts(prompt)[0]
        found = count(model, **wanted, upscaler=upscaler, prompt=text, max_memory=allowed)
    data = found.to_dict()
    if allowed:
        for told, way in zip(data["ways"], found.ways, strict=True):
            held = found.within(way, allowed)
            told["within"] = held and {"max_memory": allowed, "weights": held[0], "offload": held[1]}
    if plot is not None:
        save_image(draw_operations(data), plot, overwrite=force)
    tell_json(data) if streams.json else _print(found, allowed)


def _read_plans(texts: tuple[str, ...]) -> dict[str, Plan]:
    """Return the plans by their texts, as mrflow bench reads them; raises RequestError for what is none."""
    methods = read_methods(texts) if texts else []
    for method in methods:
        if method.plan is None or not method.plain:
            raise RequestError(f"--plan is {method.name!r}; it must be a plan, such as 12+1 or 12+1:scale=4.")
    return {method.name: method.plan for method in methods if method.plan is not None}


def _print(found: Estimate, allowed: int | None) -> None:
    """Print a row for each stage, a column for each way, or a table for each; below, what memory they need."""
    console = Console(highlight=False)
    console.print(f"{found.model} at {found.width}x{found.height}: operations in millions of millions, of all")
    alone = Group(*(_table(found, [way], allowed) for way in found.ways))
    print_fitting(_table(found, found.ways, allowed), lambda: alone, console=console)
    console.print("Operations, not seconds: small passes use a device less well.", style="dim")


def _table(found: Estimate, ways: Sequence[Way], allowed: int | None) -> Table:
    table = make_table("", ["", *(way.name for way in ways)], whole=True)
    for stage, words in WORDS.items():
        cells = [_share(way, stage) for way in ways]
        if any(cells):
            table.add_row(words, *cells)
    table.add_row("total", *(f"{way.operations / 1e12:,.1f}" for way in ways), style="bold")
    table.add_row("times fewer operations", *(f"{found.speedup(way):.2f}" for way in ways), style="bold")
    for held in BITS:
        peaks = [found.peak(way, held) for way in ways]
        table.add_row(f"memory, weights {held}, GB", *map(gigabytes, peaks))
    peaks = [found.peak(way, offload=True) for way in ways]
    table.add_row("memory with model offload, GB", *map(gigabytes, peaks))
    if allowed:
        within = [found.within(way, allowed) for way in ways]
        told = ["no" if each is None else each[0] + ", offload" * each[1] for each in within]
        table.add_row(f"within {gigabytes(allowed)} GB, weights", *told, style="bold")
    return table


def _share(way: Way, stage: str) -> str:
    if stage not in way.stages:
        return ""
    operations = way.stages[stage].operations
    return f"{operations / 1e12:,.1f} {operations / way.operations:4.0%}"
