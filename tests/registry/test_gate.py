from typing import Any

import pytest
from pydantic import ValidationError

from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.gate import Exam, gate

CONFIG = RegistryConfig(max_regression=0.05, min_common_rows=10)


def exam(version: str, matches: list[int], first_row: int = 0) -> Exam:
    rows: list[dict[str, Any]] = [
        {"candidate": "merged", "row_id": str(first_row + place), "exact_match": float(match)}
        for place, match in enumerate(matches)
    ]
    line = {"exact_match": sum(matches) / len(matches), "engine": "vllm"}
    return Exam(version, {"primary": "exact_match", "candidates": {"merged": line}}, rows)


def test_the_first_version_needs_only_the_floors():
    assert gate(exam("1", [1, 0]), None, CONFIG).passed


def test_a_value_below_its_floor_is_named_with_what_was_measured():
    result = gate(exam("1", [1, 0]), None, RegistryConfig(min_metrics={"exact_match": 0.8}))
    assert not result.passed and "exact_match is 0.5, 0.8 wanted" in result.summary


def test_a_floor_on_something_not_measured_is_no_pass():
    result = gate(exam("1", [1, 1]), None, RegistryConfig(min_metrics={"execution_accuracy": 0.8}))
    assert not result.passed and "Measured: exact_match" in result.summary


def test_a_version_as_good_or_slightly_worse_replaces_the_one_in_use():
    champion = exam("1", [1] * 18 + [0] * 2)
    assert gate(exam("2", [1] * 18 + [0] * 2), champion, CONFIG).passed
    assert gate(exam("2", [1] * 17 + [0] * 3), champion, CONFIG).passed


def test_a_version_worse_than_allowed_does_not_and_the_numbers_say_why():
    result = gate(exam("2", [1] * 15 + [0] * 5), exam("1", [1] * 18 + [0] * 2), CONFIG)
    assert not result.passed
    assert result.numbers["difference"] == pytest.approx(-0.15)
    assert "against version 1" in result.summary


def test_only_rows_both_answered_are_compared():
    easy_elsewhere = exam("1", [0] * 10 + [1] * 10)
    result = gate(exam("2", [1] * 10, first_row=0), easy_elsewhere, CONFIG)
    assert result.passed and result.numbers == {"common_rows": 10, "difference": 1.0, "low": 1.0, "high": 1.0}


def test_two_different_exams_are_not_compared():
    result = gate(exam("2", [1] * 20, first_row=100), exam("1", [0] * 20), CONFIG)
    assert not result.passed and "min_common_rows" in result.summary
    assert gate(exam("2", [1] * 20, first_row=100), exam("1", [0] * 20), RegistryConfig(min_common_rows=0)).passed


def test_the_version_in_use_passes_against_itself():
    assert gate(exam("1", [0] * 20), exam("1", [1] * 20), CONFIG).passed


@pytest.mark.parametrize("name", ["a/b", "a:b", "catalog.model", "a.b.c.d", ""])
def test_a_name_mlflow_or_a_catalog_would_refuse_is_refused_first(name: str):
    with pytest.raises(ValidationError, match=r"catalog\.schema\.model"):
        RegistryConfig(name=name)


@pytest.mark.parametrize("alias", ["latest", "v3", "with space"])
def test_a_reserved_alias_is_refused(alias: str):
    with pytest.raises(ValidationError, match="Use champion"):
        RegistryConfig(alias=alias)


def test_one_alias_for_both_roles_is_refused():
    with pytest.raises(ValidationError, match="without the gate"):
        RegistryConfig(alias="champion", challenger_alias="champion")


def test_a_variant_the_lineage_does_not_make_is_refused_with_those_it_makes():
    with pytest.raises(ValueError, match=r"lists fp8, which .* Choose from: w4a16"):
        RegistryConfig(variants=("fp8",)).chosen_variants(("w4a16",))
    assert RegistryConfig().chosen_variants(("w4a16",)) == ("w4a16",)


def test_the_registered_name_is_the_lineages_unless_given():
    assert RegistryConfig().registered_name("orders") == "orders"
    assert RegistryConfig(name="prod.sql.orders").registered_name("orders") == "prod.sql.orders"
