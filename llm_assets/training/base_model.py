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

TEMPLATE = "chat_template.jinja"
INDEX = "model.safetensors.index.json"
COMMIT = re.compile(r"[0-9a-f]{40}")
BUILDER = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
KEPT_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt", "LICENSE*")


class BaseModelConfigInvalid(LLMAssetsError):
    """The base model is named in no way, in two ways, or without a pinned revision."""


class BaseModelIncomplete(LLMAssetsError):
    """A model directory is missing, or lacks its configuration, weights, tokenizer or chat template."""


class HubDownloadFailed(LLMAssetsError):
    """The Hub snapshot cannot be fetched: no network, no access, or no such revision."""


class BuilderMissing(LLMAssetsError):
    """The builder's import path leads nowhere."""


class BaseModelConfig(Config):
    """Where the base model comes from: exactly one of `hub`, `directory` and `builder`."""

    hub: str | None = Field(
        default=None, description="Repository on the Hugging Face Hub, such as Qwen/Qwen2.5-0.5B-Instruct."
    )
    revision: str | None = Field(
        default=None, description="Commit of the Hub repository: 40 hexadecimal digits, no branch."
    )
    directory: Path | None = Field(default=None, description="A local Hugging Face directory; it is copied.")
    builder: str | None = Field(default=None, description='A function that writes a model, as "module:function".')
    seed: int = Field(default=0, ge=0, description="Passed to the builder.")

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
        HubDownloadFailed: offline, gated, or the revision does not exist.
        BuilderMissing: the builder cannot be imported.
    """
    if config.builder is not None:
        _builder(config.builder)(out, seed=config.seed, log=log)
    else:
        source = config.directory if config.directory is not None else _hub_snapshot(config, log)
        refuse_incomplete(source)
        for path in sorted({path for pattern in KEPT_FILES for path in source.glob(pattern)}):
            log(f"Copying {path.name}, {path.stat().st_size / 1e6:,.1f} MB")
            shutil.copyfile(path, out / path.name)
    refuse_incomplete(out)
    _write_missing_parts(out)


def refuse_incomplete(directory: Path) -> None:
    """Raise `BaseModelIncomplete` naming the first part that a Hugging Face model directory lacks."""
    if not directory.is_dir():
        raise BaseModelIncomplete(
            f"The base model's directory {directory} does not exist. Correct base_model.directory, or fill it."
        )
    for name, why in {"config.json": "the architecture", "tokenizer.json": "the fast tokenizer"}.items():
        if not (directory / name).is_file():
            raise BaseModelIncomplete(
                f"{directory} has no {name}, which holds {why}. Save the model there with save_pretrained."
            )
    absent = [name for name in weight_files(directory) if not (directory / name).is_file()]
    if absent:
        raise BaseModelIncomplete(
            f"{directory} has no {absent[0]}. Complete the download; weights in another format (.bin, .pth) are "
            "converted by from_pretrained followed by save_pretrained."
        )
    if chat_template(directory) is None:
        raise BaseModelIncomplete(
            f"{directory} has no chat template, neither {TEMPLATE} nor in tokenizer_config.json. Use the instruct "
            f"variant of this model, or add a {TEMPLATE} whose special tokens the model was trained on."
        )


def weight_files(directory: Path) -> list[str]:
    """Names of the safetensors files that the directory promises: those of its index, or the single one."""
    if not (directory / INDEX).is_file():
        return ["model.safetensors"]
    return sorted(set(json.loads((directory / INDEX).read_text())["weight_map"].values()))


def chat_template(directory: Path) -> str | None:
    """The model's chat template, from its own file or from `tokenizer_config.json`; None when it has none."""
    if (directory / TEMPLATE).is_file():
        return (directory / TEMPLATE).read_text()
    if not (directory / "tokenizer_config.json").is_file():
        return None
    template = json.loads((directory / "tokenizer_config.json").read_text()).get("chat_template")
    if isinstance(template, list):
        return next((named["template"] for named in template if named["name"] == "default"), None)
    return template or None


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


def _hub_snapshot(config: BaseModelConfig, log: Callable[[str], None]) -> Path:
    """The snapshot's directory in the local Hub cache; the network is used only for what is not there."""
    from huggingface_hub import errors, snapshot_download

    wanted = {"repo_id": config.hub, "revision": config.revision, "allow_patterns": list(KEPT_FILES)}
    try:
        cached = Path(snapshot_download(**wanted, local_files_only=True))
        refuse_incomplete(cached)
    except (errors.LocalEntryNotFoundError, BaseModelIncomplete):
        log(f"Fetching {config.source} from the Hugging Face Hub")
        return _downloaded(config, wanted)
    return cached


def _downloaded(config: BaseModelConfig, wanted: Mapping[str, Any]) -> Path:
    import httpx
    from huggingface_hub import errors, snapshot_download

    where = f"{config.hub} at revision {config.revision}"
    try:
        return Path(snapshot_download(**wanted))
    except errors.GatedRepoError as error:
        raise HubDownloadFailed(
            f"{where} is gated. Accept its terms at https://huggingface.co/{config.hub} and set HF_TOKEN."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise HubDownloadFailed(
            f"{where} does not exist or is private. Correct base_model.hub and base_model.revision, or set HF_TOKEN."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx.TransportError) as error:
        raise HubDownloadFailed(
            f"{where} is not in the local cache and the Hub cannot be reached. Unset HF_HUB_OFFLINE and check the "
            "network, or download it elsewhere and set base_model.directory."
        ) from error
    except errors.HfHubHTTPError as error:
        raise HubDownloadFailed(f"{where}: the Hub answered {error}. Try again later.") from error
