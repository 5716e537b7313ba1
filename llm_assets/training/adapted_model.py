"""The base model as it is trained: 4-bit or not, with its adapter, and what is saved of it.

The adapter file is written from the unmerged model and read back before anyone may use it: an adapter saved after a
merge is an empty file that loads without an error and answers like the base.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_assets.core import LLMAssetsError
from llm_assets.training import own_code, ranks
from llm_assets.training.training_config import TrainingConfig, TrainingConfigInvalid

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


class AdapterEmpty(LLMAssetsError):
    """A saved adapter holds no trained value."""


def training_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    index = ranks.device_index()
    return "cuda" if index is None else f"cuda:{index}"


def load_base(base: Path, method: str, compute_dtype: str, device: str | None = None) -> "PreTrainedModel":
    """Load a base model for training, its linear layers in double-quantised NF4 for method qlora.

    Raises:
        TrainingConfigInvalid: float16 on a CPU.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device = device or training_device()
    dtype = getattr(torch, compute_dtype)
    if device == "cpu" and dtype == torch.float16:
        raise TrainingConfigInvalid("training.compute_dtype float16 does not train on a CPU. Use bfloat16.")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32 if method == "full" else dtype,
        quantization_config=nf4 if method == "qlora" else None,
        device_map={"": device},
        local_files_only=True,
        trust_remote_code=own_code.runs_own_code(base),
    )
    model.config.use_cache = False
    keep_weights_in_place(model)
    return model


def keep_weights_in_place(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights in the first evaluation on a CPU.

    The repacked layout is for inference: its kernel has no gradient, so that every step after an evaluation would train
    without one through the base layers, and it rounds the block scales to bfloat16.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quantized_modules(model: Any) -> list[str]:
    """Names of the modules whose weights are in 4 bit."""
    return sorted(name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit")


def add_adapter(model: "PreTrainedModel", config: TrainingConfig, token_ids: Sequence[int] = ()) -> Any:
    """Wrap the model with a fresh float32 adapter; for method full, return the model with every weight trainable.

    Args:
        model: The base as `load_base` returns it.
        config: The training settings.
        token_ids: Ids of `trainable_tokens`; their rows are trained in the embedding and, where it is a matrix of its
            own, in the output head.

    Raises:
        TrainingConfigInvalid: a target module the model does not have.
    """
    from peft import LoraConfig, get_peft_model

    if config.method == "full":
        return model.requires_grad_(True)
    tied = bool(model.config.tie_word_embeddings)
    rows = {name: list(token_ids) for name in (("embed_tokens",) if tied else ("embed_tokens", "lm_head"))}
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.dropout,
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        target_modules=_known_targets(model, config.target_modules),
        modules_to_save=_known_vocabulary(config.modules_to_save, tied),
        trainable_token_indices=rows if token_ids else None,
        ensure_weight_tying=tied and bool(config.modules_to_save),
    )
    dtype = model.dtype
    model.requires_grad_(False)
    adapted = get_peft_model(model, lora)
    if config.modules_to_save:
        _train_vocabulary_in_float32(adapted, dtype)
    return adapted


def _known_targets(model: "PreTrainedModel", targets: str | Sequence[str]) -> str | list[str]:
    if isinstance(targets, str):
        return targets
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if "Linear" in type(module).__name__}
    if unknown := [name for name in targets if name.rsplit(".", 1)[-1] not in names]:
        raise TrainingConfigInvalid(
            f"training.target_modules names {', '.join(unknown)}; linear layers of this base are "
            f'{", ".join(sorted(names))}. Use those, or "all-linear".'
        )
    return list(targets)


def _known_vocabulary(modules: Sequence[str], tied: bool) -> list[str] | None:
    if tied and "lm_head" in modules:
        raise TrainingConfigInvalid(
            "training.modules_to_save names lm_head, which this base ties to its embedding: it has none of its own. "
            "Set modules_to_save: [embed_tokens]; the head is trained with it."
        )
    return list(modules) or None


def _train_vocabulary_in_float32(adapted: Any, stream_dtype: Any) -> None:
    """Hold trained copies of vocabulary matrices in float32, and keep the residual stream in the base's type."""
    import torch
    from peft.utils import ModulesToSaveWrapper

    copies = [module for module in adapted.modules() if isinstance(module, ModulesToSaveWrapper)]
    for copy in copies:
        for parameter in copy.modules_to_save.parameters():
            parameter.data = parameter.data.float()
    inner = unwrapped(adapted)
    inner.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.to(stream_dtype))
    head = inner.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper):
        head.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(torch.float32),))


def token_ids_of(tokenizer: Path, tokens: Sequence[str]) -> list[int]:
    """Ids of whole tokens by their text.

    Args:
        tokenizer: Directory with `tokenizer.json`.
        tokens: As they stand in the vocabulary, such as `<|im_end|>`.

    Raises:
        TrainingConfigInvalid: one is not a token of this vocabulary.
    """
    from tokenizers import Tokenizer

    known = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    ids = {token: known.token_to_id(token) for token in tokens}
    if unknown := [token for token, number in ids.items() if number is None]:
        raise TrainingConfigInvalid(
            f"training.trainable_tokens names {', '.join(unknown)}, no token of this vocabulary. Name tokens as the "
            "chat template writes them; base_model lists its special tokens."
        )
    return sorted(number for number in ids.values() if number is not None)


def save_adapter(model: Any, out: Path, weights: "dict[str, torch.Tensor] | None" = None) -> None:
    """Write the trained weights with the same bytes every time, and check the written file.

    Args:
        model: The trained model.
        out: An existing directory.
        weights: Its trained weights, where they are shared out over processes: `trained_weights.gathered`.

    Raises:
        AdapterEmpty: the file has no `lora_B`, or one that is all zeros or not finite.
    """
    if not hasattr(model, "peft_config"):
        model.save_pretrained(out, state_dict=weights)
        return
    model.save_pretrained(out, save_embedding_layers=False, state_dict=weights)
    (out / "README.md").unlink(missing_ok=True)
    written = json.loads((out / ADAPTER_CONFIG).read_text())
    written["base_model_name_or_path"] = None  # a path of this machine; the lineage says which base it is
    for name, value in written.items():
        if isinstance(value, list):
            written[name] = sorted(value)  # sets: their order changes from process to process
    (out / ADAPTER_CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True))
    require_trained(out)


def require_trained(adapter: Path) -> None:
    """Read an adapter back and raise `AdapterEmpty` unless every `lora_B` in it is finite and one is not zero."""
    from safetensors import safe_open

    largest = 0.0
    with safe_open(adapter / ADAPTER_FILE, framework="pt") as file:
        names = [name for name in file.keys() if "lora_B" in name]  # noqa: SIM118 - not a mapping
        for name in names:
            size = float(file.get_tensor(name).abs().max())
            largest = max(largest, size) if math.isfinite(size) else math.nan
            if math.isnan(largest):
                raise AdapterEmpty(f"{name} of the saved adapter is not finite. Lower training.learning_rate.")
    if not names or largest == 0:
        raise AdapterEmpty(
            f"The saved adapter has {len(names)} lora_B matrices and all are zero: it would answer like the base. "
            "Train for more steps or with a higher learning_rate."
        )


def load_adapted(base: Path, adapter: Path, method: str, compute_dtype: str) -> Any:
    """The base as it was trained on, with a saved adapter on top, ready to evaluate."""
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    model = load_base(base, method, compute_dtype)
    dtype = model.dtype
    adapted = PeftModel.from_pretrained(model, adapter)
    if getattr(adapted.peft_config["default"], "modules_to_save", None):  # rounded to the base's type when loaded
        _train_vocabulary_in_float32(adapted, dtype)
        set_peft_model_state_dict(adapted, load_file(adapter / ADAPTER_FILE))
    keep_weights_in_place(adapted)
    return adapted.eval()


def unwrapped(model: Any) -> "PreTrainedModel":
    """The transformers model inside an adapted one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
