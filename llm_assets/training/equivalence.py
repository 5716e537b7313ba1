"""Whether a merged model is the model that was trained: it predicts and answers like the base with the adapter on top.

What is scored is what was saved and reloaded, never what a merge left in memory. Both models run in turn, never
together; between them only the compared positions' log-probabilities stay, at most 512 positions x vocabulary x 4 bytes
(0.3 GB for 150,000 tokens).
"""

import gc
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_assets.core import CheckResult
from llm_assets.data.token_files import TokenFile
from llm_assets.training import packs
from llm_assets.training.adapted_model import load_adapted, training_device
from llm_assets.training.loss import predictions
from llm_assets.training.merge import token_ids
from llm_assets.training.merge_config import MergeConfig

if TYPE_CHECKING:
    import torch

COMPARED_POSITIONS = 512
SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class Answers:
    """What one model makes of the held-out rows.

    Attributes:
        log_probabilities: Of the first positions, shape `(positions, vocabulary)`.
        loss: Over all rows, nats per supervised token.
        texts: Token ids of each greedy answer.
    """

    log_probabilities: "torch.Tensor"
    loss: float
    texts: list[list[int]]


def check_merge_equivalence(
    base: Path, adapter: Path, merged: Path, dataset: Path, config: MergeConfig, policy: str
) -> CheckResult:
    """The merged model predicts held-out tokens like the base as trained with the adapter on top.

    Args:
        base: The base the adapter was trained on.
        adapter: Directory of the training run.
        merged: Directory of the merged model; it is loaded from there.
        dataset: A tokenized dataset; its first validation rows are compared.
        config: Bounds, and how much is compared.
        policy: What the adapter was merged into. For original a base that was in 4 bit is expected to differ, so only
            a loss higher than the adapter's fails, by more than `max_loss_increase`.
    """
    training = json.loads((adapter / "training.json").read_text())
    rows = packs.read_rows(dataset, "validation", config.equivalence_rows)
    prompts = read_prompts(dataset, config.greedy_prompts)
    stops = token_ids(json.loads((merged / "generation_config.json").read_text()).get("eos_token_id"))
    expected = _answers(_load_trained(base, adapter, training), rows, prompts, stops, config.greedy_tokens)
    gc.collect()
    found = _answers(load_stored(merged), rows, prompts, stops, config.greedy_tokens)
    kl, agreement = divergence(expected.log_probabilities, found.log_probabilities)
    greedy = greedy_agreement(expected.texts, found.texts)
    delta = found.loss - expected.loss
    same_function = policy == "dequantized" or not training["quantized_modules"]
    alike = kl <= config.max_mean_kl and agreement >= config.min_top1_agreement
    no_worse = math.isfinite(delta) and delta <= config.max_loss_increase
    return CheckResult(
        passed=no_worse and (alike or not same_function) and greedy >= config.min_greedy_agreement,
        summary=(
            f"Over {len(found.log_probabilities)} held-out tokens the saved model and the adapter differ by a mean KL "
            f"of {kl:.2e} nats (limit {config.max_mean_kl}), agree on {agreement:.1%} of first choices (limit "
            f"{config.min_top1_agreement:.1%}) and by {delta:+.4f} in loss (limit {config.max_loss_increase}); "
            f"{greedy:.1%} of greedy tokens are the same; policy {policy}"
            + ("." if same_function else ", where only loss and greedy text are bounded.")
        ),
        numbers={
            "mean_kl": kl,
            "top1_agreement": agreement,
            "loss_delta": delta,
            "adapter_loss": expected.loss,
            "merged_loss": found.loss,
            "greedy_agreement": greedy,
        },
        rows=_texts(merged, prompts, expected.texts, found.texts),
    )


def divergence(expected: "torch.Tensor", found: "torch.Tensor") -> tuple[float, float]:
    """Mean KL divergence in nats, and the share of positions with the same most likely token.

    Args:
        expected: Log-probabilities, shape `(positions, vocabulary)`.
        found: Those of the other model, same shape.
    """
    kl = float((expected.exp() * (expected - found)).sum(-1).mean())
    return kl, float((expected.argmax(-1) == found.argmax(-1)).float().mean())


def greedy_agreement(expected: list[list[int]], found: list[list[int]]) -> float:
    """Share of greedy tokens that come before the first difference of their answer; 1 where nothing was generated.

    [5 6 7 2] and [5 6 9 2] agree on 2 of 4
    """
    same = total = 0
    for one, other in zip(expected, found, strict=True):
        total += max(len(one), len(other))
        for ours, theirs in zip(one, other, strict=False):
            if ours != theirs:
                break
            same += 1
    return same / total if total else 1.0


def read_prompts(dataset: Path, count: int) -> list[list[int]]:
    """Token ids of the first validation prompts, without their answers."""
    file = TokenFile(dataset, "validation")
    ends = file.numbers("prompt_tokens")
    return [file.ids(row)[: ends[row]].tolist() for row in range(min(count, len(file)))]


def load_stored(model: Path) -> Any:
    """A saved model, ready to evaluate, in the type it is stored in."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        model, dtype="auto", device_map={"": training_device()}, local_files_only=True
    ).eval()


def _load_trained(base: Path, adapter: Path, training: dict[str, Any]) -> Any:
    """The model as training left it: a fully trained one, or base and adapter."""
    if training["method"] == "full":
        return load_stored(adapter)
    return load_adapted(base, adapter, training["method"], training["parameters"]["compute_dtype"])


def _answers(
    model: Any, rows: Sequence[packs.Row], prompts: list[list[int]], stops: list[int], greedy_tokens: int
) -> Answers:
    import torch

    kept, total, tokens = [], 0.0, 0
    for logits, targets in predictions(model, rows):
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        room = max(0, COMPARED_POSITIONS - tokens)
        tokens += len(targets)
        kept.append(logits[:room].log_softmax(-1).cpu())
    texts = [_greedy(model, prompt, stops, greedy_tokens) for prompt in prompts]
    return Answers(torch.cat(kept), total / tokens, texts)


def _greedy(model: Any, prompt: list[int], stops: list[int], tokens: int) -> list[int]:
    """One prompt at a time: padding would change the sums, and with them near ties."""
    import torch

    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    with torch.no_grad():
        answered = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, use_cache=True,
            eos_token_id=stops or None, pad_token_id=stops[0] if stops else 0,
        )  # fmt: skip
    return answered[0, len(prompt) :].tolist()


def _texts(
    merged: Path, prompts: list[list[int]], expected: list[list[int]], found: list[list[int]]
) -> list[dict[str, str]]:
    if not prompts:
        return []
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    return [
        {
            "prompt": tokenizer.decode(prompt)[-SHOWN_CHARACTERS:],
            "adapter": tokenizer.decode(one)[:SHOWN_CHARACTERS],
            "merged": tokenizer.decode(other)[:SHOWN_CHARACTERS],
        }
        for prompt, one, other in zip(prompts, expected, found, strict=True)
    ]
