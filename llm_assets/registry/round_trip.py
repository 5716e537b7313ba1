"""What comes out of the registry is what went in: every byte, the tokenizer, the template, the generation defaults."""

import json
from collections.abc import Mapping
from typing import Any

from llm_assets.core import CheckResult
from llm_assets.registry.contents import VersionSources, file_hashes
from llm_assets.registry.versions import RegisteredVersion
from llm_assets.training.identity import file_sha256

TEMPLATE = "chat_template.jinja"


def registry_round_trip(sources: VersionSources, loaded: RegisteredVersion) -> CheckResult:
    """Compare a loaded version with what was registered, file by file and setting by setting.

    Costs one read of every stored byte.
    """
    expected = file_hashes(sources.placed())
    found = {
        path: file_sha256(loaded.directory / path) if (loaded.directory / path).exists() else "missing"
        for path in expected
    }
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


def _wrong_settings(sources: VersionSources, loaded: RegisteredVersion) -> list[dict[str, str]]:
    from mlflow.models import Model

    wanted = json.loads((sources.evaluation / "scoreboard.json").read_text())["generation"]
    signature = Model.load(str(loaded.directory)).signature
    defaults: dict[str, Any] = {param.name: param.default for param in signature.params} if signature else {}
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
