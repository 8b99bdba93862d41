"""A comparison's figures as pictures: quality against measured speed-up, and sharpness frequency by frequency."""

from __future__ import annotations

from io import BytesIO
from itertools import product
from typing import TYPE_CHECKING, Any

from mrflow.bench.plot import check_plotting

if TYPE_CHECKING:
    from PIL import Image

Json = dict[str, Any]

# kind of method: its colour, its mark
LOOKS = {
    "native": ("#4c566a", "o"),
    "staged": ("#c4572f", "D"),
    "staged, changed": ("#d9a441", "s"),
    "cache": ("#2f6f9f", "^"),
}
QUALITY = "composite"
# where a name may stand from its point, in points: alignment, across and up; the first that covers least
_BESIDE, _FURTHER = (
    tuple((align, dx, dy) for (align, dx), dy in product((("left", 7), ("right", -7)), heights))
    for heights in ((5, -13), (15, -23))
)


def look_of(method: Json) -> str:
    """Return which of LOOKS a method has."""
    if method["cache"]:
        return "cache"
    if method["kind"] == "native":
        return "native"
    return "staged" if method["upscaler"] is None and method["refined"] else "staged, changed"


def measured(scores: Json) -> list[Json]:
    """Return the methods that have figures."""
    return [method for method in scores["methods"] if "failed" not in method]


def draw_tradeoff(scores: Json, title: str) -> Image.Image:
    """Return quality against speed-up, each with its 95% interval; native runs are joined by a line but for
    those with another solver."""
    figure, axes = _figure((9.5, 6))
    rows = [method for method in measured(scores) if method["speed"]["speedup"]["value"] is not None]
    native = sorted(
        (row["speed"]["speedup"]["value"], row["quality"][QUALITY]["value"])
        for row in rows
        if look_of(row) == "native" and row.get("solver") is None
    )
    if len(native) > 1:
        axes.plot(*zip(*native, strict=True), color=LOOKS["native"][0], linewidth=1, zorder=1)
    for row in rows:
        color, mark = LOOKS[look_of(row)]
        x, y = row["speed"]["speedup"], row["quality"][QUALITY]
        axes.errorbar(
            x["value"],
            y["value"],
            xerr=[[max(x["value"] - x["low"], 0)], [max(x["high"] - x["value"], 0)]],
            yerr=[[max(y["value"] - y["low"], 0)], [max(y["high"] - y["value"], 0)]],
            fmt=mark,
            color=color,
            markersize=7,
            elinewidth=1,
            capsize=2,
            zorder=2,
        )
    axes.set_xscale("log")
    _plain_ticks(axes, [row["speed"]["speedup"]["value"] for row in rows])
    axes.set_xlabel("times faster than the baseline, end to end, measured in turn (log scale)")
    axes.set_ylabel("composite quality (1 is best)")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    used = dict.fromkeys(look_of(row) for row in rows)
    handles = [_mark(*LOOKS[name], name) for name in LOOKS if name in used]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(LOOKS), fontsize=9, frameon=False)
    label(axes, [(row["name"], row["speed"]["speedup"], row["quality"][QUALITY]) for row in rows])
    return _image(figure)


def draw_spectrum(scores: Json, title: str) -> Image.Image:
    """Return each method's power over the baseline's at each frequency; 1 is as sharp as the baseline."""
    figure, axes = _figure((9.5, 4.2))
    seen: dict[str, int] = {}
    for row in measured(scores)[1:]:
        values = row["quality"]["spectrum"]
        look = look_of(row)
        style = ("-", "--", ":", "-.")[seen.get(look, 0) % 4]
        seen[look] = seen.get(look, 0) + 1
        at = [(k + 0.5) / (2 * len(values)) for k in range(len(values))]
        axes.plot(at, values, style, color=LOOKS[look][0], linewidth=1.3, label=row["name"])
    axes.axhline(1, color="#222222", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("cycles per pixel")
    axes.set_ylabel("power, relative to the baseline")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    if seen:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return _image(figure)


def _figure(size: tuple[float, float]) -> tuple[Any, Any]:
    check_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=140)
    FigureCanvasAgg(figure)  # draws without a display, and without pyplot's global state
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plain_ticks(axes: Any, values: list[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    nice = [0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100]
    low, high = min(values, default=1) * 0.85, max(values, default=1) * 1.7
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in nice if low <= tick <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def label(axes: Any, points: list[tuple[str, Json, Json]]) -> list[Any]:
    """Write each name beside its point, where it covers least of what is there already; return the texts.

    points: name, and across and up a "value" from "low" to "high".
    """
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # only now are places on the page known
    place = axes.transData.transform
    taken, written = [], []
    for _, x, y in points:
        taken.append(Bbox([place((x["low"], y["value"])), place((x["high"], y["value"]))]).padded(8))
        taken.append(Bbox([place((x["value"], y["low"])), place((x["value"], y["high"]))]).padded(4))
    for name, x, y in sorted(points, key=lambda point: -point[1]["value"]):
        text = axes.annotate(name, (x["value"], y["value"]), (0, 0), textcoords="offset points", fontsize=8)
        text.set_color("#333333")
        tried: list[tuple[float, int, str, tuple[float, float], Any]] = []
        ends = [(place((x["value"], y[end])) - place((x["value"], y["value"])))[1] for end in ("high", "low")]
        above, below = (pixels * 72 / axes.figure.dpi for pixels in ends)
        for align, dx, dy in (*_BESIDE, ("center", 0, above + 4), ("center", 0, below - 12), *_FURTHER):
            text.set(ha=align, position=(dx, dy))
            box = text.get_window_extent()
            lost = box.width * box.height - _shared(box, axes.bbox)
            tried.append((lost + sum(_shared(box, other) for other in taken), len(tried), align, (dx, dy), box))
        _, _, align, position, box = min(tried)
        text.set(ha=align, position=position)
        taken.append(box)
        written.append(text)
    return written


def _shared(one: Any, other: Any) -> float:
    """Return the area that two boxes share."""
    box = one.intersection(one, other)
    return 0.0 if box is None else float(box.width * box.height)


def _mark(color: str, mark: str, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, marker=mark, linestyle="none", label=label)


def _image(figure: Any) -> Image.Image:
    from PIL import Image

    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
