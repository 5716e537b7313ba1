import pytest

from llm_assets.evaluation.sql_execution import evidence, execute_answers, same_rows
from llm_assets.evaluation.sql_sandbox import SqlSandbox, SqlSandboxConfig

ORDERS = """CREATE TABLE orders (id INTEGER, customer TEXT, total INTEGER);
INSERT INTO orders VALUES (1,'Rosa',5),(2,'Ali',7),(3,'Rosa',9),(4,'Bo',8),(5,'Bo',5),(6,'Ali',9);"""


def judged(gold: str, *answers: str, data_sets: int = 3) -> list[bool | None]:
    with SqlSandbox(SqlSandboxConfig(data_sets=data_sets)) as sandbox:
        columns = {str(place): [answer] for place, answer in enumerate(answers)}
        verdicts = execute_answers([ORDERS], [gold], columns, sandbox, print)
    return [verdicts[str(place)][0].equal for place in range(len(answers))]


def test_equivalent_sql_is_equal_and_other_sql_is_not():
    gold = "SELECT customer, COUNT(*) FROM orders GROUP BY customer"
    assert judged(
        gold,
        "```sql\nSELECT o.customer, SUM(1) FROM orders AS o GROUP BY 1\n```",
        "SELECT customer, SUM(total) FROM orders GROUP BY customer",
        "SELECT COUNT(*), customer FROM orders GROUP BY customer",
        "SELECT nothing FROM nowhere",
    ) == [True, False, False, False]


def test_order_counts_only_where_the_expected_sql_orders():
    assert judged("SELECT id FROM orders ORDER BY id", "SELECT id FROM orders ORDER BY id DESC") == [False]
    assert judged("SELECT id FROM orders", "SELECT id FROM orders ORDER BY id DESC") == [True]


def test_sql_that_is_right_by_luck_on_one_data_set_is_found_out_on_redrawn_ones():
    gold, lucky = "SELECT id FROM orders WHERE customer = 'Bo'", "SELECT id FROM orders WHERE id IN (4, 5)"
    assert judged(gold, lucky, data_sets=1) == [True]
    assert judged(gold, lucky, data_sets=3) == [False]


def test_a_wrong_aggregate_over_a_single_row_is_found_out_on_redrawn_data():
    gold, lucky = "SELECT SUM(total) FROM orders WHERE id = 4 OR customer = 'Bo' AND total = 8", "SELECT 8"
    assert judged(gold, lucky, data_sets=1) == [True]
    assert judged(gold, lucky, data_sets=3) == [False]


@pytest.mark.parametrize("gold", ["SELECT id FROM orders WHERE customer = 'Nobody'", "SELECT broken"])
def test_an_expected_query_without_result_is_no_evidence(gold: str):
    with SqlSandbox(SqlSandboxConfig()) as sandbox:
        verdicts = execute_answers([ORDERS], [gold], {"merged": [gold]}, sandbox, print)["merged"]
    assert (verdicts[0].equal, evidence(verdicts)) == (None, 0)
    assert verdicts[0].error is not None and verdicts[0].error.startswith("expected SQL")


def test_rows_are_compared_as_a_multiset():
    assert same_rows([[1], [1], [2]], [[1], [2], [1]], ordered=False)
    assert not same_rows([[1], [1], [2]], [[1], [2], [2]], ordered=False)
    assert not same_rows([[1], [2]], [[2], [1]], ordered=True)
    assert same_rows([[None, 3]], [[None, 3.0]], ordered=True)
