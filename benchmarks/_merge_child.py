"""One merge in a process of its own: `python -m benchmarks._merge_child prepare|ours|peft <directory> [hidden layers]`.

Peak memory is the process's own high-water mark, read from the kernel; what the parent held before does not count.
"""

import json
import re
import sys
import time
from pathlib import Path

FINGERPRINT = "benchmark"


def prepare(directory: Path, hidden: int, layers: int) -> None:
    """Write a Llama of random weights in several shards, and a random adapter on all its linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=hidden, intermediate_size=11 * hidden // 4, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory / "base", max_shard_size="400MB")
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(str(directory / "adapter"))
    # as published artifacts have it: nothing is hashed again in a merge
    (directory / "base" / "manifest.json").write_text(json.dumps({"fingerprint": FINGERPRINT}))
    record = {"method": "lora", "quantized_modules": [], "quantization": None, "end_token_ids": [2]}
    (directory / "adapter" / "training.json").write_text(json.dumps({**record, "base_fingerprint": FINGERPRINT}))


def merge_with_ours(directory: Path, out: Path) -> tuple[float, float]:
    """Stream the merge; returns wall and CPU clock when it began, after its imports."""
    import torch  # noqa: F401 - imports are not part of the merge

    from llm_assets.training.merge import MergeConfig, merge_adapter

    began = time.perf_counter(), time.process_time()
    merge_adapter(directory / "base", directory / "adapter", out, MergeConfig(policy="original"), log=lambda _: None)
    return began


def merge_with_peft(directory: Path, out: Path) -> tuple[float, float]:
    """Load everything, merge, save; returns wall and CPU clock when it began, after its imports."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401 - imported late otherwise

    began = time.perf_counter(), time.process_time()
    model = AutoModelForCausalLM.from_pretrained(directory / "base", dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, directory / "adapter").merge_and_unload()
    merged.save_pretrained(out)
    return began


def main() -> None:
    """Do what the arguments say and print what it took."""
    what, directory = sys.argv[1], Path(sys.argv[2])
    if what == "prepare":
        prepare(directory, int(sys.argv[3]), int(sys.argv[4]))
        return
    began, began_cpu = (merge_with_ours if what == "ours" else merge_with_peft)(directory, directory / what)
    taken = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    print(json.dumps({**taken, "peak_mib": int(peak[1]) / 1024}))


if __name__ == "__main__":
    main()
