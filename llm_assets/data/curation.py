"""Which conversations are kept, judged one by one: every row either passes or leaves with one counted reason.

The order is fixed: the SQL predicate on the raw row, the format, the turns, personal data out, the filters, the Python
predicate. What rows are to one another is decided afterwards (`deduplication`, `decontamination`).
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from llm_assets.core import Config
from llm_assets.data.decontamination import ContaminationConfig
from llm_assets.data.filters import CharsetFilter, LanguageFilter, LengthFilter, PhraseFilter, RepetitionFilter
from llm_assets.data.formats import FormatConfig, conversation
from llm_assets.data.messages import Conversation, RowRefused, check_turns
from llm_assets.data.nested import opened
from llm_assets.data.pii import PIIConfig, Scrubber
from llm_assets.data.predicates import ask_predicate, find_predicate, refuse_bad_sql, source_digest


class NearDuplicateConfig(Config):
    """What is done about conversations that nearly repeat an earlier one."""

    similarity: float = Field(
        default=0.8, gt=0, le=1, description="From which Jaccard similarity of 3-word runs two rows are alike."
    )
    action: Literal["drop", "keep_together"] = Field(
        default="drop",
        description="drop keeps the first row of a cluster; keep_together keeps all of it, in one split.",
    )


class CurationConfig(Config):
    """What is dropped or changed, and how much may be. A block that is left out does nothing."""

    where: str | None = Field(
        default=None, description="DuckDB predicate over the source columns that a row must meet, e.g. `score > 3`."
    )
    length: LengthFilter | None = Field(default=None, description="Bounds on characters and turns.")
    language: LanguageFilter | None = Field(default=None, description="Languages to keep.")
    charset: CharsetFilter | None = Field(default=None, description="Unicode scripts to expect; damaged text.")
    repetition: RepetitionFilter | None = Field(default=None, description="Answers that repeat themselves.")
    phrases: PhraseFilter | None = Field(default=None, description="Refusals, boilerplate and phrases of your own.")
    predicate: str | None = Field(
        default=None,
        description="Python function `package.module:function` that takes (messages, row) and returns True to keep.",
    )
    pii: PIIConfig | None = Field(default=None, description="Personal data and secrets to replace by placeholders.")
    near_duplicates: NearDuplicateConfig | None = Field(
        default=None, description="Conversations that nearly repeat an earlier one; equal ones are always dropped."
    )
    contamination: ContaminationConfig | None = Field(
        default=None, description="Benchmarks and held-out rows that training rows must not quote."
    )
    processes: int = Field(default=1, ge=1, description="Processes that read rows at once; the result is the same.")
    max_drop_share: float = Field(
        default=0.5, ge=0, le=1, description="Check drop_share fails above this share of rows."
    )
    leakage_similarity: float = Field(
        default=0.9, gt=0, le=1, description="Check no_split_leakage counts held-out rows this alike to a training row."
    )
    max_leakage_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Check no_split_leakage fails above this share of near-duplicate held-out rows.",
    )

    @field_validator("where")
    @classmethod
    def _one_expression(cls, where: str | None) -> str | None:
        return where if where is None else refuse_bad_sql(where)

    @field_validator("predicate")
    @classmethod
    def _importable(cls, predicate: str | None) -> str | None:
        if predicate is not None:
            find_predicate(predicate)
        return predicate

    def named_contents(self) -> dict[str, Any]:
        """Digests of the files that the config only names, and whose content decides the dataset all the same."""
        return {
            "predicate": source_digest(self.predicate) if self.predicate else None,
            "benchmarks": self.contamination.digest() if self.contamination else [],
        }


class Judge:
    """Reads rows as conversations and refuses those that the curation drops.

    Args:
        formats: Format of each source with one of its own.
        format: Format of all others.
        config: What is dropped.
    """

    def __init__(self, formats: Mapping[str, FormatConfig], format: FormatConfig, config: CurationConfig):
        self._formats, self._format, self._config = formats, format, config
        filters = (config.length, config.charset, config.language, config.repetition, config.phrases)
        self._filters = [chosen for chosen in filters if chosen is not None]
        self._predicate = find_predicate(config.predicate) if config.predicate else None
        self._scrubber = Scrubber(config.pii) if config.pii else None
        self._masking = Scrubber(config.pii) if config.pii else None  # of what is shown, which is not counted

    def scrubbed(self) -> Counter[str]:
        """Personal data replaced so far, by kind."""
        return Counter(self._scrubber.counts) if self._scrubber else Counter()

    def without_personal_data(self, text: str) -> str:
        """Text for people, masked as the rows are."""
        return self._masking.text(text) if self._masking else text

    def read(self, row: Mapping[str, Any], passes_where: bool, nested: Sequence[str] = ()) -> tuple[Conversation, str]:
        """Read one raw row as a conversation, without personal data, and the JSON text of its kept columns.

        Args:
            row: The row as ingested.
            passes_where: What the SQL predicate says of it.
            nested: Its columns that hold lists or objects as JSON text.

        Raises:
            RowRefused: with the reason it is counted under.
        """
        if not passes_where:
            raise RowRefused("where", f"not {self._config.where}")
        format = self._formats.get(row["source"], self._format)
        found = conversation(opened(row, nested), format)
        check_turns(found.messages)
        kept = {name: row.get(name) for name in format.keep_columns}
        extras = json.dumps(kept, ensure_ascii=False) if kept else "{}"
        if self._scrubber:
            extras = self._scrubber.json_text(extras) or extras
            found = Conversation(self._scrubber.messages(found.messages), self._scrubber.json_text(found.tools))
        return found, extras

    def judge(self, found: Conversation, row: Mapping[str, Any]) -> None:
        """Put a conversation through the filters and the Python predicate.

        Raises:
            RowRefused: with the reason it is counted under.
            PredicateFailed: the Python predicate raised; names the row.
        """
        for chosen in self._filters:
            chosen.judge(found.messages)
        if self._predicate and self._config.predicate:
            ask_predicate(self._predicate, self._config.predicate, found.messages, row)
