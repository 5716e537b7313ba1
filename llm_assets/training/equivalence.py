"""Whether a merged model is the model that was trained: same answers, finite weights, same tokens and stops.

Both models run in turn, never together; between them only the compared positions' log-probabilities stay in memory, at
most 512 positions x vocabulary x 4 bytes (0.3 GB for 150,000 tokens).
"""

import gc
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_assets.core import CheckResult
from llm_assets.training import packs, shards
from llm_assets.training.adapted_model import load_adapted, training_device
from llm_assets.training.loss import predictions
from llm_assets.training.merge import TOKENIZER_FILES, MergeConfig, token_ids

if TYPE_CHECKING:
    import torch

COMPARED_POSITIONS = 512


def check_merge_equivalence(base: Path, adapter: Path, merged: Path, dataset: Path, config: MergeConfig) -> CheckResult:
    """The merged model predicts held-out tokens like the base as trained with the adapter on top.

    For policy original_base a difference is expected, so only a higher loss than the adapter's fails, by more than
    `max_mean_kl` nats.
    """
    training = json.loads((adapter / "training.json").read_text())
    rows = packs.read_rows(dataset, "validation", config.equivalence_rows)
    trained_dir = adapter if training["method"] == "full" else None
    compute = training["parameters"]["compute_dtype"]
    reference = _load_merged(trained_dir) if trained_dir else load_adapted(base, adapter, training["method"], compute)
    expected, targets, reference_loss = _log_probabilities(reference, rows)
    del reference
    gc.collect()
    found, _, merged_loss = _log_probabilities(_load_merged(merged), rows)
    kl = float((expected.exp() * (expected - found)).sum(-1).mean())
    agreement = float((expected.argmax(-1) == found.argmax(-1)).float().mean())
    delta = merged_loss - reference_loss
    if config.policy == "original_base":
        passed = math.isfinite(delta) and delta <= config.max_mean_kl
    else:
        passed = kl <= config.max_mean_kl and agreement >= config.min_top1_agreement
    return CheckResult(
        passed=passed,
        summary=(
            f"Over {len(targets)} held-out tokens merged and adapter differ by a mean KL of {kl:.2e} nats (limit "
            f"{config.max_mean_kl}), agree on {agreement:.1%} of first choices (limit {config.min_top1_agreement:.1%}) "
            f"and by {delta:+.4f} in loss; policy {config.policy}."
        ),
        numbers={
            "mean_kl": kl,
            "top1_agreement": agreement,
            "loss_delta": delta,
            "adapter_loss": reference_loss,
            "merged_loss": merged_loss,
        },
    )


def _load_merged(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model, dtype="auto", device_map={"": training_device()}, local_files_only=True
    ).eval()


def _log_probabilities(model: Any, rows: list[packs.Row]) -> tuple["torch.Tensor", "torch.Tensor", float]:
    """Log-probabilities of the first positions `(positions, vocabulary)`, their targets, and the loss over all rows."""
    import torch

    kept, kept_targets, total, tokens = [], [], 0.0, 0
    for logits, targets in predictions(model, rows):
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        room = max(0, COMPARED_POSITIONS - tokens)
        tokens += len(targets)
        kept.append(logits[:room].log_softmax(-1).cpu())
        kept_targets.append(targets[:room].cpu())
    return torch.cat(kept), torch.cat(kept_targets), total / tokens


def check_weights_finite(model: Path) -> CheckResult:
    """No stored weight is NaN or infinite; float16 overflows first."""
    from safetensors import safe_open

    broken: list[dict[str, str | int]] = []
    tensors = 0
    for name in shards.shard_names(model):
        with safe_open(model / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                tensors += 1
                wrong = int((~file.get_tensor(key).isfinite()).sum())
                if wrong:
                    broken.append({"tensor": key, "not_finite": wrong})
    return CheckResult(
        passed=not broken,
        summary=f"{len(broken)} of {tensors} tensors hold values that are not finite."
        + (" Set merge.dtype to bfloat16." if broken else ""),
        numbers={"tensors": tensors, "broken_tensors": len(broken)},
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
    names = {entry.name for name in shards.shard_names(merged) for entry in shards.entries(merged / name)}
    head = any(name.endswith("lm_head.weight") for name in names)
    if tied and head:
        return ["config.json ties the output head to the embeddings, yet a separate lm_head.weight is stored."]
    if not tied and not head:
        return ["config.json does not tie the output head to the embeddings, and no lm_head.weight is stored."]
    return []
