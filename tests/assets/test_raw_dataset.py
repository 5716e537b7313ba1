"""Sources that cannot be read whole stop the run before anything is published."""

import json
from pathlib import Path

import dagster as dg
import pytest

from llm_assets.assets.conventions import Lineage
from llm_assets.assets.raw_dataset import NOT_EMPTY, SCHEMA, SOURCES_COMPLETE, build_raw_dataset
from llm_assets.data import SourceConfig
from llm_assets.data.formats import AlpacaFormat, AutoFormat, FormatUnknown
from llm_assets.data.ingestion import RowMissingColumn
from llm_assets.resources.artifact_store import ArtifactStore

LINEAGE = Lineage("helper")


def materialize(home: Path, *sources: Path | SourceConfig, format=AlpacaFormat()) -> dg.ExecuteInProcessResult:  # noqa: B008
    configs = [source if isinstance(source, SourceConfig) else SourceConfig(path=str(source)) for source in sources]
    asset = build_raw_dataset(LINEAGE, configs, format)
    return dg.materialize([asset], resources={"store": ArtifactStore(root=str(home / "store"))})


def metadata_of(result: dg.ExecuteInProcessResult) -> dict:
    (event,) = result.get_asset_materialization_events()
    return event.step_materialization_data.materialization.metadata


def rows_of(table: dg.TableMetadataValue) -> list[dict]:
    return [dict(record.data) for record in table.records]


def write(path: Path, *rows: dict[str, str]) -> Path:
    path.write_text(json.dumps(list(rows)))
    return path


def test_rows_of_all_sources_are_published_with_passing_checks(tmp_path: Path):
    one = write(tmp_path / "one.json", {"instruction": "a", "output": "b"})
    two = write(tmp_path / "two.json", {"instruction": "c", "input": "x", "output": "d"})
    result = materialize(tmp_path, one, two)
    metadata = metadata_of(result)
    assert metadata["dagster/row_count"].value == 2
    names = [column.name for column in metadata["dagster/column_schema"].value.columns]
    assert names == ["instruction", "output", "input", "row_id", "source", "content_hash", "source_file", "source_line"]
    checks = {c.check_name: c.passed for c in result.get_asset_check_evaluations()}
    assert checks == {SCHEMA: True, NOT_EMPTY: True, SOURCES_COMPLETE: True}


def test_a_source_without_a_needed_column_publishes_nothing(tmp_path: Path):
    one = write(tmp_path / "one.json", {"instruction": "a", "output": "b"})
    two = write(tmp_path / "two.json", {"question": "c", "output": "d"})
    with pytest.raises(RowMissingColumn, match=r"two\.json: no column 'instruction'"):
        materialize(tmp_path, one, two)
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_the_page_follows_the_rows_of_every_source_to_the_mixture_and_shows_how_one_reads(tmp_path: Path):
    (tmp_path / "chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}\n' * 3 + "{\n"
    )
    chats = SourceConfig(path=str(tmp_path / "chats.jsonl"), max_refused_share=0.5, share=0.4)
    two = write(tmp_path / "two.json", *({"question": f"{n}?", "answer": "so", "topic": None} for n in range(3)))
    metadata = metadata_of(materialize(tmp_path, chats, two, format=AutoFormat()))

    assert rows_of(metadata["sources"]) == [
        {"source": "chats", "files": 1, "read": 4, "refused": 1, "held": 3, "drawn": 2, "share": 0.4,
         "format": "openai_messages"},
        {"source": "two", "files": 1, "read": 3, "refused": 0, "held": 3, "drawn": 3, "share": 0.6,
         "format": 'prompt_completion {"prompt_column": "question", "completion_column": "answer"}'},
    ]  # fmt: skip
    assert (metadata["read_rows"].value, metadata["refused_rows"].value, metadata["repeated_rows"].value) == (7, 1, 1)
    (refused,) = rows_of(metadata["refused"])
    assert (refused["reason"], refused["rows"], refused["place"]) == ("malformed", 1, "chats.jsonl:4")
    reads = [(line["source"], line["role"], line["content"]) for line in rows_of(metadata["reads_as"])]
    assert reads == [
        ("chats", "user", "Hi"),
        ("chats", "assistant", "Yo"),
        ("two", "user", "0?"),
        ("two", "assistant", "so"),
    ]
    assert {line["column"]: line["filled"] for line in rows_of(metadata["columns"])} == {
        "messages": 0.4, "question": 0.6, "answer": 0.6, "topic": 0.0,
    }  # fmt: skip
    sample = [(line["source"], line["column"]) for line in rows_of(metadata["sample"])]
    assert ("chats", "messages") in sample and ("two", "question") in sample
    assert metadata["source_picture"].value.startswith("![rows by source]")


def test_rows_that_no_format_reads_publish_nothing(tmp_path: Path):
    one = write(tmp_path / "one.json", {"text": "### Human: Hi"})
    with pytest.raises(FormatUnknown, match="Source 'one': No format reads the columns text"):
        materialize(tmp_path, one, format=AutoFormat())
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_a_change_of_sources_or_format_changes_the_code_version():
    def version(path: str, **format: str) -> str:
        asset = build_raw_dataset(LINEAGE, [SourceConfig(path=path)], AlpacaFormat(**format))
        return asset.code_versions_by_key[LINEAGE.key("raw_dataset")] or ""

    assert len({version("a"), version("b"), version("a", output_column="answer")}) == 3
    assert version("a") == version("a", system="Be brief.")  # no column more: the same rows

    def with_own_format(**fields) -> str:
        source = SourceConfig(path="a", row_format=AlpacaFormat(**fields.pop("format", {})), **fields)
        asset = build_raw_dataset(LINEAGE, [source], AlpacaFormat())
        return asset.code_versions_by_key[LINEAGE.key("raw_dataset")] or ""

    assert with_own_format() == with_own_format(format={"system": "x"}) == with_own_format(max_refused_share=0.2)
    assert with_own_format() != with_own_format(rows=5)
