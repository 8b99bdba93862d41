"""The trade-off plot: names beside points can be read."""

from __future__ import annotations

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mrflow.bench.plots import label


def around(value: float, spread: float) -> dict[str, float]:
    return {"value": value, "low": value - spread, "high": value + spread}


def test_names_of_methods_that_lie_close_cover_neither_each_other_nor_points() -> None:
    figure = Figure(figsize=(9.5, 6))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(xlim=(0.9, 20), ylim=(0, 1), xscale="log")
    places = {"native": (1, 0.98), "12+1": (8.0, 0.90), "12+1:latent": (8.6, 0.89), "native:6": (7.3, 0.87)}
    texts = label(axes, [(name, around(x, 0.2), around(y, 0.05)) for name, (x, y) in places.items()])
    boxes = {text.get_text(): text.get_window_extent() for text in texts}
    assert boxes.keys() == places.keys()
    assert not any(one.overlaps(other) for one, other in combinations(boxes.values(), 2))
    for x, y in axes.transData.transform(list(places.values())):
        assert not any(box.contains(x, y) for box in boxes.values())
    for text, (_, y) in zip(texts, axes.transData.transform([places[t.get_text()] for t in texts]), strict=True):
        assert abs(text.get_window_extent().y0 - y) < 60
