"""One stage from raw rows to packs, in a process of its own as its asset has: `python -m benchmarks._data_child job`.

Prints the stage's CPU seconds and the peak of the process's memory as JSON, on the last line.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_assets.data import CurationConfig, SourceConfig, SplitConfig, TokenizationConfig
from llm_assets.data.chat_dataset import build_chat_dataset
from llm_assets.data.curation import NearDuplicateConfig
from llm_assets.data.formats import PromptCompletionFormat, required_columns
from llm_assets.data.ingestion import ROWS, ingest
from llm_assets.data.tokenization import tokenize_dataset

LENGTH_TOKENS = 1024


def main(job_path: str) -> None:
    """Run a job's `stage`, which reads what the stages before left in `out`: `raw` is a Parquet file."""
    job = json.loads(Path(job_path).read_text())
    raw, base, out = (Path(job[name]) for name in ("raw", "base", "out"))
    spent = raw_to_packs(raw, base, out, near_duplicates=job["near_duplicates"], only=job["stage"])
    print(json.dumps({**spent, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Peak resident memory of this program; `getrusage` would count that of the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def raw_to_packs(
    raw: Path, base: Path, out: Path, near_duplicates: bool = False, only: str | None = None
) -> dict[str, float]:
    """Write `raw_dataset`, `chat_dataset` and `tokenized_dataset` below `out`; returns CPU seconds of each."""
    format = PromptCompletionFormat()
    curation = CurationConfig(near_duplicates=NearDuplicateConfig() if near_duplicates else None)
    rows, chat, tokens = (out / name for name in ("raw_dataset", "chat_dataset", "tokenized_dataset"))
    for directory in (rows, chat, tokens):
        directory.mkdir(parents=True, exist_ok=True)
    stages: dict[str, Callable[[], Any]] = {
        "ingest": lambda: ingest([SourceConfig(path=str(raw))], required_columns(format), rows, _silent),
        "curate": lambda: build_chat_dataset(rows / ROWS, chat, format, curation, SplitConfig(), log=_silent),
        "tokenize": lambda: tokenize(chat, base, tokens),
    }
    spent = {}
    for name, run in stages.items():
        if only not in (None, name):
            continue
        began = time.process_time()
        run()
        spent[name] = time.process_time() - began
    return spent


def tokenize(chat: Path, base: Path, out: Path, published: Path | None = None, processes: int = 1) -> None:
    """Tokens, packs and statistics of a chat dataset."""
    out.mkdir(exist_ok=True)
    config = TokenizationConfig(max_length_tokens=LENGTH_TOKENS, processes=processes)
    tokenize_dataset(chat, base, out, config, _silent, published)


def _silent(line: str) -> None:
    """Progress nobody reads."""


if __name__ == "__main__":
    main(sys.argv[1])
