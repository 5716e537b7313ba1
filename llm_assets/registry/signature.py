"""What a served version takes and gives: column names and types, in words a YAML file can say without MLflow.

A text-completion model takes `prompt` and gives a text; a chat model takes `messages` and gives a chat completion. Any
other input column fills a placeholder of the lineage's prompt, so callers may send the raw columns of their table.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

TASKS = ("llm/v1/completions", "llm/v1/chat")
Task = Literal["llm/v1/completions", "llm/v1/chat"]
ColumnType = Literal["string", "integer", "long", "float", "double", "boolean", "messages"]
PROMPT, MESSAGES = "prompt", "messages"
MEASURED: dict[str, ColumnType] = {
    "finish_reason": "string",
    "prompt_tokens": "long",
    "completion_tokens": "long",
}  # output columns that are told by name; any other is the text
PARAMETERS = {"temperature": "double", "top_p": "double", "max_tokens": "long", "seed": "long"}
GENERATION_NAMES = {"max_tokens": "max_new_tokens"}  # callers know OpenAI's name


def columns(schema: Any) -> Any:
    """Accept `{name: type}`, and what MLflow makes of a schema: `[{"name": ..., "type": ...}, ...]` or a `Schema`."""
    described = schema.to_dict() if hasattr(schema, "to_dict") else schema
    if not isinstance(described, (list, tuple)):
        return described
    unnamed = [entry for entry in described if not isinstance(entry, Mapping) or not {"name", "type"} <= set(entry)]
    if unnamed:
        raise ValueError(f"columns {unnamed} have no name or no type. Write {{prompt: string}}.")
    return {str(entry["name"]): str(entry["type"]) for entry in described}


Columns = Annotated[dict[str, ColumnType], BeforeValidator(columns)]


def default_input(task: Task) -> dict[str, ColumnType]:
    """Input columns of a task when the YAML names none."""
    return {PROMPT: "string"} if task == "llm/v1/completions" else {MESSAGES: "messages"}


def refuse_unusable(input_schema: Mapping[str, str], output_schema: Mapping[str, str] | None, task: Task) -> None:
    """Refuse schemas no answer can be made from or put into.

    Raises:
        ValueError: names the columns and what to write.
    """
    if not input_schema:
        raise ValueError("registry.input_schema has no column. Leave it out, or write {prompt: string}.")
    if {PROMPT, MESSAGES} & set(input_schema) and len(input_schema) > 1:
        raise ValueError(
            f"registry.input_schema {dict(input_schema)} has {PROMPT} or {MESSAGES} beside other columns, which leaves "
            "open what is asked. Use one of the two alone, or the columns of the lineage's prompt."
        )
    wrong = [name for name, kind in input_schema.items() if (name == MESSAGES) != (kind == "messages")]
    if wrong:
        raise ValueError(
            f"registry.input_schema: {wrong[0]!r} is wrong: {MESSAGES}, and only it, has the type messages."
        )
    if output_schema is None:
        return
    if task == "llm/v1/chat":
        raise ValueError("registry.output_schema has no effect on llm/v1/chat, whose answers are chat completions.")
    texts = [name for name in output_schema if name not in MEASURED]
    mistyped = {name: kind for name, kind in output_schema.items() if kind != MEASURED.get(name, "string")}
    if len(texts) != 1 or mistyped:
        raise ValueError(
            f"registry.output_schema {dict(output_schema)} cannot be filled: it takes one string column for the text, "
            f"under any name, and any of {', '.join(f'{name}: {kind}' for name, kind in MEASURED.items())}."
        )


def mlflow_signature(
    generation: Mapping[str, Any],
    task: Task,
    input_columns: Mapping[str, str],
    output_columns: Mapping[str, str] | None,
) -> Any:
    """MLflow's signature: the columns, and the generation settings as parameters with their defaults.

    MLflow passes the defaults to every predict, so they are the version's generation defaults.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.llm import CHAT_MODEL_OUTPUT_SCHEMA

    kinds = {name: (kind, generation[GENERATION_NAMES.get(name, name)]) for name, kind in PARAMETERS.items()}
    params = [ParamSpec(name, kind, default) for name, (kind, default) in kinds.items()]
    params.append(ParamSpec("stop", "string", list(generation["stop"]), shape=(-1,)))
    params.append(ParamSpec("candidate_count", "long", 1))
    inputs: list[Any] = [
        ColSpec(_messages() if kind == "messages" else kind, name) for name, kind in input_columns.items()
    ]
    texts: list[Any] = [ColSpec(kind, name) for name, kind in (output_columns or {}).items()] or [ColSpec("string")]
    outputs = CHAT_MODEL_OUTPUT_SCHEMA if task == "llm/v1/chat" else Schema(texts)
    return ModelSignature(inputs=Schema(inputs), outputs=outputs, params=ParamSchema(params))


def generation_defaults(signature: Any) -> dict[str, Any]:
    """The generation settings a signature's parameters carry, under this project's names."""
    defaults: dict[str, Any] = {
        param.name: param.default for param in signature.params if param.name != "candidate_count"
    }
    return {GENERATION_NAMES.get(name, name): value for name, value in defaults.items()}


def _messages() -> Any:
    """Any value: MLflow's own schema of messages refuses two of the four payload forms, and the pyfunc says more."""
    from mlflow.types.schema import AnyType

    return AnyType()
