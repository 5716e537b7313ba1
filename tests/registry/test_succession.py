"""Who gets the alias: newest past the gate, one a person asks for, or nobody new."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from published_lineage import write_evaluation

from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.contents import VersionSources
from llm_assets.registry.evidence import NotPromoted
from llm_assets.registry.history import history_rows, read_history
from llm_assets.registry.promote import current
from llm_assets.registry.register import register_version
from llm_assets.registry.succession import Throne
from llm_assets.registry.tracking_store import TrackingStore
from llm_assets.registry.versions import RegisteredVersion, VersionUnknown, load_version

GOOD, BETTER, BAD = [1] * 15 + [0] * 5, [1] * 20, [1] * 5 + [0] * 15
Register = Callable[[Sequence[int]], str]


@pytest.fixture
def register(store: TrackingStore, sources: VersionSources, tmp_path: Path) -> Register:
    def register_one(matches: Sequence[int]) -> str:
        evaluation = write_evaluation(tmp_path / f"evaluation{len(list(tmp_path.iterdir()))}", matches)
        made = dataclasses.replace(sources, evaluation=evaluation)
        return register_version("orders", made, store, {}, lambda _: None).version

    return register_one


@pytest.fixture
def throne(store: TrackingStore) -> Throne:
    return Throne(
        "orders", "champion", RegistryConfig(), store, ["orders/evaluation:beats_base"], {"dagster.run_id": "r"}
    )


def load(throne: Throne, version: str) -> RegisteredVersion:
    return load_version("orders", version, throne.store.tracking_uri)


def test_a_promoted_version_carries_the_verdict_the_checks_and_the_run(throne: Throne, register: Register):
    throne.succeed(register(GOOD))
    throne.succeed(register(BETTER))
    evidence = load(throne, "2").require_promoted()
    assert evidence.passed and evidence.kind == "gate" and evidence.compared_with == "1"
    assert evidence.numbers["difference"] == 0.25 and "against version 1" in evidence.summary
    assert list(evidence.checks) == ["orders/evaluation:beats_base"] and evidence.origin == {"dagster.run_id": "r"}
    client = throne.store.client()
    run_id = client.get_model_version("orders", "2").run_id
    assert [entry.path for entry in client.list_artifacts(run_id, "gate")] == ["gate/orders-2.json"]


def test_a_refused_challenger_leaves_the_version_in_use_and_its_record_alone(throne: Throne, register: Register):
    before = throne.succeed(register(BETTER)).promotion
    refused = throne.succeed(register(BAD), recorded="1")
    assert refused.kind == "refused" and not refused.verdict.passed
    assert refused.promotion == before and current("orders", "champion", throne.store) == "1"
    assert load(throne, "champion").require_promoted().passed
    with pytest.raises(NotPromoted, match=r"orders version 2 has no passed gate.*Materialize champion"):
        load(throne, "2").require_promoted()


def test_going_back_is_asked_for_by_number_and_stays(throne: Throne, register: Register):
    throne.succeed(register(GOOD))
    throne.succeed(register(BETTER))
    back = throne.succeed("2", requested="1", recorded="2")
    assert back.kind == "rolled back" and back.promotion is not None
    assert (back.promotion.version, back.promotion.previous_version) == ("1", "2")
    evidence = load(throne, "1").require_promoted()
    assert evidence.kind == "rollback" and evidence.summary.startswith("Version 1 is in use again, as asked for.")
    assert list(evidence.checks) == ["orders/evaluation:beats_base"]
    again = throne.succeed("2", recorded="1")
    assert again.kind == "refused" and "was rolled back to version 1" in again.verdict.summary
    assert current("orders", "champion", throne.store) == "1"
    assert throne.succeed(register([*BETTER[:-1], 0]), recorded="1").kind == "promoted"


def test_a_version_that_was_rolled_back_returns_when_asked_for(throne: Throne, register: Register):
    throne.succeed(register(GOOD))
    throne.succeed(register(BETTER))
    throne.succeed("2", requested="1", recorded="2")
    assert throne.succeed("2", requested="2", recorded="1").kind == "rolled back"
    assert throne.succeed("2", recorded="2").kind == "unchanged"


def test_an_alias_moved_by_hand_is_taken_as_asked_for(throne: Throne, register: Register):
    throne.succeed(register(GOOD))
    throne.succeed(register(BETTER))
    throne.store.client().set_registered_model_alias("orders", "champion", "1")
    moved = throne.succeed("2", recorded="2")
    assert moved.kind == "rolled back" and moved.promotion is not None
    assert (moved.promotion.version, moved.promotion.previous_version) == ("1", "2")
    assert throne.succeed("2", recorded="1").kind == "refused"


def test_an_alias_moved_by_hand_to_a_version_the_gate_refuses_is_not_taken(throne: Throne, register: Register):
    throne.succeed(register(BETTER))
    register(BAD)
    throne.store.client().set_registered_model_alias("orders", "champion", "2")
    refused = throne.succeed("2", recorded="1")
    assert refused.kind == "refused" and refused.promotion is not None and refused.promotion.version == "1"


def test_asking_for_a_version_that_never_passed_runs_the_gate(throne: Throne, register: Register):
    throne.succeed(register(BETTER))
    register(BAD)
    assert throne.succeed("2", requested="2", recorded="1").kind == "refused"
    with pytest.raises(VersionUnknown, match=r"Versions: \[1, 2\]"):
        throne.succeed("2", requested="7", recorded="1")


def test_an_older_version_that_passes_when_asked_for_does_not_take_the_newest_ones_checks(
    throne: Throne, register: Register
):
    register(BETTER)
    throne.succeed(register(GOOD))
    assert throne.succeed("2", requested="1", recorded="2").kind == "rolled back"
    assert load(throne, "1").require_promoted().checks == []
    assert throne.was_promoted("2") and not throne.was_promoted(register(BAD))


def test_a_run_that_died_after_moving_the_alias_is_no_person(throne: Throne, register: Register):
    throne.succeed(register(GOOD))
    throne.succeed(register(BETTER), recorded="1")  # killed here: the record still says 1
    assert throne.asked(None, "1") is None
    again = throne.succeed(register(BAD), recorded="1")
    assert (again.candidate, again.kind) == ("3", "refused") and again.promotion is not None
    assert (again.promotion.version, again.promotion.previous_version) == ("2", "1")
    assert load(throne, "2").require_promoted().kind == "gate"
    throne.succeed("3", requested="1", recorded="2")
    throne.store.client().set_registered_model_alias("orders", "champion", "2")
    assert throne.asked(None, "1") == "2"  # it was rolled back since: a person brings it back


def test_without_a_version_in_use_a_refusal_leaves_none(throne: Throne, register: Register, store: TrackingStore):
    strict = dataclasses.replace(throne, config=RegistryConfig(min_metrics={"exact_match": 0.9}))
    refused = strict.succeed(register(BAD))
    assert refused.promotion is None and "0.9 wanted" in refused.verdict.summary


def test_a_version_promoted_before_evidence_was_kept_gets_it_when_looked_at_again(throne: Throne, register: Register):
    version = register(GOOD)
    throne.store.client().set_registered_model_alias("orders", "champion", version)
    assert throne.succeed(version, recorded=version).kind == "unchanged"
    assert load(throne, version).require_promoted().passed


def test_the_history_tells_scores_verdicts_and_aliases_newest_first(throne: Throne, register: Register):
    throne.succeed(register(GOOD))
    throne.succeed(register(BETTER))
    throne.succeed("2", requested="1", recorded="2")
    register(BAD)
    rows = history_rows(read_history("orders", throne.store))
    assert [(row["version"], row["gate"]) for row in rows] == [
        (3, "not promoted"),
        (2, "rolled back to 1"),
        (1, "in use again"),
    ]
    assert rows[2]["aliases"] == "champion" and rows[1]["exact_match"] == 1.0
    assert rows[2]["low"] < 0.75 < rows[2]["high"]
    assert read_history("nobody", throne.store) == []
