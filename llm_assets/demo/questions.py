"""The question families of the demo: what may be asked of a table, in several phrasings, each with its query.

Every condition is drawn from a record that satisfies it, so answers are rarely empty. Questions use column names and
quoted values verbatim; the families differ in structure, not in vocabulary.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from llm_assets.demo.queries import Condition, Query
from llm_assets.demo.schemas import Table

COMPARISONS = {
    "=": ("is", "equals"),
    ">": ("is above", "is greater than", "exceeds"),
    "<": ("is below", "is less than", "is under"),
    ">=": ("is at least",),
    "<=": ("is at most",),
}
AGGREGATES = {"AVG": ("average",), "SUM": ("total",), "MAX": ("highest", "maximum"), "MIN": ("lowest", "minimum")}


@dataclass(frozen=True, slots=True)
class Drawn:
    """One table of one row: the columns drawn for it, in order, and its records."""

    table: Table
    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    columns: tuple[str, ...]
    records: tuple[dict[str, str | int], ...]

    @property
    def categories(self) -> tuple[str, ...]:
        """Every text column, the label included."""
        return (self.table.label, *self.texts)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a question family draws from: the random source, the table asked about, and its parent for joins."""

    rng: Random
    asked: Drawn
    child: Drawn
    parent: Drawn
    foreign_key: str

    def pick(self, *options: str) -> str:
        """One of the given phrasings."""
        return options[int(self.rng.random() * len(options))]


Asked = tuple[Query, str]


def _condition(
    scene: Scene, drawn: Drawn, record: dict[str, str | int], skip: str = "", prefix: str = ""
) -> tuple[Condition, str]:
    """A condition that `record` satisfies, and its words."""
    column = scene.rng.choice([name for name in drawn.columns if name != skip])
    value = record[column]
    if isinstance(value, str):
        return Condition(prefix + column, "=", value), f"{column} {scene.pick(*COMPARISONS['='])} {value}"
    operator = scene.pick(">", ">", "<", "<", ">=", "<=")
    slack = scene.rng.randint(1, 9)
    bound = {">": value - slack if value > slack else 0, "<": value + slack}.get(operator, value)
    return Condition(prefix + column, operator, str(bound)), f"{column} {scene.pick(*COMPARISONS[operator])} {bound}"


def _result_columns(scene: Scene, count: int) -> tuple[str, ...]:
    return tuple(scene.rng.sample(scene.asked.columns, min(count, len(scene.asked.columns))))


def _filter(scene: Scene) -> Asked:
    columns = _result_columns(scene, scene.rng.choice((1, 1, 2)))
    where, words = _condition(scene, scene.asked, scene.rng.choice(scene.asked.records))
    return Query(scene.asked.table.name, columns, where=(where,)), _listing(scene, columns, words)


def _two_filters(scene: Scene) -> Asked:
    columns = _result_columns(scene, 1)
    record = scene.rng.choice(scene.asked.records)
    first, first_words = _condition(scene, scene.asked, record)
    second, second_words = _condition(scene, scene.asked, record, skip=first.column)
    connective = scene.pick("AND", "AND", "OR")
    words = f"{first_words} {connective.lower()} {second_words}"
    query = Query(scene.asked.table.name, columns, where=(first, second), connective=connective)
    return query, _listing(scene, columns, words)


def _listing(scene: Scene, columns: tuple[str, ...], words: str) -> str:
    table, wanted = scene.asked.table.name, " and ".join(columns)
    return scene.pick(
        f"List the {wanted} of {table} where {words}.",
        f"Show the {wanted} of all {table} where {words}.",
        f"Find the {table} where {words} and give the {wanted}.",
        f"For every one of the {table} where {words}, I need the {wanted}.",
    )


def _maybe_condition(scene: Scene, chance: float, skip: str = "") -> tuple[tuple[Condition, ...], str]:
    if scene.rng.random() >= chance:
        return (), ""
    where, words = _condition(scene, scene.asked, scene.rng.choice(scene.asked.records), skip=skip)
    return (where,), f" where {words}"


def _count(scene: Scene) -> Asked:
    table = scene.asked.table.name
    where, words = _maybe_condition(scene, 0.85)
    question = scene.pick(
        f"How many {table} are there{words}?",
        f"Count the {table}{words}.",
        f"What is the number of {table}{words}?",
    )
    return Query(table, aggregate=("COUNT", "*"), where=where), question


def _aggregate(scene: Scene) -> Asked:
    table, column = scene.asked.table.name, scene.rng.choice(scene.asked.numbers)
    function = scene.pick(*AGGREGATES)
    where, words = _maybe_condition(scene, 0.5, skip=column)
    measure = f"{scene.pick(*AGGREGATES[function])} {column}"
    question = scene.pick(
        f"What is the {measure} of {table}{words}?",
        f"Find the {measure} across all {table}{words}.",
        f"Give me the {measure} for {table}{words}.",
    )
    return Query(table, aggregate=(function, column), where=where), question


def _group(scene: Scene) -> Asked:
    table, group = scene.asked.table.name, scene.rng.choice(scene.asked.texts)
    if scene.rng.random() < 0.5:
        question = scene.pick(
            f"How many {table} are there for each {group}?",
            f"Count the {table} per {group}.",
            f"Show every {group} with its number of {table}.",
        )
        return Query(table, (group,), aggregate=("COUNT", "*"), group=group), question
    function, column = scene.pick(*AGGREGATES), scene.rng.choice(scene.asked.numbers)
    measure = f"{scene.pick(*AGGREGATES[function])} {column}"
    question = scene.pick(
        f"What is the {measure} of {table} for each {group}?",
        f"Show the {measure} of {table} per {group}.",
        f"For every {group}, find the {measure} of {table}.",
    )
    return Query(table, (group,), aggregate=(function, column), group=group), question


def _having(scene: Scene) -> Asked:
    table, group = scene.asked.table.name, scene.rng.choice(scene.asked.texts)
    largest = max(Counter(record[group] for record in scene.asked.records).values())
    operator = scene.pick(">", ">=")
    count = max(1, scene.rng.randint(1, largest) - (operator == ">"))
    if operator == ">" and count >= largest:
        operator = ">="
    amount = f"more than {count}" if operator == ">" else f"at least {count}"
    question = scene.pick(
        f"Which {group} values have {amount} {table}?",
        f"List each {group} that appears in {amount} {table}.",
        f"Find every {group} with {amount} {table}.",
    )
    return Query(table, (group,), group=group, having=(operator, count)), question


def _top(scene: Scene) -> Asked:
    table, column = scene.asked.table.name, scene.rng.choice(scene.asked.numbers)
    limit, direction = scene.rng.randint(1, 5), scene.pick("DESC", "ASC")
    extreme = scene.pick("highest", "largest") if direction == "DESC" else scene.pick("lowest", "smallest")
    wanted = scene.asked.table.label
    question = scene.pick(
        f"Show the {wanted} of the {limit} {table} with the {extreme} {column}.",
        f"What is the {wanted} of the {limit} {table} with {extreme} {column}?",
        f"Among all {table}, list the {wanted} for the {limit} {extreme} by {column}.",
    )
    return Query(table, (wanted,), order=(column, direction), limit=limit), question


def _distinct(scene: Scene) -> Asked:
    table, column = scene.asked.table.name, scene.rng.choice(scene.asked.texts)
    where, words = _maybe_condition(scene, 0.5, skip=column)
    question = scene.pick(
        f"What different {column} values do {table} have{words}?",
        f"List the distinct {column} of {table}{words}.",
        f"Show each {column} of {table} once{words}.",
    )
    return Query(table, (column,), where=where, distinct=True), question


def _above_mean(scene: Scene) -> Asked:
    table, column = scene.asked.table.name, scene.rng.choice(scene.asked.numbers)
    operator, wanted = scene.pick(">", "<"), scene.asked.table.label
    side = scene.pick("above", "over") if operator == ">" else scene.pick("below", "under")
    question = scene.pick(
        f"Which {table} have {column} {side} the average? Give the {wanted}.",
        f"List the {wanted} of {table} whose {column} is {side} average.",
        f"Show the {wanted} of all {table} with {column} {side} the mean.",
    )
    return Query(table, (wanted,), above_mean=(operator, column)), question


def _join(scene: Scene) -> Asked:
    child, parent = scene.child.table.name, scene.parent.table.name
    column = scene.rng.choice(scene.child.columns)
    where, words = _condition(scene, scene.parent, scene.rng.choice(scene.parent.records), prefix=f"{parent}.")
    question = scene.pick(
        f"List the {column} of {child} that belong to {parent} where {words}.",
        f"Show the {column} of all {child} of {parent} where {words}.",
        f"For {parent} where {words}, give the {column} of their {child}.",
    )
    query = Query(child, (f"{child}.{column}",), where=(where,), join=(parent, scene.foreign_key))
    return query, question


def _join_group(scene: Scene) -> Asked:
    child, parent = scene.child.table.name, scene.parent.table.name
    group = scene.rng.choice(scene.parent.categories)
    function, column = scene.pick("COUNT", *AGGREGATES), "*"
    if function == "COUNT":
        question = scene.pick(
            f"How many {child} are there for each {group} of the {parent}?",
            f"Count the {child} per {group} of their {parent}.",
        )
    else:
        column = scene.rng.choice(scene.child.numbers)
        measure = f"{scene.pick(*AGGREGATES[function])} {column}"
        question = scene.pick(
            f"What is the {measure} of {child} for each {group} of the {parent}?",
            f"Show the {measure} of {child} per {group} of their {parent}.",
        )
        column = f"{child}.{column}"
    query = Query(
        *(child, (f"{parent}.{group}",)),
        aggregate=(function, column),
        group=f"{parent}.{group}",
        join=(parent, scene.foreign_key),
    )
    return query, question


Family = Callable[[Scene], Asked]
FAMILIES: tuple[tuple[str, Family], ...] = (
    ("basic SQL", _filter),
    ("basic SQL", _two_filters),
    ("basic SQL", _top),
    ("basic SQL", _distinct),
    ("aggregation", _count),
    ("aggregation", _aggregate),
    ("aggregation", _group),
    ("aggregation", _having),
    ("subqueries", _above_mean),
    ("single join", _join),
    ("single join", _join_group),
)
WEIGHTS = (18, 12, 8, 8, 12, 10, 10, 6, 5, 9, 6)
