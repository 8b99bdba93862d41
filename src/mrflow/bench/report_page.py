"""A comparison as one HTML file: plots, tables and pictures inside it, nothing fetched, no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

from mrflow.bench.plots import LOOKS, look_of, measured
from mrflow.bench.report_tables import Column, columns_of, stage_rows

if TYPE_CHECKING:
    from PIL import Image

Json = dict[str, Any]
_WIDE = 320  # pixels of a picture on the page; larger ones are made smaller

_STYLE = """
:root { --ink: #1d232b; --faint: #67707c; --line: #dfe3e8; --paper: #ffffff; --soft: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1400px; padding: 28px 24px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 8px; }
p { margin: 6px 0 10px; max-width: 86ch; } .faint { color: var(--faint); font-size: 13px; }
img.plot { display: block; width: 100%; max-width: 1000px; height: auto; margin: 10px 0; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: 12.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; background: var(--soft); vertical-align: bottom; }
tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper);
  border-right: 1px solid var(--line); }
th:first-child { background: var(--soft); }
td small { display: block; color: var(--faint); font-size: 10.5px; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }
.strip { display: flex; gap: 12px; overflow-x: auto; padding: 4px 0 12px; }
figure { margin: 0; flex: 0 0 auto; } figcaption { font-size: 12px; margin-top: 4px; }
figcaption small { color: var(--faint); display: block; }
figure img { display: block; border-radius: 4px; }
figure img + img { margin-top: 4px; image-rendering: pixelated; }
blockquote { margin: 18px 0 6px; padding: 0; font-weight: 600; }
"""


def build_page(
    title: str,
    about: Sequence[str],
    scores: Json,
    plots: Mapping[str, Image.Image],
    shown: Sequence[Shown],
) -> str:
    """Return the page. about: lines on what was measured and where. plots: heading to picture."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="faint">{escape(line)}</p>' for line in about),
        *(
            f'<h2>{escape(heading)}</h2><img class="plot" alt="{escape(heading)}" src="{_png(image)}">'
            for heading, image in plots.items()
        ),
        *(_table(heading, note, columns, scores) for heading, note, columns in columns_of(scores)),
        _stages(scores),
        *_failures(scores),
        "<h2>Pictures</h2>" if shown else "",
        "<p>The square below a picture is a part of it, enlarged, where the baseline has most detail.</p>"
        if shown
        else "",
        *(each.to_html() for each in shown),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


class Shown:
    """One prompt's pictures in a row, each with a part of it enlarged."""

    def __init__(self, prompt: str, seed: int) -> None:
        """Begin a row without pictures."""
        self._prompt, self._seed = prompt, seed
        self._figures: list[str] = []
        self._box: tuple[int, int, int, int] | None = None

    def add(self, image: Image.Image, name: str, detail: str) -> None:
        """Add a picture; the first decides which part is enlarged."""
        if self._box is None or self._box[2] > image.width or self._box[3] > image.height:
            self._box = finest_part(image)
        scale = min(1.0, _WIDE / image.width)
        width, height = round(image.width * scale), round(image.height * scale)
        part = image.crop(self._box)
        self._figures.append(
            f'<figure><img width="{width}" height="{height}" alt="{escape(name)}" '
            f'src="{_webp(image.resize((width, height)) if scale < 1 else image)}">'
            f'<img width="{width}" height="{round(width * part.height / part.width)}" alt="part" '
            f'src="{_webp(part)}"><figcaption>{escape(name)}<small>{escape(detail)}</small></figcaption></figure>'
        )

    def to_html(self) -> str:
        """Return the row."""
        head = f'<blockquote>{escape(self._prompt)} <span class="faint">seed {self._seed}</span></blockquote>'
        return f'{head}<div class="strip">{"".join(self._figures)}</div>'


def finest_part(image: Image.Image, parts: int = 4) -> tuple[int, int, int, int]:
    """Return the box (left, top, right, bottom), a quarter of each side, whose brightness varies most."""
    import numpy as np

    grey = np.asarray(image.convert("L"), dtype=np.float64)
    steps = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    width, height = max(image.width // parts, 1), max(image.height // parts, 1)
    best, found = -1.0, (0, 0)
    for top in range(0, image.height - height + 1, max(height // 2, 1)):
        for left in range(0, image.width - width + 1, max(width // 2, 1)):
            detail = float(steps[top : top + height, left : left + width].sum())
            if detail > best:
                best, found = detail, (left, top)
    left, top = found
    return left, top, left + width, top + height


def _table(heading: str, note: str, columns: Sequence[Column], scores: Json) -> str:
    rows = [row for row in measured(scores) if any(column.cell(row)[0] for column in columns)]
    head = "".join(f"<th>{escape(column.name)}</th>" for column in columns)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{_cell(column.cell(row))}</td>" for column in columns)
        lines.append(f"<tr><td>{_dot(row)}{escape(row['name'])}</td>{cells}</tr>")
    return (
        f'<h2>{escape(heading)}</h2><p>{escape(note)}</p><div class="wide"><table><tr><th>method</th>{head}</tr>'
        f"{''.join(lines)}</table></div>"
    )


def _stages(scores: Json) -> str:
    names, rows = stage_rows(scores)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr><td>{escape(row[0])}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return (
        "<h2>Seconds by stage</h2><p>Medians over all pictures.</p>"
        f'<div class="wide"><table><tr><th>method</th>{head}</tr>{body}</table></div>'
    )


def _failures(scores: Json) -> list[str]:
    failed = [method for method in scores["methods"] if "failed" in method]
    if not failed:
        return []
    lines = "; ".join(f"{method['name']}: {method['failed']}" for method in failed)
    return [f"<h2>Without figures</h2><p>{escape(lines)}.</p>"]


def _cell(cell: tuple[str, str]) -> str:
    value, interval = cell
    return escape(value) + (f"<small>{escape(interval)}</small>" if interval else "")


def _dot(method: Json) -> str:
    return f'<span class="dot" style="background:{LOOKS[look_of(method)][0]}"></span>'


def _png(image: Image.Image) -> str:
    return _data(image, "png", {"format": "PNG", "optimize": True})


def _webp(image: Image.Image) -> str:
    return _data(image, "webp", {"format": "WEBP", "quality": 92})


def _data(image: Image.Image, kind: str, options: Mapping[str, Any]) -> str:
    buffer = BytesIO()
    image.convert("RGB").save(buffer, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
