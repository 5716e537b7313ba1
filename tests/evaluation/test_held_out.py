from pathlib import Path

import pyarrow.parquet as pq
import pytest
from published_lineage import QUESTIONS, PublishedLineage

from llm_assets.data.rendering import Renderer
from llm_assets.evaluation.held_out import NoHeldOutRows, SqlContextMissing, read_held_out


def test_prompts_are_what_the_renderer_hands_to_a_server(lineage: PublishedLineage):
    held_out = read_held_out(lineage.chat, lineage.tokenized, rows=50, seed=0)
    renderer = Renderer.from_directory(lineage.tokenized / "tokenizer")
    for prompt, ids in zip(held_out.prompts, held_out.prompt_token_ids, strict=True):
        assert list(ids) == renderer.encode_prompt([{"role": "user", "content": prompt}])


def test_rows_are_aligned_and_expect_the_final_assistant_turn(lineage: PublishedLineage):
    held_out = read_held_out(lineage.chat, lineage.tokenized, rows=50, seed=0)
    assert dict(zip(held_out.prompts, held_out.expected, strict=True)) == QUESTIONS
    assert list(held_out.row_ids) == sorted(held_out.row_ids)


def test_a_smaller_choice_is_part_of_a_larger_one_and_another_seed_chooses_others(lineage: PublishedLineage):
    def chosen(rows: int, seed: int) -> set[str]:
        return set(read_held_out(lineage.chat, lineage.tokenized, rows, seed).row_ids)

    assert chosen(2, 0) < chosen(4, 0) < chosen(6, 0)
    assert any(chosen(3, 0) != chosen(3, seed) for seed in range(1, 5))


def test_equal_digests_mean_the_same_exam(lineage: PublishedLineage):
    first, again = (read_held_out(lineage.chat, lineage.tokenized, 4, 0) for _ in range(2))
    assert first.digest == again.digest != read_held_out(lineage.chat, lineage.tokenized, 3, 0).digest


def test_a_missing_sql_context_names_row_column_and_remedies(lineage: PublishedLineage):
    with pytest.raises(SqlContextMissing, match=r"test-\d has no 'ddl'.*format.keep_columns"):
        read_held_out(lineage.chat, lineage.tokenized, rows=2, seed=0, sql_context_column="ddl")


def test_an_empty_test_split_is_refused_with_the_setting_to_raise(lineage: PublishedLineage, tmp_path: Path):
    pq.write_table(pq.read_table(lineage.chat / "test.parquet").slice(0, 0), tmp_path / "test.parquet")
    with pytest.raises(NoHeldOutRows, match=r"Raise split\.test"):
        read_held_out(tmp_path, lineage.tokenized, rows=2, seed=0)
