"""The names that columns of public datasets go by, most telling first, and what to do where none of them is there."""

from collections.abc import Sequence

TURN_COLUMNS = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns", "data")
VAGUE = ("data",)  # a list of turns only if it looks like one
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
TOOLS = ("tools", "functions")
ASKING = ("instruction", "prompt", "question", "query", "problem", "input", "inputs")
ANSWERING = ("completion", "response", "output", "answer", "solution", "generated_solution", "target", "targets")
ANSWERING += ("query", "sql", "reply", "answers")  # Spider has its statement in query, and its parse in sql
CONTEXT = ("input", "context")  # what an instruction is about
SYSTEM = ("system", "system_prompt")
SCHEMA = ("sql_context", "context", "schema", "create_table", "ddl")
TEXTS = ("text", "chat", "conversation", "dialogue", "dialog", "plain_text", "transcript")
REMEDIES = (
    ({"chosen"}, "Rows of preference pairs: read the preferred answer with type: openai_messages, "
                 "messages_column: chosen; with type: prompt_completion, completion_column: chosen; or, where it is "
                 "one text with the speakers in it, with type: transcript, text_column: chosen."),
    ({"message_id", "parent_id"}, "Rows of single messages in reply trees: set the source's threads: {keep: best} to "
                                   "join them into conversations."),
    ({"message_tree_id", "prompt"}, "Rows of reply trees: write each thread as one row with its list of messages."),
    ({"preferred_output"}, "Rows of preference pairs: write the question's messages and the preferred answer as one "
                           "list, and read that with type: openai_messages."),
    ({"data"}, "If the file is one object around its rows, write the list of rows as the file instead."),
    *(({column}, f"A text with the speakers in it is read with type: transcript, text_column: {column}. Running text "
                 "holds no question and answer: split it into columns first.") for column in TEXTS),
)  # fmt: skip


def unknown_columns(columns: Sequence[str]) -> str:
    """What to tell of rows that no format reads: their columns, the known ones, and the remedy for a known shape."""
    remedy = next((text for needed, text in REMEDIES if needed <= {c.casefold() for c in columns}), None)
    return (
        f"No format reads the columns {', '.join(columns) or '(none)'}. Known: a list of turns in one of "
        f"{', '.join(TURN_COLUMNS)}; a question in one of {', '.join(ASKING)} with its answer in one of "
        f"{', '.join(ANSWERING)}; or sql_context, sql_prompt and sql. "
        + (
            remedy
            or "Name your columns in a format's `…_column` fields, or write the messages with type: prompt_template."
        )
    )
