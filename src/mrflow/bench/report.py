"""The files of a comparison: scores.json, two plots, and report.html that holds all of it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrflow.bench.compare import Course
from mrflow.bench.ledger import Ledger
from mrflow.bench.measurements import Examiner
from mrflow.bench.plots import draw_spectrum, draw_tradeoff, measured
from mrflow.bench.records import Json
from mrflow.bench.report_page import Shown, build_page
from mrflow.bench.scores import complete_prompts, score
from mrflow.errors import ModelError, MrFlowWarning
from mrflow.files import load_image, save_image, write_text

if TYPE_CHECKING:
    from mrflow.metrics.frechet import Renders
    from mrflow.metrics.learned import Score
    from mrflow.vista.inspector import Inspector

FILES = ("report.html", "tradeoff.png", "spectrum.png", "scores.json")


def score_course(
    course: Course,
    ledger: Ledger,
    learned: dict[str, Score],
    on_picture: Callable[[str], None],
    *,
    inspected: bool,
) -> Json:
    """Return the figures of all methods. inspected: let vista's inspector look at the pictures.

    Warns where there are no statistics of fresh renders by this inspector; there is then no Frechet distance.
    """
    inspector, renders = _load_inspector() if inspected else (None, None)
    scores = score(course, ledger, Examiner(inspector, learned), renders, on_picture)
    return {**scores, "inspector": None if renders is None else dict(renders.accuracy)}


def write_report(folder: Path, course: Course, ledger: Ledger, head: Json, scores: Json, show: int) -> list[Path]:
    """Write the files over those of an earlier report and return their paths; no plots without figures.

    head: environment, model and size. show: prompts whose pictures are on the page.
    """
    page, tradeoff, spectrum, data = (folder / name for name in FILES)
    write_text(data, json.dumps({**head, "scores": scores}, indent=1, allow_nan=False) + "\n")
    plots = {}
    title = f"{head['model']['name']}, {head['environment']['device_name']}, {scores['prompts']} prompts"
    if measured(scores):
        plots = {
            "Quality against speed": draw_tradeoff(scores, title),
            "Sharpness, frequency by frequency": draw_spectrum(scores, title),
        }
        for image, path in zip(plots.values(), (tradeoff, spectrum), strict=True):
            save_image(image, path, overwrite=True)
    shown = _show(course, ledger, scores, complete_prompts(course, ledger)[:show])
    about = describe(head, scores)
    write_text(page, build_page(f"mrflow compare: {head['model']['name']}", about, scores, plots, shown))
    return [page, *([tradeoff, spectrum] if plots else []), data]


def describe(head: Json, scores: Json) -> list[str]:
    """Return lines on what was measured, on what, and how far it is complete."""
    place, model, names = head["environment"], head["model"], [each["name"] for each in scores["methods"]]
    versions = ", ".join(f"{name} {number}" for name, number in place["versions"].items() if number)
    count = f"{scores['prompts']} of {scores['of']} prompts, {scores['seeds']} picture(s) each"
    lines = [
        f"{model['name']} (revision {model['revision'] or 'unknown'}), upscaler {model['upscaler']}, "
        f"{head['size'][0]}x{head['size'][1]}, {count}; the baseline is {names[0] if names else 'missing'}.",
        f"{place['device_name']} ({place['device']}), {place['dtype']}, {place['threads']} threads; {versions}; "
        f"commit {place['commit'] or 'unknown'}{scored_by(head, scores)}.",
    ]
    if scores["prompts"] < scores["of"]:
        lines.append("Not complete: the figures are of the prompts of which every method has its pictures.")
    if equal := head.get("equal_time"):
        lines.append(f"native:{equal['steps']} is the native run that takes the time of {equal['method']}.")
    return lines


def scored_by(head: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """Return which other commit than the pictures' scored them, as the end of a line; nothing if none did."""
    commit = scores.get("commit")
    return "" if commit in (None, head["environment"]["commit"]) else f", scored by {commit[:12]}"


def _show(course: Course, ledger: Ledger, scores: Json, prompts: Sequence[int]) -> list[Shown]:
    rows = []
    for prompt in prompts:
        item = prompt * course.seeds
        row = Shown(course.questions[prompt].prompt, course.items[item][1])
        for method in measured(scores):
            seconds = ledger.of(method["name"], item)[-1].seconds["total"]
            row.add(load_image(ledger.picture(method["name"], item)), method["name"], f"{seconds:.2f} s")
        rows.append(row)
    return rows


def _load_inspector() -> tuple[Inspector, Renders | None]:
    from mrflow.metrics.frechet import read_renders
    from mrflow.vista import inspector

    try:
        renders: Any = read_renders(inspector.FILE)
    except ModelError as error:
        warnings.warn(f"There will be no Frechet distance: {error}", MrFlowWarning, stacklevel=3)
        renders = None
    return inspector.load(), renders
