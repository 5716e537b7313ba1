"""Personal data and secrets replaced by typed placeholders, such as `[EMAIL]`, before anything else looks at a row.

Patterns find candidates and validators decide: Luhn for cards and ISO 7064 for IBANs (python-stdnum), numbering plans
for telephones (phonenumbers), the standard library for addresses. So a random digit string stays. Names and postal
addresses are not found: that takes a language model and its errors, and is no regular expression's business.
"""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from llm_assets.core import Config

Kind = Literal["secret", "email", "iban", "credit_card", "ip_address", "phone"]
KINDS: tuple[Kind, ...] = ("secret", "email", "iban", "credit_card", "ip_address", "phone")
TOKEN = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[\s\S]*?(?:-----END (?:[A-Z]+ )*PRIVATE KEY-----|\Z)"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{40,}\b|\bglpat-[\w-]{20,}"  # GitHub, GitLab
    r"|\bsk-(?:proj-|ant-|svcacct-)?[\w-]{20,}|\bhf_[A-Za-z0-9]{30,}\b"  # OpenAI, Anthropic, Hugging Face
    r"|\bxox[abeoprs]-[\w-]{10,}|\bAIza[\w-]{35}|\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}\b"  # Slack, Google, Stripe
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"  # JSON Web Token
)
TOKEN_HINTS = (
    *("-----BEGIN", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-", "hf_"),
    *("xox", "AIza", "k_live", "k_test", "eyJ"),
)
LOGIN = re.compile(r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)")
ASSIGNED = re.compile(
    r"\b(?:api[_-]?key|secret[_-]?key|access[_-]?token|auth[_-]?token|client[_-]?secret|password|passwd)\b"
    r"[\"']?\s*[:=]\s*[\"']?(?P<value>[^\s\"',;]{8,})",
    re.IGNORECASE,
)
ASSIGNED_HINTS = ("apikey", "api_key", "api-key", "secret", "token", "passw")
DIGIT = re.compile(r"\d")
EMAIL = re.compile(
    r"\b[A-Za-z0-9][\w.%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}\b"
)
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?\b")
CARD = re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-]|\.\d)")
IP = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4})(?![\w:]|\.\d)")
PHONE = re.compile(r"(?<![\w.,/-])(?:\+|\(|00)?\d[\d \-().\/\t]{5,22}\d(?![\w-])")


class PIIConfig(Config):
    """Which personal data is replaced in contents, tool calls, tools and kept columns."""

    kinds: tuple[Kind, ...] = Field(default=KINDS, min_length=1, description="What is replaced; all by default.")
    phone_regions: tuple[str, ...] = Field(
        default=("US",),
        description="Countries (ISO 3166) whose national telephone numbers are found; those with + always are.",
    )

    @field_validator("phone_regions")
    @classmethod
    def _known(cls, regions: tuple[str, ...]) -> tuple[str, ...]:
        from phonenumbers import SUPPORTED_REGIONS

        unknown = [region for region in regions if region not in SUPPORTED_REGIONS]
        if unknown:
            raise ValueError(f"phone region {unknown[0]!r} is no ISO 3166 country code. Write DE, US, GB and the like.")
        return regions


class _Finder(NamedTuple):
    """A pattern; whether a text may hold it, at a fraction of its cost; and whether what it found is real."""

    kind: Kind
    pattern: re.Pattern[str]
    may_hold: Callable[[str], bool]
    accepts: Callable[[str], bool] = lambda found: True


class Scrubber:
    """Replaces personal data and counts what it replaced by kind; the same text always becomes the same text."""

    def __init__(self, config: PIIConfig):
        self.counts: Counter[str] = Counter()
        self._finders = [finder for finder in _finders(config.phone_regions) if finder.kind in config.kinds]

    def text(self, text: str) -> str:
        """A text with placeholders such as `[EMAIL]`."""
        for finder in self._finders:
            if finder.may_hold(text):
                text = finder.pattern.sub(partial(self._replace, finder), text)
        return text

    def json_text(self, text: str | None) -> str | None:
        """JSON text whose strings and numbers are scrubbed; keys stay, and so does JSON without a find."""
        if text is None:
            return None
        before = self.counts.total()
        scrubbed = self._value(json.loads(text))
        return json.dumps(scrubbed, ensure_ascii=False) if self.counts.total() > before else text

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Messages with scrubbed contents and tool calls."""
        return [
            {**turn, "content": self.text(turn["content"]), "tool_calls": self.json_text(turn.get("tool_calls"))}
            for turn in messages
        ]

    def _replace(self, finder: _Finder, match: re.Match[str]) -> str:
        found = match.groupdict().get("value") or match[0]
        if not finder.accepts(found):
            return match[0]
        self.counts[finder.kind] += 1
        return match[0][: len(match[0]) - len(found)] + f"[{finder.kind.upper()}]"

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, int) and not isinstance(value, bool):
            scrubbed = self.text(str(value))  # a card number is often written as a number
            return value if scrubbed == str(value) else scrubbed
        return value


def _finders(regions: tuple[str, ...]) -> list[_Finder]:
    """In the order they run: what one has replaced, the next does not see."""
    return [
        _Finder("secret", TOKEN, lambda text: any(hint in text for hint in TOKEN_HINTS)),
        _Finder("secret", LOGIN, lambda text: "://" in text and "@" in text),
        _Finder("secret", ASSIGNED, lambda text: any(hint in text.casefold() for hint in ASSIGNED_HINTS), _is_literal),
        _Finder("email", EMAIL, lambda text: "@" in text),
        _Finder("iban", IBAN, _has_digit, _is_iban),
        _Finder("credit_card", CARD, _has_digit, _is_card),
        _Finder("ip_address", IP, _has_digit, _is_address),
        _Finder("phone", PHONE, _has_digit, lambda found: _is_phone(found, regions)),
    ]


def _has_digit(text: str) -> bool:
    return DIGIT.search(text) is not None


def _is_literal(found: str) -> bool:
    """A value with digits, and no call, index or variable: `os.environ[...]` and `getpass()` are code, not secrets."""
    return _has_digit(found) and not set(found) & set("([{<$")


def _is_iban(found: str) -> bool:
    from stdnum import iban

    return iban.is_valid(found)


def _is_card(found: str) -> bool:
    """Luhn, and a first digit that card networks use."""
    from stdnum import luhn

    digits = re.sub(r"\D", "", found)
    return digits[0] in "23456" and len(set(digits)) > 1 and luhn.is_valid(digits)


def _is_address(found: str) -> bool:
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    if address.version == 6 and sum(map(bool, found.split(":"))) < 3:
        return False  # a::b is C++ more often than an address
    return not (address.is_unspecified or address.is_loopback)  # 0.0.0.0 and 127.0.0.1 are nobody's


@lru_cache(maxsize=4096)
def _is_phone(found: str, regions: tuple[str, ...]) -> bool:
    import phonenumbers

    for region in (None,) if found.startswith("+") else regions:
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(found, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False
