"""A Llama that only writes, and fast: fewer and larger products, and weights of 8 bits if asked.

Writing a token at batch 1 reads every weight once and computes little with it. So time goes
to memory, by the byte, and to the overhead of many small operations. Both can be cut.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from lecture_utils import quantization
from lecture_utils.transformer import KVCache, Llama, causal_mask, rope, rotate


class Matrix:
    """A matrix (outputs, inputs) to multiply by: x (..., inputs) to (..., outputs).

    int8: each output's row in 8 bits, its largest weight being 127 (absmax); the products are
    summed up in the inputs' precision and scaled once. A quarter of fp32's bytes to read.
    """

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype, int8: bool):
        if int8:
            self.weight, scale = quantization.absmax_int8(weight)
            self.scale = scale[:, 0].to(dtype)
        else:
            self.weight, self.scale = weight.to(dtype), None

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
    """The products of a block: queries, keys and values in one, gate and up in one."""

    qkv: Matrix
    o: Matrix
    gate_up: Matrix
    down: Matrix
    norms: tuple[torch.Tensor, torch.Tensor]


class Decoder:
    """Token ids (B, T) to the logits of the last position (B, 1, vocabulary), with caches.

    Takes the place of ``Llama`` in ``generation.stream``: the same logits in fp32 but for rounding, nearly the same
    in bf16 or with ``int8`` (whose product is fast with bf16 alone: with fp32 between it is slower than no int8).
    length: positions there can be.
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
        """Return one empty cache a layer, with room for ``length`` positions."""
        c = self.config
        like = torch.empty(0, dtype=self.dtype)
        return [KVCache(batch_size, c.kv_heads, length, c.head_width, like) for _ in range(c.layers)]

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices: what is read for each token."""
        parts = [m for b in self.blocks for m in (b.qkv, b.o, b.gate_up, b.down)]
        return sum(m.nbytes for m in (*parts, self.head))

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, caches: list[KVCache], last_only: bool = True) -> torch.Tensor:
        c, start, count = self.config, caches[0].used, ids.shape[1]
        cos, sin = (part[start : start + count] for part in self.angles)
        mask = causal_mask(count, start + count) if count > 1 else None
        x = F.embedding(ids, self.embedding).to(self.dtype)
        for block, cache in zip(self.blocks, caches, strict=True):
            y = block.qkv(F.rms_norm(x, (c.width,), block.norms[0], c.eps))
            heads = y.unflatten(-1, (-1, c.head_width)).transpose(1, 2)  # (B, H + 2 KV, T, D)
            turned = rotate(heads[:, : c.heads + c.kv_heads], cos, sin)
            k, v = cache.add(turned[:, c.heads :], heads[:, c.heads + c.kv_heads :])
            q = turned[:, : c.heads]
            if count == 1:  # the heads of a group share keys and values: let them be its queries
                q = q.reshape(len(q), c.kv_heads, -1, c.head_width)
                out = F.scaled_dot_product_attention(q, k, v).reshape(len(q), 1, -1)
            else:
                out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
                out = out.transpose(1, 2).flatten(2)
            x = x + block.o(out)
            gate, up = block.gate_up(F.rms_norm(x, (c.width,), block.norms[1], c.eps)).chunk(2, -1)
            x = x + block.down(F.silu(gate) * up)
        return self.head(F.rms_norm(x[:, -1:] if last_only else x, (c.width,), self.norm, c.eps))
