"""Compressed-tensors checkpoints by llm-compressor: one recipe per scheme, and the same bytes from the same inputs.

`lm_head` stays in 16 bits in every recipe: its error reaches the logits undamped. The published files hold no path and
no time, so a rerun gives the same bytes. GPTQ is the slow one: minutes for 0.5 B parameters on a CPU.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from llm_assets.core import LLMAssetsError
from llm_assets.quantization.config import QuantizationConfig

PRESETS = {
    "fp8_dynamic": "FP8_DYNAMIC",
    "fp8_static": "FP8",
    "int8_w8a8": "W8A8",
    "nvfp4": "NVFP4",
    "nvfp4a16": "NVFP4A16",
    "mxfp4": "MXFP4",
}
SECONDS_BETWEEN_LINES = 5.0


class GroupSizeUnfit(LLMAssetsError):
    """A layer's input width is not a multiple of the scheme's group size."""


def refuse_unfit_groups(merged: Path, config: QuantizationConfig) -> None:
    """Read layer shapes from the file headers and refuse a group size that does not divide an input width.

    Raises:
        GroupSizeUnfit: names the layers, their width and what to use instead.
    """
    group_size = config.weights_per_scale
    if group_size is None:
        return
    unfit = {name: width for name, width in _linear_widths(merged).items() if width % group_size}
    if not unfit:
        return
    smaller = [size for size in (64, 32) if size < group_size and not any(width % size for width in unfit.values())]
    remedy = f"group_size: {smaller[0]}, or " if config.scheme == "w4a16" and smaller else ""
    name, width = next(iter(unfit.items()))
    raise GroupSizeUnfit(
        f"{config.scheme} shares one scale over {group_size} weights, but {name} has {width} inputs "
        f"({len(unfit)} such layers). Use {remedy}a scheme with one scale per channel such as fp8_dynamic or int8_w8a8."
    )


def _linear_widths(merged: Path) -> dict[str, int]:
    """Input width of every two-dimensional weight but embeddings and head, by tensor name."""
    widths = {}
    for shard in sorted(merged.glob("*.safetensors")):
        with shard.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            skipped = name == "__metadata__" or "embed" in name or "lm_head" in name
            if not skipped and len(tensor["shape"]) == 2:
                widths[name] = tensor["shape"][1]
    return widths


def compress(
    merged: Path, calibration: pa.Table | None, out: Path, config: QuantizationConfig, log: Callable[[str], None]
) -> None:
    """Write the compressed-tensors checkpoint of a merged model: weights, config.json and recipe.yaml.

    Args:
        merged: Hugging Face directory, 16-bit weights.
        calibration: Rows of `calibration_set`, or none for a scheme that needs no activations.
        out: Existing empty directory.
        config: The variant.
        log: Receives a line at most every few seconds.
    """
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(config.seed)
    # Loaded into main memory: llm-compressor moves one layer at a time to the accelerator, whatever the model's size.
    model = AutoModelForCausalLM.from_pretrained(merged, dtype="auto")
    with _forwarded_progress(log):
        _oneshot(model, calibration, config)
    model.config._name_or_path = ""
    model.save_pretrained(out, save_compressed=True)
    _normalize_recipe(out / "recipe.yaml")


def _oneshot(model: Any, calibration: pa.Table | None, config: QuantizationConfig) -> None:
    from llmcompressor import oneshot

    _allow_awq_without_accelerator()
    arguments: dict[str, Any] = {}
    if calibration is not None:
        from datasets import Dataset

        arguments = {
            "dataset": Dataset.from_dict({"input_ids": calibration["input_ids"].to_pylist()}),
            "num_calibration_samples": calibration.num_rows,
            "max_seq_length": max(calibration["input_ids"].combine_chunks().value_lengths().to_pylist()),
            "shuffle_calibration_samples": False,
        }
    oneshot(model=model, recipe=recipe(config), **arguments)


def recipe(config: QuantizationConfig) -> list[Any]:
    """The llm-compressor modifiers of a variant, in the order they apply."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier, SmoothQuantModifier

    common: dict[str, Any] = {"ignore": ["lm_head"]}
    if config.kv_cache:
        common["kv_cache_scheme"] = {
            "num_bits": 8,
            "type": "float",
            "strategy": "tensor",
            "dynamic": False,
            "symmetric": True,
        }
    if config.weight_method == "awq":
        return [AWQModifier(duo_scaling="both"), QuantizationModifier(**_grouped("W4A16_ASYM", config), **common)]
    if config.scheme == "w4a16":
        return [GPTQModifier(**_grouped("W4A16", config), **common)]
    if config.scheme == "int8_w8a8":
        smooth = SmoothQuantModifier(smoothing_strength=0.8)
        return [smooth, GPTQModifier(targets=["Linear"], scheme="W8A8", **common)]
    return [QuantizationModifier(targets=["Linear"], scheme=PRESETS[config.scheme], **common)]


def _grouped(preset: str, config: QuantizationConfig) -> dict[str, Any]:
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(preset, ["Linear"])
    assert scheme.weights is not None
    weights = scheme.weights.model_copy(update={"group_size": config.weights_per_scale})
    return {"config_groups": {"group_0": scheme.model_copy(update={"weights": weights})}}


def _allow_awq_without_accelerator() -> None:
    """Make AWQ's cache pinning a no-op where there is no accelerator to pin memory for; it raises there otherwise."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda self, *arguments, **settings: None  # type: ignore[method-assign]


def _normalize_recipe(path: Path) -> None:
    """Write the recipe as plain YAML, without the Python tuple and enum tags that a safe loader refuses."""
    text = re.sub(r"!!python/object/apply:[\w.]+\s*\[\s*(\w+)\s*\]", r"\1", path.read_text())
    path.write_text(re.sub(r"\s*!!python/tuple", "", text))


@contextlib.contextmanager
def _forwarded_progress(log: Callable[[str], None]) -> Iterator[None]:
    """Send llm-compressor's progress to `log`, thinned out, in place of its own lines and bars on stderr."""
    import llmcompressor  # noqa: F401  (its import installs the handlers that are replaced here)
    from loguru import logger

    latest = [0.0]

    def thinned(message: Any) -> None:
        if time.monotonic() - latest[0] >= SECONDS_BETWEEN_LINES:
            latest[0] = time.monotonic()
            log(message.record["message"].splitlines()[0])

    logger.remove()
    sink = logger.add(thinned, level="INFO")
    try:
        yield
    finally:
        logger.remove(sink)
