"""What must hold of a tokenized dataset before any accelerator time is spent on it; every check re-reads the files.

The causes behind them are the common ways fine-tuning fails silently: end tokens without loss, user text with loss,
a second bos, and padding that equals the end token. `template_parity` has a file of its own.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from llm_assets.core import CheckResult
from llm_assets.data.chat_template import special_tokens
from llm_assets.data.rendering import Renderer
from llm_assets.data.splits import SPLITS
from llm_assets.data.supervision import learned_turns
from llm_assets.data.token_config import TokenCheckConfig
from llm_assets.data.token_files import TokenFile
from llm_assets.data.token_samples import Sample, sampled_rows
from llm_assets.data.token_statistics import stability_index

SAMPLE_ROWS, OPENING_TOKENS = 20, 32


def token_stats(
    statistics: Mapping[str, Any], bounds: TokenCheckConfig, previous: Mapping[str, Any] | None = None
) -> CheckResult:
    """Mean row length is within its band, and lengths have not drifted since the previous dataset."""
    mean, lowest, highest = (
        statistics["mean_length_tokens"],
        bounds.min_mean_length_tokens,
        bounds.max_mean_length_tokens,
    )
    before = previous["mean_length_tokens"] if previous else mean
    drift = abs(mean - before) / before
    psi = _length_drift(statistics, previous)
    inside = lowest <= mean and (highest is None or mean <= highest)
    allowed = f"at least {lowest:g}" + (f", at most {highest:g}" if highest is not None else "")
    since = (
        f"The previous dataset had {before:.1f}: a change of {drift:.1%} (allowed {bounds.max_drift:.0%}); stability "
        f"index of prompts {psi['prompt']:.2f}, of answers {psi['completion']:.2f} (allowed {bounds.max_length_psi:g})."
        if previous
        else "There is no previous dataset to compare with."
    )
    return CheckResult(
        passed=inside and drift <= bounds.max_drift and max(psi.values()) <= bounds.max_length_psi,
        summary=f"Training rows have {mean:.1f} tokens on average (allowed: {allowed}). {since}",
        numbers={
            "mean_length_tokens": float(mean),
            "drift": float(drift),
            **{f"{name}_psi": float(value) for name, value in psi.items()},
            "tokens": int(statistics["tokens"]),
        },
    )


def _length_drift(statistics: Mapping[str, Any], previous: Mapping[str, Any] | None) -> dict[str, float]:
    before = (previous or {}).get("splits", {}).get("train", {}).get("bins")
    now = statistics["splits"]["train"]["bins"]
    return {name: stability_index(now[name], before[name]) if before else 0.0 for name in ("prompt", "completion")}


def eos_supervised(tokenized: Path, end_of_turn_ids: Sequence[int]) -> CheckResult:
    """Every supervised stretch ends with an end-of-turn token that carries loss, so the model learns to stop."""
    turns, bad, samples = 0, 0, []
    for part in _parts(tokenized):
        ends = part.ids[part.last - 1]
        wrong = np.flatnonzero(~np.isin(ends, end_of_turn_ids))
        turns, bad = turns + len(ends), bad + len(wrong)
        for place in wrong[: SAMPLE_ROWS - len(samples)]:
            samples.append({**part.named(part.row_of[place]), "ends_with_id": int(ends[place])})
    return CheckResult(
        passed=turns > 0 and bad == 0,
        summary=f"{turns - bad} of {turns} supervised turns end with an end-of-turn token {list(end_of_turn_ids)}.",
        numbers={
            "turns": turns,
            "turns_without_end": bad,
            "eos_supervised_share": float((turns - bad) / max(1, turns)),
        },
        rows=samples,
    )


def label_mask(tokenized: Path, chat: Path, statistics: Mapping[str, Any], bounds: TokenCheckConfig) -> CheckResult:
    """Labels sit on assistant text alone: in every row some, on sampled rows exactly the answers."""
    rows, tokens, supervised, samples = 0, 0, 0, []
    for part in _parts(tokenized):
        learned = np.bincount(part.row_of, part.last - part.first, len(part.lengths))
        for row in np.flatnonzero((learned <= 0) | (learned >= part.lengths))[:SAMPLE_ROWS]:
            samples.append(
                {**part.named(row), "problem": f"{int(learned[row])} of {part.lengths[row]} tokens carry loss"}
            )
        rows, tokens, supervised = rows + len(learned), tokens + len(part.ids), supervised + int(learned.sum())
    if not samples:
        samples = _mislabelled(tokenized, chat, statistics["supervise"], bounds.parity_rows)
    share = supervised / max(1, tokens)
    refused = sum(statistics["dropped"].values()) - statistics["dropped_too_long"]
    refused_share = refused / max(1, refused + rows)
    within = bounds.min_supervised_share <= share <= bounds.max_supervised_share
    return CheckResult(
        passed=not samples and within and refused_share <= bounds.max_refused_share,
        summary=f"{share:.1%} of tokens carry loss (allowed {bounds.min_supervised_share:.1%} to "
        f"{bounds.max_supervised_share:.1%}); {len(samples)} rows looked at are labelled wrongly; {refused} rows "
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
    named = special_tokens(json.loads((tokenized / "tokenizer" / "tokenizer_config.json").read_text()))
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
        summary="; ".join(problems) or _described(named, [special.get(i, str(i)) for i in end_of_turn_ids]),
        numbers={"rows_with_double_bos": double_bos, "rows_with_pad_inside": pads_inside},
    )


def _described(named: Mapping[str, str], ending: Sequence[str]) -> str:
    bos = f"Rows start with {named['bos_token']} at most once" if "bos_token" in named else "There is no bos token"
    pad = f"padding is {named['pad_token']}" if "pad_token" in named else "there is no pad token"
    return f"{bos}; turns end with {' or '.join(ending)}; {pad}, which stands in no row."


def truncation_share(statistics: Mapping[str, Any], bounds: TokenCheckConfig) -> CheckResult:
    """Few rows exceed the length limit, whether they were dropped whole or cut to fit."""
    dropped, cut = statistics["dropped_too_long"], statistics["cut_rows"]
    total = sum(statistics["rows"].values()) + sum(statistics["dropped"].values())
    share = (dropped + cut) / max(1, total)
    return CheckResult(
        passed=share <= bounds.max_dropped_share,
        summary=f"{dropped + cut} of {total} rows ({share:.1%}, allowed {bounds.max_dropped_share:.0%}) exceed "
        f"{statistics['max_length_tokens']} tokens: {dropped} were dropped, {cut} lost their oldest turns. Raise "
        "tokenization.max_length_tokens for fewer.",
        numbers={"dropped_too_long": int(dropped), "cut_rows": int(cut), "truncation_share": float(share)},
    )


def supervised_sample(tokenized: Path, rows: int = 3) -> list[tuple[str, list[tuple[str, bool]]]]:
    """First training rows as `(row id, [(text, carries loss), …])`, for a person to look at."""
    renderer, file = Renderer.from_directory(tokenized / "tokenizer"), TokenFile(tokenized, "train")
    shown = []
    for row in range(min(rows, len(file))):
        ids, borders = file.ids(row).tolist(), [0, *file.spans(row).reshape(-1).tolist(), len(file.ids(row))]
        pieces = [(ids[a:b], n % 2 == 1) for n, (a, b) in enumerate(pairwise(borders)) if b > a]
        shown.append((file.batches[0]["row_id"][row].as_py(), [(renderer.decode(p), on) for p, on in pieces]))
    return shown


def _mislabelled(tokenized: Path, chat: Path, supervise: Any, rows: int) -> list[dict[str, Any]]:
    """Sampled rows whose supervised text is not, turn by turn, what the assistant says in the chat dataset."""
    renderer = Renderer.from_directory(tokenized / "tokenizer")
    wrong = []
    for sample in sampled_rows(tokenized, chat, rows):
        answers = [sample.messages[n] for n in learned_turns(sample.messages, supervise)]
        said = [renderer.decode(sample.input_ids[a : b - 1]) for a, b in sample.spans]
        openings = [_opening(sample, a, renderer) for a, _ in sample.spans]
        if len(said) != len(answers) or not all(map(_says, said, answers, openings, [renderer] * len(said))):
            wrong.append({**_named(sample), "problem": f"supervised text is {said!r}"[:300]})
    return wrong


def _named(sample: Sample) -> dict[str, Any]:
    return {"split": sample.split, "row_id": sample.row_id}


def _opening(sample: Sample, start: int, renderer: Renderer) -> str:
    """The end of the generation prompt, if that is what stands before a turn: it may open the answer's thought."""
    return (
        renderer.decode(sample.input_ids[max(0, start - OPENING_TOKENS) : start])
        if start == sample.prompt_tokens
        else ""
    )


def _says(text: str, answer: Mapping[str, Any], opening: str, renderer: Renderer) -> bool:
    """Whether a decoded turn is an answer, and nothing but what the template writes in every turn."""
    content = (answer["content"] or "").strip()
    if answer.get("tool_calls"):
        calls = answer["tool_calls"]
        return all(
            call["function"]["name"] in text for call in (json.loads(calls) if isinstance(calls, str) else calls)
        )
    again = renderer.decode(renderer.tokenizer.encode(content, add_special_tokens=False).ids)  # some lose characters
    before, after = renderer.answer_frame
    whole = {framed for said in (content, again.strip()) for framed in (said, (before + said + after).strip())}
    opened = bool(text.strip()) and content.endswith(text.strip()) and (opening + text).strip().endswith(content)
    return text.strip() in whole or opened


@dataclass(frozen=True)
class _Part:
    """One stored batch: flat ids, and for every span its row and its first and after-last place among them."""

    split: str
    batch: Any
    ids: np.ndarray
    lengths: np.ndarray
    row_of: np.ndarray
    first: np.ndarray
    last: np.ndarray
    starts: np.ndarray

    def named(self, row: Any) -> dict[str, Any]:
        return {"split": self.split, "row_id": self.batch["row_id"][int(row)].as_py()}


def _parts(tokenized: Path) -> Iterator[_Part]:
    for split in SPLITS:
        for batch in TokenFile(tokenized, split).batches:
            ids, spans = batch["input_ids"], batch["spans"]
            starts = ids.offsets.to_numpy()[:-1].astype(np.int64)
            row_of = np.repeat(np.arange(batch.num_rows), np.diff(spans.offsets.to_numpy()) // 2)
            flat = spans.values.to_numpy().astype(np.int64)
            yield _Part(
                split=split,
                batch=batch,
                ids=ids.values.to_numpy(),
                lengths=ids.value_lengths().to_numpy(),
                row_of=row_of,
                first=starts[row_of] + flat[::2],
                last=starts[row_of] + flat[1::2],
                starts=starts,
            )


def _count_misplaced(tokenized: Path, bos: int | None, pad: int | None) -> tuple[int, int]:
    double_bos, pads_inside = 0, 0
    for part in _parts(tokenized):
        starts = part.starts[part.lengths > 1]
        if bos is not None and len(starts):
            double_bos += int(((part.ids[starts] == bos) & (part.ids[starts + 1] == bos)).sum())
        if pad is not None:
            pads_inside += len(np.unique(np.searchsorted(part.starts, np.flatnonzero(part.ids == pad), "right")))
    return double_bos, pads_inside


def _unused(token: str, tokenized: Path) -> bool:
    """Whether a special token has no part in the template, and so can pad."""
    return token not in (tokenized / "tokenizer" / "chat_template.jinja").read_text()
