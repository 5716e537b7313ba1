"""The reference of `defs.yaml`, written from the schema itself so that it cannot disagree with what is accepted.

`python -m llm_assets.components.reference > docs/lineage.md` writes it; a test fails when the file is out of date.
"""

import re
import sys
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from llm_assets.components.lineage import LineageConfig

HEADER = """# What `defs.yaml` may say

One file under `llm_assets/defs/<model>/defs.yaml` is one lineage. Text fields may hold `{{ env('NAME', 'default') }}`.
A wrong key, type, range or combination is refused when the definitions load, with file, line, value and remedy.
This page is generated from the schema: `make docs`.
"""


def markdown() -> str:
    """One table per block: key, type, default, meaning."""
    lines, queue, seen = [HEADER], [("attributes", LineageConfig)], set()
    while queue:
        title, block = queue.pop(0)
        if block in seen:
            continue
        seen.add(block)
        summary = " ".join((block.__doc__ or "").split("\n\n")[0].split())
        lines += [f"\n## {title}\n", f"{summary}\n", "| key | type | default | meaning |", "|---|---|---|---|"]
        for name, field in block.model_fields.items():
            lines.append(
                f"| `{name}` | {_cell(_type_name(field.annotation))} | {_default(field)} | {_cell(field.description)} |"
            )
            queue += [(f"{name}: {child.__name__}", child) for child in _blocks(field.annotation)]
    return "\n".join(lines) + "\n"


def _blocks(annotation: Any) -> list[type[BaseModel]]:
    """Config classes anywhere inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [block for argument in typing.get_args(annotation) for block in _blocks(argument)]


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is typing.Literal:
        return ", ".join(repr(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(argument) for argument in arguments if argument is not type(None))
    if origin in (tuple, list):
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"map of {_type_name(arguments[0])} to {_type_name(arguments[1])}"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}.get(
        getattr(annotation, "__name__", str(annotation)), getattr(annotation, "__name__", str(annotation))
    )


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "its own defaults"
    return _cell(f"`{value!r}`") if value not in (None, (), {}) else "none"


def _cell(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(markdown())
