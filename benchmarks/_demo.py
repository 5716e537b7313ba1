"""What the benchmarks work on: the demo's rows, and models of the demo's size.

Weights are random where only speed counts. The trained base, which ends its answers, takes two minutes to make and is
kept under the home directory, by the hash of the code that makes it.
"""

import hashlib
from pathlib import Path

import pyarrow.parquet as pq

import llm_assets.demo
from llm_assets.data import CurationConfig, SourceConfig, SplitConfig
from llm_assets.data.chat_dataset import build_chat_dataset
from llm_assets.data.formats import TextToSQLFormat, required_columns
from llm_assets.data.ingestion import ROWS, ingest
from llm_assets.demo.base_model import build, dialogue
from llm_assets.demo.base_tokenizer import END, PAD, VOCABULARY_SIZE, train_tokenizer
from llm_assets.demo.rows import home, training_rows


def write_chat_dataset(scratch: Path, rows: int, format: TextToSQLFormat | None = None) -> Path:
    """The chat dataset of the demo's first `rows` training rows."""
    format = format or TextToSQLFormat()
    raw, chat = scratch / "raw_dataset", scratch / "chat_dataset"
    for directory in (raw, chat):
        directory.mkdir()
    pq.write_table(training_rows(0, rows), scratch / "rows.parquet")
    ingest([SourceConfig(path=str(scratch / "rows.parquet"))], required_columns(format), raw, _silent)
    build_chat_dataset(raw / ROWS, chat, format, CurationConfig(), SplitConfig(), log=_silent)
    return chat


def write_random_base(scratch: Path, hidden: int = 128) -> Path:
    """A model directory with the demo's tokenizer, weights as they were drawn, and at 128 wide the demo's sizes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    base = scratch / "random_base"
    tokenizer = train_tokenizer(text for index in range(4000) for text in dialogue(index, 0))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=4,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.backend_tokenizer.token_to_id(END),
        pad_token_id=tokenizer.backend_tokenizer.token_to_id(PAD),
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(base)  # type: ignore[arg-type]
    tokenizer.save_pretrained(base)
    return base


def trained_base() -> Path:
    """The demo's own base model, made on first use."""
    code = hashlib.sha256()
    for path in sorted(Path(llm_assets.demo.__path__[0]).glob("*.py")):
        code.update(path.read_bytes())
    base = home() / "bench" / f"demo_base_{code.hexdigest()[:12]}"
    if not base.exists():
        partial = base.with_suffix(".partial")
        build(partial)
        partial.rename(base)
    return base


def _silent(line: str) -> None:
    """Progress nobody reads."""
