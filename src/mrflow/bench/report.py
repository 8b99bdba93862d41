"""The files of a comparison: scores.json, two plots, and report.html that holds all of it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from mrflow.bench.compare import Course
from mrflow.bench.ledger import Ledger
from mrflow.bench.measurements import Examiner
from mrflow.bench.plots import LOOKS, draw_spectrum, draw_tradeoff, look_of, measured
from mrflow.bench.records import Json, write_record
from mrflow.bench.report_tables import columns_of, stage_rows
from mrflow.bench.scores import complete_prompts, score
from mrflow.bench.timing import OnRun
from mrflow.errors import ModelError, MrFlowWarning, warn
from mrflow.files import encode_image, load_image, save_image, write_text

if TYPE_CHECKING:
    from mrflow.jobs import Size
    from mrflow.metrics.frechet import Renders
    from mrflow.metrics.learned import Score
    from mrflow.vista.inspector import Inspector

FILES = ("report.html", "tradeoff.png", "spectrum.png", "scores.json")
_PAGE = Path(__file__).with_name("report.html.jinja")
_WIDE = 320  # pixels of a picture on the page; larger ones are made smaller
_QUALITY = 92  # of its WebP
_OPEN = 3  # prompts whose pictures are seen at once


def score_course(
    course: Course, ledger: Ledger, learned: dict[str, Score], on_picture: OnRun, inspected: Size | None
) -> Json:
    """Return the figures of all methods. inspected: the pictures' size, if vista's inspector is to look at them.

    Warns where the statistics of fresh renders are not this inspector's; there is then no Frechet distance.
    """
    inspector, renders = _load_inspector(inspected) if inspected else (None, None)
    scores = score(course, ledger, Examiner(inspector, learned), renders, on_picture)
    return {**scores, "inspector": None if renders is None else dict(renders.accuracy)}


def write_report(folder: Path, course: Course, ledger: Ledger, head: Json, scores: Json, show: int) -> list[Path]:
    """Write the files over those of an earlier report and return their paths; no plots without figures.

    head: environment, model and size. show: prompts whose pictures are on the page.
    """
    page, tradeoff, spectrum, data = (folder / name for name in FILES)
    write_record(data, {**head, "scores": scores})
    plots = {}
    title = f"{head['model']['name']}, {head['environment']['device_name']}, {scores['prompts']} prompts"
    if measured(scores):
        plots = {
            "Quality against speed": draw_tradeoff(scores, title),
            "Sharpness, frequency by frequency": draw_spectrum(scores, title),
        }
        for image, path in zip(plots.values(), (tradeoff, spectrum), strict=True):
            save_image(image, path, overwrite=True)
    shown = [_show(course, ledger, scores, prompt) for prompt in complete_prompts(course, ledger)[:show]]
    write_text(page, _fill(head, scores, plots, shown))
    return [page, *([tradeoff, spectrum] if plots else []), data]


def scored_by(head: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """Return which other commit than the pictures' scored them, as the end of a line; nothing if none did."""
    commit = scores.get("commit")
    return "" if commit in (None, head["environment"]["commit"]) else f", scored by {commit[:12]}"


def _fill(head: Json, scores: Json, plots: Mapping[str, Image.Image], shown: Sequence[Json]) -> str:
    """Return the page: one file with everything inside, nothing fetched, no script, and every text escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(_PAGE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    stages, seconds = stage_rows(scores)
    return templates.get_template(_PAGE.name).render(
        head=head,
        scores=scores,
        scored_by=scored_by(head, scores),
        plots=plots,
        tables=columns_of(scores),
        rows=measured(scores),
        stages=stages,
        seconds={name: cells for name, *cells in seconds},
        shown=shown,
        cells_of=lambda columns, row: [column.cell(row) for column in columns],
        color_of=lambda row: LOOKS[look_of(row)][0],
        source=_source,
        open=_OPEN,
    )


def _show(course: Course, ledger: Ledger, scores: Json, prompt: int) -> Json:
    """Return one prompt's pictures in a row, each with a part of it, which the first decides."""
    item, box = prompt * course.seeds, (0, 0, 0, 0)
    figures: list[Json] = []
    for method in measured(scores):
        image = load_image(ledger.picture(method["name"], item))
        box = box if figures else finest_part(image)
        small = ImageOps.contain(image, (min(_WIDE, image.width), image.height))
        seconds = ledger.of(method["name"], item)[-1].seconds["total"]
        figures.append({"name": method["name"], "seconds": seconds, "picture": small, "part": image.crop(box)})
    return {"prompt": course.questions[prompt].prompt, "seed": course.items[item][1], "figures": figures}


def finest_part(image: Image.Image, parts: int = 4) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom), a quarter of each side, whose brightness varies most."""
    import numpy as np

    grey = np.asarray(image.convert("L"), dtype=np.float64)
    steps = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    width, height = max(image.width // parts, 1), max(image.height // parts, 1)
    boxes = [
        (left, top, left + width, top + height)
        for top in range(0, image.height - height + 1, max(height // 2, 1))
        for left in range(0, image.width - width + 1, max(width // 2, 1))
    ]
    return max(boxes, key=lambda box: float(steps[box[1] : box[3], box[0] : box[2]].sum()))


def _source(image: Image.Image, suffix: str) -> str:
    data = base64.b64encode(encode_image(image, suffix, quality=_QUALITY)).decode()
    return f"data:image/{suffix[1:]};base64,{data}"


def _load_inspector(size: Size) -> tuple[Inspector, Renders | None]:
    """Return the inspector and, for the sizes of which there are any, the statistics of fresh renders."""
    from mrflow.metrics.frechet import read_renders, renders_of
    from mrflow.vista import inspector

    renders, file = None, renders_of(max(size))
    if file.is_file():
        try:
            renders = read_renders(inspector.FILE, file)
        except ModelError as error:
            warn(f"There will be no Frechet distance: {error}", MrFlowWarning)
    return inspector.load(), renders
