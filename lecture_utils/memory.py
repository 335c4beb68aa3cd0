"""What finetuning takes in memory, from the shapes of a model (no weights needed).

GB = 10^9 bytes. Everything here is arithmetic; only ``activations`` is an estimate, held
against measured runs in notebook 06.
"""

import dataclasses

from lecture_utils import expect
from lecture_utils.registry import Shape, card

LLAMA = {  # LLaMA (65B, 2302.13971 Table 2) and Llama 2 (2307.09288 Table 1) by their names
    "7B": card("llama-2-7b-chat").shape,
    "13B": Shape(32_000, 5_120, 13_824, 40, 40, 40, 128, tied=False),
    "65B": Shape(32_000, 8_192, 22_016, 80, 64, 64, 128, tied=False),
    "70B": Shape(32_000, 8_192, 28_672, 80, 64, 8, 128, tied=False),
}
# Bytes a parameter in full finetuning, activations not counted:
FULL_12 = 2 + 2 + 8  # 16-bit weights and gradients, two fp32 Adam moments
FULL_16 = 4 + 4 + 8  # the same in fp32; or 16 bit with an fp32 copy of the weights
ACTIVATION_FACTOR = 1.65  # measured / counted; notebook 06 fits it on three runs and tests it on six


def bits_per_parameter(block: int = 64, double: bool = False) -> float:
    """Return the bits that a 4-bit parameter takes with its share of the scales (4.5, or 4.127). Raises ValueError
    for a block below 1, TypeError for one that is not whole."""
    expect.whole("block", block)
    return 4 + (8 / block + 32 / (block * 256) if double else 32 / block)


NF4_BITS = bits_per_parameter()
NF4_DQ_BITS = bits_per_parameter(double=True)


def _check(shape, **counts) -> None:
    """Raise TypeError unless ``shape`` is a Shape, ValueError for a count below 0 (or NaN)."""
    if not isinstance(shape, Shape):
        raise TypeError(f"shape={shape!r}: give the Shape of a decoder, LLAMA['7B'] or card('llama-2-7b-chat').shape.")
    for name, count in counts.items():
        if not count >= 0:
            raise ValueError(f"{name}={count}: it counts something, so 0 or more.")


def lora_parameters(shape: Shape, rank: int, targets: str | tuple[str, ...] = "all-linear") -> int:
    """Return how many parameters LoRA adds: rank x (inputs + outputs) a matrix (2106.09685 section 4).

    targets: ``"all-linear"`` or names such as ``("q_proj", "v_proj")``. Raises ValueError
    for a rank below 1 or an unknown name, TypeError for no shape, a rank that is not whole, or names in one string.
    """
    _check(shape)
    expect.whole("rank", rank)
    if isinstance(targets, str) and targets != "all-linear":
        raise TypeError(f"targets={targets!r}: give a tuple of names, ({targets!r},), or 'all-linear'.")
    matrices = shape.linear_layers()
    wanted = tuple(matrices) if targets == "all-linear" else targets
    if unknown := [name for name in wanted if name not in matrices]:
        raise ValueError(f"targets {unknown} are no linear layers of this model: {', '.join(matrices)}.")
    return shape.layers * sum(rank * sum(matrices[name]) for name in wanted)


def weight_bytes(shape: Shape, quantization: str | None, double_quant: bool = True, other_bytes: int = 2) -> float:
    """Return the bytes of the weights: the blocks' matrices in ``quantization`` (None, "nf4",
    "fp4", "int8"), embeddings, head and norms in ``other_bytes`` each. Raises ValueError for another
    quantization or negative bytes, TypeError for no shape."""
    _check(shape, other_bytes=other_bytes)
    four = NF4_DQ_BITS if double_quant else NF4_BITS
    kinds = {None: 8 * other_bytes, "int8": 8, "nf4": four, "fp4": four}
    if quantization not in kinds:
        raise ValueError(f"quantization={quantization!r}: choose None, 'nf4', 'fp4' or 'int8'.")
    bits = kinds[quantization]
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
    Raises ValueError for a negative number of tokens, TypeError for no shape.
    """
    _check(shape, tokens=tokens)
    block = tokens * compute_bytes * (10 * shape.width + 4 * shape.feed_forward)
    logits = tokens * 2 * 4 * shape.vocabulary
    if checkpointing:
        return factor * (block + shape.layers * tokens * compute_bytes * shape.width + logits)
    return factor * (shape.layers * block + logits)


def finetuning_bytes(shape: Shape, trained: int, tokens: int, quantization: str | None = None) -> float:
    """Return the bytes of finetuning on batches of ``tokens`` tokens, without checkpointing.

    trained: parameters that learn, at 16 bytes each. All of them: full finetuning in fp32;
    fewer: an adapter beside frozen weights, in 16 bits or ``quantization``. Raises as
    ``weight_bytes`` and ``activations`` do.
    """
    _check(shape, trained=trained, tokens=tokens)
    full = trained >= shape.parameters()
    frozen = 0 if full else weight_bytes(shape, quantization)
    return frozen + FULL_16 * trained + activations(shape, tokens, False, 4 if full else 2)


def budget(recipe, tokens_per_row: int = 64) -> list[dict]:
    """Return the parts of a recipe's memory as rows for ``plotting.table``, the sum last. Raises TypeError for
    a recipe's name instead of the recipe, ValueError where the adapter begins above the last layer."""
    if isinstance(recipe, str):
        raise TypeError(f"recipe={recipe!r}: give the recipe itself, finetuning.recipe({recipe!r}).")
    shape = card(recipe.model).shape
    _check(shape, tokens_per_row=tokens_per_row)
    if not 0 <= recipe.first_layer < shape.layers:
        raise ValueError(f"first_layer={recipe.first_layer}: {recipe.model} has the layers 0 to {shape.layers - 1}.")
    adapted = dataclasses.replace(shape, layers=shape.layers - recipe.first_layer)  # backward ends there
    adapter = lora_parameters(adapted, recipe.rank, recipe.targets)
    parts = {
        f"weights ({recipe.quantization or '16 bit'})": weight_bytes(shape, recipe.quantization, recipe.double_quant),
        f"adapter, fp32 ({adapter:,} parameters)": 4 * adapter,
        "its gradients and two Adam moments, fp32": 12 * adapter,
        f"activations, estimated ({recipe.batch_size} x {tokens_per_row} tokens)": activations(
            adapted, recipe.batch_size * tokens_per_row, recipe.checkpointing
        ),
    }
    rows = [{"part": name, "GB": round(size / 1e9, 2)} for name, size in parts.items()]
    return rows + [{"part": "sum", "GB": round(sum(parts.values()) / 1e9, 2)}]
