"""A GGUF file carries its own tokenizer and chat template, so llama.cpp must cut text exactly where training did.

llama.cpp knows a fixed set of pre-tokenizers by name; one that is in none of them is refused, because a near match
tokenizes most text correctly and the rest wrongly.
"""

import json
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError

# Names and regular expressions: llama.cpp src/llama-vocab.cpp. Keys are the Split pattern in tokenizer.json.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_PATTERNS = {_SPLIT.format(digits=r"\p{N}{1,3}"): "llama-bpe", _SPLIT.format(digits=r"\p{N}"): "qwen2"}


class TokenizerUnsupported(LLMAssetsError):
    """llama.cpp has no equivalent of the model's tokenizer."""


def add_tokenizer(writer: Any, merged: Path, vocab_size: int) -> None:
    """Write vocabulary, merges, token types, special ids and chat template into an open GGUF writer.

    Args:
        writer: A `gguf.GGUFWriter`.
        merged: Hugging Face directory with `tokenizer.json` (byte-level BPE) and `chat_template.jinja`.
        vocab_size: Rows of the embedding; unused rows get placeholder tokens.

    Raises:
        TokenizerUnsupported: not byte-level BPE, or an unknown pre-tokenizer; names it.
    """
    tokenizer = json.loads((merged / "tokenizer.json").read_text())
    if tokenizer["model"]["type"] != "BPE" or tokenizer.get("normalizer") not in (None, {"type": "NFC"}):
        raise TokenizerUnsupported(
            f"The model has a {tokenizer['model']['type']} tokenizer with normalizer {tokenizer.get('normalizer')}; "
            "GGUF export covers byte-level BPE without normalizer. Use a vLLM scheme such as w4a16."
        )
    tokens, types = _vocabulary(tokenizer, vocab_size)
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer.get("pre_tokenizer")))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    )
    _add_special_ids(writer, merged)
    writer.add_chat_template((merged / "chat_template.jinja").read_text())


def pre_tokenizer_name(pre_tokenizer: Any) -> str:
    """llama.cpp's name for the `pre_tokenizer` block of a tokenizer.json.

    Raises:
        TokenizerUnsupported: llama.cpp has no such pre-tokenizer.
    """
    parts = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    kinds = [part.get("type") for part in parts]
    last = parts[-1]
    gpt2_regex = last.get("type") == "ByteLevel" and last.get("use_regex", True) and not last.get("add_prefix_space")
    if gpt2_regex and kinds == ["ByteLevel"]:
        return "gpt-2"
    if gpt2_regex and kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits"):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        pattern = parts[0].get("pattern", {}).get("Regex", "")
        if pattern in SPLIT_PATTERNS:
            return SPLIT_PATTERNS[pattern]
    raise TokenizerUnsupported(
        f"llama.cpp would tokenize differently: it has no pre-tokenizer like {json.dumps(pre_tokenizer)}. "
        "Use a vLLM scheme such as w4a16, or a tokenizer with the pre-tokenizer of GPT-2, SmolLM, Llama 3 or Qwen2."
    )


def _vocabulary(tokenizer: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    import gguf

    by_id = {index: token for token, index in tokenizer["model"]["vocab"].items()}
    types = dict.fromkeys(by_id, gguf.TokenType.NORMAL)
    for added in tokenizer["added_tokens"]:
        by_id[added["id"]] = added["content"]
        types[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    rows = range(vocab_size)
    tokens = [by_id.get(index, f"[PAD{index}]") for index in rows]
    return tokens, [int(types.get(index, gguf.TokenType.UNUSED)) for index in rows]


def _add_special_ids(writer: Any, merged: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    stops = json.loads((merged / "generation_config.json").read_text()).get("eos_token_id")
    stops = [stops] if isinstance(stops, int) else list(stops or [])
    if tokenizer.eos_token_id is not None:
        writer.add_eos_token_id(tokenizer.eos_token_id)
    # A model may stop on more than one id (Llama 3: end_of_text, eot); without it here llama.cpp would run on.
    writer.add_eot_token_id(next((stop for stop in stops if stop != tokenizer.eos_token_id), tokenizer.eos_token_id))
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(False)  # the chat template renders the BOS token where there is one
