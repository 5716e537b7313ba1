"""Fill a logged model: code, weights, card, parameters and metrics, then mark it READY.

`save_model` writes the few code files and MLmodel; the weights are linked or uploaded beside them, which MLmodel is
told by its `artifacts` entry. That entry is MLflow's own format, so a round-trip test guards the pinned version.
"""

import json
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from llm_assets.registry.contents import MODEL_PATH, VersionSources
from llm_assets.registry.model_card import write_model_card
from llm_assets.registry.placement import place

MODEL_CARD = "model_card.md"
REQUIREMENTS = ("mlflow", "torch", "transformers", "accelerate", "compressed-tensors")


@dataclass(frozen=True)
class LoggedModelDraft:
    """A pending logged model: nobody sees it as a version before it is whole."""

    client: Any
    model: Any
    run_id: str

    def fill(self, name: str, sources: VersionSources, metadata: Mapping[str, Any], log: Callable[[str], None]) -> int:
        """Store everything and mark the model READY, or FAILED when that fails; return the bytes stored anew."""
        model_id = self.model.model_id
        try:
            copied_bytes = self._store(name, sources, metadata, log)
            self._record(metadata)
        except BaseException:
            self.client.finalize_logged_model(model_id, "FAILED")
            raise
        self.client.finalize_logged_model(model_id, "READY")
        return copied_bytes

    def _store(
        self, name: str, sources: VersionSources, metadata: Mapping[str, Any], log: Callable[[str], None]
    ) -> int:
        model_id, location = self.model.model_id, self.model.artifact_location
        copied_bytes = 0
        for path, directory in sources.placed().items():
            copied_bytes += place(self.client, model_id, location, directory, path)
            log(f"stored {path}")
        with tempfile.TemporaryDirectory() as scratch:
            code = write_code(Path(scratch) / "model", self.model, self.run_id, metadata)
            (code / MODEL_CARD).write_text(write_model_card(name, metadata))
            place(self.client, model_id, location, code, None)
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


def write_code(path: Path, model: Any, run_id: str, metadata: Mapping[str, Any]) -> Path:
    """Write MLmodel, the pyfunc and its requirements; weights are expected at `artifacts/model` beside them."""
    import mlflow
    from mlflow.models import Model

    description = Model(
        artifact_path=model.artifact_location,
        model_uuid=model.model_id,
        model_id=model.model_id,
        run_id=run_id,
        metadata=json.loads(json.dumps(metadata)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow asks for an input example, which it would run on weights not yet there
        mlflow.pyfunc.save_model(
            path=str(path),
            python_model=str(Path(__file__).with_name("llm_pyfunc.py")),
            mlflow_model=description,
            signature=generation_signature(metadata["generation"]),
            pip_requirements=[f"{name}=={installed_version(name).split('+')[0]}" for name in REQUIREMENTS],
        )
    description.flavors["python_function"]["artifacts"] = {"model": {"path": MODEL_PATH, "uri": MODEL_PATH}}
    description.save(str(path / "MLmodel"))
    return path


def generation_signature(generation: Mapping[str, Any]) -> Any:
    """One `prompt` column; the generation settings are the parameters' defaults, passed to every predict."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    kinds = {"temperature": "double", "top_p": "double", "max_new_tokens": "long", "seed": "long"}
    params = [ParamSpec(key, kind, generation[key]) for key, kind in kinds.items()]
    params.append(ParamSpec("stop", "string", list(generation["stop"]), shape=(-1,)))
    columns = Schema([ColSpec("string", "prompt")])
    return ModelSignature(inputs=columns, outputs=Schema([ColSpec("string")]), params=ParamSchema(params))


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
        "fingerprint": metadata["fingerprints"],
    }
    return {f"{group}.{name}": str(value)[:500] for group, values in groups.items() for name, value in values.items()}
