"""What must hold of a tokenized dataset before any accelerator time is spent on it; every check re-reads the files.

The causes behind them are the common ways fine-tuning fails silently: end tokens without loss, user text with loss,
a second bos, padding that equals the end token, and a template that differs between training and serving.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from llm_assets.core import CheckResult, Config
from llm_assets.data.chat_template import DATE_STRING, pinned_strftime, special_tokens
from llm_assets.data.messages import for_template, tools_for_template
from llm_assets.data.rendering import IGNORED, Renderer
from llm_assets.data.splits import SPLITS

SAMPLE_ROWS = 20


class TokenCheckConfig(Config):
    """Bounds of the token checks."""

    min_mean_length_tokens: float = Field(default=1, ge=0, description="token_stats: lowest mean row length.")
    max_mean_length_tokens: float | None = Field(
        default=None, gt=0, description="token_stats: highest mean row length."
    )
    max_drift: float = Field(
        default=0.5, gt=0, description="token_stats: largest relative change of the mean length since the last dataset."
    )
    min_supervised_share: float = Field(
        default=0.005, ge=0, le=1, description="label_mask: lowest share of tokens with loss."
    )
    max_supervised_share: float = Field(
        default=0.995, ge=0, le=1, description="label_mask: highest share of tokens with loss."
    )
    max_dropped_share: float = Field(
        default=0.1, ge=0, le=1, description="truncation_share: most rows dropped as too long."
    )
    max_refused_share: float = Field(
        default=0.05, ge=0, le=1, description="label_mask: most rows without exact labels."
    )
    parity_rows: int = Field(default=50, ge=1, description="template_parity, label_mask: rows compared per split.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_mean_length_tokens is not None and self.max_mean_length_tokens < self.min_mean_length_tokens:
            raise ValueError(
                f"max_mean_length_tokens {self.max_mean_length_tokens} is below min_mean_length_tokens "
                f"{self.min_mean_length_tokens}; swap them"
            )
        if self.max_supervised_share < self.min_supervised_share:
            raise ValueError(
                f"max_supervised_share {self.max_supervised_share} is below min_supervised_share "
                f"{self.min_supervised_share}; swap them"
            )
        return self


def token_stats(
    statistics: Mapping[str, Any], bounds: TokenCheckConfig, previous: Mapping[str, Any] | None = None
) -> CheckResult:
    """Mean row length is within its band, and has not drifted since the previous dataset."""
    mean = statistics["mean_length_tokens"]
    highest = bounds.max_mean_length_tokens or float("inf")
    before = previous["mean_length_tokens"] if previous else mean
    drift = abs(mean - before) / before
    inside = bounds.min_mean_length_tokens <= mean <= highest
    return CheckResult(
        passed=inside and drift <= bounds.max_drift,
        summary=f"Rows have {mean:.1f} tokens on average (allowed {bounds.min_mean_length_tokens:g} to {highest:g}), "
        f"{drift:.1%} off the previous dataset's {before:.1f} (allowed {bounds.max_drift:.0%}).",
        numbers={"mean_length_tokens": float(mean), "drift": float(drift), "tokens": int(statistics["tokens"])},
    )


def eos_supervised(tokenized: Path, end_of_turn_ids: Sequence[int]) -> CheckResult:
    """Every supervised stretch ends with an end-of-turn token that carries loss, so the model learns to stop."""
    turns, bad, samples = 0, 0, []
    for split, batch in _batches(tokenized):
        ids, labels, offsets = _flat(batch)
        on = labels != IGNORED
        following = np.append(on[1:], False)
        following[offsets[1:][offsets[1:] > 0] - 1] = False
        ends = np.flatnonzero(on & ~following)
        wrong = ends[~np.isin(labels[ends], end_of_turn_ids)]
        turns, bad = turns + len(ends), bad + len(wrong)
        for place in wrong[: SAMPLE_ROWS - len(samples)]:
            row = int(np.searchsorted(offsets, place, side="right")) - 1
            samples.append({"split": split, "row_id": batch["row_id"][row].as_py(), "ends_with_id": int(ids[place])})
    return CheckResult(
        passed=turns > 0 and bad == 0,
        summary=f"{turns - bad} of {turns} supervised turns end with an end-of-turn token {list(end_of_turn_ids)}.",
        numbers={"turns": turns, "turns_without_end": bad},
        rows=samples,
    )


def label_mask(tokenized: Path, chat: Path, statistics: Mapping[str, Any], bounds: TokenCheckConfig) -> CheckResult:
    """Labels sit on assistant text alone: in every row some, on sampled rows exactly the answers."""
    rows, tokens, supervised, samples = 0, 0, 0, []
    for split, batch in _batches(tokenized):
        ids, labels, offsets = _flat(batch)
        on = labels != IGNORED
        per_row = np.add.reduceat(on, offsets[:-1]) if len(on) else np.zeros(0, int)
        rows, tokens, supervised = rows + batch.num_rows, tokens + len(ids), supervised + int(on.sum())
        changed = np.bincount(np.searchsorted(offsets, np.flatnonzero(on & (labels != ids)), "right") - 1)
        for row in [*np.flatnonzero(per_row == 0), *np.flatnonzero(changed)]:
            samples.append(
                {"split": split, "row_id": batch["row_id"][row].as_py(), "problem": "no label, or another id"}
            )
    samples += _mislabelled(tokenized, chat, statistics["supervise"], bounds.parity_rows)
    share = supervised / tokens if tokens else 0.0
    refused = sum(statistics["dropped"].values()) - statistics["dropped_too_long"]
    refused_share = refused / max(1, rows + sum(statistics["dropped"].values()))
    within = bounds.min_supervised_share <= share <= bounds.max_supervised_share
    return CheckResult(
        passed=not samples and within and refused_share <= bounds.max_refused_share,
        summary=f"{share:.1%} of the tokens carry loss (allowed {bounds.min_supervised_share:.1%} to "
        f"{bounds.max_supervised_share:.1%}); {len(samples)} rows are labelled wrongly; {refused} rows "
        f"({refused_share:.1%}, allowed {bounds.max_refused_share:.0%}) have no exact labels and were left out.",
        numbers={
            "supervised_share": float(share),
            "rows_labelled_wrongly": len(samples),
            "rows_refused": int(refused),
            "refused_share": float(refused_share),
        },
        rows=samples[:SAMPLE_ROWS],
    )


def special_tokens_sound(tokenized: Path, end_of_turn_ids: Sequence[int]) -> CheckResult:
    """One bos at most, and a pad token that ends no turn and stands in no row."""
    settings = json.loads((tokenized / "tokenizer" / "tokenizer_config.json").read_text())
    named = special_tokens(settings)
    tokenizer = Renderer.from_directory(tokenized / "tokenizer").tokenizer
    id_of = {name: tokenizer.token_to_id(token) for name, token in named.items()}
    bos, pad = id_of.get("bos_token"), id_of.get("pad_token")
    ending = {*end_of_turn_ids, id_of.get("eos_token")}
    special = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    other_pads = [token for i, token in special.items() if i not in ending and i != bos and _unused(token, tokenized)]
    problems = []
    if pad is not None and pad in ending and other_pads:
        problems.append(
            f"pad_token {named['pad_token']} also ends turns; set tokenization.pad_token to {other_pads[0]}"
        )
    double_bos, pads_inside = _count_misplaced(tokenized, bos, pad if pad not in ending else None)
    if double_bos:
        problems.append(
            f"{double_bos} rows start with two bos tokens {named['bos_token']}; the template adds one too many"
        )
    if pads_inside:
        problems.append(
            f"{pads_inside} rows hold the pad token {named['pad_token']}; choose another tokenization.pad_token"
        )
    return CheckResult(
        passed=not problems,
        summary="; ".join(problems) or f"bos, eos and pad are sound: {named}.",
        numbers={"rows_with_double_bos": double_bos, "rows_with_pad_inside": pads_inside},
    )


def truncation_share(statistics: Mapping[str, Any], bounds: TokenCheckConfig) -> CheckResult:
    """Few rows exceed the length limit; those that do are dropped whole."""
    dropped = statistics["dropped_too_long"]
    total = sum(statistics["rows"].values()) + sum(statistics["dropped"].values())
    share = dropped / max(1, total)
    return CheckResult(
        passed=share <= bounds.max_dropped_share,
        summary=f"{dropped} of {total} rows ({share:.1%}) exceed {statistics['max_length_tokens']} tokens and were "
        f"dropped (allowed {bounds.max_dropped_share:.0%}). Raise tokenization.max_length_tokens for fewer.",
        numbers={"dropped_too_long": int(dropped), "truncation_share": float(share)},
    )


def template_parity(tokenized: Path, chat: Path, rows: int) -> CheckResult:
    """Token ids equal those of Hugging Face's `apply_chat_template`, for whole rows and for their prompts."""
    from transformers import AutoTokenizer

    reference: Any = AutoTokenizer.from_pretrained(str(tokenized / "tokenizer"))
    compared, different = 0, []
    pinned = {"date_string": DATE_STRING, "strftime_now": pinned_strftime, "tokenize": True, "return_dict": False}
    for split, row_id, tokens, conversation in _sampled(tokenized, chat, rows):
        messages, tools = for_template(conversation["messages"]), tools_for_template(conversation["tools"])
        whole = reference.apply_chat_template(messages, tools=tools, **pinned)
        prompt = reference.apply_chat_template(messages[:-1], tools=tools, add_generation_prompt=True, **pinned)
        compared += 1
        for part, ours, theirs in (
            ("row", tokens["input_ids"], whole),
            ("prompt", tokens["input_ids"][: tokens["prompt_tokens"]], prompt),
        ):
            if list(theirs) != ours:
                place = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), len(ours))
                different.append({"split": split, "row_id": row_id, "part": part, "first_difference_at": place})
    return CheckResult(
        passed=compared > 0 and not different,
        summary=f"{compared - len({d['row_id'] for d in different})} of {compared} sampled rows have the token ids of "
        "apply_chat_template.",
        numbers={"rows_compared": compared, "rows_different": len({d["row_id"] for d in different})},
        rows=different[:SAMPLE_ROWS],
    )


def supervised_sample(tokenized: Path, rows: int = 3) -> list[tuple[str, list[tuple[str, bool]]]]:
    """First training rows as `(row id, [(text, carries loss), …])`, for a person to look at."""
    renderer = Renderer.from_directory(tokenized / "tokenizer")
    head = next(pq.ParquetFile(tokenized / "train.parquet").iter_batches(rows), None)
    shown = []
    for row in head.to_pylist() if head else []:
        on = np.asarray(row["labels"]) != IGNORED
        pieces = np.split(np.asarray(row["input_ids"]), np.flatnonzero(np.diff(on)) + 1)
        first = bool(on[0])
        shown.append(
            (row["row_id"], [(renderer.decode(p.tolist()), first == (n % 2 == 0)) for n, p in enumerate(pieces)])
        )
    return shown


def _mislabelled(tokenized: Path, chat: Path, supervise: str, rows: int) -> list[dict[str, Any]]:
    """Sampled rows whose supervised text is not, turn by turn, what the assistant says in the chat dataset."""
    renderer = Renderer.from_directory(tokenized / "tokenizer")
    wrong = []
    for split, row_id, tokens, conversation in _sampled(tokenized, chat, rows):
        answers = [turn for turn in conversation["messages"] if turn["role"] == "assistant"]
        answers = answers[-1:] if supervise == "last_turn" else answers
        labels = np.asarray(tokens["labels"])
        runs = np.split(labels, np.flatnonzero(np.diff(labels != IGNORED)) + 1)
        said = [renderer.decode(run[:-1].tolist()) for run in runs if run[0] != IGNORED]
        if len(said) != len(answers) or not all(map(_says, said, answers, [renderer] * len(said))):
            wrong.append({"split": split, "row_id": row_id, "problem": f"supervised text is {said!r}"[:300]})
    return wrong


def _says(text: str, answer: Mapping[str, Any], renderer: Renderer) -> bool:
    content = (answer["content"] or "").strip()
    if answer.get("tool_calls"):
        return all(call["function"]["name"] in text for call in json.loads(answer["tool_calls"]))
    again = renderer.decode(renderer.tokenizer.encode(content, add_special_tokens=False).ids)  # some lose characters
    return text.strip() in (content, again.strip())


def _sampled(tokenized: Path, chat: Path, rows: int) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """`(split, row id, tokenized row, chat row)` of up to `rows` rows per split, spread evenly over the split."""
    for split in SPLITS:
        file = pq.ParquetFile(tokenized / f"{split}.parquet")
        wanted = set(np.linspace(0, max(0, file.metadata.num_rows - 1), rows, dtype=int).tolist())
        picked, start = {}, 0
        for batch in file.iter_batches(2048, columns=["row_id", "input_ids", "labels", "prompt_tokens"]):
            places = [n - start for n in sorted(wanted) if start <= n < start + batch.num_rows]
            picked |= {row["row_id"]: row for row in batch.take(pa.array(places, pa.int64())).to_pylist()}
            start += batch.num_rows
        if not picked:
            continue
        table = pq.read_table(
            chat / f"{split}.parquet", columns=["row_id", "messages", "tools"], filters=[("row_id", "in", list(picked))]
        )
        for row in table.to_pylist():
            yield split, row["row_id"], picked[row["row_id"]], row


def _batches(tokenized: Path) -> Iterator[tuple[str, pa.RecordBatch]]:
    for split in SPLITS:
        file = pq.ParquetFile(tokenized / f"{split}.parquet")
        for batch in file.iter_batches(4096, columns=["row_id", "input_ids", "labels"]):
            yield split, batch


def _flat(batch: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All ids and labels of a batch in a row, int32, and where each row starts; the last offset is the end."""
    ids, labels = batch["input_ids"], batch["labels"]
    offsets = np.concatenate([[0], np.cumsum(ids.value_lengths().to_numpy())]).astype(np.int64)
    return ids.flatten().to_numpy(), labels.flatten().to_numpy(), offsets


def _count_misplaced(tokenized: Path, bos: int | None, pad: int | None) -> tuple[int, int]:
    double_bos, pads_inside = 0, 0
    for _, batch in _batches(tokenized):
        ids, _, offsets = _flat(batch)
        starts = offsets[:-1][np.diff(offsets) > 1]
        if bos is not None and len(starts):
            double_bos += int(((ids[starts] == bos) & (ids[starts + 1] == bos)).sum())
        if pad is not None:
            pads_inside += len(np.unique(np.searchsorted(offsets, np.flatnonzero(ids == pad), "right")))
    return double_bos, pads_inside


def _unused(token: str, tokenized: Path) -> bool:
    """Whether a special token has no part in the template, and so can pad."""
    return token not in (tokenized / "tokenizer" / "chat_template.jinja").read_text()
