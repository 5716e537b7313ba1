"""What a person wants to see of ingested rows: where they came from, what was refused, and how one of each reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_assets.data.formats import AutoFormat, FormatUnknown, RowFormat, TemplateFormat, conversation, described
from llm_assets.data.formats.detection import detect_format
from llm_assets.data.ingestion import IngestReport
from llm_assets.data.messages import RowRefused, message, spoken_as
from llm_assets.data.nested import nested_columns
from llm_assets.data.sources import SourceConfig

SHOWN_CHARACTERS = 300


def formats_of_sources(
    report: IngestReport, sources: Sequence[SourceConfig], format: RowFormat
) -> dict[str, RowFormat]:
    """The format each source's rows are read with, `auto` told by its first row.

    Raises:
        FormatUnknown: no format reads a source's rows; names the source and what to write.
    """
    found: dict[str, RowFormat] = {}
    for source in sources:
        own = source.row_format or format
        row = report.sources[source.label].first_row
        try:
            found[source.label] = (
                detect_format(list(row), row, system=own.system) if isinstance(own, AutoFormat) else own
            )
        except FormatUnknown as error:
            raise FormatUnknown(f"Source '{source.label}': {error}") from None
    return found


def source_table(report: IngestReport, formats: Mapping[str, RowFormat]) -> list[dict[str, Any]]:
    """One line per source: its rows from the files to the mixture, and the format that reads them."""
    return [
        {
            "source": label,
            "files": source.files,
            "read": source.read,
            "refused": sum(source.refused.values()),
            "held": source.held,
            "drawn": source.drawn,
            "share": source.drawn / report.rows,
            "format": described(formats[label]),
        }
        for label, source in report.sources.items()
    ]


def reading_table(report: IngestReport, formats: Mapping[str, RowFormat]) -> list[dict[str, Any]]:
    """The first row of each source as the conversation it becomes, turn by turn, or why it becomes none."""
    lines = []
    for label, source in report.sources.items():
        format = formats[label]
        if isinstance(format, TemplateFormat) and format.template is None:
            lines.append(
                {"source": label, "role": "-", "content": f"{format.template_uri} is filled in by chat_dataset"}
            )
            continue
        try:
            turns = conversation(source.first_row, format).messages
        except RowRefused as refused:
            turns = [message("refused", str(refused))]
        lines += [
            {
                "source": label,
                "role": spoken_as(t),
                "content": (t["content"] or t["tool_calls"] or "")[:SHOWN_CHARACTERS],
            }
            for t in turns[:8]
        ]
    return lines


def column_table(rows: Path, report: IngestReport) -> list[dict[str, Any]]:
    """One line per source column: its type, and the share of rows that have a value in it."""
    schema = pq.read_schema(rows)
    types = {f.name: str(f.type) for f in schema} | dict.fromkeys(nested_columns(schema), "JSON text")
    return [
        {"column": name, "type": types[name], "filled": filled / report.rows} for name, filled in report.filled.items()
    ]


def refused_table(refused: Path) -> list[dict[str, Any]]:
    """One line per source and reason: how many rows it cost, and the first of them."""
    table = pq.read_table(refused)
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in table.to_pylist():
        line = lines.setdefault(
            (row["source"], row["reason"]),
            {"source": row["source"], "reason": row["reason"], "rows": 0, "first_row": row["row_id"],
             "place": f"{row['file']}:{row['line']}", "detail": row["detail"][:SHOWN_CHARACTERS]},
        )  # fmt: skip
        line["rows"] += 1
    return list(lines.values())


def sample_table(rows: Path, report: IngestReport) -> list[dict[str, str]]:
    """The first row of each source, one line per column: source rows are often too wide to be one line."""
    lines = []
    for label in report.sources:
        lines += [
            {"source": label, "column": name, "value": str(value)[:SHOWN_CHARACTERS]}
            for name, value in _first_of(rows, label).items()
            if value is not None
        ]
    return lines


def _first_of(rows: Path, label: str) -> dict[str, Any]:
    with pq.ParquetFile(rows) as file:
        for group in range(file.num_row_groups):
            labels = file.read_row_group(group, columns=["source"])["source"].to_pylist()
            if label in labels:
                return file.read_row_group(group).slice(labels.index(label), 1).to_pylist()[0]
    return {}
