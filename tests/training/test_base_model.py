import json
import shutil
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from llm_assets.training.base_checks import supported_architecture
from llm_assets.training.base_model import (
    BaseModelConfig,
    BaseModelConfigInvalid,
    BuilderMissing,
    prepare_base_model,
)
from llm_assets.training.hub_snapshot import HubDownloadFailed
from llm_assets.training.model_directory import BaseModelIncomplete, PickledWeights
from llm_assets.training.own_code import runs_own_code
from llm_assets.training.shards import WeightsUnreadable

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def quiet(_: str) -> None:
    """Swallow progress."""


BUILDER = """
import pathlib, shutil

def build(out, seed, log):
    shutil.copytree(pathlib.Path(__file__).with_name("source"), out, dirs_exist_ok=True)
    (out / "seed.txt").write_text(str(seed))
"""


@pytest.fixture
def source(tiny_base, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "source"))


@pytest.fixture
def out(tmp_path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "none of hub, directory and builder"),
        ({"directory": "/m", "builder": "a:b"}, "directory and builder"),
        ({"hub": "a/b"}, "commits/main"),
        ({"hub": "a/b", "revision": "main"}, "'main'"),
        ({"hub": "a/b", "revision": COMMIT[:12]}, COMMIT[:12]),
        ({"directory": "/m", "revision": COMMIT}, "not a directory"),
        ({"builder": "not a path"}, "module:function"),
        ({"directory": "/m", "trust_remote_code": True}, "trust_remote_code .* the base is a directory"),
        ({"hub": "a/b", "trust_remote_code": True}, "commits/main"),
    ],
)
def test_a_source_that_is_not_exactly_one_pinned_one_is_refused_with_a_remedy(settings, named):
    with pytest.raises((BaseModelConfigInvalid, ValidationError), match=named):
        BaseModelConfig(**settings)


def test_a_directory_is_copied_without_what_does_not_belong_to_the_model(source, out):
    (source / "optimizer.pt").write_bytes(b"x")
    prepare_base_model(BaseModelConfig(directory=source), out, quiet)
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert not (out / "optimizer.pt").exists()


def test_preparing_twice_gives_the_same_files(source, out, tmp_path):
    (tmp_path / "again").mkdir()
    for directory in (out, tmp_path / "again"):
        prepare_base_model(BaseModelConfig(directory=source), directory, quiet)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()
    }


def test_a_template_kept_in_the_tokenizer_config_becomes_a_file(source, out):
    template = (source / "chat_template.jinja").read_text()
    (source / "chat_template.jinja").unlink()
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    prepare_base_model(BaseModelConfig(directory=source), out, quiet)
    assert (out / "chat_template.jinja").read_text() == template


def test_stop_tokens_missing_from_the_source_come_from_its_config(source, out):
    (source / "generation_config.json").unlink()
    prepare_base_model(BaseModelConfig(directory=source), out, quiet)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_directory_without_a_part_is_refused_by_the_name_of_the_part(source, out, lost):
    (source / lost).unlink()
    with pytest.raises(BaseModelIncomplete, match=lost):
        prepare_base_model(BaseModelConfig(directory=source), out, quiet)


def test_a_lost_shard_is_refused_by_name(source, out):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    (source / "model.safetensors").rename(source / "model-00001-of-00002.safetensors")
    with pytest.raises(BaseModelIncomplete, match="model-00002-of-00002"):
        prepare_base_model(BaseModelConfig(directory=source), out, quiet)


def test_a_model_without_chat_template_is_refused_with_both_ways_out(source, out):
    (source / "chat_template.jinja").unlink()
    with pytest.raises(BaseModelIncomplete, match=r"instruct variant.*or add a chat_template.jinja"):
        prepare_base_model(BaseModelConfig(directory=source), out, quiet)


def test_a_model_of_pickles_alone_is_refused(source, out):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(PickledWeights, match=r"pytorch_model\.bin and no model\.safetensors.*can run any code"):
        prepare_base_model(BaseModelConfig(directory=source), out, quiet)


def test_pickles_beside_safetensors_are_left_behind(source, out):
    (source / "pytorch_model.bin").write_bytes(b"x")
    prepare_base_model(BaseModelConfig(directory=source), out, quiet)
    assert not (out / "pytorch_model.bin").exists()


def test_a_weight_file_cut_short_is_refused(source, out):
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(WeightsUnreadable, match=f"{len(whole) - 100:,} of {len(whole):,} bytes"):
        prepare_base_model(BaseModelConfig(directory=source), out, quiet)


RAN_OWN_CODE = """
from pathlib import Path
from transformers import LlamaForCausalLM

Path(__file__).parent.joinpath("ran").touch()

class OwnLlama(LlamaForCausalLM):
    own = True
"""


@pytest.fixture
def with_code(source) -> Path:
    """A Llama whose repository brings a class of its own."""
    settings = json.loads((source / "config.json").read_text())
    calls = {"AutoModelForCausalLM": "modeling_own.OwnLlama"}
    (source / "config.json").write_text(json.dumps(settings | {"auto_map": calls}))
    (source / "modeling_own.py").write_text(RAN_OWN_CODE)
    return source


def test_code_of_a_repository_is_left_out_unless_the_lineage_trusts_it(with_code, out):
    from llm_assets.training.adapted_model import load_base

    lines = []
    prepare_base_model(BaseModelConfig(directory=with_code), out, lines.append)
    assert not list(out.glob("*.py"))
    assert not runs_own_code(out)
    assert "config.json called code of the repository" in lines[-1]
    assert not hasattr(load_base(out, "lora", "float32", device="cpu"), "own")


def test_trusted_code_of_a_pinned_repository_is_trained_with(with_code, out, tmp_path, monkeypatch):
    from llm_assets.training.adapted_model import load_base

    cache = tmp_path / "hub"
    shutil.copytree(with_code, cache / "models--acme--tiny" / "snapshots" / COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    prepare_base_model(BaseModelConfig(hub="acme/tiny", revision=COMMIT, trust_remote_code=True), out, quiet)
    assert supported_architecture(out).passed
    assert load_base(out, "lora", "float32", device="cpu").own


def test_a_missing_directory_is_refused(tmp_path, out):
    with pytest.raises(BaseModelIncomplete, match="does not exist"):
        prepare_base_model(BaseModelConfig(directory=tmp_path / "nowhere"), out, quiet)


def test_a_builder_gets_the_directory_and_the_seed(source, out, monkeypatch):
    (source.parent / "some_builder.py").write_text(BUILDER)
    monkeypatch.syspath_prepend(source.parent)
    prepare_base_model(BaseModelConfig(builder="some_builder:build", seed=3), out, quiet)
    assert (out / "seed.txt").read_text() == "3"


@pytest.mark.parametrize("path", ["llm_assets.nowhere:build", "llm_assets.core:build"])
def test_a_builder_that_cannot_be_imported_is_refused(out, path):
    with pytest.raises(BuilderMissing, match=path):
        prepare_base_model(BaseModelConfig(builder=path), out, quiet)


def test_a_cached_snapshot_is_used_without_network(source, out, tmp_path, monkeypatch):
    cache = tmp_path / "hub"
    shutil.copytree(source, cache / "models--acme--tiny" / "snapshots" / COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    prepare_base_model(BaseModelConfig(hub="acme/tiny", revision=COMMIT), out, quiet)
    assert (out / "model.safetensors").exists()


def test_a_snapshot_that_is_not_cached_is_refused_offline(out, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubDownloadFailed, match=r"acme/tiny at revision 0123.*base_model.directory"):
        prepare_base_model(BaseModelConfig(hub="acme/tiny", revision=COMMIT), out, quiet)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [("GatedRepoError", "Accept its terms"), ("RevisionNotFoundError", "Correct"), ("HfHubHTTPError", "Try again")],
)
def test_every_refusal_of_the_hub_names_its_remedy(out, monkeypatch, error, remedy):
    from huggingface_hub import errors

    def refuse(local_files_only=False, **_):
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not cached")
        raise getattr(errors, error)("no", response=httpx.Response(403, request=httpx.Request("GET", "https://hub")))

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(HubDownloadFailed, match=remedy):
        prepare_base_model(BaseModelConfig(hub="acme/tiny", revision=COMMIT), out, quiet)
