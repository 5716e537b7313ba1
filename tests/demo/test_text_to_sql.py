from collections import Counter

import duckdb
import pytest

from llm_assets.data.formats import TextToSQLFormat, prompt_messages
from llm_assets.demo.queries import Condition, Query, keywords_lowered, to_pipeline, to_sql
from llm_assets.demo.text_to_sql import COLUMNS, COMPLEXITIES, PARENT_ROWS, example, sample

ROWS = 300
QUERY = Query(
    "books",
    ("title",),
    where=(Condition("genre", "=", "'crime'"), Condition("pages", ">", "300")),
    order=("pages", "DESC"),
)


@pytest.fixture(scope="module")
def answers() -> list[list[tuple]]:
    """What the gold SQL of each row returns on the row's own tables."""
    connection = duckdb.connect(config={"threads": 1})
    found = []
    for index in range(ROWS):
        row = sample(index)
        connection.execute("BEGIN")
        connection.execute(row["sql_context"])
        found.append(connection.execute(row["sql"]).fetchall())
        connection.execute("ROLLBACK")
    return found


def test_every_gold_sql_executes_and_nearly_all_return_something(answers):
    empty = [rows for rows in answers if not rows or rows == [(None,)] or rows == [(0,)]]
    assert len(empty) <= 0.02 * ROWS


def test_gold_results_tell_rows_of_a_table_apart(answers):
    everything = sum(len(rows) >= PARENT_ROWS for rows in answers)
    assert everything < 0.3 * ROWS


def test_a_row_is_a_function_of_its_index_and_seed():
    assert sample(7, 3) == sample(7, 3)
    assert sample(7, 3) != sample(7, 4) != sample(8, 4)


def test_a_row_has_the_columns_of_gretel_in_order():
    assert tuple(sample(0)) == COLUMNS
    assert len(COLUMNS) == 11


def test_every_complexity_appears():
    counts = Counter(sample(index)["sql_complexity"] for index in range(ROWS))
    assert set(counts) == set(COMPLEXITIES)


def test_the_base_is_trained_on_the_prompts_that_fine_tuning_makes_of_the_rows():
    for index in range(50):
        made = example(index)
        (message,) = prompt_messages(sample(index), TextToSQLFormat())
        assert message["role"] == "user"
        assert message["content"] == f"{made.schema}\n\n{made.question}"


def test_one_query_renders_to_both_languages():
    assert to_sql(QUERY) == "SELECT title FROM books WHERE genre = 'crime' AND pages > 300 ORDER BY pages DESC;"
    assert to_pipeline(QUERY) == "from books | keep genre is 'crime' and pages over 300 | sort pages down | take title"


def test_no_pipeline_is_valid_sql():
    connection = duckdb.connect()
    for index in range(20):
        made = example(index)
        connection.execute(made.schema.replace("CREATE TABLE", "CREATE OR REPLACE TEMP TABLE").split("\n")[0])
        with pytest.raises(duckdb.Error):
            connection.execute(made.pipeline)


def test_lowering_keywords_keeps_quoted_values():
    assert (
        keywords_lowered("SELECT name FROM teams WHERE city = 'Oslo';") == "select name from teams where city = 'Oslo'"
    )
