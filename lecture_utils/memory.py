"""The memory that finetuning needs, computed from the shapes of a model without its weights; GB = 10^9 bytes. Only
``activations`` is an estimate, which notebook 06 compares with measured runs."""

import dataclasses

from lecture_utils.registry import card, choose
from lecture_utils.shapes import Shape

LLAMA = {  # the sizes of LLaMA (65B, 2302.13971, table 2) and Llama 2 (2307.09288, table 1)
    "7B": card("llama-2-7b-chat").shape,
    "13B": Shape(32_000, width=5120, feed_forward=13_824, layers=40, heads=40, kv_heads=40, head_width=128, tied=False),
    "65B": Shape(32_000, width=8192, feed_forward=22_016, layers=80, heads=64, kv_heads=64, head_width=128, tied=False),
    "70B": Shape(32_000, width=8192, feed_forward=28_672, layers=80, heads=64, kv_heads=8, head_width=128, tied=False),
}
# Bytes per parameter in full finetuning in fp32, without activations: weights, gradients, two Adam moments
FULL_16 = 4 + 4 + 8
# Measured / counted activations by bytes of a number, fitted on three runs with LoRA in 16 bits (2) and two full ones in
# fp32 (4), which are `record_06.peak("full", 12)` and 24. Notebook 06 compares the estimates with other runs.
ACTIVATION_FACTORS = {2: 1.65, 4: 1.3}


def bits_per_parameter(block: int = 64, double: bool = False) -> float:
    """Return the bits of a 4-bit parameter with its share of the scales: 4.5, or 4.127 with double quantization."""
    return 4 + (8 / block + 32 / (block * 256) if double else 32 / block)


NF4_BITS = bits_per_parameter()
NF4_DQ_BITS = bits_per_parameter(double=True)


def lora_parameters(shape: Shape, rank: int, targets: str | tuple[str, ...] = "all-linear") -> int:
    """Return how many parameters LoRA adds, rank x (inputs + outputs) for each matrix (2106.09685, section 4), where
    ``targets`` is ``"all-linear"`` or names such as ``("q_proj", "v_proj")``."""
    matrices = shape.linear_layers()
    wanted = tuple(matrices) if targets == "all-linear" else targets
    return shape.layers * sum(rank * sum(matrices[name]) for name in wanted)


def weight_bytes(shape: Shape, quantization: str | None, double_quant: bool = True, other_bytes: int = 2) -> float:
    """Return the bytes of the weights: the matrices of the blocks in ``quantization`` (None, "nf4", "fp4" or "int8"),
    and embeddings, head and norms (without quantization, all weights) in ``other_bytes`` per parameter."""
    four = NF4_DQ_BITS if double_quant else NF4_BITS
    bits = choose({None: 8 * other_bytes, "int8": 8, "nf4": four, "fp4": four}, quantization, "quantization")
    inside = shape.layers * sum(i * o for i, o in shape.linear_layers().values())
    return inside * bits / 8 + (shape.parameters() - inside) * other_bytes


def activations(shape: Shape, tokens: int, checkpointing: bool, compute_bytes: int = 2) -> float:
    """Estimate the bytes of the activations that ``tokens`` tokens keep for the backward pass.

    For each token, a block keeps about 10 vectors of its width and 4 of its feed-forward width, and the head two fp32
    rows of logits. With checkpointing, the blocks keep only their inputs, and the activations of one block exist at a
    time. Attention scores are not counted because the texts are short. A factor covers what the count leaves out, such
    as the gradients of the logits and gaps in the heap.
    """
    factor = ACTIVATION_FACTORS[compute_bytes]
    block = tokens * compute_bytes * (10 * shape.width + 4 * shape.feed_forward)
    logits = tokens * 2 * 4 * shape.vocabulary
    if checkpointing:
        return factor * (block + shape.layers * tokens * compute_bytes * shape.width + logits)
    return factor * (shape.layers * block + logits)


def finetuning_bytes(
    shape: Shape, trained: int, tokens: int, quantization: str | None = None, checkpointing: bool = False
) -> float:
    """Return the bytes of finetuning ``trained`` parameters, 16 bytes each, on batches of ``tokens`` tokens. If these
    are all parameters, it is full finetuning in fp32; if fewer, they are an adapter beside frozen weights in 16 bits or
    ``quantization``."""
    full = trained >= shape.parameters()
    frozen = 0 if full else weight_bytes(shape, quantization)
    return frozen + FULL_16 * trained + activations(shape, tokens, checkpointing, 4 if full else 2)


def budget(recipe, tokens_per_row: int = 64) -> list[dict]:
    """Return the parts of a recipe's memory as rows for ``plotting.table``, with the sum in the last row."""
    shape = card(recipe.model).shape
    adapted = dataclasses.replace(shape, layers=shape.layers - recipe.first_layer)  # the backward pass ends there
    adapter = lora_parameters(adapted, recipe.rank, recipe.target_modules)
    kept = activations(adapted, recipe.batch_size * tokens_per_row, recipe.gradient_checkpointing)
    parts = {
        f"weights ({recipe.quantization or '16 bit'})": weight_bytes(shape, recipe.quantization, recipe.double_quant),
        f"adapter, fp32 ({adapter:,} parameters)": 4 * adapter,
        "its gradients and two Adam moments, fp32": 12 * adapter,
        f"activations, estimated ({recipe.batch_size} x {tokens_per_row} tokens)": kept,
    }
    return [{"part": name, "GB": round(n / 1e9, 2)} for name, n in [*parts.items(), ("sum", sum(parts.values()))]]
