"""`mrflow generate --compare`: the plain pipeline beside the staged one, timed, as one picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrflow.bench.timing import Timed, speedup, time_in_turn
from mrflow.cli.jobs import PictureOptions
from mrflow.cli.loading import ModelOptions
from mrflow.cli.outputs import companion
from mrflow.cli.planning import PlanOptions
from mrflow.cli.progress import STAGE_NAMES, run_bar
from mrflow.cli.reporting import say, stderr_console
from mrflow.cli.side_by_side import Panel, draw_side_by_side
from mrflow.cli.tables import make_table
from mrflow.cli.writing import tell_json, tell_paths
from mrflow.errors import RequestError
from mrflow.files import save_image

if TYPE_CHECKING:
    from mrflow import MrFlow, Progress

_LABELS = ("native", "staged", "draft", "upscaled")
_WARM_UP_STEPS = 2  # of the native run: every kernel and buffer of a step is used, without the other 48


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
    wanted: PictureOptions,
    plans: PlanOptions,
    models: ModelOptions,
    *,
    repeats: int,
    out: str | None,
    force: bool,
    stages: bool,
    as_json: bool,
) -> None:
    """Make one picture both ways, write them side by side and say what each took.

    Raises RequestError for more than one picture, and what generate raises.
    """
    if len(wanted.jobs) > 1:
        raise RequestError(f"--compare makes one picture; {len(wanted.jobs)} are asked for. Give one prompt.")
    labels = _LABELS if stages else ()
    path = wanted.outputs(out, "{prompt}-{seed}-compare.png", companions=labels, force=force)[0]
    fast = models.load()
    compared = _measure(fast, wanted.arguments(), plans, repeats)
    save_image(_sheet(compared, wanted.prompts[0]), path, overwrite=force)
    beside = {label: companion(path, label) for label in labels}
    if beside:
        _write_stages(compared, beside, force=force)
    if as_json:
        tell_json(_as_json(compared, path, beside))
    else:
        tell_paths([path, *beside.values()])
    _tell_seconds(compared)


def _measure(fast: MrFlow, arguments: dict[str, Any], plans: PlanOptions, repeats: int) -> Comparison:
    staged = {**arguments, "plan": plans.resolve(fast), "callback": _ignore}
    native = {**staged, "plan": plans.resolve_native(fast)}
    with run_bar(2 * repeats + 2) as on_run:
        on_run("warm up")
        fast.native(**native, steps=_WARM_UP_STEPS)
        on_run("warm up")
        fast(**staged)
        ways = {"native": lambda: fast.native(**native), "staged": lambda: fast(**staged, stages=True)}
        return Comparison(**time_in_turn(ways, repeats, on_run))


def _ignore(_news: Progress) -> None:
    """Keep the pipeline's own bar silent."""


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
    for stage, name in {**STAGE_NAMES, "total": "total"}.items():
        cells = [f"{seconds[stage]:.3f}" if stage in seconds else "" for seconds in (native, staged)]
        table.add_row(name, *cells, style="bold" if stage == "total" else "")
    stderr_console().print(table)
    spread = ", ".join(
        f"{name} {min(totals):.3f} to {max(totals):.3f}"
        for name, totals in (("native", compared.native.totals), ("staged", compared.staged.totals))
    )
    say(f"staged is {compared.speedup:.2f} times faster (range: {spread})")
