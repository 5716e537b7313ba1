"""How many rows of each source a lineage takes, and which: the mixture.

Sources without a say are taken whole and `rows` takes an exact number. Weighted sources stand in proportion to one
another; a share is of all rows. Rows are drawn by their content, so a source that grows keeps what was drawn of it.

    held 900, 500, whole 300; weights 3 and 1          ->  900, 300, whole 300
    held 900 with share 0.25, whole 300                ->  100, whole 300
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_assets.core import LLMAssetsError
from llm_assets.data.segments import PRIORITY
from llm_assets.data.sources import SourceConfig
from llm_assets.data.spilling import bounded_connection


class MixtureUnmet(LLMAssetsError):
    """The sources do not hold the rows that the mixture asks for."""


def refuse_impossible_mixture(sources: Sequence[SourceConfig]) -> None:
    """Raise `MixtureUnmet` for a mixture that no rows can meet: weights beside shares, or shares above 1."""
    weighted = [source.label for source in sources if source.weight is not None]
    shares = {source.label: source.share for source in sources if source.share is not None}
    if weighted and shares:
        raise MixtureUnmet(
            f"{', '.join(weighted)} have a weight and {', '.join(shares)} a share. Mix by one of the two; `rows` and "
            "sources taken whole go with either."
        )
    total, others = sum(shares.values()), len(shares) < len(sources)
    if total > 1 + 1e-9 or (others and total > 1 - 1e-9):
        raise MixtureUnmet(
            f"The shares of {', '.join(shares)} add up to {total:g}"
            + (", which leaves nothing for the other sources" if others else "")
            + ". Lower them."
        )
    if shares and not others and total < 1 - 1e-9:
        raise MixtureUnmet(f"Every source has a share, but they add up to {total:g}. Let them add up to 1.")


def drawn_rows(sources: Sequence[SourceConfig], held: Mapping[str, int]) -> dict[str, int]:
    """Rows to take of each source, by label.

    Args:
        sources: With at most one of `rows`, `weight` and `share` each.
        held: Rows that can be drawn of each.

    Raises:
        MixtureUnmet: a source holds fewer rows than its `rows` or `share` needs.
    """
    refuse_impossible_mixture(sources)
    drawn = {s.label: s.rows or held[s.label] for s in sources if s.weight is None and s.share is None}
    weights = {s.label: s.weight for s in sources if s.weight is not None}
    if weights:
        unit = min(held[label] / weight for label, weight in weights.items())
        drawn |= {label: max(1, math.floor(unit * weight + 1e-9)) for label, weight in weights.items()}
    shares = {s.label: s.share for s in sources if s.share is not None}
    if shares:
        rest = 1 - sum(shares.values())
        total = sum(drawn.values()) / rest if drawn else min(held[label] / share for label, share in shares.items())
        drawn |= {
            label: max(1, math.floor(total * share + (0.5 if drawn else 1e-9))) for label, share in shares.items()
        }
    for source in sources:
        _refuse_shortage(source, drawn[source.label], held[source.label])
    return {source.label: drawn[source.label] for source in sources}


@dataclass(frozen=True)
class Draw:
    """Which rows of a source are taken: those below a priority, and the first few that have exactly that."""

    below: int
    ties: int

    def places(self, priorities: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the places that are taken in each batch of priorities, in order."""
        left = self.ties
        for batch in priorities:
            tied = batch == np.uint64(self.below)
            tied &= np.cumsum(tied) <= left
            left -= int(tied.sum())
            yield np.flatnonzero((batch < np.uint64(self.below)) | tied)


def draw(segments: Sequence[Path], rows: int) -> Draw:
    """Find the `rows` smallest priorities among the rows of some scratch files; sorting spills to disk."""
    listed = [str(path) for path in segments]
    with bounded_connection(beside=segments[0], memory_limit="256MB") as connection:
        rank = f'SELECT "{PRIORITY}" AS p FROM read_parquet($files) ORDER BY p LIMIT 1 OFFSET {rows - 1}'
        below = connection.execute(rank, {"files": listed}).fetchall()[0][0]
        count = f'SELECT count(*) FROM read_parquet($files) WHERE "{PRIORITY}" < {below}'
        smaller = connection.execute(count, {"files": listed}).fetchall()[0][0]
    return Draw(below=below, ties=rows - smaller)


def _refuse_shortage(source: SourceConfig, wanted: int, held: int) -> None:
    if wanted <= held:
        return
    asked = f"rows {source.rows}" if source.rows else f"share {source.share:g}, which is {wanted} rows,"
    raise MixtureUnmet(
        f"Source '{source.label}' holds {held} rows, fewer than its {asked} needs. Lower it, draw fewer rows of the "
        "other sources, or bring more rows; rows are never repeated to fill a mixture."
    )
