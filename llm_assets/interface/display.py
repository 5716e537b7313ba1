"""Results a person reads: one page of titled tables, as text in a terminal and as HTML in a notebook.

Both are written from the same cells, so they cannot disagree.
"""

import html
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "–"
STYLE = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"


@dataclass(frozen=True)
class Panel:
    """A titled table.

    Attributes:
        title: Its heading.
        rows: Cells, row by row; numbers and None are formatted here.
        header: Column titles; none for a list of names and values.
    """

    title: str
    rows: Sequence[Sequence[Any]]
    header: Sequence[str] = ()

    def cells(self) -> list[list[str]]:
        """Every cell as text, the header first where there is one."""
        head = [list(self.header)] if self.header else []
        return [*head, *([shown(cell) for cell in row] for row in self.rows)]


@dataclass(frozen=True)
class Page:
    """A heading and its tables; tables without rows are left out."""

    heading: str
    panels: Sequence[Panel]

    def text(self) -> str:
        """As a terminal shows it."""
        parts = [self.heading]
        for panel in self.panels:
            if panel.rows:
                parts.append("\n".join([panel.title, *(f"  {line}" for line in aligned(panel.cells()))]))
        return "\n\n".join(parts)

    def html(self) -> str:
        """As a notebook shows it; every cell is escaped."""
        parts = [f"<h3>{html.escape(self.heading)}</h3>"]
        for panel in self.panels:
            if panel.rows:
                tags = ["th" if panel.header and not place else "td" for place in range(len(panel.cells()))]
                rows = "".join(map(_html_row, panel.cells(), tags))
                parts.append(f"<h4>{html.escape(panel.title)}</h4><table>{rows}</table>")
        return "".join(parts)


class Readable(ABC):
    """A result that shows itself: its repr is the page."""

    @abstractmethod
    def page(self) -> Page:
        """What there is to read."""

    def __repr__(self) -> str:
        return self.page().text()

    def _repr_html_(self) -> str:
        return self.page().html()

    def display(self) -> None:
        """Show the page: rendered in a notebook, as text elsewhere."""
        if "get_ipython" in vars(sys.modules.get("builtins")) and "IPython" in sys.modules:
            from IPython.display import HTML, display

            display(HTML(self.page().html()))
        else:
            sys.stdout.write(f"{self.page().text()}\n")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with equally wide columns."""
    widths = [max(len(row[place]) for row in rows if place < len(row)) for place in range(max(map(len, rows)))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]


def shown(value: Any) -> str:
    """A value as a person writes it: thousands separated, decimals to four digits, nothing as a dash."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(repr(item) if isinstance(item, str) else shown(item) for item in value) or MISSING
    return str(value)


def bytes_shown(size: float | None) -> str:
    """A size in the unit a person would choose."""
    if size is None:
        return MISSING
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _html_row(cells: Sequence[str], tag: str) -> str:
    shown_cells = (f'<{tag} style="{STYLE}">{html.escape(cell)}</{tag}>' for cell in cells)
    return f"<tr>{''.join(shown_cells)}</tr>"
