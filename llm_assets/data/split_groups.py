"""Whether the rows of one group stand in one split, told by the published files and the raw rows they came from."""

from pathlib import Path
from typing import Any

from llm_assets.data.spilling import bounded_connection
from llm_assets.data.splits import SPLITS


def groups_in_two_splits(chat: Path, raw_rows: Path, column: str, most: int) -> tuple[int, list[dict[str, Any]]]:
    """How many values of a source column have kept rows in more than one split, and the first of them.

    Args:
        chat: A chat dataset.
        raw_rows: The `rows.parquet` it was made from.
        column: The group column; rows without a value in it are grouped by their prompt.
        most: Groups to return.
    """
    group = '"' + column.replace('"', '""') + '"'
    placed = " UNION ALL ".join(f"SELECT row_id, '{split}' AS split FROM read_parquet(${split})" for split in SPLITS)
    query = f"""
        SELECT CAST({group} AS VARCHAR) AS "group", string_agg(DISTINCT split, ', ' ORDER BY split) AS splits,
               min(row_id) AS row_id, count(*) OVER () AS groups
        FROM read_parquet($raw) JOIN ({placed}) USING (row_id)
        WHERE {group} IS NOT NULL GROUP BY {group} HAVING count(DISTINCT split) > 1 ORDER BY 1 LIMIT {most}
    """
    files = {split: str(chat / f"{split}.parquet") for split in SPLITS}
    with bounded_connection(beside=chat / "groups", memory_limit="256MB") as connection:
        found = connection.execute(query, {**files, "raw": str(raw_rows)}).fetchall()
    listed = [
        {"row_id": row_id, "split": splits, "also_in": "", "as": f"{column} {group}"}
        for group, splits, row_id, _ in found
    ]
    return (found[0][3] if found else 0), listed
