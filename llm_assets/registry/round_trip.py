"""What comes out of the registry is what went in: every byte, the tokenizer, the template, the generation defaults."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_assets.core import CheckResult
from llm_assets.registry.contents import EVALUATION_PATH, VersionSources, file_hashes
from llm_assets.registry.signature import generation_defaults
from llm_assets.registry.versions import RegisteredVersion
from llm_assets.training.identity import file_sha256

TEMPLATE = "chat_template.jinja"


def registry_round_trip(sources: VersionSources, loaded: RegisteredVersion) -> CheckResult:
    """Compare a loaded version with what was registered, file by file and setting by setting.

    Costs one read of every byte that was stored anew. A hard link is the published file itself, whose bytes the store
    verified when it was opened, so it is not read again. Measured speeds are no part of a version's identity: of the
    evaluation, the bytes recorded when the version was made are what has to come back.
    """
    placed = sources.placed()
    evaluated = {name: sha for name, sha in loaded.metadata["files"].items() if name.startswith(f"{EVALUATION_PATH}/")}
    expected = {name: sha for name, sha in file_hashes(placed).items() if not name.startswith(f"{EVALUATION_PATH}/")}
    expected |= evaluated
    origin = {
        f"{target}/{name}": directory / name for target, directory in placed.items() for name in _names(directory)
    }
    found = {path: _found(loaded.directory / path, origin.get(path), sha256) for path, sha256 in expected.items()}
    wrong = [{"what": path, "problem": _problem(found[path])} for path in expected if found[path] != expected[path]]
    wrong += _wrong_settings(sources, loaded)
    return CheckResult(
        passed=not wrong,
        summary=(
            f"{loaded.name} version {loaded.version}: {len(expected)} files, the template and the generation defaults "
            + ("come back as they were registered." if not wrong else f"were compared; {len(wrong)} differ.")
        ),
        numbers={"files": len(expected), "different": len(wrong)},
        rows=wrong[:20],
    )


def _names(directory: Path) -> list[str]:
    return [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]


def _found(stored: Path, origin: Path | None, sha256: str) -> str:
    if not stored.exists():
        return "missing"
    return sha256 if origin and stored.samefile(origin) else file_sha256(stored)


def _wrong_settings(sources: VersionSources, loaded: RegisteredVersion) -> list[dict[str, str]]:
    from mlflow.models import Model

    wanted = json.loads((sources.evaluation / "scoreboard.json").read_text())["generation"]
    signature = Model.load(str(loaded.directory)).signature
    defaults = generation_defaults(signature) if signature else {}
    wrong = []
    if _plain(loaded.generation) != _plain(wanted):
        wrong.append({"what": "generation", "problem": f"{dict(loaded.generation)} instead of {wanted}"})
    if _plain(defaults) != _plain(wanted):
        wrong.append({"what": "signature defaults", "problem": f"{defaults} instead of {wanted}"})
    template = (sources.tokenized / "tokenizer" / TEMPLATE).read_bytes()
    for variant in ("merged", *sources.variants):
        kept = loaded.variant_directory(variant) / TEMPLATE
        if not kept.exists() or kept.read_bytes() != template:
            wrong.append({"what": f"{variant}/{TEMPLATE}", "problem": "is not the template of the training data"})
    return wrong


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in sorted(settings.items())}


def _problem(found: str) -> str:
    return "is missing" if found == "missing" else "has other bytes"
