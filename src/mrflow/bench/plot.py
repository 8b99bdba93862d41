"""A report as a picture: one stacked bar per method, its stages side by side."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

from mrflow.errors import MissingExtraError

if TYPE_CHECKING:
    from PIL import Image

# stage to colour: the two denoising passes stand out, what is around them is pale
STAGE_COLORS = {
    "text": "#b8c4ce",
    "draft": "#2f6f9f",
    "decode_draft": "#a9cbe0",
    "upscale": "#e3c27a",
    "encode": "#cfd8a8",
    "refine": "#c4572f",
    "decode": "#e8b9a4",
    "rest": "#d9d9d9",
}
_BAR = 0.42  # inches


def check_plotting() -> None:
    """Raise MissingExtraError unless matplotlib is installed."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "bench")


def draw_bars(report: dict[str, Any]) -> Image.Image:
    """Return the report's bars as an RGB picture; methods that failed have none."""
    check_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    rows = [(g, m) for g in report["groups"] for m in g["methods"] if "seconds" in m]
    figure = Figure(figsize=(9, 1.7 + _BAR * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display, and without pyplot's global state
    axes = figure.add_subplot()
    for row, (_, method) in enumerate(rows):
        left = 0.0
        for stage, color in STAGE_COLORS.items():
            width = max(method["seconds"].get(stage, {"median": 0.0})["median"], 0.0)
            axes.barh(row, width, left=left, color=color, height=0.72, label=stage if row == 0 else None)
            left += width
        axes.text(left, row, f"  {_caption(method)}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [_label(group, method, report) for group, method in rows])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds: medians of the stages, end to end at the end of the bar")
    axes.set_title(_title(report), fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        handles=[_patch(color, stage.replace("_", " ")) for stage, color in STAGE_COLORS.items()],
        loc="outside lower center",
        ncols=len(STAGE_COLORS),
        fontsize=8,
        frameon=False,
    )
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def _caption(method: dict[str, Any]) -> str:
    text = f"{method['seconds']['total']['median']:.3g} s"
    ratio = method["speedup"]
    return text if ratio is None or ratio["median"] == 1 else f"{text}, {ratio['median']:.2f} times faster"


def _label(group: dict[str, Any], method: dict[str, Any], report: dict[str, Any]) -> str:
    """Return the method's name, with size and batch where the report has several."""
    several = len(report["groups"]) > 1
    return f"{method['name']}  {group['width']}x{group['height']} b{group['batch']}" if several else method["name"]


def _title(report: dict[str, Any]) -> str:
    place, course = report["environment"], report["course"]
    return (
        f"{report['model']['name']}, {place['device_name']}, {place['dtype']}, "
        f"median of {course['repeats']} in turn"
    )


def _patch(color: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=label)
