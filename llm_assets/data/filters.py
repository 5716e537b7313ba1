"""Quality filters: each looks at one conversation and refuses it with a counted reason, or lets it pass.

A filter that the YAML does not name does not run. What a filter measures is what the model would learn: the answers,
unless its description says otherwise. Defaults of a named filter come from published pre-training filters and are
meant to catch damage, not taste.
"""

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Self

import regex
from pydantic import Field, field_validator, model_validator

from llm_assets.core import Config
from llm_assets.data.messages import RowRefused

Messages = Sequence[Mapping[str, Any]]
DAMAGED = regex.compile(r"[\p{Cn}\p{Co}\p{Cs}\uFFFD]|[\p{Cc}--[\t\n\r\f\v]]", regex.V1)
REFUSALS = (  # after the lists by which WizardLM-unfiltered and ShareGPT-unfiltered were cleaned
    r"\bas an? (?:ai|artificial intelligence|large language|language)(?: language)? (?:model|assistant)\b",
    r"\bas an ai\b,",
    r"\bi(?:'|’)?(?:m| am) (?:just |only )?an? (?:ai|artificial intelligence|(?:large )?language model)\b",
    r"\bi(?:'|’)?m (?:really |very |so )?sorry,? but (?:as an|i can(?:no|'|’)t|i(?:'|’)?m (?:not able|unable))\b",
    r"\bi (?:can(?:not|'t|’t)|am (?:not able|unable) to|will not be able to) (?:fulfil|assist|comply|help) ?(?:l )?"
    r"(?:with )?(?:that|this|your) (?:request)?",
    r"\bit is (?:not (?:appropriate|ethical)|against my programming)\b",
    r"\bmy knowledge (?:cutoff|was last updated)\b",
)


def words_of(messages: Messages, *roles: str) -> str:
    """What the given roles say, turn after turn."""
    return "\n".join(turn["content"] for turn in messages if turn["role"] in roles)


def characters(messages: Messages) -> int:
    """Length of a conversation: contents and tool calls."""
    return sum(len(turn["content"]) + len(turn.get("tool_calls") or "") for turn in messages)


class LengthFilter(Config):
    """Bounds on the size of a conversation; each is off until given."""

    min_chars: int | None = Field(default=None, ge=1, description="Shortest conversation in characters.")
    max_chars: int | None = Field(default=None, ge=1, description="Longest conversation in characters.")
    min_answer_chars: int | None = Field(default=None, ge=1, description="Shortest final answer in characters.")
    max_answer_chars: int | None = Field(default=None, ge=1, description="Longest final answer in characters.")
    min_turns: int | None = Field(default=None, ge=2, description="Fewest messages, the system's not counted.")
    max_turns: int | None = Field(default=None, ge=2, description="Most messages, the system's not counted.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for what in ("chars", "answer_chars", "turns"):
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{what} {low} is above max_{what} {high}, which keeps nothing; swap them")
        return self

    def judge(self, messages: Messages) -> None:
        """Raise `RowRefused` with `too_short_chars`, `too_long_answer` and the like."""
        last = messages[-1]
        sizes = {
            "chars": characters(messages),
            "answer_chars": len(last["content"]) + len(last.get("tool_calls") or ""),
            "turns": sum(turn["role"] != "system" for turn in messages),
        }
        for what, size in sizes.items():
            low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            unit = {"chars": "characters", "answer_chars": "characters in the answer", "turns": "messages"}[what]
            if low is not None and size < low:
                raise RowRefused(f"too_short_{what}", f"{size} {unit}, at least {low}")
            if high is not None and size > high:
                raise RowRefused(f"too_long_{what}", f"{size} {unit}, at most {high}")


class LanguageFilter(Config):
    """Languages to keep, told by py3langid: 140 languages, a model of 4 MB inside the package.

    A row is dropped only when the identifier is sure that it is something else: short texts and code stay. It costs
    some 0.3 ms a row, several times all other filters together.
    """

    keep: tuple[str, ...] = Field(min_length=1, description="ISO 639-1 codes, such as en and de.")
    min_confidence: float = Field(
        default=0.8, gt=0, le=1, description="Drop a row only when another language is at least this likely."
    )
    sample_chars: int = Field(default=300, ge=50, description="Characters of users and answers that are looked at.")

    @field_validator("keep")
    @classmethod
    def _known(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        known = _identifier().labels
        unknown = [code for code in keep if code not in known]
        if unknown:
            raise ValueError(f"language {unknown[0]!r} is not among the {len(known)} known: {', '.join(sorted(known))}")
        return keep

    def judge(self, messages: Messages) -> None:
        """Raise `RowRefused` with `language`."""
        text = words_of(messages, "user", "assistant")[: self.sample_chars]
        language, confidence = _identifier().classify(text)
        if language not in self.keep and confidence >= self.min_confidence:
            raise RowRefused("language", f"{language} ({confidence:.0%} sure), keeps {', '.join(self.keep)}")


class CharsetFilter(Config):
    """Bounds on characters outside the expected Unicode scripts, and on the traces of a wrong encoding."""

    scripts: tuple[str, ...] = Field(
        default=(), description="Unicode scripts to expect, such as Latin and Cyrillic; any script when left out."
    )
    max_other_share: float = Field(
        default=0.1, ge=0, lt=1, description="Drop above this share of letters outside the scripts."
    )
    max_damaged_share: float = Field(
        default=0.001,
        ge=0,
        lt=1,
        description="Drop above this share of replacement, control, private-use and unassigned characters.",
    )

    @field_validator("scripts")
    @classmethod
    def _known(cls, scripts: tuple[str, ...]) -> tuple[str, ...]:
        for script in scripts:
            try:
                regex.compile(rf"\p{{Script={script}}}")
            except regex.error:
                raise ValueError(
                    f"script {script!r} is no Unicode script. Write names such as Latin, Cyrillic, Greek, Han, Arabic."
                ) from None
        return scripts

    def judge(self, messages: Messages) -> None:
        """Raise `RowRefused` with `damaged_text` or `script`."""
        text = words_of(messages, "user", "assistant")
        damaged = len(DAMAGED.findall(text))
        if damaged > self.max_damaged_share * len(text):
            raise RowRefused("damaged_text", f"{damaged} of {len(text)} characters are damaged or unprintable")
        if self.scripts and not (text.isascii() and "Latin" in self.scripts):
            letters = sum(map(str.isalpha, text))
            other = len(_other_letters(self.scripts).findall(text))
            if other > self.max_other_share * letters:
                raise RowRefused("script", f"{other} of {letters} letters are not {', '.join(self.scripts)}")


class RepetitionFilter(Config):
    """Bounds on an answer that says the same again and again, as a stuck model or a broken scraper does.

    Shares are of characters, so that a closing brace on many lines is no repetition. MassiveText drops from 0.2 for
    lines (Rae et al. 2021, table A1); these bounds let lists, tables and code pass.
    """

    max_repeated_line_share: float = Field(
        default=0.3, gt=0, le=1, description="Drop above this share of an answer in lines that occurred before."
    )
    run_words: int = Field(default=5, ge=2, description="Words per run.")
    max_repeated_run_share: float = Field(
        default=0.3, gt=0, le=1, description="Drop above this share of an answer's runs that occurred before."
    )
    max_compression_ratio: float = Field(
        default=12, gt=1, description="Drop when zlib makes an answer this many times smaller."
    )
    min_words: int = Field(default=20, ge=1, description="Shorter answers pass: they repeat by chance.")

    def judge(self, messages: Messages) -> None:
        """Raise `RowRefused` with `repeated_lines`, `repeated_runs` or `compressible`."""
        for turn in messages:
            if turn["role"] == "assistant":
                self._judge_answer(turn["content"])

    def _judge_answer(self, text: str) -> None:
        words = text.split()
        if len(words) < self.min_words:
            return
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        runs = [" ".join(words[i : i + self.run_words]) for i in range(len(words) - self.run_words + 1)]
        for reason, parts, most in (
            ("repeated_lines", lines, self.max_repeated_line_share),
            ("repeated_runs", runs, self.max_repeated_run_share),
        ):
            characters_in_all = sum(map(len, parts))
            share = 1 - sum(map(len, set(parts))) / characters_in_all if parts else 0
            if share > most:
                often, times = Counter(parts).most_common(1)[0]
                raise RowRefused(reason, f"{share:.0%} of an answer occurred before, {times} times '{often[:60]}'")
        encoded = text.encode("utf-8", "replace")
        ratio = len(encoded) / len(zlib.compress(encoded, 1))
        if ratio > self.max_compression_ratio:
            raise RowRefused("compressible", f"zlib makes an answer {ratio:.1f} times smaller")


class PhraseFilter(Config):
    """Answers that refuse or speak of being a language model, and phrases of your own."""

    refusals: bool = Field(default=True, description="Drop answers such as 'As an AI language model, …'.")
    patterns: tuple[str, ...] = Field(
        default=(), description="Regular expressions; an answer in which one is found is dropped. Case is ignored."
    )

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern {pattern!r} is no regular expression: {error}. Correct it.") from None
        return patterns

    def judge(self, messages: Messages) -> None:
        """Raise `RowRefused` with `refusal` or `phrase`."""
        text = words_of(messages, "assistant")
        if self.refusals and (found := _any_of(REFUSALS).search(text)):
            raise RowRefused("refusal", f"an answer says '{found[0][:80]}'")
        if self.patterns and (found := _any_of(self.patterns).search(text)):
            raise RowRefused("phrase", f"an answer says '{found[0][:80]}'")


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=8)
def _other_letters(scripts: tuple[str, ...]) -> Any:
    allowed = "".join(rf"\p{{Script={script}}}" for script in (*scripts, "Common", "Inherited"))
    return regex.compile(rf"[\p{{L}}--[{allowed}]]", regex.V1)


@lru_cache(maxsize=8)
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)
