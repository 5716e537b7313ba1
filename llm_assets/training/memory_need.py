"""How many bytes each part of a training run takes: what PyTorch holds for the layers as they are computed here.

The figures are sums over tensors, tested against the tensors themselves; a change of transformers or peft that keeps
more of them shows in that test.
"""

from llm_assets.training.model_shape import ModelShape
from llm_assets.training.training_config import TrainingConfig

NF4_BLOCK, CONSTANT_BLOCK = 64, 256  # values per 8-bit constant, constants per float32 constant: QLoRA, section 3
OPTIMIZER_BYTES = {"adamw": 8.0, "paged_adamw_8bit": 2.0 + 2 * 4 / 256}  # two moments a value; 8-bit: 256 to a constant
GATES = {"gate_proj", "up_proj", "gate_up_proj"}
LOGIT_CHUNK_BYTES = 512 * 1024**2


def part_bytes(
    shape: ModelShape, config: TrainingConfig, tokens: int, gradient_checkpointing: bool, shards: int = 1
) -> dict[str, int]:
    """Bytes of each part on one device, in a forward and backward pass over `tokens` tokens.

    Per value or token, with `c` the bytes of `compute_dtype`, `h`, `q`, `k` and `i` the widths of residual stream,
    queries, keys and feed-forward layer:

        weights      qlora 0.5 · linear + c · (embedding, head, norms);  lora c · all;  full 4 · all + c · linear for
                     autocast's copies; plus one dequantised layer for qlora
        constants    linear / 64 · (1 + 4 / 256) bytes: QLoRA (arXiv 2305.14314), section 3, double quantisation
        adapter      4 · rank · (inputs + outputs) of every target, DoRA + 4 · outputs; 4 · vocabulary · h for a saved
                     vocabulary matrix; 4 · h per trained token, and c · vocabulary · h for the patched matrix, both
                     twice where the head is a matrix of its own
        gradients    4 per trained value;  optimizer: 8, in 8 bit 2.03
        activations  per token and layer 8h (two norms, in float32) + c · (2q + 2k) + 4 · heads (flash attention: query,
                     key, value, output, log-sum-exp) + 3c · i (gate, its activation, up) + c · inputs of every target
                     (autocast casts each its own copy; in float32 they share) + c · rank of every target; DoRA
                     + 2c · outputs of every target, and once c · inputs² of each (peft builds its weight norm from an
                     identity matrix); full 16h for the norms
                     recomputed: c · h per token and layer (full 4h), and the above once
                     4h + 2c · head_dim per token for the final norm and the rotary tables (full 8h + 8 · head_dim);
                     3c · i + 8h per token for the gradients of the layer under way
        logits       (2c + 12) per label of a chunk and vocabulary entry: logits, float32 copy, log-probabilities and
                     both gradients; see `logit_chunk_labels`

    Shared out over `shards` devices, each holds that part of weights, adapter, gradients and optimizer, and beside it
    what is gathered at a time: vocabulary matrices, the layer under way and the one fetched ahead, each with its whole
    gradients where it is trained.

    The activation terms count what PyTorch's autograd saves for the layers as transformers 5.17 and peft 0.21 compute
    them; the method is that of Korthikanti et al. (arXiv 2205.05198), section 4. Biases are left out.

    Args:
        shape: The base model.
        config: Method, ranks and precision.
        tokens: Tokens of one forward pass.
        gradient_checkpointing: Whether activations are recomputed.
        shards: Devices the weights are shared out over; 1 where each holds them all.
    """
    compute = compute_bytes(config)
    trained, full = trained_values(shape, config), config.method == "full"
    return {
        "weights": _weights(shape, config) if shards == 1 else _shared_weights(shape, config, shards),
        "quantization_constants": _constants(shape) if config.method == "qlora" else 0,
        "adapter": _adapter(shape, config) // shards,
        "gradients": 4 * trained // shards + (compute * _gathered_values(shape) if shards > 1 and full else 0),
        "optimizer": round(OPTIMIZER_BYTES[config.optimizer] * trained / shards),
        "activations": _activations(shape, config, tokens, gradient_checkpointing),
        "logits": min(tokens, logit_chunk_labels(shape.vocabulary, compute)) * shape.vocabulary * (2 * compute + 12),
    }


def logit_chunk_labels(vocabulary: int, compute_dtype_bytes: int) -> int:
    """Labels whose logits exist at the same time: as many as take half a gibibyte with their gradients."""
    return max(16, LOGIT_CHUNK_BYTES // (vocabulary * (2 * compute_dtype_bytes + 12)))


def compute_bytes(config: TrainingConfig) -> int:
    """Bytes of one value of the matrix products."""
    return 4 if config.compute_dtype == "float32" else 2


def trained_values(shape: ModelShape, config: TrainingConfig) -> int:
    """How many numbers training changes."""
    if config.method == "full":
        return shape.linear_values + shape.other_values
    targets = shape.targeted(config.target_modules).values()
    matrices = sum(config.rank * (inputs + outputs) + config.use_dora * outputs for inputs, outputs in targets)
    rows = len(config.trainable_tokens) * shape.hidden * (1 if shape.tied else 2)
    return shape.layers * matrices + len(config.modules_to_save) * shape.embedding_values + rows


def _weights(shape: ModelShape, config: TrainingConfig) -> int:
    compute = compute_bytes(config)
    if config.method == "full":
        return 4 * (shape.linear_values + shape.other_values) + (compute < 4) * compute * shape.linear_values
    if config.method == "lora":
        return compute * (shape.linear_values + shape.other_values)
    largest = max(inputs * outputs for inputs, outputs in shape.linear_layers().values())
    return shape.linear_values // 2 + compute * (shape.other_values + largest)


def _shared_weights(shape: ModelShape, config: TrainingConfig, shards: int) -> int:
    """A slice of every weight, and what is gathered of them in `compute_dtype`."""
    held = 4 if config.method == "full" else compute_bytes(config)
    sliced = -(-held * (shape.linear_values + shape.other_values) // shards)
    return sliced + compute_bytes(config) * _gathered_values(shape)


def _gathered_values(shape: ModelShape) -> int:
    """Values that are whole on a device at a time: what is outside the layers, and two layers of them."""
    return shape.other_values + 2 * shape.linear_values // shape.layers


def _constants(shape: ModelShape) -> int:
    return round(shape.linear_values / NF4_BLOCK * (1 + 4 / CONSTANT_BLOCK))


def _adapter(shape: ModelShape, config: TrainingConfig) -> int:
    if config.method == "full":
        return 0
    matrices = (1 if shape.tied else 2) if config.trainable_tokens else 0
    patched = matrices * compute_bytes(config) * shape.embedding_values
    return 4 * trained_values(shape, config) + patched


def _activations(shape: ModelShape, config: TrainingConfig, tokens: int, recompute: bool) -> int:
    compute = compute_bytes(config)
    layer = tokens * _layer_bytes_per_token(shape, config) + _layer_bytes_once(shape, config)
    if config.attention == "block_mask":
        layer += tokens * tokens * compute  # the mask as each layer adds it to the scores
    stream = 4 if config.method == "full" else compute  # float32 weights keep the residual stream in float32
    ends = tokens * ((8 if config.method == "full" else 4) * shape.hidden + 2 * stream * shape.head_dim)
    backward = tokens * (3 * compute * shape.intermediate + 8 * shape.hidden)  # gradients of the widest layer
    if not recompute:
        return shape.layers * layer + ends + backward
    return shape.layers * tokens * shape.hidden * stream + layer + ends + backward


def _layer_bytes_per_token(shape: ModelShape, config: TrainingConfig) -> int:
    compute = compute_bytes(config)
    attention = compute * 2 * (shape.query_width + shape.key_value_width) + 4 * shape.heads
    feed_forward = 3 * compute * shape.intermediate
    if config.method == "full":
        inputs = compute * (5 * shape.hidden + shape.intermediate)
        return 16 * shape.hidden + attention + feed_forward + inputs
    targets = shape.targeted(config.target_modules)
    widths = [width for width, _ in targets.values()]
    if compute == 4:  # no cast, so no copy: layers that read the same tensor share it, o_proj the attention's output
        attends, feeds = targets.keys() & {"q_proj", "k_proj", "v_proj", "qkv_proj"}, targets.keys() & GATES
        shared = [shape.hidden] * (bool(attends) + bool(feeds))
        widths = [*shared, *([shape.intermediate] if "down_proj" in targets else [])]
    inputs = compute * (sum(widths) + config.rank * len(targets))
    magnitudes = 2 * compute * sum(outputs for _, outputs in targets.values()) if config.use_dora else 0
    return 8 * shape.hidden + attention + feed_forward + inputs + magnitudes


def _layer_bytes_once(shape: ModelShape, config: TrainingConfig) -> int:
    """Bytes of a layer that no token adds to: DoRA's identity matrices."""
    if not config.use_dora:
        return 0
    return compute_bytes(config) * sum(inputs**2 for inputs, _ in shape.targeted(config.target_modules).values())
