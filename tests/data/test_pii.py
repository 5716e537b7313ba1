"""Personal data becomes a typed placeholder and is counted; what only looks like it stays."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from curated_by_hand import curated, dropped, extras, row
from pydantic import ValidationError

from llm_assets.data import CurationConfig
from llm_assets.data.pii import KINDS, PIIConfig, Scrubber

SECRETS = [
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_" + "a1B2" * 9,
    "sk-proj-" + "Ab3" * 10,
    "xoxb-123456789012-abcdefABCDEF",
    "AIza" + "Sy0_-" * 7,
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
]


def scrubbed(text: str, **config: object) -> str:
    return Scrubber(PIIConfig(**config)).text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail jane.doe+x@mail.example.co.uk, please", "mail [EMAIL], please"),
        ("call +49 30 901820 or +1 (650) 253-0000 now", "call [PHONE] or [PHONE] now"),
        ("call (650) 253-0000 today", "call [PHONE] today"),
        ("pay DE89 3704 0044 0532 0130 00 by noon", "pay [IBAN] by noon"),
        ("IBAN GB82WEST12345698765432.", "IBAN [IBAN]."),
        ("card 4111 1111 1111 1111, exp 12/27", "card [CREDIT_CARD], exp 12/27"),
        ("from 192.168.17.4 and 2001:db8::8a2e:370:7334", "from [IP_ADDRESS] and [IP_ADDRESS]"),
        ("api_key = 'abcd1234efgh'", "api_key = '[SECRET]'"),
        ("postgres://admin:hunter22@db/prod", "postgres://[SECRET]@db/prod"),
        *((f"key {secret} end", "key [SECRET] end") for secret in SECRETS),
    ],
)
def test_each_kind_is_replaced_by_its_placeholder(text: str, expected: str):
    assert scrubbed(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "card 4111 1111 1111 1112 fails Luhn",
        "DE89 3704 0044 0532 0130 01 fails its check digits",
        "version 1.2.3 of 2024-05-17, 12:30:45",
        "pi is 3.14159265358979 and 10,000,000 people",
        "999.999.1.1 is no address, 127.0.0.1 is nobody's",
        "order 12345678901234567890",
        "SELECT a @ b, user@host FROM t WHERE id = 123456",
        "0000 0000 0000 0000",
        "std::vector and a::b",
        'password = input("yours"), api_key=os.environ["KEY1"], password: required',
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str):
    assert scrubbed(text) == text


def test_national_numbers_are_found_for_the_regions_given():
    assert scrubbed("Ruf 030 901820 an", phone_regions=["DE"]) == "Ruf [PHONE] an"
    assert scrubbed("Ruf 030 901820 an", phone_regions=["US"]) == "Ruf 030 901820 an"


def test_only_the_kinds_asked_for_are_replaced():
    assert scrubbed("a@b.org 192.168.1.77", kinds=["email"]) == "[EMAIL] 192.168.1.77"


def test_rows_are_scrubbed_everywhere_and_counted_by_kind(tmp_path: Path):
    calls = '[{"role": "assistant", "content": "", "tool_calls": [{"name": "pay", "arguments": ' + json.dumps(
        {"card": 4111111111111111, "to": "jo@example.org", "amount": 12}
    )
    turns = (
        calls + '}]}, {"role": "tool", "content": "sent to jo@example.org"}, {"role": "assistant", "content": "ok"}]'
    )
    rows = [row("pay jo@example.org", turns, note="ask 192.168.1.77"), row("plain", "text", note=None)]
    chat, report = curated(tmp_path, rows, CurationConfig(pii={}), keep_columns=("note",))
    assert report["pii"] == {"credit_card": 1, "email": 3, "ip_address": 1}
    assert extras(chat)[0] == {"note": "ask [IP_ADDRESS]"}
    messages = pq.read_table(chat / "train.parquet")["messages"][0].as_py()
    arguments = json.loads(messages[1]["tool_calls"])[0]["function"]["arguments"]
    assert arguments == {"card": "[CREDIT_CARD]", "to": "[EMAIL]", "amount": 12}
    assert messages[0]["content"] == "pay [EMAIL]" and messages[2]["content"] == "sent to [EMAIL]"


def test_rows_that_differ_only_in_personal_data_become_equal(tmp_path: Path):
    rows = [row("mail a@example.org"), row("mail b@example.org")]
    assert curated(tmp_path, rows, CurationConfig(pii={}))[1]["dropped"] == {"duplicate": 1}
    assert curated(tmp_path, rows)[1]["dropped"] == {}


def test_dropped_rows_show_no_personal_data(tmp_path: Path):
    rows = [row("", "mail a@example.org"), row("fine")]
    chat, report = curated(tmp_path, rows, CurationConfig(pii={}))
    assert "r0" in dropped(chat) and report["pii"] == {}
    excerpt = pq.read_table(chat / "dropped.parquet")["excerpt"][0].as_py()
    assert "[EMAIL]" in excerpt and "a@example.org" not in excerpt


def test_a_wrong_kind_or_region_is_refused_at_load():
    with pytest.raises(ValidationError, match="secret"):
        PIIConfig(kinds=["name"])
    with pytest.raises(ValidationError, match="phone region 'UK' is no ISO 3166"):
        PIIConfig(phone_regions=["UK"])
    assert PIIConfig().kinds == KINDS
