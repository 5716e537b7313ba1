"""Code that a model repository brings along, and whether anything may run it.

A published base model is its own permission: unless the lineage allowed its code, the directory holds neither the code
nor the `auto_map` that would call it, so that no later step can be talked into it. The cost is that such a directory is
not byte for byte its source.
"""

import json
from pathlib import Path

AUTO_MAP_FILES = ("config.json", "tokenizer_config.json", "generation_config.json")


def drop_own_code(directory: Path) -> list[str]:
    """Remove code and every call of it; return the names of the files that called any."""
    changed = []
    for name in AUTO_MAP_FILES:
        path = directory / name
        settings = json.loads(path.read_text()) if path.is_file() else {}
        if settings.pop("auto_map", None) is not None:
            path.write_text(json.dumps(settings, indent=2))
            changed.append(name)
    for path in directory.glob("*.py"):
        path.unlink()
    return changed


def runs_own_code(directory: Path) -> bool:
    """Whether a prepared model is to be loaded with the code in its directory."""
    calls = "auto_map" in json.loads((directory / "config.json").read_text())
    return calls and any(directory.glob("*.py"))
