"""`mrflow generate --compare`: the plain pipeline beside the staged one, timed, as one picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from mrflow.bench.timing import Timed, speedup, time_in_turn
from mrflow.cli.loading import ModelOptions
from mrflow.cli.options import Wanted
from mrflow.cli.outputs import StagedOutput, companion, tell_json, tell_paths
from mrflow.cli.planning import PlanOptions
from mrflow.cli.progress import run_bar, silent
from mrflow.cli.report_tables import make_table
from mrflow.cli.reporting import say, stderr_console
from mrflow.errors import RequestError
from mrflow.files import save_image
from mrflow.progress import WORDS

if TYPE_CHECKING:
    from mrflow import MrFlow

_LABELS = ("native", "staged", "draft", "upscaled")
_WARM_UP_STEPS = 2  # of the native run: every kernel and buffer of a step is used, without the other 48
_MARGIN = 16
_PAPER, _INK, _FAINT = "#ffffff", "#1a1a1a", "#6b6b6b"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Comparison:
    """The two ways of making the same picture."""

    native: Timed
    staged: Timed

    @property
    def speedup(self) -> float:
        """How many times faster staged is: the ratio of the medians, end to end."""
        return speedup(self.native, self.staged).median


def make_both(
    wanted: Wanted, plans: PlanOptions, model: ModelOptions, output: StagedOutput, *, repeats: int, as_json: bool
) -> None:
    """Make one picture both ways, write them side by side and say what each took.

    Raises RequestError for more than one picture, and what generate raises.
    """
    if len(wanted.jobs) > 1:
        raise RequestError(f"--compare makes one picture; {len(wanted.jobs)} are asked for. Give one prompt.")
    labels = _LABELS if output.stages else ()
    (path,) = output.paths("{prompt}-{seed}-compare.png", wanted.jobs, companions=labels)
    fast = model.load()
    compared = _measure(fast, wanted.arguments, plans, repeats)
    save_image(_sheet(compared, wanted.jobs[0].prompt), path, overwrite=output.force)
    beside = {label: companion(path, label) for label in labels}
    if beside:
        _write_stages(compared, beside, force=output.force)
    if as_json:
        tell_json(_as_json(compared, path, beside))
    else:
        tell_paths([path, *beside.values()])
    _tell_seconds(compared)


def _measure(fast: MrFlow, arguments: dict[str, Any], plans: PlanOptions, repeats: int) -> Comparison:
    staged = {**arguments, "plan": plans.resolve(fast), "callback": silent}
    native = {**staged, "plan": plans.resolve_native(fast)}
    with run_bar(2 * repeats + 2) as on_run:
        on_run("warm up")
        fast.native(**native, steps=_WARM_UP_STEPS)
        on_run("warm up")
        fast(**staged)
        ways = {"native": lambda: fast.native(**native), "staged": lambda: fast(**staged, keep_upscaled=True)}
        return Comparison(**time_in_turn(ways, repeats, on_run))


def _sheet(compared: Comparison, prompt: str) -> Any:
    native, staged = compared.native, compared.staged
    native_plan, plan = (each.result.recipes[0].plan for each in (native, staged))
    panels = [
        Panel(native.result.images[0], f"native, {native_plan.steps} steps", f"{native.seconds['total']:.2f} s"),
        Panel(
            staged.result.images[0],
            f"staged, {plan.label} steps",
            f"{staged.seconds['total']:.2f} s, {compared.speedup:.1f} times faster",
        ),
    ]
    return draw_side_by_side(panels, prompt)


def _write_stages(compared: Comparison, beside: dict[str, Path], *, force: bool) -> None:
    for label, timed in (("native", compared.native), ("staged", compared.staged)):
        save_image(timed.result.images[0], beside[label], timed.result.recipes[0], overwrite=force)
    staged = compared.staged.result
    staged.drafts[0].save(beside["draft"], overwrite=force)
    save_image(staged.upscaled[0], beside["upscaled"], overwrite=force)


def _as_json(compared: Comparison, path: Path, beside: dict[str, Path]) -> dict[str, Any]:
    return {
        "path": str(path),
        "stages": {label: str(each) for label, each in beside.items()},
        "speedup": compared.speedup,
        "native": _timed_json(compared.native),
        "staged": _timed_json(compared.staged),
    }


def _timed_json(timed: Timed) -> dict[str, Any]:
    return {
        "seconds": timed.seconds,
        "totals": timed.totals,
        "recipe": json.loads(timed.result.recipes[0].to_json()),
    }


def _tell_seconds(compared: Comparison) -> None:
    """Print the table of seconds on stderr."""
    native, staged = compared.native.seconds, compared.staged.seconds
    repeats = len(compared.native.runs)
    table = make_table(f"seconds, median of {repeats}", ["stage", "native", "staged"])
    for stage, name in {**WORDS, "total": "total"}.items():
        cells = [f"{seconds[stage]:.3f}" if stage in seconds else "" for seconds in (native, staged)]
        table.add_row(name, *cells, style="bold" if stage == "total" else "")
    stderr_console().print(table)
    spread = ", ".join(
        f"{name} {min(totals):.3f} to {max(totals):.3f}"
        for name, totals in (("native", compared.native.totals), ("staged", compared.staged.totals))
    )
    say(f"staged is {compared.speedup:.2f} times faster (range: {spread})")


@dataclass(frozen=True)
class Panel:
    """A picture with a line about what it is and a line about what it took."""

    image: Image.Image
    label: str
    detail: str


def draw_side_by_side(panels: Sequence[Panel], title: str) -> Image.Image:
    """Return one RGB picture: the title, then the panels from left to right at their own sizes."""
    size = max(13, min(panel.image.width for panel in panels) // 22)
    font = ImageFont.load_default(size)
    line = round(size * 1.4)
    width = sum(panel.image.width for panel in panels) + _MARGIN * (len(panels) + 1)
    heading = _wrap(title, font, width - 2 * _MARGIN)
    top = _MARGIN + line * len(heading) + _MARGIN // 2
    tallest = max(panel.image.height for panel in panels)
    sheet = Image.new("RGB", (width, top + tallest + _MARGIN // 2 + 2 * line + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, text in enumerate(heading):
        pen.text((_MARGIN, _MARGIN + number * line), text, fill=_INK, font=font)
    left, below = _MARGIN, top + tallest + _MARGIN // 2
    for panel in panels:
        sheet.paste(panel.image, (left, top))
        pen.text((left, below), panel.label, fill=_INK, font=font)
        pen.text((left, below + line), panel.detail, fill=_FAINT, font=font)
        left += panel.image.width + _MARGIN
    return sheet


def _wrap(text: str, font: _Font, width: int) -> list[str]:
    """Return the words of `text` in lines of at most `width` pixels, a longer word on a line of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
