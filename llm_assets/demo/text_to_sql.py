"""Deterministic text-to-SQL rows with the columns of gretelai/synthetic_text_to_sql, made without any download.

Every row is a function of its index and the seed alone, so any subset can be remade anywhere. Its tables carry enough
data that the gold SQL returns something, which makes execution accuracy a test rather than a comparison of empty sets.
"""

from dataclasses import dataclass
from random import Random

from llm_assets.demo.queries import Query, to_pipeline, to_sql
from llm_assets.demo.questions import FAMILIES, WEIGHTS, Drawn, Scene
from llm_assets.demo.schemas import DOMAINS, Domain, Table

COLUMNS = (
    *("id", "domain", "domain_description", "sql_complexity", "sql_complexity_description", "sql_task_type"),
    *("sql_task_type_description", "sql_prompt", "sql_context", "sql", "sql_explanation"),
)
COMPLEXITIES = {
    "basic SQL": "basic SQL with a simple select statement",
    "aggregation": "aggregation functions (COUNT, SUM, AVG, MIN, MAX) and HAVING clause",
    "single join": "only one join",
    "subqueries": "subqueries, including correlated and nested subqueries",
}
TASK_TYPES = {
    "data retrieval": "retrieving rows as they are stored",
    "analytics and reporting": "generating reports, dashboards, and analytical insights",
}
PARENT_ROWS, CHILD_ROWS = 6, 12


@dataclass(frozen=True, slots=True)
class Example:
    """A row before it becomes columns: the question in the three languages that describe it, and its tables.

    `schema` holds the CREATE statements and `data` the INSERT statements, one per line.
    """

    domain: Domain
    complexity: str
    question: str
    query: Query
    schema: str
    data: str

    @property
    def sql(self) -> str:
        """Gold SQL."""
        return to_sql(self.query)

    @property
    def pipeline(self) -> str:
        """The same query in the language the demo base is trained to answer in."""
        return to_pipeline(self.query)


def sample(index: int, seed: int | str = 0) -> dict[str, str | int]:
    """Row `index` of the endless data set `seed`, with the keys of `COLUMNS`."""
    made = example(index, seed)
    retrieval = made.query.aggregate is None and made.query.group is None
    task = "data retrieval" if retrieval else "analytics and reporting"
    values = (
        *(index, made.domain.name, made.domain.description, made.complexity, COMPLEXITIES[made.complexity]),
        *(task, TASK_TYPES[task], made.question, f"{made.schema}\n{made.data}", made.sql, explanation(made.query)),
    )
    return dict(zip(COLUMNS, values, strict=True))


def example(index: int, seed: int | str = 0) -> Example:
    """The example behind `sample`, before rendering."""
    rng = Random(f"{seed}/{index}")
    domain = rng.choice(DOMAINS)
    complexity, family = FAMILIES[rng.choices(range(len(FAMILIES)), WEIGHTS)[0]]
    parent, child = _draw(rng, domain.parent, PARENT_ROWS), _draw(rng, domain.child, CHILD_ROWS)
    joined = complexity == "single join"
    asked = child if joined or rng.random() < 0.6 else parent
    query, question = family(Scene(rng, asked, child, parent, domain.foreign_key))
    if joined or rng.random() < 0.3:
        schema = f"{_create(parent)}\n{_create(child, domain)}"
        keys = [*range(1, PARENT_ROWS + 1), *rng.choices(range(1, PARENT_ROWS + 1), k=CHILD_ROWS - PARENT_ROWS)]
        rng.shuffle(keys)
        data = f"{_insert(parent)}\n{_insert(child, domain, keys)}"
    else:
        schema, data = _create(asked), _insert(asked)
    return Example(domain, complexity, question, query, schema, data)


def explanation(query: Query) -> str:
    """What the gold SQL does, in one sentence of plain steps."""
    steps = [f"reads {query.table}"]
    if query.join:
        steps.append(f"joins {query.join[0]} on {query.join[1]}")
    if query.where or query.above_mean:
        steps.append("keeps the rows that satisfy the condition")
    if query.group:
        steps.append(f"groups them by {query.group}")
    if query.having:
        steps.append("keeps the groups of the asked size")
    if query.order:
        steps.append(f"sorts by {query.order[0]}")
    returned = [*query.columns, *([f"{query.aggregate[0]} of {query.aggregate[1]}"] if query.aggregate else [])]
    return f"The query {', '.join(steps)} and returns {', '.join(returned)}."


def _draw(rng: Random, table: Table, count: int) -> Drawn:
    texts = tuple(rng.sample(tuple(table.texts), rng.randint(1, len(table.texts))))
    numbers = tuple(rng.sample(tuple(table.numbers), rng.randint(1, len(table.numbers))))
    columns = [table.label, *texts, *numbers]
    rng.shuffle(columns)
    series: dict[str, list] = {table.label: [f"'{value}'" for value in rng.sample(table.labels, count)]}
    for column in texts:
        series[column] = [f"'{value}'" for value in rng.choices(table.texts[column][:6], k=count)]
    for column in numbers:
        low, high = table.numbers[column]
        series[column] = rng.sample(range(low, high + 1), count)
    ordered = [series[column] for column in columns]
    records = tuple(dict(zip(columns, values, strict=True)) for values in zip(*ordered, strict=True))
    return Drawn(table, texts, numbers, tuple(columns), records)


def _create(drawn: Drawn, domain: Domain | None = None) -> str:
    types = [f"{name} {'INT' if name in drawn.numbers else 'TEXT'}" for name in drawn.columns]
    if domain:
        types.append(f"{domain.foreign_key} INT REFERENCES {domain.parent.name} (id)")
    return f"CREATE TABLE {drawn.table.name} (id INT PRIMARY KEY, {', '.join(types)});"


def _insert(drawn: Drawn, domain: Domain | None = None, keys: list[int] | None = None) -> str:
    columns = ["id", *drawn.columns, *([domain.foreign_key] if domain else [])]
    tuples = [[number, *record.values()] for number, record in enumerate(drawn.records, start=1)]
    for values, key in zip(tuples, keys or (), strict=False):
        values.append(key)
    rows = ", ".join(f"({', '.join(map(str, values))})" for values in tuples)
    return f"INSERT INTO {drawn.table.name} ({', '.join(columns)}) VALUES {rows};"
