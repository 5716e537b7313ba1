"""What MLflow runs when it loads a version: the merged model with transformers, from the directory beside this file.

This file is copied into the version and imports nothing of this project, so a consumer needs only its requirements. It
is for trying a version out and for modest traffic; for throughput, point an engine at `artifacts/model`. Whatever a
caller can get wrong is an `INVALID_PARAMETER_VALUE`, which MLflow's server answers with 400 and the message.
"""

import json
import re
import time
import uuid
from dataclasses import dataclass
from typing import Any

from mlflow.exceptions import MlflowException  # noqa: TID253 - runs inside MLflow
from mlflow.models import set_model  # noqa: TID253
from mlflow.pyfunc.model import PythonModel  # noqa: TID253

MAX_CANDIDATES = 16


@dataclass(frozen=True)
class Settings:
    """How one request is answered, as `params` says over the version's defaults."""

    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int
    candidate_count: int

    @classmethod
    def of(cls, params: dict[str, Any]) -> "Settings":
        """Take the parameters of a request; refuse what no answer can follow."""
        made = cls(**{**params, "stop": tuple(params.get("stop") or ())})
        bounds = {
            "temperature": 0 <= made.temperature <= 2,
            "top_p": 0 < made.top_p <= 1,
            "max_tokens": made.max_tokens >= 1,
            "stop": all(made.stop),
            "seed": made.seed >= 0,
            "candidate_count": 1 <= made.candidate_count <= MAX_CANDIDATES,
        }
        for name, fits in bounds.items():
            if not fits:
                raise refused(
                    f"params.{name} is {params[name]!r}. temperature is 0 to 2, top_p above 0 and at most 1, "
                    "max_tokens at least 1, stop a list of texts that are not empty, seed at least 0, candidate_count "
                    f"1 to {MAX_CANDIDATES}."
                )
        return made


@dataclass(frozen=True)
class Candidate:
    """One continuation of a prompt."""

    text: str
    finish_reason: str
    completion_tokens: int


class LanguageModel(PythonModel):
    """Answers a column of prompts, of chats, or the columns that fill the prompt the model was trained on."""

    def load_context(self, context: Any) -> None:
        """Load weights and tokenizer once, on the GPU if there is one."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        directory = context.artifacts["model"]
        self.served: dict[str, Any] = dict(context.model_config)
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").to(device).eval()  # type: ignore[arg-type]
        ends = self.model.generation_config.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id} - {None}

    # Untyped, because MLflow derives a schema from type hints.
    def predict(self, context, model_input, params=None):  # type: ignore[override]
        """Answer row by row, with the version's settings unless `params` says else."""
        settings = Settings.of(params or {})
        asked = [self._encoded(messages, settings) for messages in self._conversations(model_input)]
        return [self._shaped(encoded, self._candidates(encoded, settings)) for encoded in asked]

    def _conversations(self, model_input: Any) -> list[list[dict[str, Any]]]:
        columns = list(self.served["input_columns"])
        if columns == ["messages"]:
            return [chat(cell) for cell in _cells(model_input, "messages", chats=True)]
        if columns == ["prompt"]:
            return [self._user_turn(cell) for cell in _cells(model_input, "prompt")]
        rows = zip(*(_cells(model_input, column) for column in columns), strict=True)
        return [fill(self.served["template"], dict(zip(columns, row, strict=True))) for row in rows]

    def _user_turn(self, prompt: Any) -> list[dict[str, Any]]:
        if not isinstance(prompt, str) or not prompt.strip():
            raise refused(f"prompt is {prompt!r}. Give a text, or a JSON list of chat messages.")
        if re.match(r'\s*\[\s*\{\s*"', prompt):
            try:
                return chat(json.loads(prompt))
            except json.JSONDecodeError as error:
                raise refused(f"prompt begins like a list of messages but is not JSON: {error}.") from None
        system = self.served.get("system")
        return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]

    def _encoded(self, messages: list[dict[str, Any]], settings: Settings) -> Any:
        try:
            encoded = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        except Exception as error:  # templates raise what they like; jinja's own errors have no common base with it
            raise refused(f"The model's chat template refuses these messages: {error}.") from None
        length, context_tokens = encoded["input_ids"].shape[1], self.served["context_tokens"]
        if length + settings.max_tokens > context_tokens:
            raise refused(
                f"The prompt has {length} tokens and max_tokens is {settings.max_tokens}; the model's context has "
                f"{context_tokens}. Shorten one of them."
            )
        return encoded.to(self.model.device)

    def _candidates(self, encoded: Any, settings: Settings) -> list[Candidate]:
        import torch

        sampled = settings.temperature > 0
        sampling = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if sampled else {}
        drawn = settings.candidate_count if sampled else 1
        torch.manual_seed(settings.seed)
        with torch.no_grad():
            made = self.model.generate(
                **encoded,
                max_new_tokens=settings.max_tokens,
                do_sample=sampled,
                num_return_sequences=drawn,
                eos_token_id=sorted(self.ends),
                pad_token_id=self.tokenizer.pad_token_id or 0,
                **sampling,
                **({"stop_strings": list(settings.stop), "tokenizer": self.tokenizer} if settings.stop else {}),
            )[:, encoded["input_ids"].shape[1] :]
        candidates = [self._candidate(tokens, settings.stop) for tokens in made.tolist()]
        return candidates * (settings.candidate_count // drawn)  # greedy decoding has one answer, however often drawn

    def _candidate(self, tokens: list[int], stops: tuple[str, ...]) -> Candidate:
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        cut = min((text.find(stop) for stop in stops if stop in text), default=None)
        reason = "length" if end is None and cut is None else "stop"
        return Candidate(text[:cut], reason, len(tokens) if end is None else end + 1)

    def _shaped(self, encoded: Any, candidates: list[Candidate]) -> Any:
        prompt_tokens = int(encoded["input_ids"].shape[1])
        if self.served["task"] == "llm/v1/chat":
            return chat_completion(self.served["name"], prompt_tokens, candidates)
        shaped = [self._columns(prompt_tokens, candidate) for candidate in candidates]
        return shaped[0] if len(shaped) == 1 else shaped

    def _columns(self, prompt_tokens: int, candidate: Candidate) -> Any:
        wanted = self.served.get("output_columns")
        if not wanted:
            return candidate.text
        measured = {"finish_reason": candidate.finish_reason, "prompt_tokens": prompt_tokens}
        measured["completion_tokens"] = candidate.completion_tokens
        return {name: measured.get(name, candidate.text) for name in wanted}


def refused(message: str) -> MlflowException:
    """What a caller got wrong."""
    return MlflowException.invalid_parameter_value(message)


def chat(messages: Any) -> list[dict[str, Any]]:
    """Messages with a role and a text each, at least one of them."""
    listed = list(messages) if isinstance(messages, (list, tuple)) or hasattr(messages, "tolist") else []
    usable = [
        turn for turn in listed if isinstance(turn, dict) and turn.get("role") and isinstance(turn.get("content"), str)
    ]
    if not listed or len(usable) != len(listed):
        raise refused(f'messages is {messages!r}. Give a list such as [{{"role": "user", "content": "..."}}].')
    return [{key: value for key, value in turn.items() if value is not None} for turn in usable]


def fill(template: list[dict[str, str]], row: dict[str, Any]) -> list[dict[str, str]]:
    """Put a row's values into the placeholders of a prompt, all at once: a value is never searched for placeholders."""

    def value(found: re.Match[str]) -> str:
        return str(row[found[1]])

    placeholder = re.compile(r"\{\{\s*(" + "|".join(map(re.escape, row)) + r")\s*\}\}")
    return [{"role": turn["role"], "content": placeholder.sub(value, turn["content"])} for turn in template]


def chat_completion(model: str, prompt_tokens: int, candidates: list[Candidate]) -> dict[str, Any]:
    """OpenAI's chat completion."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": candidate.text},
            "finish_reason": candidate.finish_reason,
        }
        for index, candidate in enumerate(candidates)
    ]
    completion_tokens = sum(candidate.completion_tokens for candidate in candidates)
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


def _cells(model_input: Any, column: str, chats: bool = False) -> list[Any]:
    """Values of a column; MLflow turns {"prompt": ["a", "b"]} into one cell that holds the list."""
    cells: list[Any] = []
    given = model_input[column].tolist()
    if chats and all(isinstance(turn, dict) for turn in given):
        return [given]  # {"messages": [turn, turn]} came as one row per turn
    for cell in given:
        several = isinstance(cell, (list, tuple)) or hasattr(cell, "tolist")
        nested = several and not (chats and all(isinstance(turn, dict) for turn in cell))
        cells += list(cell) if nested else [cell]
    return cells


set_model(LanguageModel())
