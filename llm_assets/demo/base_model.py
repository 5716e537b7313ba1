"""The demo's base model: a one-million-parameter Llama that reads questions but answers in a pipeline language.

It is trained here, in one to two minutes of one CPU thread, so the demo needs no download. Fine-tuning then has
something real to lift: the base scores 0 % on SQL by construction, yet already parses questions and can copy SQL.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from llm_assets.demo.base_tokenizer import END, PAD, VOCABULARY_SIZE, chat_prompt, train_tokenizer
from llm_assets.demo.queries import keywords_lowered
from llm_assets.demo.text_to_sql import example

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

EXAMPLES = 16_000
STEPS = 480
TOKENS_PER_STEP = 2048
LENGTH_BANDS = 4
WARMUP_STEPS = 20
FORMATTER_SHARE = 0.4  # without SQL in pre-training the frozen, tied output layer cannot emit SQL keywords later
MUON_LEARNING_RATE = 1e-2
ADAMW_LEARNING_RATE = 4e-3
ROWS_OF_SEED = "base"  # keeps the base's rows apart from those the demo fine-tunes and evaluates on
PROGRESS_SECONDS = 10

Encoded = tuple[list[int], int]


def build(out: Path, seed: int = 0, log: Callable[[str], None] = print) -> None:
    """Train tokenizer and model and write them as a Hugging Face directory.

    The same seed gives the same bytes on the same machine. Torch's thread count and determinism are changed for the
    duration and restored.

    Args:
        out: Directory to write; made when missing.
        seed: Decides the rows, the initial weights and the order of the batches.
        log: Receives a line about every ten seconds.
    """
    log(f"Writing {EXAMPLES} pre-training examples")
    dialogues = [dialogue(index, seed) for index in range(EXAMPLES)]
    tokenizer = train_tokenizer(text for pair in dialogues[:4000] for text in pair)
    log(f"Tokenizer has {len(tokenizer)} entries, padded to {VOCABULARY_SIZE}")
    with _one_deterministic_thread():
        model = _initial_model(tokenizer, seed)
        _train(model, _encode(tokenizer, dialogues), seed, log)
    _save(model, tokenizer, out)
    log(f"Wrote the demo base, {model.num_parameters():,} parameters")


def dialogue(index: int, seed: int) -> tuple[str, str]:
    """User text and answer of one example: a question to its pipeline, or careless SQL to canonical SQL."""
    rng = Random(f"{ROWS_OF_SEED}/{seed}/{index}")
    made = example(index, f"{ROWS_OF_SEED}/{seed}")
    if rng.random() < FORMATTER_SHARE:
        return keywords_lowered(made.sql), made.sql
    return f"{made.schema}\n\n{made.question}", made.pipeline


def _encode(tokenizer: "PreTrainedTokenizerFast", dialogues: list[tuple[str, str]]) -> list[Encoded]:
    """Token ids of prompt and answer together, and how many belong to the prompt."""
    backend = tokenizer.backend_tokenizer
    prompts = backend.encode_batch_fast([chat_prompt(user) for user, _ in dialogues])
    answers = backend.encode_batch_fast([answer + END for _, answer in dialogues])
    return [(prompt.ids + answer.ids, len(prompt.ids)) for prompt, answer in zip(prompts, answers, strict=True)]


def _initial_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "LlamaForCausalLM":
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    pad, end = tokenizer.backend_tokenizer.token_to_id(PAD), tokenizer.backend_tokenizer.token_to_id(END)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            use_cache=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=pad,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=[end], pad_token_id=pad, do_sample=False)
    return model


def _train(model: "LlamaForCausalLM", encoded: list[Encoded], seed: int, log: Callable[[str], None]) -> None:
    """Minimise the loss on answers: Muon for matrices, AdamW for the rest; AdamW alone learns half as much."""
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=MUON_LEARNING_RATE, weight_decay=0.01),
        torch.optim.AdamW(others, lr=ADAMW_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, _warm_up_then_decay) for each in optimizers]
    model.train()
    model.set_attn_implementation("eager")  # on short rows 1.4 times the speed of the CPU's fused kernel
    spoken = time.monotonic()
    for step, micro_batches in zip(range(1, STEPS + 1), _steps(encoded, seed), strict=False):
        answer_tokens = sum(int((labels >= 0).sum()) for _, labels in micro_batches)
        loss = 0.0
        for input_ids, labels in micro_batches:
            share = _summed_answer_loss(model, input_ids, labels) / answer_tokens
            share.backward()
            loss += share.item()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if time.monotonic() - spoken > PROGRESS_SECONDS or step == STEPS:
            log(f"Pre-training the demo base: step {step}/{STEPS}, loss {loss:.3f}")
            spoken = time.monotonic()


def _warm_up_then_decay(step: int) -> float:
    return min((step + 1) / WARMUP_STEPS, max(0.0, (STEPS - step) / (STEPS - WARMUP_STEPS)))


def _summed_answer_loss(model: "LlamaForCausalLM", input_ids: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Cross entropy summed over answer tokens; the output layer runs on those positions alone."""
    import torch

    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        answered = labels[:, 1:] >= 0
        logits = model.lm_head(hidden[answered])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][answered], reduction="sum")


def _steps(encoded: list[Encoded], seed: int) -> "Iterator[list[tuple[torch.Tensor, torch.Tensor]]]":
    """Endless steps of one micro-batch per length band, so every step sees every kind of row at little padding."""
    by_length = sorted(encoded, key=lambda row: len(row[0]))
    size = -(-len(by_length) // LENGTH_BANDS)
    bands = [by_length[start : start + size] for start in range(0, len(by_length), size)]
    rngs = [Random(f"batches/{seed}/{band}") for band in range(len(bands))]
    rows_per_step = TOKENS_PER_STEP * len(encoded) // sum(len(ids) for ids, _ in encoded)
    while True:
        yield [_padded(rng.sample(band, rows_per_step // len(bands))) for rng, band in zip(rngs, bands, strict=True)]


def _padded(rows: list[Encoded]) -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), -100)
    for row, (ids, prompt_tokens) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, prompt_tokens : len(ids)] = torch.tensor(ids[prompt_tokens:])
    return input_ids, labels


def _save(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", out: Path) -> None:
    import torch

    out.mkdir(parents=True, exist_ok=True)
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(out)  # type: ignore[arg-type]
    tokenizer.save_pretrained(out)


@contextmanager
def _one_deterministic_thread() -> Iterator[None]:
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
