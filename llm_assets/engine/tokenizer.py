"""What the engine's environment makes of a conversation, asked of a process that loads its tokenizer and no engine."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from llm_assets.core import LLMAssetsError
from llm_assets.data.chat_template import DATE_STRING
from llm_assets.data.template_parity import TokenIds, as_served, rendered
from llm_assets.data.token_samples import Sample
from llm_assets.engine.job import PROJECT_ROOT, engine_python

MODULE = "llm_assets.workers.tokenize"


class EngineTokenizerFailed(LLMAssetsError):
    """The engine environment's transformers cannot load or apply the tokenizer."""


def engine_token_ids(
    python: str | None, tokenizer: Path, samples: Sequence[Sample], model_config: Path | None = None
) -> list[TokenIds]:
    """Token ids of sampled rows and their prompts by the engine environment's transformers.

    Args:
        python: Python of the engine environment; None finds it as `engine_python` does.
        tokenizer: Directory with the tokenizer's files and the template.
        samples: Rows to encode.
        model_config: `config.json` of the model the tokenizer belongs to, which may decide its class.

    Raises:
        EngineEnvironmentMissing: there is no engine environment on this machine.
        EngineTokenizerFailed: the process ended with an error; carries its last lines.
    """
    interpreter = engine_python(python)
    with tempfile.TemporaryDirectory() as scratch, as_served(tokenizer, model_config) as served:
        job, output = Path(scratch) / "job.json", Path(scratch) / "ids.json"
        conversations = [rendered(sample) for sample in samples]
        described = {"tokenizer": str(served), "date_string": DATE_STRING, "conversations": conversations}
        job.write_text(json.dumps({**described, "output": str(output)}))
        done = subprocess.run(
            [str(interpreter), "-m", MODULE, str(job)],
            env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            tail = "\n".join(done.stderr.splitlines()[-10:])
            raise EngineTokenizerFailed(
                f"The engine environment at {interpreter} cannot apply the tokenizer of {tokenizer}, so vLLM could not "
                f"serve the model. Run `make engine-env`, or save the tokenizer with this release. It says:\n{tail}"
            )
        return [TokenIds(row, prompt) for row, prompt in json.loads(output.read_text())]
