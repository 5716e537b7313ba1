"""One call makes one variant's directory from the merged model, whichever engine it is for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from llm_assets.quantization.calibration import calibration_set
from llm_assets.quantization.compressed import compress, refuse_unfit_groups
from llm_assets.quantization.config import QuantizationConfig
from llm_assets.quantization.gguf_model import refuse_unfit_model, write_gguf

QUANTIZATION_FILE = "quantization.json"
COMPANIONS = (  # copied byte for byte: what the merged model says is what every variant says
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def quantize(
    merged: Path, tokenized: Path, out: Path, config: QuantizationConfig, log: Callable[[str], None]
) -> dict[str, int | float | str | list[str]]:
    """Write a variant into the empty directory `out` and return what its `quantization.json` says.

    The directory holds a compressed-tensors checkpoint or `<name>.gguf`, the tokenizer, the chat template and
    `quantization.json`: `{"scheme", "name", "engine", "method", "bytes", "merged_bytes", "calibration_row_ids", ...}`.
    Same inputs, same bytes, on one kind of device.

    Raises:
        GroupSizeUnfit: the scheme's group size divides no layer's width.
        ArchitectureUnsupported: no GGUF writer for the model.
        TokenizerUnsupported: llama.cpp cannot express the tokenizer.
        CalibrationEmpty: no training row to calibrate on.
    """
    calibration = None
    if config.engine == "llama_cpp":
        refuse_unfit_model(merged, config)
        weights = [write_gguf(merged, out, config, log)]
    else:
        refuse_unfit_groups(merged, config)
        if config.needs_calibration:
            calibration = calibration_set(tokenized, config.calibration_rows, config.seed)
            log(f"{config.asset_name}: calibrating on {calibration.num_rows} training rows")
        compress(merged, calibration, out, config, log)
        weights = sorted(out.glob("*.safetensors"))
    for name in COMPANIONS:
        if (merged / name).exists():
            shutil.copyfile(merged / name, out / name)
    summary = {
        "scheme": config.scheme,
        "name": config.asset_name,
        "engine": config.engine,
        "method": config.weight_method,
        "kv_cache": config.kv_cache or "",
        "bytes": sum(path.stat().st_size for path in weights),
        "merged_bytes": sum(path.stat().st_size for path in merged.glob("*.safetensors")),
        "calibration_row_ids": calibration["row_id"].to_pylist() if calibration is not None else [],
        "seed": config.seed,
    }
    (out / QUANTIZATION_FILE).write_text(json.dumps(summary, indent=1))
    log(f"{config.asset_name}: {summary['bytes']:,} bytes, {summary['merged_bytes'] / summary['bytes']:.2f}x smaller")
    return summary


def gguf_file(variant: Path) -> Path | None:
    """The GGUF file of a variant's directory, or none for a Hugging Face directory."""
    return next(iter(sorted(variant.glob("*.gguf"))), None)
