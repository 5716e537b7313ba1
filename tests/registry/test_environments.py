import json
from pathlib import Path

import pytest
from published_lineage import empty_database
from pydantic import ValidationError

from llm_assets.core import CheckResult
from llm_assets.registry.config import RegistryConfig
from llm_assets.registry.contents import VersionSources
from llm_assets.registry.copying import copy_version
from llm_assets.registry.environments import EnvironmentConfig
from llm_assets.registry.evidence import Evidence, write_evidence
from llm_assets.registry.register import register_version
from llm_assets.registry.registration import Registered
from llm_assets.registry.tracking_store import RegistryNameInvalid, TrackingStore, redacted
from llm_assets.registry.versions import RegisteredVersion, load_version


@pytest.fixture
def promoted(store: TrackingStore, sources: VersionSources) -> RegisteredVersion:
    """Version 1 in dev, past its gate."""
    register_version("dev.sql.orders", sources, store, {"dagster.run_id": "r1"}, lambda _: None)
    write_evidence(store, "dev.sql.orders", "1", Evidence.of(CheckResult(True, "as good as 0"), "0", ["a:b"], {}))
    return load_version("dev.sql.orders", "1", store.tracking_uri)


@pytest.fixture
def elsewhere(tmp_path: Path) -> TrackingStore:
    """Another registry, with artifacts of its own."""
    (tmp_path / "prod").mkdir()
    (tmp_path / "prod/mlflow.db").write_bytes(empty_database())
    return TrackingStore(f"sqlite:///{tmp_path}/prod/mlflow.db", str(tmp_path / "prod/artifacts"))


def copied(source: RegisteredVersion, origin: TrackingStore, name: str, target: TrackingStore) -> Registered:
    return copy_version(source, origin, name, target, lambda _: None)


def test_within_a_registry_a_copy_shares_the_files_and_carries_the_evidence(
    promoted: RegisteredVersion, store: TrackingStore
):
    made = copied(promoted, store, "prod.sql.orders", store)
    loaded = load_version("prod.sql.orders", made.version, store.tracking_uri)
    assert (made.version, made.copied_bytes, loaded.directory) == ("1", 0, promoted.directory)
    assert json.loads(loaded.tags["llm_assets.origin_gate"])["summary"] == "as good as 0"
    assert loaded.tags["llm_assets.copied_from"] == "models:/dev.sql.orders/1"
    assert loaded.tags["dagster.run_id"] == "r1"
    assert loaded.evidence is None  # its own gate has not seen it
    assert promoted.evidence is not None


def test_a_copy_never_shows_the_gate_of_where_it_comes_from_even_if_its_process_dies(
    promoted: RegisteredVersion, store: TrackingStore, monkeypatch: pytest.MonkeyPatch
):
    import mlflow

    def died(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    for later in ("set_model_version_tag", "delete_model_version_tag"):
        monkeypatch.setattr(mlflow.MlflowClient, later, died)
    made = copied(promoted, store, "prod.sql.orders", store)
    loaded = load_version("prod.sql.orders", made.version, store.tracking_uri)
    assert loaded.evidence is None and loaded.tags["llm_assets.identity"] == promoted.tags["llm_assets.identity"]
    description = store.client().get_model_version("dev.sql.orders", "1").description
    assert description and store.client().get_model_version("prod.sql.orders", "1").description == description


def test_into_another_registry_the_files_are_linked_and_the_version_stands_on_its_own(
    promoted: RegisteredVersion, store: TrackingStore, elsewhere: TrackingStore
):
    made = copied(promoted, store, "prod.sql.orders", elsewhere)
    loaded = load_version("prod.sql.orders", made.version, elsewhere.tracking_uri)
    assert made.copied_bytes == 0 and loaded.directory != promoted.directory
    assert loaded.model_directory.joinpath("model.safetensors").samefile(promoted.model_directory / "model.safetensors")
    assert loaded.metadata == promoted.metadata
    assert str(store.registry_uri) in loaded.tags["llm_assets.copied_from"]
    store.client().delete_registered_model("dev.sql.orders")
    import mlflow

    elsewhere.client()
    info = mlflow.models.get_model_info("models:/prod.sql.orders/1")
    assert info.model_id == made.model_id != promoted.model_id
    metrics = elsewhere.client().get_logged_model(made.model_id).metrics
    assert {metric.key: metric.value for metric in metrics or []}["merged.exact_match"] == 0.9


@pytest.mark.parametrize("across", [False, True])
def test_copying_again_makes_no_second_version(
    promoted: RegisteredVersion, store: TrackingStore, elsewhere: TrackingStore, across: bool
):
    target = elsewhere if across else store
    first, again = (copied(promoted, store, "prod.sql.orders", target) for _ in range(2))
    assert first.created and not again.created and first.version == again.version == "1"


def test_a_catalog_takes_only_names_of_three_parts(store: TrackingStore, promoted: RegisteredVersion):
    catalog = TrackingStore(store.tracking_uri, store.artifact_root, "databricks-uc")
    with pytest.raises(RegistryNameInvalid, match=r"'orders' cannot .* main\.default\.orders"):
        copied(promoted, store, "orders", catalog)


def test_an_environment_without_a_registry_of_its_own_uses_the_lineages(store: TrackingStore):
    assert EnvironmentConfig(label="staging", name="staging_orders").store(store) == store
    placed = EnvironmentConfig(label="staging", name="staging_orders", artifact_root="s3://prod/models").store(store)
    assert (placed.tracking_uri, placed.artifact_root) == (store.tracking_uri, "s3://prod/models")
    other = EnvironmentConfig(label="prod", name="orders", tracking_uri="http://mlflow.prod:5000").store(store)
    assert other.tracking_uri == other.registry_uri == "http://mlflow.prod:5000"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://u:p/w@h/db", "postgresql://h/db"),
        ("postgresql://u:p@w@h/db", "postgresql://h/db"),
        ("postgresql://h/db?user=u&password=secret", "postgresql://h/db?user=u&password=…"),
        ("no answer from http://u:p@h:5000: refused", "no answer from http://h:5000: refused"),
        ("http://h:5000/a@b", "http://h:5000/a@b"),
        ("s3://lake/day@1/x", "s3://lake/day@1/x"),
        ("postgresql://h/db?sslkey=/keys/a", "postgresql://h/db?sslkey=/keys/a"),
    ],
)
def test_a_uri_is_shown_without_what_is_secret_and_whole_otherwise(uri: str, shown: str):
    assert redacted(uri) == redacted(redacted(uri)) == shown


def test_an_environment_with_a_bad_name_a_password_or_a_label_twice_is_refused():
    with pytest.raises(ValidationError, match=r"environments\.name 'a/b'"):
        EnvironmentConfig(label="prod", name="a/b")
    with pytest.raises(ValidationError, match=r"http://mlflow carries a password.*MLFLOW_TRACKING_PASSWORD") as refused:
        EnvironmentConfig(label="prod", name="orders", tracking_uri="http://me:secret@mlflow")
    assert "secret" not in str(refused.value).split("[type=")[0]
    twice = [{"label": "prod", "name": "a"}, {"label": "prod", "name": "b"}]
    with pytest.raises(ValidationError, match="label prod twice"):
        RegistryConfig.model_validate({"environments": twice})
