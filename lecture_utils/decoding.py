"""A Llama for generation only, made fast by fewer and larger matrix products and optional 8-bit weights. To generate a
token at batch size 1, a model reads every weight once and computes little with it, so that the time goes into reading
bytes from memory and into the overhead of many small operations. Both can be reduced."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from lecture_utils import quantization
from lecture_utils.transformer import KVCache, Llama, causal_mask, rope, rotate


class Matrix:
    """A weight (outputs, inputs) that maps x (..., inputs) to (..., outputs). With ``int8``, each output's row is kept
    in 8 bits, a quarter of fp32's bytes, and its largest weight becomes 127 (absmax); the products are summed in the
    precision of the inputs and scaled once."""

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype, int8: bool):
        self.weight, scale = quantization.absmax_int8(weight) if int8 else (weight.to(dtype), None)
        self.scale = None if scale is None else scale[:, 0].to(dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.scale is None:
            return F.linear(x, self.weight)
        rows = x.reshape(-1, x.shape[-1])
        return torch._weight_int8pack_mm(rows, self.weight, self.scale).unflatten(0, x.shape[:-1])

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.scale is None else self.scale.nbytes)


@dataclass(frozen=True)
class Block:
    """The matrices of a block: queries, keys and values are one product, gate and up another."""

    qkv: Matrix
    o: Matrix
    gate_up: Matrix
    down: Matrix
    norms: tuple[torch.Tensor, torch.Tensor]


class Decoder:
    """Token ids (B, T) to the logits of the last position (B, 1, vocabulary), with caches for at most ``length``
    positions.

    It can take the place of ``Llama`` in ``generation.stream``: the logits are the same up to rounding in fp32, and
    nearly the same in bf16 or with ``int8``. Use ``int8`` with bf16 only; in fp32 it is slower than without.
    """

    def __init__(self, model: Llama, dtype: torch.dtype = torch.float32, int8: bool = False, length: int = 2048):
        def matrix(*parts):
            return Matrix(torch.cat([part.weight.detach() for part in parts]), dtype, int8)

        self.config, self.dtype = model.config, dtype
        self.blocks = []
        for block in model.blocks:
            a, f = block.attention, block.feed_forward
            norms = tuple(n.weight.detach().to(dtype) for n in (block.attention_norm, block.feed_forward_norm))
            self.blocks.append(Block(matrix(a.q, a.k, a.v), matrix(a.o), matrix(f.gate, f.up), matrix(f.down), norms))
        self.norm = model.norm.weight.detach().to(dtype)
        self.embedding = model.embedding.weight.detach()
        self.head = Matrix(model.head.weight, dtype, int8)
        self.angles = tuple(part.to(dtype) for part in rope(length, self.config.head_width, self.config.theta))

    def new_caches(self, batch_size: int, length: int) -> list[KVCache]:
        """Return one empty cache per layer, each with room for ``length`` positions."""
        c, like = self.config, torch.empty(0, dtype=self.dtype)
        return [KVCache(batch_size, c.kv_heads, length, c.head_width, like) for _ in range(c.layers)]

    @property
    def nbytes(self) -> int:
        """The bytes of the matrices, which are all read for each token."""
        return self.head.nbytes + sum(m.nbytes for b in self.blocks for m in (b.qkv, b.o, b.gate_up, b.down))

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, caches: list[KVCache], last_only: bool = True) -> torch.Tensor:
        c, start, count = self.config, caches[0].used, ids.shape[1]
        cos, sin = (part[start : start + count] for part in self.angles)
        mask = causal_mask(count, start + count) if count > 1 else None
        x = F.embedding(ids, self.embedding).to(self.dtype)
        for block, cache in zip(self.blocks, caches, strict=True):
            qkv = block.qkv(F.rms_norm(x, (c.width,), block.norms[0], c.eps))
            heads = qkv.unflatten(-1, (-1, c.head_width)).transpose(1, 2)  # (B, H + 2 KV, T, D)
            rotated = rotate(heads[:, : c.heads + c.kv_heads], cos, sin)  # queries and keys in one operation
            q = rotated[:, : c.heads]
            k, v = cache.add(rotated[:, c.heads :], heads[:, c.heads + c.kv_heads :])
            if count == 1:  # the query heads that share a key head can take the places of several positions
                q = q.reshape(len(q), c.kv_heads, -1, c.head_width)
                out = F.scaled_dot_product_attention(q, k, v).reshape(len(q), 1, -1)
            else:
                out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2).flatten(2)
            x = x + block.o(out)
            gate, up = block.gate_up(F.rms_norm(x, (c.width,), block.norms[1], c.eps)).chunk(2, -1)
            x = x + block.down(F.silu(gate) * up)
        return self.head(F.rms_norm(x[:, -1:] if last_only else x, (c.width,), self.norm, c.eps))
