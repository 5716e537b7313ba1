"""The README of a Hub repository: the metadata the Hub indexes, how to load this part, and the version's model card."""

import json
from typing import Any

from llm_assets.registry.model_card import write_model_card
from llm_assets.registry.versions import RegisteredVersion

RELATION = {"merged": "finetune", "adapter": "adapter"}  # of a variant: quantized


def hub_card(version: RegisteredVersion, part: str, merged_repo: str, base: str | None, license_id: str | None) -> str:
    """Markdown with a YAML head.

    Args:
        version: What is pushed.
        part: `merged`, `adapter`, or a variant's name.
        merged_repo: Repository of the merged model, which a variant is a quantization of.
        base: Hub repository of the base model; None if it is from elsewhere.
        license_id: Licence identifier; None leaves it out.
    """
    origin = merged_repo if part not in RELATION else base
    library = {"adapter": "peft"}.get(part, "gguf" if _is_gguf(version, part) else "transformers")
    head: dict[str, Any] = {
        **({"license": license_id} if license_id else {}),
        **({"base_model": origin, "base_model_relation": RELATION.get(part, "quantized")} if origin else {}),
        "library_name": library,
        "pipeline_tag": "text-generation",
        "tags": ["llm-assets", version.metadata["model"]],
    }
    written = "\n".join(f"{name}: {json.dumps(value)}" for name, value in head.items())  # JSON is YAML
    return f"---\n{written}\n---\n\n{_load(version, part)}\n\n{write_model_card(version.name, version.metadata)}"


def _load(version: RegisteredVersion, part: str) -> str:
    what = f"`{version.name}` version {version.version}"
    if part == "adapter":
        return f"This repository holds the LoRA adapter of {what}; load it with `peft` on top of the base model."
    if part == "merged":
        return f"This repository holds the merged model of {what}, for vLLM or transformers."
    engine = "llama.cpp" if _is_gguf(version, part) else "vLLM"
    return f"This repository holds the quantized variant `{part}` of {what}, for {engine}."


def _is_gguf(version: RegisteredVersion, part: str) -> bool:
    return version.metadata["variants"].get(part, {}).get("engine") == "llama_cpp"
