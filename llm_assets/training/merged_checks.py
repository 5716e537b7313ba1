"""Whether a merged model can be served as it is stored: finite weights, and the tokens, template and stops of training.

Read from the directory alone, so that the same checks hold for any saved model.
"""

import json
from pathlib import Path

from llm_assets.core import CheckResult
from llm_assets.training import packs, shards
from llm_assets.training.adapter_delta import row_blocks
from llm_assets.training.merge import TOKENIZER_FILES, token_ids


def check_weights_finite(model: Path) -> CheckResult:
    """No stored weight is NaN or infinite; float16 overflows first."""
    broken: list[dict[str, str | int]] = []
    tensors = [entry for entries in shards.model_entries(model).values() for entry in entries]
    for entry in tensors:
        blocks = (shards.read_rows(entry, *block) for block in row_blocks(entry.shape))
        wrong = sum(int((~rows.isfinite()).sum()) for rows in blocks) if entry.is_float else 0
        if wrong:
            broken.append({"tensor": entry.name, "not_finite": wrong})
    return CheckResult(
        passed=not broken,
        summary=f"{len(broken)} of {len(tensors)} tensors hold values that are not finite."
        + (" Set merge.dtype to bfloat16." if broken else ""),
        numbers={"tensors": len(tensors), "broken_tensors": len(broken)},
        rows=broken[:20],
    )


def check_tokenizer_consistency(base: Path, merged: Path, dataset: Path) -> CheckResult:
    """The merged model has the base's vocabulary, the training tokenizer and template, and stops where it must."""
    problems = [
        *_tokenizer_problems(base, merged, dataset / "tokenizer"),
        *_stop_problems(base, merged, dataset),
        *_tying_problems(merged),
    ]
    return CheckResult(
        passed=not problems,
        summary=" ".join(problems) or "Tokenizer, chat template, stop tokens and tied weights are those of training.",
        numbers={"problems": len(problems)},
        rows=[{"problem": problem} for problem in problems],
    )


def _tokenizer_problems(base: Path, merged: Path, training: Path) -> list[str]:
    from transformers import AutoTokenizer

    problems = []
    for name in TOKENIZER_FILES:
        expected = training / name
        found = merged / name
        if expected.exists() and not (found.exists() and found.read_bytes() == expected.read_bytes()):
            problems.append(f"{name} differs from the one the rows were tokenized with.")
    if not (merged / "tokenizer.json").exists():
        return problems
    ours, theirs = AutoTokenizer.from_pretrained(merged).get_vocab(), AutoTokenizer.from_pretrained(base).get_vocab()
    moved = sum(theirs.get(token) != number for token, number in ours.items())
    if moved:
        problems.append(f"{moved} tokens have another id than in the base's vocabulary.")
    return problems


def _stop_problems(base: Path, merged: Path, dataset: Path) -> list[str]:
    rows = packs.read_rows(dataset, "validation", 200)
    trained = {int(row.input_ids[row.labels != packs.NO_LOSS][-1]) for row in rows}
    stops = _stops(merged)
    missing = sorted((trained | _stops(base)) - stops)
    return [
        f"generation_config.json of the merged model does not stop at token {number}; it would run to the length limit."
        for number in missing
    ]


def _stops(model: Path) -> set[int]:
    path = model / "generation_config.json"
    return set(token_ids(json.loads(path.read_text()).get("eos_token_id"))) if path.exists() else set()


def _tying_problems(merged: Path) -> list[str]:
    tied = bool(json.loads((merged / "config.json").read_text()).get("tie_word_embeddings"))
    names = {entry.name for entries in shards.model_entries(merged).values() for entry in entries}
    head = any(name.endswith("lm_head.weight") for name in names)
    if tied and head:
        return ["config.json ties the output head to the embeddings, yet a separate lm_head.weight is stored."]
    if not tied and not head:
        return ["config.json does not tie the output head to the embeddings, and no lm_head.weight is stored."]
    return []
