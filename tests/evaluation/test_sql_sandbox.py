from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from llm_assets.evaluation.sql_sandbox import SandboxUnavailable, SqlSandbox, SqlSandboxConfig

ORDERS = """CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, total DECIMAL(8,2));
INSERT INTO orders VALUES (1, 'Rosa', 5), (2, 'Ali', 7), (3, 'Rosa', 9), (4, 'Bo', 7);"""
QUICK = SqlSandboxConfig(soft_limit_seconds=0.5, hard_limit_seconds=1.5, data_sets=1)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SqlSandbox]:
    with SqlSandbox(QUICK) as opened:
        assert opened.open(ORDERS).error is None
        yield opened


def test_a_query_returns_its_rows_and_whether_their_order_counts(sandbox: SqlSandbox):
    plain = sandbox.query("SELECT customer, total FROM orders WHERE id = 1")
    assert (plain.results, plain.ordered) == ([[["Rosa", 5.0]]], False)
    assert sandbox.query("SELECT id FROM orders ORDER BY total DESC, id").results == [[[3], [2], [4], [1]]]
    assert sandbox.query("SELECT id FROM orders ORDER BY total DESC LIMIT 1").ordered
    assert not sandbox.query("SELECT id FROM (SELECT id FROM orders ORDER BY id)").ordered


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE orders",
        "INSERT INTO orders VALUES (9, 'x', 1)",
        "SELECT 1; SELECT 2",
        "SET memory_limit = '100GB'",
        "PRAGMA memory_limit = '100GB'",
        "COPY orders TO '{out}'",
        "EXPORT DATABASE '{out}'",
        "ATTACH '{out}' AS elsewhere",
        "INSTALL httpfs",
        "CALL pragma_version()",
        "",
    ],
)
def test_anything_but_one_select_is_refused(sandbox: SqlSandbox, sql: str, tmp_path: Path):
    error = sandbox.query(sql.format(out=tmp_path / "stolen")).error
    assert error is not None and error.startswith("refused")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM settings",  # a Python variable of the child's caller
        "SELECT getenv('PATH')",
        "WITH gone AS (DELETE FROM orders RETURNING *) SELECT * FROM gone",
    ],
)
def test_a_select_reaches_no_file_no_variable_and_changes_nothing(sandbox: SqlSandbox, sql: str):
    error = sandbox.query(sql).error
    assert error is not None and error.startswith("failed")
    assert sandbox.query("SELECT count(*) FROM orders").results == [[[4]]]


def test_a_long_query_is_interrupted_and_the_child_lives_on(sandbox: SqlSandbox):
    starts = sandbox.starts
    error = sandbox.query("SELECT count(*) FROM range(100000000) a, range(1000000) b").error
    assert error is not None and error.startswith("timeout: still running")
    assert sandbox.query("SELECT count(*) FROM orders").results == [[[4]]]
    assert sandbox.starts == starts


def test_a_query_deaf_to_interrupts_is_killed_and_the_context_comes_back(sandbox: SqlSandbox):
    starts = sandbox.starts
    error = sandbox.query("SELECT levenshtein(repeat('a', 200000), repeat('b', 200000))").error
    assert error is not None and error.startswith("timeout: killed")
    assert sandbox.query("SELECT count(*) FROM orders").results == [[[4]]]
    assert sandbox.starts == starts + 1


def test_a_query_out_of_memory_costs_only_its_own_answer(sandbox: SqlSandbox):
    starts = sandbox.starts
    error = sandbox.query("SELECT repeat('x', 2000000000)").error
    assert error is not None and error.startswith("memory")
    assert sandbox.query("SELECT count(*) FROM orders").results == [[[4]]]
    assert sandbox.starts == starts + 1


def test_a_result_too_large_to_compare_is_refused(sandbox: SqlSandbox):
    error = sandbox.query("SELECT i FROM range(20000) t(i)").error
    assert error == "refused: more than 10000 result rows"


def test_contexts_do_not_see_each_other(sandbox: SqlSandbox):
    assert sandbox.open("CREATE TABLE other (i INTEGER)").error is None
    error = sandbox.query("SELECT * FROM orders").error
    assert error is not None and "orders" in error
    sandbox.open(ORDERS)


def test_a_context_that_copies_a_file_is_refused(sandbox: SqlSandbox, tmp_path: Path):
    error = sandbox.open(f"CREATE TABLE t (i INTEGER); COPY t TO '{tmp_path / 'stolen.csv'}'").error
    assert error is not None and error.startswith("refused")
    sandbox.open(ORDERS)


def test_redrawn_data_sets_have_more_rows_unique_keys_and_known_texts():
    with SqlSandbox(SqlSandboxConfig(data_sets=3)) as sandbox:
        sandbox.open(ORDERS)
        assert sandbox.query("SELECT count(*), count(DISTINCT id) FROM orders").results == [
            [[4, 4]],
            [[12, 12]],
            [[12, 12]],
        ]
        assert sandbox.query("SELECT count(*) FROM orders WHERE id <= 4").results == [[[4]]] * 3
        customers = sandbox.query("SELECT DISTINCT customer FROM orders").results
        assert all({name for (name,) in rows} <= {"Rosa", "Ali", "Bo"} for rows in customers)
        pairs = sandbox.query("SELECT id, customer, total FROM orders ORDER BY id").results
        assert pairs[1] != pairs[2]


def test_redrawn_tables_still_join():
    lines = "CREATE TABLE lines (order_id INTEGER, item TEXT); INSERT INTO lines VALUES (1, 'a'), (1, 'b'), (3, 'c');"
    with SqlSandbox(SqlSandboxConfig(data_sets=3)) as sandbox:
        sandbox.open(ORDERS + lines)
        joined = sandbox.query("SELECT count(*) FROM orders JOIN lines ON id = order_id").results
        assert all(rows[0][0] > 0 for rows in joined)


def test_a_column_that_cannot_be_redrawn_leaves_the_rows_own_data():
    largest = "CREATE TABLE t (i HUGEINT); INSERT INTO t VALUES (170141183460469231731687303715884105727), (0)"
    with SqlSandbox(SqlSandboxConfig(data_sets=3)) as sandbox:
        assert sandbox.open(largest).error is None
        assert sandbox.query("SELECT count(*) FROM t").results == [[[2]]]


def test_a_context_with_a_view_runs_on_its_own_data_only():
    with SqlSandbox(SqlSandboxConfig(data_sets=3)) as sandbox:
        sandbox.open(ORDERS + "CREATE VIEW big AS SELECT * FROM orders WHERE total > 6;")
        assert sandbox.query("SELECT count(*) FROM big").results == [[[3]]]


def test_a_kill_limit_below_the_interrupt_limit_is_refused_with_the_remedy():
    with pytest.raises(ValidationError, match=r"hard_limit_seconds 1 must exceed soft_limit_seconds 2.*Raise it"):
        SqlSandboxConfig(soft_limit_seconds=2, hard_limit_seconds=1)


def test_a_child_that_cannot_start_says_what_to_raise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(SandboxUnavailable, match="memory_bytes"), SqlSandbox(SqlSandboxConfig()) as sandbox:
        sandbox.open("")
