"""What of a champion is pushed to the Hugging Face Hub, and where to."""

import re
from typing import Literal

from pydantic import Field, field_validator

from llm_assets.core import Config

Part = Literal["merged", "adapter", "variants"]


class HubConfig(Config):
    """The `registry.hub` block; the token comes from `HF_TOKEN`, never from here."""

    repo: str = Field(
        description="Repository of the merged model, owner/name; the adapter goes to <repo>-adapter and a variant to "
        "<repo>-<variant>."
    )
    private: bool = Field(default=True, description="Whether repositories are made private; existing ones are left.")
    parts: tuple[Part, ...] = Field(
        default=("merged", "adapter", "variants"), min_length=1, description="What is pushed."
    )
    branch: str = Field(default="main", min_length=1, description="Branch that is committed to; made where missing.")
    license: str | None = Field(default=None, description="Licence identifier of the model card, such as apache-2.0.")
    base_model: str | None = Field(
        default=None, description="Hub repository of the base for the model card; that of base_model.hub when left out."
    )
    automatic: bool = Field(default=False, description="Push without a person whenever the champion changes.")

    @field_validator("repo", "base_model")
    @classmethod
    def _owner_and_name(cls, repo: str | None) -> str | None:
        if repo is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise ValueError(f"hub repository {repo!r} is not owner/name. Write it like acme/text2sql.")
        return repo

    def repositories(self, variants: tuple[str, ...]) -> dict[str, str]:
        """Repository of each part that is pushed: `merged`, `adapter`, and each variant by its name."""
        wanted = {"merged": self.repo} if "merged" in self.parts else {}
        wanted |= {"adapter": f"{self.repo}-adapter"} if "adapter" in self.parts else {}
        return wanted | ({name: f"{self.repo}-{name}" for name in variants} if "variants" in self.parts else {})
