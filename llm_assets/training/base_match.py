"""Whether an adapter belongs to a base: vocabulary, tensors, shapes and fingerprint, each refused by its own name.

A wrong pair of the same shapes merges without an error and answers nonsense. Headers and file hashes tell; the cost is
one hash over a base that was never published, as tests and notebooks have.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.training.adapter_reader import Adapter, AdapterUnmergeable, Change, expected_weights
from llm_assets.training.identity import directory_fingerprint
from llm_assets.training.shards import TensorEntry


class AnotherBase(LLMAssetsError):
    """An adapter was trained on another base model than the one it is to be merged into."""


def refuse_other_vocabulary(base: Path, adapter: Path) -> None:
    """Refuse a tokenizer whose ids mean something else to the base."""
    ours, theirs = base / "tokenizer.json", adapter / "tokenizer.json"
    if not (ours.exists() and theirs.exists()) or ours.read_bytes() == theirs.read_bytes():
        return
    known, used = _vocabulary(ours), _vocabulary(theirs)
    moved = sorted(token for token, number in used.items() if known.get(token) != number)
    if moved:
        raise AnotherBase(
            f"{len(moved)} tokens of the adapter's tokenizer have another id in the base's vocabulary, such as "
            f"{moved[0]!r} ({used[moved[0]]}, in the base {known.get(moved[0], 'none')}). The adapter belongs to a "
            "base with another vocabulary: materialize tokenized_dataset and lora_adapter on this one."
        )


def _vocabulary(tokenizer: Path) -> dict[str, int]:
    content = json.loads(tokenizer.read_text())
    vocabulary = content["model"].get("vocab", {})
    if isinstance(vocabulary, list):  # unigram models list their tokens
        vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
    return {**vocabulary, **{token["content"]: token["id"] for token in content.get("added_tokens", [])}}


def refuse_other_shapes(weights: Mapping[str, TensorEntry], trained: Mapping[str, TensorEntry]) -> None:
    """A fully trained model must have the tensors of its base, no more, no fewer, of the same shapes."""
    differing = sorted(weights.keys() ^ trained.keys())
    differing += sorted(n for n in weights.keys() & trained.keys() if weights[n].shape != trained[n].shape)
    if differing:
        raise AnotherBase(
            f"The trained model and the base differ in {differing[0]} ({len(differing)} such tensors): another "
            "architecture or a resized vocabulary. Materialize lora_adapter on this base."
        )


def refuse_mismatch(changes: Mapping[str, Change], weights: Mapping[str, TensorEntry]) -> None:
    """Every change must have its weight in the base, of the right shape."""
    unused = sorted(set(changes) - set(weights))
    if unused:
        hint = "lora_bias needs layers that have a bias, or " if unused[0].endswith(".bias") else ""
        raise AnotherBase(
            f"The base has no tensor {unused[0]} that the adapter changes ({len(unused)} such). {hint}the adapter "
            "belongs to another base. Materialize lora_adapter again."
        )
    for name, change in changes.items():
        shape = weights[name].shape
        if change.kind == "token_rows" and not all(0 <= token < shape[0] for token in change.tokens):
            raise AnotherBase(
                f"The adapter trains token {max(change.tokens)}, and {name} of the base has {shape[0]} rows. "
                "Materialize lora_adapter again."
            )
        if change.shape is not None and change.shape != shape:
            resized = change.kind == "replaced" and change.shape[1:] == shape[1:]
            why = "its vocabulary was resized" if resized else "the adapter belongs to another base"
            raise AnotherBase(
                f"The adapter changes {name} as a tensor of shape {list(change.shape)}, and the base's is "
                f"{list(shape)}: {why}. Materialize lora_adapter on this base."
            )


def refuse_missing(adapter: Adapter, weights: Mapping[str, TensorEntry]) -> None:
    """Every module the adapter's config names must have its tensors."""
    expected = expected_weights(adapter.config, {name: entry.shape for name, entry in weights.items()})
    if adapter.config.get("trainable_token_indices") and "token_rows" not in {c.kind for c in adapter.changes.values()}:
        expected.add("the trained tokens")
    missing = sorted(expected - set(adapter.changes))
    if missing:
        raise AdapterUnmergeable(
            f"The adapter has no tensors for {missing[0].removesuffix('.weight')}, which its config names "
            f"({len(missing)} such). Its file is not complete: materialize lora_adapter again."
        )


def refuse_other_modules(quantized: set[str], weights: Mapping[str, TensorEntry]) -> None:
    """Every module that was in 4 bit must be one of the base."""
    unknown = sorted(module for module in quantized if f"{module}.weight" not in weights)
    if unknown:
        raise AnotherBase(
            f"training.json says that {unknown[0]} was in 4 bit ({len(unknown)} such), and the base has no such "
            "module: the adapter belongs to another base. Materialize lora_adapter again."
        )


def refuse_other_fingerprint(base: Path, training: Mapping[str, Any]) -> None:
    """The base must hold the very bytes the adapter was trained on."""
    found = directory_fingerprint(base)
    if training["base_fingerprint"] != found:
        raise AnotherBase(
            f"The adapter was trained on base {training['base_fingerprint']}, and this base is {found}: same shapes, "
            "other weights. Materialize lora_adapter again, or the base it was trained on."
        )
