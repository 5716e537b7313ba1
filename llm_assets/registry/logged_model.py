"""Fill a logged model: code, weights, card, parameters and metrics, then mark it READY.

`save_model` writes the few code files and MLmodel; the weights are linked or uploaded beside them, which MLmodel is
told by its `artifacts` entry. That entry is MLflow's own format, so a round-trip test guards the pinned version.
"""

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from llm_assets.registry.contents import MODEL_PATH
from llm_assets.registry.model_card import write_model_card
from llm_assets.registry.placement import place
from llm_assets.registry.signature import mlflow_signature

MODEL_CARD = "model_card.md"
REQUIREMENTS = ("mlflow", "torch", "transformers", "accelerate", "compressed-tensors")


@dataclass(frozen=True)
class LoggedModelDraft:
    """A pending logged model: nobody sees it as a version before it is whole."""

    client: Any
    model: Any
    run_id: str

    def fill(
        self,
        placed: Mapping[str, Path],
        write_root: Callable[[Path], None],
        metadata: Mapping[str, Any],
        log: Callable[[str], None],
    ) -> int:
        """Store everything and mark the model READY, or FAILED when that fails; return the bytes stored anew.

        Args:
            placed: Path in the model to the directory stored there.
            write_root: Writes the small files at the model's root, MLmodel among them, into an empty directory; last.
            metadata: As `contents.describe` returns it; its metrics and parameters are recorded.
            log: Receives a line per directory.
        """
        model_id = self.model.model_id
        try:
            copied_bytes = self._store(placed, write_root, log)
            self._record(metadata)
        except BaseException:
            self.client.finalize_logged_model(model_id, "FAILED")
            raise
        self.client.finalize_logged_model(model_id, "READY")
        return copied_bytes

    def _store(self, placed: Mapping[str, Path], write_root: Callable[[Path], None], log: Callable[[str], None]) -> int:
        model_id, location = self.model.model_id, self.model.artifact_location
        copied_bytes = 0
        for path, directory in placed.items():
            started = time.monotonic()
            stored = place(self.client, model_id, location, directory, path)
            copied_bytes += stored
            log(f"stored {path}: {stored:,} bytes written in {time.monotonic() - started:.1f} s")
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch) / "model"
            write_root(root)
            place(self.client, model_id, location, root, None)
        return copied_bytes

    def _record(self, metadata: Mapping[str, Any]) -> None:
        from mlflow.entities import LoggedModelOutput, Metric, Param

        now = int(time.time() * 1000)
        metrics = [
            Metric(key, value, now, 0, model_id=self.model.model_id) for key, value in version_metrics(metadata).items()
        ]
        params = [Param(key, value) for key, value in version_params(metadata).items()]
        self.client.log_batch(self.run_id, metrics=metrics, params=params)
        self.client.log_outputs(self.run_id, models=[LoggedModelOutput(self.model.model_id, step=0)])
        for prompt in metadata["prompts"]:
            link_prompt(self.client, prompt, self.model.model_id)


def link_prompt(client: Any, prompt: Mapping[str, Any], model_id: str) -> None:
    """Attach a prompt version to a logged model; a registry that does not hold the prompt keeps only its text."""
    from mlflow.exceptions import MlflowException

    try:
        client.link_prompt_version_to_model(prompt["name"], str(prompt["version"]), model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def write_code(path: Path, name: str, model: Any, run_id: str, metadata: Mapping[str, Any]) -> None:
    """Write MLmodel, the pyfunc, its requirements and the model card; weights are expected at `artifacts/model`.

    Args:
        path: Directory to make.
        name: Registered name, for the card and for chat completions.
        model: The logged model it becomes.
        run_id: MLflow run.
        metadata: As `contents.describe` returns it.
    """
    import mlflow
    from mlflow.models import Model

    description = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        model_id=model.model_id,
        run_id=run_id,
        prompts=[prompt["uri"] for prompt in metadata["prompts"]] or None,
        metadata=json.loads(json.dumps(metadata)),
    )
    served = metadata["served"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow asks for an input example, which it would run on weights not yet there
        mlflow.pyfunc.save_model(
            path=str(path),
            python_model=str(Path(__file__).with_name("llm_pyfunc.py")),
            mlflow_model=description,
            model_config={"name": name, **served},
            signature=mlflow_signature(
                metadata["generation"], served["task"], served["input_columns"], served["output_columns"]
            ),
            pip_requirements=[f"{name}=={installed_version(name).split('+')[0]}" for name in REQUIREMENTS],
        )
    description.flavors["python_function"]["artifacts"] = {"model": {"path": MODEL_PATH, "uri": MODEL_PATH}}
    description.save(str(path / "MLmodel"))
    (path / MODEL_CARD).write_text(write_model_card(name, metadata))


def copy_root(source: Path, path: Path, model: Any, run_id: str) -> None:
    """Copy the small files at the root of a stored version, with MLmodel telling of the logged model it becomes."""
    from mlflow.models import Model

    path.mkdir()
    for file in source.iterdir():
        if file.is_file():
            shutil.copyfile(file, path / file.name)
    description = Model.load(str(source))
    description.artifact_path, description.run_id = model.artifact_location, run_id
    description.model_id = description.model_uuid = model.model_id
    description.save(str(path / "MLmodel"))


def version_metrics(metadata: Mapping[str, Any]) -> dict[str, float]:
    """Numbers to plot and search by: `merged.execution_accuracy`, `recovery.w4a16`, `training.evaluation_loss`."""
    scoreboard = metadata["scoreboard"]
    lines = {
        f"{candidate}.{name}": value
        for candidate, line in scoreboard["candidates"].items()
        for name, value in line.items()
    }
    kept = {f"recovery.{name}": entry["value"] for name, entry in scoreboard["recovery"].items()}
    training = {f"training.{name}": value for name, value in metadata["training"].items()}
    return {
        name: float(value)
        for name, value in {**lines, **kept, **training}.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def version_params(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Hyper-parameters, generation settings, merge policy and fingerprints as MLflow parameters."""
    groups = {
        "training": metadata["training"].get("parameters", {}),
        "generation": metadata["generation"],
        "merge": {"policy": metadata["merge"].get("policy")},
        "dtype": {
            "preferred": metadata["dtypes"]["preferred"],
            **_flat("serving", metadata),
            **_flat("kv_cache", metadata),
        },
        "prompt": {prompt["name"]: prompt["uri"] for prompt in metadata["prompts"]},
        "fingerprint": metadata["fingerprints"],
    }
    return {f"{group}.{name}": str(value)[:500] for group, values in groups.items() for name, value in values.items()}


def _flat(group: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    return {f"{group}.{variant}": dtype for variant, dtype in metadata["dtypes"][group].items()}
