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


def scatter_panels(title: str, y_label: str, panels: Mapping[str, Sequence[tuple[Any, float]]]) -> bytes:
    """Draw one panel of `(x, y)` dots per name, side by side on one y axis, and return PNG bytes.

    The x of a panel are numbers, on a logarithmic scale where they span more than a factor of 30, or names.
    """
    figure, _ = _canvas(title, "", "")
    figure.clear()
    figure.suptitle(title)
    for axes, (name, points) in zip(
        figure.subplots(1, max(1, len(panels)), sharey=True, squeeze=False)[0], panels.items(), strict=False
    ):
        xs, ys = [x for x, _ in points], [y for _, y in points]
        numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in xs)
        axes.scatter(xs if numbers else [str(x) for x in xs], ys)
        if numbers and xs and 0 < 30 * min(xs) < max(xs):
            axes.set_xscale("log")
        axes.set(xlabel=name)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set(ylabel=y_label)
    return _png(figure)


def bar_chart(title: str, y_label: str, bars: Mapping[str, float]) -> bytes:
    """Draw one bar per name and return PNG bytes."""
    figure, axes = _canvas(title, "", y_label)
    axes.bar(list(bars), list(bars.values()))
    axes.tick_params(axis="x", rotation=30)
    return _png(figure)


def funnel_chart(title: str, steps: Sequence[tuple[str, int, int]], parts: Mapping[str, int]) -> bytes:
    """Draw one bar per `(step, left, lost)`, the lost part hatched, and a last bar of the parts; return PNG bytes."""
    figure, axes = _canvas(title, "", "")
    figure.set_size_inches(7, 0.9 + 0.32 * (len(steps) + 1))
    total = max(1, *(left + lost for _, left, lost in steps))
    for at, (_, left, lost) in enumerate(steps):
        axes.barh(at, left, color="tab:blue")
        axes.barh(at, lost, left=left, color="white", edgecolor="tab:red", hatch="////", linewidth=0)
        axes.text(total * 1.01, at, f"{left:,}" + (f"  −{lost:,}" if lost else ""), va="center", fontsize=8)
    start = 0
    for (name, size), color in zip(parts.items(), ("tab:blue", "tab:orange", "tab:green"), strict=False):
        axes.barh(len(steps), size, left=start, color=color, label=f"{name} {size:,}")
        start += size
    axes.set_yticks(range(len(steps) + 1), [*(step for step, _, _ in steps), "splits"])
    axes.set(xlim=(0, total * 1.18), xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=max(1, len(parts)), frameon=False)
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
