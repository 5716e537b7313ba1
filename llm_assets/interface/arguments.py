"""From the arguments of a call to a lineage: the very schema of `defs.yaml`, so both mean and refuse the same.

A call names what differs between fine-tunings; every other block keeps its default or is given under its YAML name.
All problems of a call are told at once, by the name of the argument.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError, create_model, model_validator

from llm_assets.components.lineage import LineageConfig
from llm_assets.core import Config, LLMAssetsError
from llm_assets.data import CurationConfig, FormatConfig, SplitConfig, TokenizationConfig
from llm_assets.data.named_source import source_named
from llm_assets.registry.signature import columns
from llm_assets.training import TrainingConfig
from llm_assets.training.base_model import BUILDER

ADAPTER_FIELDS = (
    "rank", "alpha", "dropout", "use_rslora", "use_dora", "target_modules", "modules_to_save", "trainable_tokens",
)  # fmt: skip
ARGUMENT_OF = {"training": "training_config", "sources": "training_table_name", "format": "data_config.format"}


class ArgumentsInvalid(LLMAssetsError):
    """Arguments of a call that make no lineage; lists every one with its value and what would do."""


_FIELDS = TrainingConfig.model_fields
_ADAPTER: dict[str, Any] = {name: (_FIELDS[name].annotation, _FIELDS[name]) for name in ADAPTER_FIELDS}
LoraConfig: type[Config] = create_model(
    "LoraConfig",
    __base__=Config,
    __doc__="The adapter's part of `training`, for calls that keep it apart as other toolkits do.",
    **_ADAPTER,
)


class DataConfig(Config):
    """How the training rows are read, chosen and asked."""

    prompt_registry_name: str | None = Field(
        default=None, description="Prompt in MLflow's registry that asks the rows; the row format's own when left out."
    )
    prompt_alias: str = Field(default="production", description="Alias, or version number, of that prompt.")
    completion_column: str = Field(default="completion", description="Column with the answer to that prompt.")
    format: FormatConfig | None = Field(
        default=None, description="How a row becomes a conversation; told by its columns when left out."
    )
    first_rows: int | None = Field(default=None, ge=1, description="Take at most this many rows.")
    curation: CurationConfig = Field(default=CurationConfig(), description="Which rows are dropped, and why.")
    split: SplitConfig = Field(default=SplitConfig(), description="Shares of train, validation and test.")
    tokenization: TokenizationConfig = Field(default=TokenizationConfig(), description="Template, lengths and packing.")

    @model_validator(mode="after")
    def _asked_in_one_way(self) -> Self:
        if self.prompt_registry_name is not None and self.format is not None:
            raise ValueError(
                f"prompt_registry_name {self.prompt_registry_name!r} and format {self.format.type!r} both say how a "
                "row asks. Give one of them."
            )
        return self

    def row_format(self) -> dict[str, Any] | None:
        """The `format` block; None where the rows' columns tell."""
        if self.format is not None:
            return self.format.model_dump(mode="json", exclude_unset=True) | {"type": self.format.type}
        if self.prompt_registry_name is None:
            return None
        separator = "/" if self.prompt_alias.isdigit() else "@"
        uri = f"prompts:/{self.prompt_registry_name}{separator}{self.prompt_alias}"
        return {"type": "prompt_template", "template_uri": uri, "completion": f"{{{self.completion_column}}}"}


Settings = BaseModel | Mapping[str, Any] | None


def lineage_blocks(
    *,
    training_table_name: str | Mapping[str, Any] | None,
    model_name: str,
    base_model: str | Mapping[str, Any] | None,
    data_config: Settings = None,
    lora_config: Settings = None,
    training_config: Settings = None,
    input_schema: Any = None,
    output_schema: Any = None,
    blocks: Mapping[str, Any],
) -> dict[str, Any]:
    """What a call says, as the blocks of a lineage's YAML and nothing it did not say.

    Args:
        training_table_name: Table, file, glob or URL, or a `sources` entry.
        model_name: Registered name, flat or `catalog.schema.model`; the lineage takes its last part.
        base_model: Short name in the catalog, local directory, `module:function`, or a `base_model` block.
        data_config: As `DataConfig`.
        lora_config: As `LoraConfig`.
        training_config: As the `training` block.
        input_schema: Columns of the served version.
        output_schema: Likewise.
        blocks: Other blocks under their YAML names.

    Raises:
        ArgumentsInvalid: lists every wrong argument.
    """
    data = _checked(DataConfig, data_config, "data_config")
    _refuse_unknown(blocks)
    given: dict[str, Any] = {name: _plain(block) for name, block in blocks.items() if block is not None}
    given["model"] = lineage_name(model_name)
    said = {"name": model_name if model_name != given["model"] else None}
    said |= {"input_schema": input_schema, "output_schema": output_schema}
    given["registry"] = _merged_registry(said, given.get("registry", {}))
    if training_table_name is not None:
        if not isinstance(training_table_name, (str, Mapping)):
            raise ArgumentsInvalid(
                f"training_table_name is a {type(training_table_name).__name__} in this process. Write it to a file or "
                "table and pass its name."
            )
        named = source_named(training_table_name) if isinstance(training_table_name, str) else dict(training_table_name)
        given["sources"] = [{**named, **_without_none(first_rows=data.first_rows)}]
    if base_model is not None:
        given["base_model"] = base_model_named(base_model)
    training = _merged_training(_plain(lora_config), _plain(training_config))
    written = data.model_dump(mode="json", exclude_unset=True)
    parts = {name: written.get(name) for name in ("curation", "split", "tokenization")}
    parts |= {"training": training, "format": data.row_format()}
    for name, part in parts.items():
        if part and given.get(name) not in (None, {}, part):
            raise ArgumentsInvalid(f"data_config says {part} of {name}, and {name} is {given[name]}. Give it once.")
    given |= {name: part for name, part in parts.items() if part}
    return {name: block for name, block in given.items() if block not in ({}, None)}


def lineage_config(given: Mapping[str, Any]) -> LineageConfig:
    """The lineage those blocks make, with defaults for what a call need not say.

    Raises:
        ArgumentsInvalid: lists every wrong argument.
    """
    try:
        return LineageConfig.model_validate({"study": _one_trial(given), "format": {"type": "auto"}, **given})
    except ValidationError as error:
        raise ArgumentsInvalid(explained(error, given)) from None


def lineage_name(model_name: str) -> str:
    """Name of the lineage of a registered name: its last part, in lower case.

    Raises:
        ArgumentsInvalid: that part cannot prefix an asset key.
    """
    name = model_name.rsplit(".", 1)[-1].lower().replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
        raise ArgumentsInvalid(
            f"model_name {model_name!r} gives the lineage no name. Use letters, digits and _, starting with a letter, "
            "flat (text2sql) or catalog.schema.model (prod.sql.text2sql)."
        )
    return name


def base_model_named(base_model: str | Mapping[str, Any]) -> Any:
    """The `base_model` block that a short name, a directory or `module:function` stands for."""
    if not isinstance(base_model, str):
        return dict(base_model)
    if BUILDER.fullmatch(base_model):
        return {"builder": base_model}
    if Path(base_model).expanduser().is_dir() or base_model.startswith((".", "/", "~")):
        return {"directory": str(Path(base_model).expanduser())}
    return {"catalog": base_model}


def explained(error: ValidationError, given: Mapping[str, Any] | None = None) -> str:
    """What pydantic refused, one line per argument, without its links; with `given`, of those blocks only."""
    lines = []
    for problem in error.errors(include_url=False):
        path = [str(part) for part in problem["loc"] if not str(part).startswith("function-")]
        if given is not None and path and path[0] not in given and problem["type"] != "missing":
            continue  # a default that follows from another wrong argument
        name = ".".join([ARGUMENT_OF.get(path[0], path[0]), *path[1:]]) if path else "arguments"
        text = problem["msg"].removeprefix("Value error, ")
        value = "" if problem["type"] in ("missing", "value_error") else f" (given: {problem['input']!r:.80})"
        lines.append(f"{name}: {text}{value}")
    return "\n".join(lines)


def _refuse_unknown(blocks: Mapping[str, Any]) -> None:
    known = [name for name in LineageConfig.model_fields if name not in ("model", "sources", "base_model", "training")]
    if unknown := [name for name in blocks if name not in known]:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise ArgumentsInvalid(
            f"There is no argument {', '.join(unknown)}.{hint} Blocks of a lineage: {', '.join(known)}."
        )


def _checked(kind: type[Any], value: Settings, argument: str) -> Any:
    try:
        return kind.model_validate(_plain(value))
    except ValidationError as error:
        raise ArgumentsInvalid("\n".join(f"{argument}.{line}" for line in explained(error).splitlines())) from None


def _plain(value: Any) -> Any:
    """A config as what was set in it; anything else as it is."""
    if value is None:
        return {}
    return value.model_dump(mode="json", exclude_unset=True) if isinstance(value, BaseModel) else value


def _one_trial(given: Mapping[str, Any]) -> dict[str, Any]:
    """A call that names its settings trains those; `study=` searches around them."""
    learning_rate = given.get("training", {}).get("learning_rate", _FIELDS["learning_rate"].default)
    return {"trials": 1, "space": {"learning_rate": {"choices": [learning_rate]}}}


def _merged_training(lora: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    adapter = _plain(_checked(LoraConfig, lora, "lora_config"))
    twice = [name for name in adapter if name in training and training[name] != adapter[name]]
    if twice:
        name = twice[0]
        raise ArgumentsInvalid(
            f"lora_config.{name} is {adapter[name]!r} and training_config.{name} is {training[name]!r}. Give it once."
        )
    return {**training, **adapter}


def _merged_registry(said: Mapping[str, Any], block: Mapping[str, Any]) -> dict[str, Any]:
    """The `registry` block with what the call's own arguments say of it, schemas as `{name: type}`."""
    argument_of = {"name": "model_name"}
    merged: dict[str, Any] = {}
    for name, written in (*said.items(), *block.items()):
        try:
            value = columns(written) if name in ("input_schema", "output_schema") else written
        except ValueError as error:
            raise ArgumentsInvalid(f"{name}: {error}") from None
        if value is None:
            continue
        if merged.get(name, value) != value:
            raise ArgumentsInvalid(
                f"{argument_of.get(name, name)} is {merged[name]!r} and registry.{name} is {value!r}. Give it once."
            )
        merged[name] = value
    return merged


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
