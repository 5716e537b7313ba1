"""Which model is fine-tuned: a pinned Hub snapshot, a local directory, or a function that builds one.

Whatever the source, the result is one self-contained Hugging Face directory with safetensors weights and a chat
template, so that nothing later reaches back to where it came from. The cost is one copy of the weights.
"""

import importlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from llm_assets.core import Config, LLMAssetsError
from llm_assets.training.catalog import find_base_model
from llm_assets.training.hub_snapshot import hub_snapshot
from llm_assets.training.model_directory import TEMPLATE, chat_template, refuse_incomplete
from llm_assets.training.own_code import drop_own_code

COMMIT = re.compile(r"[0-9a-f]{40}")
BUILDER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
KEPT_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt", "LICENSE*")


class BaseModelConfigInvalid(LLMAssetsError):
    """The base model is named in no way, in two ways, or without a pinned revision."""


class BuilderMissing(LLMAssetsError):
    """The builder's import path leads nowhere."""


class BaseModelConfig(Config):
    """Where the base model comes from: exactly one of `hub`, `catalog`, `directory` and `builder`."""

    catalog: str | None = Field(
        default=None,
        description="Short name in the catalog, such as qwen2_5_3b_instruct: replaced by its `hub` and `revision`. "
        "`base_model: qwen2_5_3b_instruct` says the same.",
    )
    hub: str | None = Field(
        default=None, description="Repository on the Hugging Face Hub, such as Qwen/Qwen2.5-0.5B-Instruct."
    )
    revision: str | None = Field(
        default=None, description="Commit of the Hub repository: 40 hexadecimal digits, no branch."
    )
    directory: Path | None = Field(default=None, description="A local Hugging Face directory; it is copied.")
    builder: str | None = Field(default=None, description='A function that writes a model, as "module:function".')
    seed: int = Field(default=0, ge=0, description="Passed to the builder.")
    trust_remote_code: bool = Field(
        default=False,
        description="Keep the code of the Hub repository and train with it; needs hub and revision. Later steps use "
        "their own implementation of the architecture.",
    )

    @model_validator(mode="before")
    @classmethod
    def _catalog_name(cls, written: Any) -> Any:
        written = {"catalog": written} if isinstance(written, str) else written
        if not isinstance(written, Mapping) or written.get("catalog") is None:
            return written
        others = {name: value for name, value in written.items() if name != "catalog"}
        if named := [name for name in ("hub", "directory", "builder") if others.get(name) is not None]:
            raise BaseModelConfigInvalid(f"base_model names catalog and {' and '.join(named)}. Give exactly one.")
        entry = find_base_model(str(written["catalog"]))
        return {**others, "hub": entry.hub, "revision": entry.pinned(others.get("revision"))}

    @model_validator(mode="after")
    def _one_pinned_source(self) -> Self:
        given = [name for name in ("hub", "directory", "builder") if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise BaseModelConfigInvalid(f"base_model names {named} of hub, directory and builder. Give exactly one.")
        if self.hub is not None and not COMMIT.fullmatch(self.revision or ""):
            raise BaseModelConfigInvalid(
                f"base_model.revision of {self.hub} is {self.revision!r}, which may point elsewhere tomorrow. Give the "
                f"40-digit commit from https://huggingface.co/{self.hub}/commits/main."
            )
        if self.hub is None and self.revision is not None:
            raise BaseModelConfigInvalid(f"base_model.revision pins a hub repository, not a {given[0]}. Remove it.")
        if self.trust_remote_code and self.hub is None:
            raise BaseModelConfigInvalid(
                f"base_model.trust_remote_code runs code of a pinned Hub repository, and the base is a {given[0]}, "
                "which anyone may change. Name hub and revision, or remove trust_remote_code."
            )
        if self.builder is not None and not BUILDER.fullmatch(self.builder):
            raise BaseModelConfigInvalid(
                f"base_model.builder is {self.builder!r}. Write it as module:function, such as "
                "llm_assets.demo.base_model:build."
            )
        return self

    @property
    def source(self) -> str:
        """The chosen source, in words."""
        return f"{self.hub}@{self.revision}" if self.hub else str(self.directory or self.builder)


def prepare_base_model(config: BaseModelConfig, out: Path, log: Callable[[str], None] = print) -> None:
    """Copy, download or build the base model into an existing directory, complete or not at all.

    Besides what the source holds, `out` always gets a `chat_template.jinja` (from `tokenizer_config.json` where the
    source keeps it there) and a `generation_config.json` (from the ids in `config.json`), which later steps read.

    Raises:
        BaseModelIncomplete: the directory is missing or lacks a part; names the part and where to get it.
        PickledWeights: the only weights are pickles.
        WeightsUnreadable: a weight file is cut short, a Git LFS pointer, or already quantized.
        HubDownloadFailed: offline, gated, or the revision does not exist.
        BuilderMissing: the builder cannot be imported.
    """
    if config.builder is not None:
        _builder(config.builder)(out, seed=config.seed, log=log)
    else:
        kept = (*KEPT_FILES, "*.py") if config.trust_remote_code else KEPT_FILES
        source = config.directory or hub_snapshot(str(config.hub), str(config.revision), kept, log)
        refuse_incomplete(source)
        for path in sorted({path for pattern in kept for path in source.glob(pattern)}):
            log(f"Copying {path.name}, {path.stat().st_size / 1e6:,.1f} MB")
            shutil.copyfile(path, out / path.name)
    refuse_incomplete(out)
    if not config.trust_remote_code and (called := drop_own_code(out)):
        log(f"{', '.join(called)} called code of the repository; it is left out, and never run")
    _write_missing_parts(out)


def _write_missing_parts(out: Path) -> None:
    (out / TEMPLATE).write_text(chat_template(out) or "")
    if not (out / "generation_config.json").is_file():
        config = json.loads((out / "config.json").read_text())
        ids = {name: config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        (out / "generation_config.json").write_text(json.dumps(ids, indent=1, sort_keys=True))


def _builder(path: str) -> Callable[..., None]:
    module, _, function = path.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        raise BuilderMissing(
            f"base_model.builder {path} cannot be imported ({error}). Name an importable module:function."
        ) from error
