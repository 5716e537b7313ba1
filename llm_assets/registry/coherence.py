"""Whether the parts of a version belong together: each made from the very content the others have now.

Parts are materialized one at a time, so the current adapter may come from an earlier dataset, and the current
scoreboard from an earlier model. Content decides, not time: a part made again with the same bytes makes nothing stale.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llm_assets.core import LLMAssetsError

SHOWN = 12  # characters of a fingerprint in a message


class PartsMixed(LLMAssetsError):
    """Parts of a version were made from something else than its other parts."""


@dataclass(frozen=True)
class Part:
    """One asset a version is made of.

    Attributes:
        fingerprint: Of its current content.
        made_from: Asset to the fingerprint it had when this was made; only what is on record.
    """

    fingerprint: str
    made_from: Mapping[str, str]


def refuse_mixed(parts: Mapping[str, Part]) -> None:
    """Refuse parts that were made from something else than the other parts are now.

    What is outside of `parts`, such as newly ingested rows that nothing was made of yet, has no say.

    Args:
        parts: By asset name, in the order data flows.

    Raises:
        PartsMixed: names every outdated part, and what to materialize again.
    """
    if mixed := list(_outdated(parts)):
        first = mixed[0][0]
        told = "; ".join(
            f"{part} was made from {source} {used[:SHOWN]}, which is now {now[:SHOWN]}"
            for part, source, used, now in mixed
        )
        raise PartsMixed(f"Not registered: {told}. Materialize {first} and what follows it again.")


def _outdated(parts: Mapping[str, Part]) -> Iterator[tuple[str, str, str, str]]:
    for name, part in parts.items():
        for source, used in part.made_from.items():
            if source in parts and parts[source].fingerprint != used:
                yield name, source, used, parts[source].fingerprint
