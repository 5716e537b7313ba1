"""One form of a query, rendered to SQL and to a pipeline language that only the demo base speaks.

The base model learns the pipeline, fine-tuning teaches SQL: the lift is honest about being a change of output language.
"""

from dataclasses import dataclass

PIPELINE_OPERATORS = {"=": "is", ">": "over", "<": "under", ">=": "from", "<=": "upto"}
PIPELINE_AGGREGATES = {"AVG": "mean", "SUM": "total", "MAX": "highest", "MIN": "lowest", "COUNT": "size"}


@dataclass(frozen=True, slots=True)
class Condition:
    """`column operator value`; a text value is already quoted."""

    column: str
    operator: str
    value: str


@dataclass(frozen=True, slots=True)
class Query:
    """A SELECT over one table, or over a child joined to its parent.

    Attributes:
        table: Table the rows come from; the child in a join.
        columns: Plain columns in the result, qualified in a join.
        aggregate: Function and its column, `("COUNT", "*")` for a count of rows.
        where: Conditions, joined by `connective`.
        connective: `AND` or `OR`.
        group: Column to group by.
        having: Operator and count that a group must satisfy.
        order: Column or `COUNT(*)`, and `ASC` or `DESC`.
        limit: Rows to keep.
        distinct: Drop repeated rows.
        above_mean: Column that must exceed, or with `below` undercut, its own average.
        join: Parent table and the foreign key of `table` that points to its id.
    """

    table: str
    columns: tuple[str, ...] = ()
    aggregate: tuple[str, str] | None = None
    where: tuple[Condition, ...] = ()
    connective: str = "AND"
    group: str | None = None
    having: tuple[str, int] | None = None
    order: tuple[str, str] | None = None
    limit: int | None = None
    distinct: bool = False
    above_mean: tuple[str, str] | None = None
    join: tuple[str, str] | None = None


def to_sql(query: Query) -> str:
    """Render as one canonical SQL statement with upper-case keywords and a final semicolon."""
    items = list(query.columns)
    if query.aggregate:
        items.append("{}({})".format(*query.aggregate))
    parts = ["SELECT DISTINCT" if query.distinct else "SELECT", ", ".join(items), "FROM", query.table]
    if query.join:
        parent, key = query.join
        parts.append(f"JOIN {parent} ON {query.table}.{key} = {parent}.id")
    if query.where:
        tests = [f"{c.column} {c.operator} {c.value}" for c in query.where]
        parts.append("WHERE " + f" {query.connective} ".join(tests))
    if query.above_mean:
        operator, column = query.above_mean
        parts.append(f"WHERE {column} {operator} (SELECT AVG({column}) FROM {query.table})")
    if query.group:
        parts.append(f"GROUP BY {query.group}")
    if query.having:
        parts.append("HAVING COUNT(*) {} {}".format(*query.having))
    if query.order:
        parts.append("ORDER BY {} {}".format(*query.order))
    if query.limit:
        parts.append(f"LIMIT {query.limit}")
    return " ".join(parts) + ";"


def to_pipeline(query: Query) -> str:
    """Render as a pipeline: `from books | keep genre is 'crime' and pages over 300 | take title`."""
    steps = [f"from {query.table}"]
    if query.join:
        steps.append("join {} via {}".format(*query.join))
    if query.where:
        tests = [f"{c.column} {PIPELINE_OPERATORS[c.operator]} {c.value}" for c in query.where]
        steps.append("keep " + f" {query.connective.lower()} ".join(tests))
    if query.above_mean:
        operator, column = query.above_mean
        steps.append(f"keep {column} {PIPELINE_OPERATORS[operator]} mean")
    if query.group:
        steps.append(f"by {query.group}")
    if query.aggregate:
        function, column = query.aggregate
        steps.append(PIPELINE_AGGREGATES[function] + ("" if column == "*" else f" {column}"))
    if query.having:
        operator, count = query.having
        steps.append(f"size {PIPELINE_OPERATORS[operator]} {count}")
    if query.order:
        column, direction = query.order
        measure = "size" if column == "COUNT(*)" else column
        steps.append(f"sort {measure} {'down' if direction == 'DESC' else 'up'}")
    if query.limit:
        steps.append(f"first {query.limit}")
    if query.columns:
        steps.append(("unique " if query.distinct else "take ") + ", ".join(query.columns))
    return " | ".join(steps)


def keywords_lowered(sql: str) -> str:
    """SQL as a careless hand types it: everything outside quotes in lower case, without the final semicolon."""
    pieces = sql.rstrip(";").split("'")
    return "'".join(piece if quoted % 2 else piece.lower() for quoted, piece in enumerate(pieces))
