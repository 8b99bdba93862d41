"""Figures as pictures: a report of bench as stacked bars, a comparison as quality against speed and as spectra."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from itertools import compress, cycle
from typing import TYPE_CHECKING, Any

from mrflow.bench.records import Json
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

# kind of method: its colour, its mark
LOOKS = {
    "native": ("#4c566a", "o"),
    "staged": ("#c4572f", "D"),
    "staged, changed": ("#d9a441", "s"),
    "cache": ("#2f6f9f", "^"),
}
_QUALITY = "composite"
_TICKS = (0.25, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
# where a name may stand from its point, in points: alignment, across and up; the first that covers least
_BESIDE = (("left", 7, 5), ("left", 7, -13), ("right", -7, 5), ("right", -7, -13))
_FURTHER = [(side, away, up) for up in (15, -23, 28, -36, 41, -49) for side, away in (("left", 7), ("right", -7))]
_LINE = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}  # to _FURTHER


def check_plotting() -> None:
    """Raise MissingExtraError unless matplotlib is installed."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "bench")


def draw_bars(report: Json) -> Image.Image:
    """Return one stacked bar per method, its stages side by side, as RGB; methods that failed have none."""
    check_plotting()
    rows = [(group, method) for group in report["groups"] for method in group["methods"] if "seconds" in method]
    place, repeats = report["environment"], report["course"]["repeats"]
    title = f"{report['model']['name']}, {place['device_name']}, {place['dtype']}, median of {repeats} in turn"
    figure, axes = _figure((9, 1.7 + 0.42 * len(rows)), title, dpi=100)
    seconds = [{stage: took["median"] for stage, took in method["seconds"].items()} for _, method in rows]
    _stack(axes, seconds, [_caption(method) for _, method in rows])
    axes.set_yticks(range(len(rows)), [_label(group, method, report) for group, method in rows])
    axes.set(xlim=(0, None), xlabel="seconds: medians of the stages, end to end at the end of the bar")
    figure.legend(loc="outside lower center", ncols=len(STAGE_COLORS), fontsize=8, frameon=False)
    return _image(figure)


def draw_operations(estimated: Json) -> Image.Image:
    """Return one stacked bar per way of an estimate (Estimate.to_dict), its stages side by side, as RGB."""
    check_plotting()
    ways = estimated["ways"]
    title = f"{estimated['model']} at {estimated['width']}x{estimated['height']}, operations by stage"
    figure, axes = _figure((9, 1.7 + 0.42 * len(ways)), title, dpi=100)
    counted = [{name: stage["operations"] / 1e12 for name, stage in way["stages"].items()} for way in ways]
    captions = [f"{way['operations'] / 1e12:,.0f}, {way['speedup']:.2f} times fewer" for way in ways]
    _stack(axes, counted, captions)
    axes.set_yticks(range(len(ways)), [way["name"] for way in ways])
    axes.set(xlim=(0, None), xlabel="teraoperations; not seconds, but what a device is asked to do")
    figure.legend(loc="outside lower center", ncols=len(STAGE_COLORS), fontsize=8, frameon=False)
    return _image(figure)


def _stack(axes: Any, rows: list[dict[str, float]], captions: list[str]) -> None:
    """Draw a bar per row, its stages side by side, from the top down, with a caption at its end."""
    ends = [0.0] * len(rows)
    for stage, color in STAGE_COLORS.items():
        widths = [max(row.get(stage, 0.0), 0.0) for row in rows]
        axes.barh(range(len(rows)), widths, 0.72, ends, color=color, label=stage.replace("_", " "))
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for row, (end, caption) in enumerate(zip(ends, captions, strict=True)):
        axes.text(end, row, f"  {caption}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.25)


def _caption(method: dict[str, Any]) -> str:
    text = f"{method['seconds']['total']['median']:.3g} s"
    ratio = method["speedup"]
    return text if ratio is None or ratio["median"] == 1 else f"{text}, {ratio['median']:.2f} times faster"


def _label(group: dict[str, Any], method: dict[str, Any], report: dict[str, Any]) -> str:
    """Return the method's name, with size and batch where the report has several."""
    several = len(report["groups"]) > 1
    return f"{method['name']}  {group['width']}x{group['height']} b{group['batch']}" if several else method["name"]


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
    those of another solver or model."""
    figure, axes = _figure((9.5, 6), title)
    rows = [method for method in measured(scores) if method["speed"]["speedup"]["value"] is not None]
    points = [(row["name"], row["speed"]["speedup"], row["quality"][_QUALITY]) for row in rows]
    looks = [look_of(row) for row in rows]
    plain = [
        look == "native" and not (row.get("solver") or row.get("model"))
        for row, look in zip(rows, looks, strict=True)
    ]
    native = sorted((x["value"], y["value"]) for _, x, y in compress(points, plain))
    if len(native) > 1:
        axes.plot(*zip(*native, strict=True), color=LOOKS["native"][0], linewidth=1, zorder=1)
    for look, (_, x, y) in zip(looks, points, strict=True):
        color, mark = LOOKS[look]
        arms = {"xerr": _arms(x), "yerr": _arms(y), "elinewidth": 1, "capsize": 2}
        axes.errorbar(x["value"], y["value"], fmt=mark, color=color, markersize=7, zorder=2, **arms)
    for look, (color, mark) in LOOKS.items():
        if look in looks:
            axes.plot([], [], color=color, marker=mark, linestyle="none", label=look)  # for the legend
    _set_ticks(axes, [x["value"] for _, x, _ in points])
    axes.set_xlabel("times faster than the baseline, end to end, measured in turn (log scale)")
    axes.set_ylabel("composite quality (1 is best)")
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=len(LOOKS), fontsize=9, frameon=False)
    label(axes, points)
    return _image(figure)


def draw_spectrum(scores: Json, title: str) -> Image.Image:
    """Return each method's power over the baseline's at each frequency; 1 is as sharp as the baseline."""
    figure, axes = _figure((9.5, 4.2), title)
    styles = {look: cycle(("-", "--", ":", "-.")) for look in LOOKS}
    rows = measured(scores)[1:]
    for row in rows:
        values, look = row["quality"]["spectrum"], look_of(row)
        at = [(k + 0.5) / (2 * len(values)) for k in range(len(values))]
        axes.plot(at, values, next(styles[look]), color=LOOKS[look][0], linewidth=1.3, label=row["name"])
    axes.axhline(1, color="#222222", linewidth=0.8)
    axes.set(yscale="log", xlabel="cycles per pixel", ylabel="power, relative to the baseline")
    axes.grid(alpha=0.25)
    if rows:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return _image(figure)


def label(axes: Any, points: list[tuple[str, Json, Json]]) -> list[Any]:
    """Write each name beside its point, where it covers least of what is there already; return the texts.

    Those alone on their spot choose first; a name that has to move away is joined to its point by a line.
    points: name, and across and up a "value" from "low" to "high".
    """
    from matplotlib.transforms import Bbox

    axes.figure.draw_without_rendering()  # only now are places on the page known
    place = axes.transData.transform
    taken, written = [], []
    for _, x, y in points:
        taken.append(Bbox([place((x["low"], y["value"])), place((x["high"], y["value"]))]).padded(8))
        taken.append(Bbox([place((x["value"], y["low"])), place((x["value"], y["high"]))]).padded(4))
    spots = {name: place((x["value"], y["value"])) for name, x, y in points}  # in pixels
    crowds = {name: sum(abs(spot - other).max() < 60 for other in spots.values()) for name, spot in spots.items()}
    for name, x, y in sorted(points, key=lambda point: (crowds[point[0]], -point[1]["value"])):
        text = axes.annotate(name, (x["value"], y["value"]), (0, 0), textcoords="offset points", fontsize=8)
        text.set_color("#333333")
        tried: list[tuple[float, int, str, tuple[float, float], Any]] = []
        ends = [(place((x["value"], y[end])) - spots[name])[1] for end in ("high", "low")]
        above, below = (pixels * 72 / axes.figure.dpi for pixels in ends)
        close = (*_BESIDE, ("center", 0, above + 4), ("center", 0, below - 12))
        for align, dx, dy in (*close, *_FURTHER):
            text.set(ha=align, position=(dx, dy))
            box = text.get_window_extent()
            lost = box.width * box.height - _shared(box, axes.bbox)
            tried.append((lost + sum(_shared(box, other) for other in taken), len(tried), align, (dx, dy), box))
        _, rank, align, position, box = min(tried)
        text.set(ha=align, position=position)
        if rank >= len(close):
            start = (position[0], position[1] + 4)
            axes.annotate("", text.xy, start, textcoords="offset points", arrowprops=_LINE)
        taken.append(box)
        written.append(text)
    return written


def _shared(one: Any, other: Any) -> float:
    """Return the area that two boxes share."""
    box = one.intersection(one, other)
    return 0.0 if box is None else float(box.width * box.height)


def _figure(size: tuple[float, float], title: str, dpi: int = 140) -> tuple[Any, Any]:
    check_plotting()
    from matplotlib.figure import Figure  # without a display, and without pyplot's global state

    figure = Figure(figsize=size, layout="constrained", dpi=dpi)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=10, loc="left")
    return figure, axes


def _set_ticks(axes: Any, values: list[float]) -> None:
    low, high = min(values, default=1) * 0.85, max(values, default=1) * 1.7
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    axes.set(xscale="log", xlim=(low, high))
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _arms(estimate: Json) -> list[list[float]]:
    """Return how far an interval reaches below and above its figure."""
    return [[max(estimate["value"] - estimate["low"], 0)], [max(estimate["high"] - estimate["value"], 0)]]


def _image(figure: Any) -> Image.Image:
    from PIL import Image

    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
