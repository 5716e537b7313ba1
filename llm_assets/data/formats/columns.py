"""Rows whose columns are the question and the answer: Alpaca, prompt and completion, and text-to-SQL."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from llm_assets.data.formats.placeholders import format_columns
from llm_assets.data.formats.row_format import RowFormat, cell, exchange, finished, list_cell
from llm_assets.data.formats.turn_list import OLDER_TOOLS, OpenAIMessagesFormat
from llm_assets.data.messages import RowRefused, message
from llm_assets.data.sql_text import without_inserts
from llm_assets.data.tool_calls import listed_calls, tagged_calls, tools_text


class ColumnsFormat(RowFormat):
    """A question and an answer in columns of their own, with the tools that the answer may call."""

    tools_column: str = Field(default="tools", description="Column with the tool definitions; need not exist.")

    def tools(self, row: Mapping[str, Any]) -> str | None:
        """JSON text of the tools a row offers."""
        return tools_text(row.get(self.tools_column) or row.get(OLDER_TOOLS))

    def answer(self, row: Mapping[str, Any], column: str) -> dict[str, Any]:
        """The answer as the assistant's message: calls, where it is a list of them and the row offers tools."""
        value = row.get(column)
        if not self.tools(row):
            return message("assistant", cell(row, column))
        if calls := listed_calls(value):
            return message("assistant", "", calls)
        return message("assistant", *tagged_calls(cell(row, column)))


class AlpacaFormat(ColumnsFormat):
    """An instruction with an optional input, answered by an output; optional history and system columns."""

    type: Literal["alpaca"] = "alpaca"
    instruction_column: str = Field(default="instruction", description="Column with the instruction.")
    input_column: str = Field(
        default="input", description="Column appended to the instruction on a new line; need not exist."
    )
    output_column: str = Field(default="output", description="Column with the answer.")
    history_column: str = Field(
        default="history", description="Column with earlier [question, answer] pairs; need not exist."
    )
    system_column: str = Field(default="system", description="Column with a system message; need not exist.")

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return (self.instruction_column,)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns a row needs besides, to be learned from."""
        return (self.output_column,)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """System message and history if any, the instruction with its input, and the output."""
        instruction, context = cell(row, self.instruction_column), cell(row, self.input_column)
        asked = f"{instruction}\n{context}" if context else instruction
        last = [message("user", asked)] + ([self.answer(row, self.output_column)] if answered else [])
        earlier = []
        for pair in list_cell(row, self.history_column):
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise RowRefused("bad_turns", f"history entry is not a [question, answer] pair: {str(pair)[:120]}")
            earlier += exchange(None, str(pair[0]), str(pair[1]))
        return finished(earlier + last, cell(row, self.system_column) or self.system, answered=True)


class PromptCompletionFormat(ColumnsFormat):
    """A prompt and its completion, each a text or a list of messages."""

    type: Literal["prompt_completion"] = "prompt_completion"
    prompt_column: str = Field(default="prompt", description="Column with the prompt.")
    completion_column: str = Field(default="completion", description="Column with the completion.")
    system_column: str = Field(default="system", description="Column with a system message; need not exist.")

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return (self.prompt_column,)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns a row needs besides, to be learned from."""
        return (self.completion_column,)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """The prompt as a user message and the completion as the assistant's, unless they are messages already."""
        messages = self._messages(row, self.prompt_column) or [message("user", cell(row, self.prompt_column))]
        if answered:
            said = self._messages(row, self.completion_column)
            messages = messages + (said or [self.answer(row, self.completion_column)])
        return finished(messages, cell(row, self.system_column) or self.system, answered=True)

    @staticmethod
    def _messages(row: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
        """The messages a column holds; none where it is a text, or a list of something else."""
        value = row.get(column)
        listed = isinstance(value, list) and value and all(isinstance(t, dict) and "role" in t for t in value)
        if listed or (isinstance(value, str) and value.startswith("[{") and '"role"' in value):
            return OpenAIMessagesFormat(messages_column=column).turns({column: value}, answered=True)
        return []


class TextToSQLFormat(RowFormat):
    """A database schema and a question, answered by one SQL statement."""

    type: Literal["text_to_sql"] = "text_to_sql"
    schema_column: str = Field(default="sql_context", description="Column with the CREATE (and INSERT) statements.")
    question_column: str = Field(default="sql_prompt", description="Column with the question.")
    sql_column: str = Field(default="sql", description="Column with the answer.")
    prompt: str = Field(default="{schema}\n\n{question}", description="User message, from {schema} and {question}.")
    ddl_only: bool = Field(
        default=True, description="Leave INSERT statements out of the prompt; they stay in `extras`."
    )
    keep_columns: tuple[str, ...] = Field(default=("sql_context", "sql"), description="As in every format.")

    @field_validator("prompt")
    @classmethod
    def _known_fields(cls, prompt: str) -> str:
        unknown = sorted({*format_columns(prompt)} - {"schema", "question"})
        if unknown:
            raise ValueError(f"prompt '{prompt}' names {unknown}; it may use {{schema}} and {{question}}")
        return prompt

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns a row needs to be asked."""
        return (self.schema_column, self.question_column)

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """Columns a row needs besides, to be learned from."""
        return (self.sql_column,)

    def turns(self, row: Mapping[str, Any], answered: bool) -> list[dict[str, Any]]:
        """System message if any, schema and question, and the SQL."""
        schema = cell(row, self.schema_column)
        schema = without_inserts(schema) if self.ddl_only else schema
        asked = self.prompt.format(schema=schema, question=cell(row, self.question_column))
        return exchange(self.system, asked, cell(row, self.sql_column) if answered else None)
