"""What MLflow runs when it loads a version: the merged model with transformers, from the directory beside this file.

This file is copied into the version and imports nothing of this project, so a consumer needs only its requirements. It
is for trying a version out; for throughput, point an engine at `artifacts/model`.
"""

import json
from typing import Any

from mlflow.models import set_model  # noqa: TID253 - runs inside MLflow
from mlflow.pyfunc.model import PythonModel  # noqa: TID253


class LanguageModel(PythonModel):
    """One completion per prompt. A prompt is a user turn, or a JSON list of chat messages."""

    def load_context(self, context: Any) -> None:
        """Load weights and tokenizer once, on the GPU if there is one."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        directory = context.artifacts["model"]
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype="auto").to(device).eval()  # type: ignore[arg-type]

    # Untyped, because MLflow derives a schema from type hints.
    def predict(self, context, model_input, params=None):  # type: ignore[override]
        """Complete the `prompt` column, row by row, with the version's settings unless `params` says else."""
        cells = model_input["prompt"].tolist()
        # MLflow turns {"prompt": ["a", "b"]} into one cell that holds the list
        prompts = [text for cell in cells for text in ([cell] if isinstance(cell, str) else cell)]
        return [self._complete(prompt, params or {}) for prompt in prompts]

    def _complete(self, prompt: str, params: dict[str, Any]) -> str:
        import torch

        messages = json.loads(prompt) if prompt.lstrip().startswith("[{") else [{"role": "user", "content": prompt}]
        encoded = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        temperature = params.get("temperature", 0.0)
        sampling = {"temperature": temperature, "top_p": params.get("top_p", 1.0)} if temperature else {}
        torch.manual_seed(params.get("seed", 0))
        stop = [text for text in params.get("stop", []) if text]
        with torch.no_grad():
            tokens = self.model.generate(
                **encoded,
                max_new_tokens=params.get("max_new_tokens", 128),
                do_sample=bool(temperature),
                pad_token_id=self.tokenizer.pad_token_id,
                **sampling,
                **({"stop_strings": stop, "tokenizer": self.tokenizer} if stop else {}),
            )[0, encoded["input_ids"].shape[1] :]
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text[: min((text.find(end) for end in stop if end in text), default=None)]


set_model(LanguageModel())
