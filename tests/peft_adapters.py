"""Adapters as peft saves them, with random values in every trained matrix, and the models peft merges them into.

`from peft_adapters import ...` works in every test, because `tests/` is where the root conftest lives.
"""

import copy
import json
from pathlib import Path
from typing import Any

from llm_assets.training.identity import directory_fingerprint


def write_base(directory: Path, kind: str) -> Path:
    """Write a tiny model of another shape than `tiny_base`: untied and with biases, or with Conv1D layers."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    if kind == "untied":
        model: Any = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=96, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, tie_word_embeddings=False,
            )
        )  # fmt: skip
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=2, n_positions=64))
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory


def save_adapter(base: Path, out: Path, **settings: Any) -> Path:
    """Save an adapter with random values where peft starts at zero, and the record a training run leaves."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    given = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    adapted = get_peft_model(model, LoraConfig(**given))
    for name, parameter in adapted.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1.1
        elif parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(out, save_embedding_layers=False)
    write_record(out, base)
    return out


def write_record(adapter: Path, base: Path, **changes: Any) -> None:
    """Write the `training.json` of a run that quantized nothing, with fields replaced by name."""
    record = {
        "method": "lora",
        "quantized_modules": [],
        "quantization": None,
        "end_token_ids": [2],
        "base_fingerprint": directory_fingerprint(base),
        "parameters": {"compute_dtype": "float32"},
    }
    (adapter / "training.json").write_text(json.dumps(record | changes))


def adapted_model(base: Path, adapter: Path, dtype: str) -> Any:
    """Base and adapter as peft loads them, not merged."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    return PeftModel.from_pretrained(model, adapter).eval()


def merged_by_peft(base: Path, adapter: Path, dtype: str) -> dict[str, Any]:
    """Weights by name after peft's own load and merge."""
    return copy.deepcopy(dict(adapted_model(base, adapter, dtype).merge_and_unload().state_dict()))
