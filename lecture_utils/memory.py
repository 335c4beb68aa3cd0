"""What finetuning takes in memory, from the shapes of a model (no weights needed).

GB = 10^9 bytes. Everything here is arithmetic; only ``activations`` is an estimate, held
against measured runs in notebook 06.
"""

import dataclasses

from lecture_utils.registry import card, choose
from lecture_utils.shapes import Shape

LLAMA = {  # LLaMA (65B, 2302.13971 Table 2) and Llama 2 (2307.09288 Table 1) by their names
    "7B": card("llama-2-7b-chat").shape,
    "13B": Shape(
        vocabulary=32_000,
        width=5_120,
        feed_forward=13_824,
        layers=40,
        heads=40,
        kv_heads=40,
        head_width=128,
        tied=False,
    ),  # fmt: skip
    "65B": Shape(
        vocabulary=32_000,
        width=8_192,
        feed_forward=22_016,
        layers=80,
        heads=64,
        kv_heads=64,
        head_width=128,
        tied=False,
    ),  # fmt: skip
    "70B": Shape(
        vocabulary=32_000, width=8_192, feed_forward=28_672, layers=80, heads=64, kv_heads=8, head_width=128, tied=False
    ),
}
# Bytes a parameter in full finetuning, activations not counted:
FULL_12 = 2 + 2 + 8  # 16-bit weights and gradients, two fp32 Adam moments
FULL_16 = 4 + 4 + 8  # the same in fp32; or 16 bit with an fp32 copy of the weights
ACTIVATION_FACTOR = 1.65  # measured / counted; notebook 06 fits it on three runs and tests it on six


def bits_per_parameter(block: int = 64, double: bool = False) -> float:
    """Return the bits that a 4-bit parameter takes with its share of the scales (4.5, or 4.127)."""
    return 4 + (8 / block + 32 / (block * 256) if double else 32 / block)


NF4_BITS = bits_per_parameter()
NF4_DQ_BITS = bits_per_parameter(double=True)


def lora_parameters(shape: Shape, rank: int, targets: str | tuple[str, ...] = "all-linear") -> int:
    """Return how many parameters LoRA adds: rank x (inputs + outputs) a matrix (2106.09685 section 4).

    targets: ``"all-linear"`` or names such as ``("q_proj", "v_proj")``.
    """
    matrices = shape.linear_layers()
    wanted = tuple(matrices) if targets == "all-linear" else targets
    return shape.layers * sum(rank * sum(matrices[name]) for name in wanted)


def weight_bytes(shape: Shape, quantization: str | None, double_quant: bool = True, other_bytes: int = 2) -> float:
    """Return the bytes of the weights: the blocks' matrices in ``quantization`` (None, "nf4", "fp4", "int8"),
    embeddings, head and norms in ``other_bytes`` each."""
    four = NF4_DQ_BITS if double_quant else NF4_BITS
    kinds = {None: 8 * other_bytes, "int8": 8, "nf4": four, "fp4": four}
    bits = choose(kinds, quantization, "quantization")
    inside = shape.layers * sum(i * o for i, o in shape.linear_layers().values())
    return inside * bits / 8 + (shape.parameters() - inside) * other_bytes


def activations(
    shape: Shape, tokens: int, checkpointing: bool, compute_bytes: int = 2, factor: float = ACTIVATION_FACTOR
) -> float:
    """Estimate the bytes of activations kept for the backward pass of ``tokens`` tokens.

    Counted: a block keeps about 10 vectors of its width and 4 of its feed-forward width a
    token, the head two fp32 rows of logits; with checkpointing the blocks keep their inputs
    alone, and one block's activations exist at a time. Attention scores are not counted
    (short texts). ``factor`` is for what the count leaves out, such as the adapter's own.
    """
    block = tokens * compute_bytes * (10 * shape.width + 4 * shape.feed_forward)
    logits = tokens * 2 * 4 * shape.vocabulary
    if checkpointing:
        return factor * (block + shape.layers * tokens * compute_bytes * shape.width + logits)
    return factor * (shape.layers * block + logits)


def finetuning_bytes(shape: Shape, trained: int, tokens: int, quantization: str | None = None) -> float:
    """Return the bytes of finetuning on batches of ``tokens`` tokens, without checkpointing.

    trained: parameters that learn, at 16 bytes each. All of them: full finetuning in fp32;
    fewer: an adapter beside frozen weights, in 16 bits or ``quantization``.
    """
    full = trained >= shape.parameters()
    frozen = 0 if full else weight_bytes(shape, quantization)
    return frozen + FULL_16 * trained + activations(shape, tokens, False, 4 if full else 2)


def budget(recipe, tokens_per_row: int = 64) -> list[dict]:
    """Return the parts of a recipe's memory as rows for ``plotting.table``, the sum last."""
    shape = card(recipe.model).shape
    adapted = dataclasses.replace(shape, layers=shape.layers - recipe.first_layer)  # backward ends there
    adapter = lora_parameters(adapted, recipe.rank, recipe.target_modules)
    parts = {
        f"weights ({recipe.quantization or '16 bit'})": weight_bytes(shape, recipe.quantization, recipe.double_quant),
        f"adapter, fp32 ({adapter:,} parameters)": 4 * adapter,
        "its gradients and two Adam moments, fp32": 12 * adapter,
        f"activations, estimated ({recipe.batch_size} x {tokens_per_row} tokens)": activations(
            adapted, recipe.batch_size * tokens_per_row, recipe.gradient_checkpointing
        ),
    }
    rows = [{"part": name, "GB": round(size / 1e9, 2)} for name, size in parts.items()]
    return rows + [{"part": "sum", "GB": round(sum(parts.values()) / 1e9, 2)}]
