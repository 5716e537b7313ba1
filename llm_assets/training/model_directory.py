"""What a directory must hold to be a base model, told from its file names and headers.

Weights are safetensors or nothing: a pickle is a program. The cost is one conversion by hand for old releases.
"""

import json
from pathlib import Path

from llm_assets.core import LLMAssetsError
from llm_assets.training.shards import INDEX, model_entries

TEMPLATE = "chat_template.jinja"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class BaseModelIncomplete(LLMAssetsError):
    """A model directory is missing, or lacks its configuration, weights, tokenizer or chat template."""


class PickledWeights(LLMAssetsError):
    """A model directory's weights are Python pickles."""


def refuse_incomplete(directory: Path) -> None:
    """Refuse a Hugging Face model directory by the name of the first part it lacks.

    Raises:
        BaseModelIncomplete: no such directory, or it has no config, tokenizer, weights or chat template.
        PickledWeights: its only weights are pickles.
        WeightsUnreadable: a weight file is cut short, a Git LFS pointer, or already quantized.
    """
    if not directory.is_dir():
        raise BaseModelIncomplete(
            f"The base model's directory {directory} does not exist. Correct base_model.directory, or fill it."
        )
    for name, why in {"config.json": "the architecture", "tokenizer.json": "the fast tokenizer"}.items():
        if not (directory / name).is_file():
            raise BaseModelIncomplete(
                f"{directory} has no {name}, which holds {why}. Save the model there with save_pretrained."
            )
    absent = [name for name in weight_files(directory) if not (directory / name).is_file()]
    if absent:
        _refuse_pickles(directory, absent[0])
        raise BaseModelIncomplete(f"{directory} has no {absent[0]}. Complete the download, or correct its index.")
    model_entries(directory)  # reads every header
    if chat_template(directory) is None:
        raise BaseModelIncomplete(
            f"{directory} has no chat template, neither {TEMPLATE} nor in tokenizer_config.json. Use the instruct "
            f"variant of this model, or add a {TEMPLATE} whose special tokens the model was trained on."
        )


def _refuse_pickles(directory: Path, absent: str) -> None:
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise PickledWeights(
            f"{directory} has {pickles[0]} and no {absent}. Pickled weights can run any code when they are opened, so "
            "only safetensors are read. Choose a revision that has them, or convert the weights where you trust them: "
            "from_pretrained, then save_pretrained."
        )


def weight_files(directory: Path) -> list[str]:
    """Names of the safetensors files that the directory promises: those of its index, or the single one."""
    if not (directory / INDEX).is_file():
        return ["model.safetensors"]
    return sorted(set(json.loads((directory / INDEX).read_text())["weight_map"].values()))


def chat_template(directory: Path) -> str | None:
    """The model's chat template, from its own file or from `tokenizer_config.json`; None when it has none."""
    if (directory / TEMPLATE).is_file():
        return (directory / TEMPLATE).read_text()
    if not (directory / "tokenizer_config.json").is_file():
        return None
    template = json.loads((directory / "tokenizer_config.json").read_text()).get("chat_template")
    if isinstance(template, list):
        return next((named["template"] for named in template if named["name"] == "default"), None)
    return template or None
