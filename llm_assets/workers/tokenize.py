"""The tokenizer of the engine's environment, by itself: it renders and encodes conversations and starts no engine.

It takes the class that `AutoTokenizer` finds, as the engine does. The generic ones need no detour through it, which
imports PyTorch: two seconds instead of twelve. The template's date is pinned by the job.

    python -m llm_assets.workers.tokenize <job.json>      writes job["output"]: [[row ids, prompt ids], ...]
"""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # take tokenizer.json as it is, whatever the model


def main(job_path: str) -> None:
    """Encode each conversation of a job file whole, and without its last message as a prompt."""
    job = json.loads(Path(job_path).read_text())
    tokenizer = _load(Path(job["tokenizer"]))
    today = datetime.strptime(job["date_string"], "%d %b %Y")
    pinned = {"date_string": job["date_string"], "strftime_now": today.strftime, "tokenize": True, "return_dict": False}
    found = []
    for messages, tools in job["conversations"]:
        row = tokenizer.apply_chat_template(messages, tools=tools, **pinned)
        prompt = tokenizer.apply_chat_template(messages[:-1], tools=tools, add_generation_prompt=True, **pinned)
        found.append([list(row), list(prompt)])
    Path(job["output"]).write_text(json.dumps(found))


def _load(directory: Path) -> Any:
    import transformers

    named = json.loads((directory / "tokenizer_config.json").read_text()).get("tokenizer_class")
    generic = getattr(transformers, named, None) if named in GENERIC else None
    if generic is not None:
        return generic.from_pretrained(str(directory))
    return transformers.AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)


if __name__ == "__main__":
    main(sys.argv[1])
