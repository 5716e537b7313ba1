"""Library verdicts become Dagster events unchanged, and a gate reads the latest verdict of every run."""

import dagster as dg
import pytest

from llm_assets.assets.conventions import Lineage, check_event, table, unmet_checks
from llm_assets.core import CheckResult, Config

LINEAGE = Lineage("m", ("team:ml",))


class Settings(Config):
    rank: int = 8


def test_the_code_version_changes_with_the_settings_and_with_nothing_else():
    def version(rank: int, name: str = "a") -> str:
        decorate = LINEAGE.asset(name, stage="training", kinds={"python"}, version="1", settings=Settings(rank=rank))
        return str(decorate(lambda: None).specs_by_key[LINEAGE.key(name)].code_version)

    assert version(8) == version(8) == version(8, name="b")
    assert version(8) != version(16)


def test_a_failed_verdict_keeps_its_numbers_and_rows():
    event = check_event("loss", CheckResult(False, "rose", {"loss": 2.0}, rows=[{"step": 1, "loss": None}]))

    assert not event.passed
    assert event.severity is dg.AssetCheckSeverity.ERROR
    assert event.metadata["loss"].value == 2.0
    assert event.metadata["rows"].records[0].data == {"step": 1, "loss": ""}


def test_table_cells_of_any_type_become_text_or_numbers():
    records = table([{"a": {"nested": 1}, "b": 2}]).records

    assert records[0].data == {"a": "{'nested': 1}", "b": 2}


def test_table_decimals_are_rounded_for_reading():
    records = table([{"p99": 115.14000000000033, "loss": 0.07431405712904919, "bytes": 1234567}]).records

    assert records[0].data == {"p99": 115.14, "loss": 0.074314, "bytes": 1234567}


@pytest.mark.parametrize(
    ("verdicts", "unmet"),
    [
        ([], ["m/adapter:loss"]),
        ([(True, "ERROR")], []),
        ([(False, "ERROR")], ["m/adapter:loss"]),
        ([(False, "WARN")], []),
        ([(True, "ERROR"), (False, "ERROR")], ["m/adapter:loss"]),
        ([(False, "ERROR"), (True, "ERROR")], []),
    ],
)
def test_a_gate_is_open_only_when_the_latest_verdict_of_every_check_allows_it(verdicts, unmet):
    instance = dg.DagsterInstance.ephemeral()
    for passed, severity in verdicts:
        evaluation = dg.AssetCheckEvaluation(
            asset_key=LINEAGE.key("adapter"),
            check_name="loss",
            passed=passed,
            severity=dg.AssetCheckSeverity(severity),
            metadata={},
        )
        instance.report_runless_asset_event(evaluation)

    assert unmet_checks(instance, [dg.AssetCheckKey(LINEAGE.key("adapter"), "loss")]) == unmet
