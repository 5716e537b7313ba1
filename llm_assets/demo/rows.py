"""`python -m llm_assets.demo.rows` writes the demo's inputs: training rows, and questions to run inference on.

The training rows are dirty on purpose (repeats, empty questions, empty answers), so curation has something to remove.
Files are a function of the code alone and are left untouched when already there.
"""

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from llm_assets.demo.text_to_sql import COLUMNS, sample

ROWS_PER_FILE = 3000
FILES = 2
REPEATED_SHARE = 0.03
BROKEN_SHARE = 0.02
QUESTION_PARTITIONS = ("batch_00", "batch_01", "batch_02")
QUESTIONS_PER_PARTITION = 60
QUESTION_COLUMNS = ("id", "domain", "sql_context", "sql_prompt")
TRAINING_SEED, QUESTION_SEED = 0, 1


def main(arguments: list[str] | None = None) -> None:
    """Write what is missing under the home of the demo, and print where it is."""
    parser = argparse.ArgumentParser(description="Write the demo lineage's input rows.")
    parser.add_argument("--home", type=Path, default=home(), help="directory that holds sql_demo/")
    parser.add_argument("--new-rows", type=int, default=0, metavar="N", help="append a file of N unseen training rows")
    parser.add_argument("--rows-per-file", type=int, default=ROWS_PER_FILE, help="training rows in each of two files")
    options = parser.parse_args(arguments)
    written = write_inputs(options.home / "sql_demo", options.rows_per_file)
    if options.new_rows:
        written.append(append_rows(options.home / "sql_demo" / "rows", options.new_rows))
    for path in written:
        print(f"wrote {path}")
    if not written:
        print(f"{options.home / 'sql_demo'} is up to date")


def home() -> Path:
    """Where all state lives: `LLM_ASSETS_HOME`, or `.llm_assets` in the working directory."""
    return Path(os.environ.get("LLM_ASSETS_HOME", ".llm_assets"))


def write_inputs(directory: Path, rows_per_file: int = ROWS_PER_FILE) -> list[Path]:
    """Write `rows/part_<n>.parquet` and `questions/<partition>.parquet`; return the files that changed."""
    tables = {f"rows/part_{file}.parquet": training_rows(file * rows_per_file, rows_per_file) for file in range(FILES)}
    for number, partition in enumerate(QUESTION_PARTITIONS):
        tables[f"questions/{partition}.parquet"] = questions(number * QUESTIONS_PER_PARTITION)
    return [directory / name for name, table in tables.items() if _write(directory / name, table)]


def append_rows(directory: Path, count: int) -> Path:
    """Write one more file of `count` rows that no earlier file holds, named by how many files there are."""
    number = len(list(directory.glob("*.parquet")))
    first = sum(pq.read_metadata(path).num_rows for path in directory.glob("*.parquet"))
    path = directory / f"part_{number}.parquet"
    _write(path, training_rows(first, count))
    return path


def training_rows(first: int, count: int) -> pa.Table:
    """Rows `first..first + count` of the training set, some of them repeated or broken."""
    rng = Random(f"dirt/{TRAINING_SEED}/{first}")
    rows = [sample(index, TRAINING_SEED) for index in range(first, first + count)]
    for position in rng.sample(range(1, count), round(count * (REPEATED_SHARE + BROKEN_SHARE))) if count > 1 else ():
        if rng.random() < REPEATED_SHARE / (REPEATED_SHARE + BROKEN_SHARE):
            rows[position] = dict(rows[rng.randrange(position)])
        else:
            rows[position] |= rng.choice(({"sql_prompt": ""}, {"sql": ""}))
    return _table(rows, COLUMNS)


def questions(first: int) -> pa.Table:
    """Questions without answers, from rows that training never sees."""
    rows = [sample(index, QUESTION_SEED) for index in range(first, first + QUESTIONS_PER_PARTITION)]
    return _table(rows, QUESTION_COLUMNS)


def _table(rows: Iterable[dict[str, str | int]], columns: tuple[str, ...]) -> pa.Table:
    schema = pa.schema([(name, pa.int64() if name == "id" else pa.string()) for name in columns])
    return pa.Table.from_pylist([{name: row[name] for name in columns} for row in rows], schema=schema)


def _write(path: Path, table: pa.Table) -> bool:
    """Put the table in place by one rename, unless the file already holds the same rows."""
    if path.exists() and _holds(path, table):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, partial)
    partial.replace(path)
    return True


def _holds(path: Path, table: pa.Table) -> bool:
    try:
        return pq.read_table(path).equals(table)
    except pa.ArrowInvalid:
        return False


if __name__ == "__main__":
    main()
