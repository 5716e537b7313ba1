"""Small PNG pictures for asset pages: one look for every chart, well under the size an event log row should have."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

Points = Sequence[tuple[float, float]]


def line_chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Points]) -> bytes:
    """Draw one line per name through its `(x, y)` points and return PNG bytes."""
    figure, axes = _canvas(title, x_label, y_label)
    for name, points in lines.items():
        axes.plot([x for x, _ in points], [y for _, y in points], marker="." if len(points) < 30 else "", label=name)
    axes.legend(frameon=False)
    return _png(figure)


def histogram(title: str, x_label: str, y_label: str, values: Sequence[float], marker: float | None = None) -> bytes:
    """Draw the distribution of `values`, with a vertical line at `marker`, and return PNG bytes."""
    figure, axes = _canvas(title, x_label, y_label)
    axes.hist(values, bins=min(50, max(5, len(set(values)))))
    if marker is not None:
        axes.axvline(marker, linestyle="--", color="black")
    return _png(figure)


def labelled_scatter(title: str, x_label: str, y_label: str, points: Mapping[str, tuple[float, float]]) -> bytes:
    """Draw one labelled dot per name at its `(x, y)` and return PNG bytes."""
    figure, axes = _canvas(title, x_label, y_label)
    for name, (x, y) in points.items():
        axes.scatter([x], [y])
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 4))
    axes.margins(0.2)
    return _png(figure)


def bar_chart(title: str, y_label: str, bars: Mapping[str, float]) -> bytes:
    """Draw one bar per name and return PNG bytes."""
    figure, axes = _canvas(title, "", y_label)
    axes.bar(list(bars), list(bars.values()))
    axes.tick_params(axis="x", rotation=30)
    return _png(figure)


def _canvas(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: it keeps global state and looks for a display

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return buffer.getvalue()
