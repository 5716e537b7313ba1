"""transformers' `generate` in a process of its own, for a user without an inference engine.

    python -m benchmarks._generate_child <model> <requests.parquet> <batch rows> <max new tokens> <rows>

Prompts come in file order and are padded on the left; greedy decoding. Prints the seconds of answering, without
start-up, and the number of completion tokens.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer the first rows of a requests file, one batch after the other."""
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model_directory, requests = Path(sys.argv[1]), Path(sys.argv[2])
    batch_rows, max_new_tokens, rows = (int(value) for value in sys.argv[3:6])
    tokenizer = AutoTokenizer.from_pretrained(model_directory, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(model_directory, dtype="auto").eval()
    prompts = pq.read_table(requests)["prompt_token_ids"].to_pylist()[:rows]
    completion_tokens = 0
    began = time.perf_counter()
    for first in range(0, len(prompts), batch_rows):
        batch = tokenizer.pad({"input_ids": prompts[first : first + batch_rows]}, return_tensors="pt")
        with torch.inference_mode():
            made = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        answers = made[:, batch["input_ids"].shape[1] :]
        tokenizer.batch_decode(answers, skip_special_tokens=True)
        completion_tokens += int((answers != tokenizer.pad_token_id).sum())
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "rows": len(prompts), "completion_tokens": completion_tokens}))


if __name__ == "__main__":
    main()
