"""Base models by short name, so that nobody copies a forty-digit commit to start.

A name stands for a Hub repository at one commit: it is replaced by both when a config is read, so a changed catalog
marks the base model stale like any other changed setting. The cost is that an entry grows old until someone moves it.
"""

import difflib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from llm_assets.core import Config, LLMAssetsError
from llm_assets.training.model_shape import ModelShape

CATALOG = Path(__file__).with_name("base_models.yaml")


class CatalogNameUnknown(LLMAssetsError):
    """A base model's short name that is not in the catalog."""


class RevisionUnpinned(LLMAssetsError):
    """A catalog entry without a commit, and none given by the user."""


class Shape(Config):
    """Sizes of a model, as its `config.json` has them."""

    layers: int = Field(ge=1, description="Decoder layers.")
    hidden: int = Field(ge=1, description="Width of the residual stream.")
    intermediate: int = Field(ge=1, description="Width of the feed-forward layer.")
    heads: int = Field(ge=1, description="Query heads.")
    kv_heads: int = Field(ge=1, description="Key-value heads.")
    head_dim: int | None = Field(default=None, ge=1, description="Elements per head; hidden / heads when left out.")
    vocabulary: int = Field(ge=1, description="Rows of the embedding.")
    tied: bool = Field(description="Whether the output head is the embedding.")


class BaseModelEntry(Config):
    """One base model of the catalog."""

    name: str = Field(description="Short name.")
    hub: str = Field(description="Repository on the Hugging Face Hub.")
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$", description="Commit; null where unverified.")
    family: str = Field(description="Key under `families`.")
    model_type: str = Field(description="As in the model's config.json.")
    template: str = Field(description="Family of the chat template.")
    license: str = Field(description="Licence, as the Hub names it.")
    gated: bool = Field(description="Whether terms must be accepted on the Hub.")
    parameters: int = Field(ge=1, description="Number of weights.")
    context_tokens: int = Field(ge=1, description="Positions the model was trained for.")
    lora_targets: tuple[str, ...] = Field(description="Linear layers an adapter is put on.")
    shape: Shape = Field(description="Sizes that decide memory.")

    def model_shape(self) -> ModelShape:
        """What a memory plan is computed from."""
        sizes = self.shape.model_dump()
        sizes["head_dim"] = self.shape.head_dim or self.shape.hidden // self.shape.heads
        return ModelShape(**sizes, fused=self.model_type == "phi3")

    def pinned(self, revision: str | None = None) -> str:
        """The commit to use: the given one, else the entry's.

        Raises:
            RevisionUnpinned: there is neither; says where to look it up.
        """
        commit = revision or self.revision
        if commit is None:
            raise RevisionUnpinned(
                f"The catalog knows no verified commit of {self.name}. Give base_model.revision: the 40-digit commit "
                f"from https://huggingface.co/{self.hub}/commits/main."
            )
        return commit


@cache
def base_models() -> Mapping[str, BaseModelEntry]:
    """Every entry by short name, in the order of the file."""
    written = yaml.safe_load(CATALOG.read_text())
    return {name: _entry(name, entry, written["families"]) for name, entry in written["models"].items()}


def find_base_model(name: str) -> BaseModelEntry:
    """An entry by short name or Hub repository.

    Raises:
        CatalogNameUnknown: names the closest entries.
    """
    entries = base_models()
    by_hub = {entry.hub: entry for entry in entries.values()}
    if found := entries.get(name) or by_hub.get(name):
        return found
    spelled = {_letters(known): known for known in entries}
    wanted = _letters(name.rsplit("/", 1)[-1])
    begun = [known for letters, known in spelled.items() if wanted and letters.startswith(wanted)][:3]
    close = begun or [spelled[letters] for letters in difflib.get_close_matches(wanted, spelled, n=3, cutoff=0.5)]
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise CatalogNameUnknown(
        f"base model {name!r} is not in the catalog. {hint}`llm-assets models` lists all {len(entries)}; any other "
        "model is named by hub and revision, or by directory."
    )


def _letters(name: str) -> str:
    """A name without what people write differently: `Qwen2.5-3B` and `qwen2_5_3b` are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _entry(name: str, written: Mapping[str, Any], families: Mapping[str, Any]) -> BaseModelEntry:
    return BaseModelEntry.model_validate({"name": name, **families[written["family"]], **written})
