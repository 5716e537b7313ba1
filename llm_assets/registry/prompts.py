"""Prompts live in MLflow's Prompt Registry; an alias is resolved to a version once, and then the version counts.

An alias may move while a lineage is being made, so whoever asks keeps the version it got: `prompts.json` beside what
was built from it, and `prompts:/name/3` in the registered version. Nothing is read from MLflow's own prompt cache.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_assets.core import LLMAssetsError
from llm_assets.registry.tracking_store import TrackingStore, redacted

PROMPT_RECORD = "prompts.json"
_URI = re.compile(r"prompts:/(?P<name>[\w.-]+)(/(?P<version>[1-9]\d*)|@(?P<alias>[\w-]+))")


class PromptUriInvalid(LLMAssetsError):
    """Not `prompts:/name@alias` and not `prompts:/name/3`."""


class PromptUnknown(LLMAssetsError):
    """No such prompt, version or alias in the registry."""


@dataclass(frozen=True)
class PromptVersion:
    """One immutable version of a prompt.

    Attributes:
        name: Name in the prompt registry.
        version: Version number.
        uri: `prompts:/<name>/<version>`, whatever it was asked by.
        template: Text with `{{variable}}` placeholders, or chat messages of such texts.
    """

    name: str
    version: int
    uri: str
    template: str | tuple[Mapping[str, str], ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The template as chat messages; a plain text is the user's."""
        if isinstance(self.template, str):
            return [{"role": "user", "content": self.template}]
        return [dict(message) for message in self.template]

    @property
    def variables(self) -> tuple[str, ...]:
        """Placeholders in order of first use."""
        texts = [message["content"] for message in self.messages]
        return tuple(dict.fromkeys(re.findall(r"\{\{\s*(\w+)\s*\}\}", "\n".join(texts))))

    def as_json(self) -> dict[str, Any]:
        """As `prompts.json` and a registered version's metadata keep it."""
        template = self.template if isinstance(self.template, str) else [dict(turn) for turn in self.template]
        return {"name": self.name, "version": self.version, "uri": self.uri, "template": template}


def parse_prompt_uri(uri: str) -> tuple[str, str]:
    """Name, and version or alias.

    Raises:
        PromptUriInvalid: shows both forms.
    """
    parts = _URI.fullmatch(uri)
    if not parts:
        raise PromptUriInvalid(
            f"{uri!r} is no prompt. Write prompts:/name@alias, such as prompts:/text2sql@production, or "
            "prompts:/name/version, such as prompts:/text2sql/3."
        )
    return parts["name"], parts["version"] or parts["alias"]


def load_prompt(uri: str, store: TrackingStore | None = None) -> PromptVersion:
    """Ask the registry, not a cache, which version `uri` means now.

    Args:
        uri: `prompts:/name@alias` or `prompts:/name/3`.
        store: Where prompts are registered; None takes the environment's.

    Raises:
        PromptUriInvalid: as `parse_prompt_uri`.
        PromptUnknown: lists the prompts, or the versions and aliases of this one.
    """
    from mlflow.exceptions import MlflowException

    name, wanted = parse_prompt_uri(uri)
    store = store or TrackingStore.resolve()
    client = store.client()
    try:
        by_number = wanted.isdigit()
        found = (
            client.get_prompt_version(name, wanted) if by_number else client.get_prompt_version_by_alias(name, wanted)
        )
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise PromptUnknown(_what_exists(client, name, wanted, store)) from None
    return _own(found)


def publish_prompt(
    name: str, template: str | Sequence[Mapping[str, str]], store: TrackingStore, alias: str | None = None
) -> PromptVersion:
    """Register a template unless the newest version already is this one, and point `alias` to it.

    MLflow itself makes a new version of an unchanged text, which would make everything built from the alias stale.

    Args:
        name: Name in the prompt registry; no registered model may have it.
        template: Text with `{{variable}}` placeholders, or chat messages.
        store: Where prompts are registered.
        alias: Alias to move, such as `production`.
    """
    client = store.client()
    written: Any = template if isinstance(template, str) else [dict(message) for message in template]
    newest = client.get_prompt_version_by_alias(name, "latest") if client.get_prompt(name) else None
    if newest is None or newest.template != written:
        newest = client.register_prompt(name, written)
    if alias:
        client.set_prompt_alias(name, alias, int(newest.version))
    return _own(newest)


def write_prompt_record(directory: Path, prompts: Sequence[PromptVersion]) -> None:
    """Write `prompts.json`: the prompt versions that what lies in `directory` was built from; no file for none."""
    if not prompts:
        return
    record = [prompt.as_json() for prompt in prompts]
    (directory / PROMPT_RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))


def read_prompt_record(directory: Path) -> list[PromptVersion]:
    """The prompt versions that what lies in `directory` was built from; empty when it was built from none."""
    path = directory / PROMPT_RECORD
    return [prompt_from_json(entry) for entry in json.loads(path.read_text())] if path.exists() else []


def prompt_from_json(entry: Mapping[str, Any]) -> PromptVersion:
    """Undo `PromptVersion.as_json`."""
    template = entry["template"] if isinstance(entry["template"], str) else tuple(entry["template"])
    return PromptVersion(entry["name"], entry["version"], entry["uri"], template)


def _own(found: Any) -> PromptVersion:
    template = found.template if isinstance(found.template, str) else tuple(dict(turn) for turn in found.template)
    return PromptVersion(found.name, int(found.version), f"prompts:/{found.name}/{found.version}", template)


def _what_exists(client: Any, name: str, wanted: str, store: TrackingStore) -> str:
    where = redacted(store.registry_uri)
    if client.get_prompt(name) is None:
        known = ", ".join(sorted(prompt.name for prompt in client.search_prompts())) or "none"
        return (
            f"There is no prompt {name!r} at {where}. Prompts: {known}. Register it with "
            f"mlflow.genai.register_prompt, or correct the URI."
        )
    versions = sorted(int(entry.version) for entry in client.search_prompt_versions(name))
    entries = [client.get_prompt_version(name, version) for version in versions[-50:]]  # a search leaves aliases out
    aliases = sorted((alias, entry.version) for entry in entries for alias in entry.aliases)
    shown = ", ".join(f"{alias} -> {version}" for alias, version in aliases) or "none"
    return (
        f"The prompt {name!r} has no version or alias {wanted!r} at {where}. Versions: {versions}; "
        f"aliases: {shown}. Ask for one of these, or set the alias with mlflow.genai.set_prompt_alias."
    )
