"""The transformer of 2017 (Vaswani et al., 1706.03762) and a Llama of today (2302.13971).

Shapes: batch size B, T positions, S positions of the context, model width W, H heads, and D, the width of a head.
Attention masks are boolean, True where a query may attend to a key, and broadcastable to (B, H, T, S).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lecture_utils.shapes import Dimensions


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Return sinusoidal positions (length, width): sines in even, cosines in odd columns (1706.03762, section 3.5)."""
    assert width % 2 == 0
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(0, width, 2) / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rope(length: int, head_width: int, theta: float = 10_000.0, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines and sines, each (length, head_width), of the angles by which ``rotate`` turns the positions
    from ``start`` on (RoFormer, 2104.09864, section 3.2)."""
    assert head_width % 2 == 0
    frequencies = 1.0 / theta ** (torch.arange(0, head_width, 2, dtype=torch.int64).float() / head_width)
    angles = torch.arange(start, start + length)[:, None] * torch.cat((frequencies, frequencies))
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate each pair of coordinates (i, i + D/2) of x (B, H, T, D) by the angle of its position."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x) + torch.cat((-second, first), dim=-1) * sin.to(x)


def causal_mask(queries: int, keys: int | None = None) -> torch.Tensor:
    """Return a mask (queries, keys), True on and below the diagonal, in which the queries are the last positions."""
    keys = queries if keys is None else keys
    assert keys >= queries  # otherwise the first query could attend to no key, and its row would be NaN
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


class KVCache:
    """The keys and values of one layer for the ``used`` positions read so far, at most ``length`` of them. They have
    the dtype and the device of ``like``."""

    def __init__(self, batch_size: int, kv_heads: int, length: int, head_width: int, like: torch.Tensor):
        self.keys, self.values = (like.new_zeros(batch_size, kv_heads, length, head_width) for _ in range(2))
        self.used = 0

    def add(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append k and v (B, H, T, D), and return all keys and values so far."""
        end = self.used + k.shape[2]
        assert end <= self.keys.shape[2], "the cache is full"  # torch would drop a single position silently
        self.keys[:, :, self.used : end], self.values[:, :, self.used : end] = k, v
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Multi-head self-attention, or cross-attention to a context (B, S, W): (B, T, W) to (B, T, W). With fewer
    ``kv_heads`` than ``heads``, query heads share keys and values (grouped-query attention, 2305.13245)."""

    def __init__(self, width: int, heads: int, kv_heads: int | None = None, head_width: int | None = None, bias=False):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        assert heads % kv_heads == 0 and (head_width or width % heads == 0)
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width or width // heads
        self.q = nn.Linear(width, heads * self.head_width, bias=bias)
        self.k, self.v = (nn.Linear(width, kv_heads * self.head_width, bias=bias) for _ in range(2))
        self.o = nn.Linear(heads * self.head_width, width, bias=bias)

    def forward(self, x, context=None, mask=None, causal=False, positions=None, cache: KVCache | None = None):
        q, k, v = self._project(x, context, positions)
        if cache is not None:
            k, v = cache.add(k, v)
            causal = causal and q.shape[2] > 1  # a single new position may attend to everything before it
            if causal and k.shape[2] > q.shape[2]:  # torch's is_causal would take the queries for the first positions
                mask, causal = causal_mask(q.shape[2], k.shape[2]).to(q.device), False
        grouped = self.heads != self.kv_heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.o(out.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, H D) -> (B, T, W)

    def weights(self, x, context=None, mask=None, causal=False, positions=None) -> torch.Tensor:
        """Return the attention weights (B, H, T, S) with which ``forward`` averages the values; each row sums to 1."""
        q, k, _ = self._project(x, context, positions)
        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)  # one key head serves a group of query heads
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_width)
        if causal:
            mask = causal_mask(*scores.shape[-2:]).to(scores.device)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)  # its weight becomes exactly 0
        return scores.softmax(-1)

    def _project(self, x, context, positions):
        source = x if context is None else context
        projected = self.q(x), self.k(source), self.v(source)  # (B, T, H D) each
        q, k, v = (y.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for y in projected)  # (B, H, T, D)
        return (q, k, v) if positions is None else (rotate(q, *positions), rotate(k, *positions), v)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each followed by dropout, the residual addition and LayerNorm
    (1706.03762, section 3.1). With ``pre_norm``, LayerNorm comes before each of them, as in most later models.
    (B, T, W) to (B, T, W)."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float = 0.1, pre_norm: bool = False):
        super().__init__()
        self.attention = Attention(width, heads, bias=True)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout, self.pre_norm = nn.Dropout(dropout), pre_norm

    def forward(self, x, mask=None, causal=False):
        x = self._residual(0, x, lambda y: self.attention(y, mask=mask, causal=causal))
        return self._residual(-1, x, self.feed)

    def feed(self, x):
        return self.down(self.dropout(F.relu(self.up(x))))

    def _residual(self, i, x, sublayer):
        if self.pre_norm:
            return x + self.dropout(sublayer(self.norms[i](x)))
        return self.norms[i](x + self.dropout(sublayer(x)))


class DecoderLayer(EncoderLayer):
    """*Masked* self-attention, *cross-attention* to the encoder's output, then the feed-forward network: x (B, T, W)
    and context (B, S, W) to (B, T, W). ``mask`` applies to the context."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float = 0.1, pre_norm: bool = False):
        super().__init__(width, heads, feed_forward, dropout, pre_norm)
        self.cross = Attention(width, heads, bias=True)
        self.norms.insert(1, nn.LayerNorm(width))

    def forward(self, x, context, mask=None):
        x = self._residual(0, x, lambda y: self.attention(y, causal=True))
        x = self._residual(1, x, lambda y: self.cross(y, context, mask=mask))
        return self._residual(-1, x, self.feed)


class Transformer(nn.Module):
    """The encoder-decoder of 2017: source (B, S) and target (B, T) token ids to logits (B, T, vocabulary). Source,
    target and output head share one embedding (section 3.4), and source tokens with the id ``pad`` are masked."""

    def __init__(self, vocabulary, width=96, heads=4, feed_forward=384, layers=2, dropout=0.1, pad=0):
        super().__init__()
        self.embedding, self.pad = nn.Embedding(vocabulary, width), pad
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        sizes = (width, heads, feed_forward, dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(layers))
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def embed(self, ids):
        x = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(x + sinusoids(*x.shape[1:]).to(x))

    def encode(self, source):
        x, mask = self.embed(source), (source != self.pad)[:, None, None]  # (B, S, W), (B, 1, 1, S)
        for layer in self.encoder:
            x = layer(x, mask)
        return x, mask

    def forward(self, source, target):
        return self.decode(target, *self.encode(source))

    def decode(self, target, context, mask):
        x = self.embed(target)
        for layer in self.decoder:
            x = layer(x, context, mask)
        return F.linear(x, self.embedding.weight)


@dataclass(frozen=True)
class LlamaConfig(Dimensions):
    """The dimensions of a Llama, and its two constants: RoPE's base and RMSNorm's epsilon."""

    theta: float = 10_000.0
    eps: float = 1e-5


class RMSNorm(nn.Module):
    """x / root-mean-square(x), computed in fp32, times a learned gain (1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        y = x.float()
        return self.weight * (y * (y.square().mean(-1, keepdim=True) + self.eps).rsqrt()).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), (..., W) to (..., W) (2002.05202)."""

    def __init__(self, width: int, feed_forward: int):
        super().__init__()
        self.gate, self.up = (nn.Linear(width, feed_forward, bias=False) for _ in range(2))
        self.down = nn.Linear(feed_forward, width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class LlamaBlock(nn.Module):
    """Attention, then SwiGLU, each applied to the RMSNorm of x and added to x: (B, T, W) to (B, T, W)."""

    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.attention = Attention(c.width, c.heads, c.kv_heads, c.head_width)
        self.feed_forward = SwiGLU(c.width, c.feed_forward)
        self.attention_norm, self.feed_forward_norm = RMSNorm(c.width, c.eps), RMSNorm(c.width, c.eps)

    def forward(self, x, positions, causal=True, cache=None):
        x = x + self.attention(self.attention_norm(x), causal=causal, positions=positions, cache=cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nn.Module):
    """Token ids (B, T) to logits (B, T, vocabulary); with ``causal=False``, an encoder made of the same blocks."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary, config.width)
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.5 * config.width**-0.5)  # 0.02 at a width of 600
        if config.tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids, causal=True, caches: list[KVCache] | None = None, last_only=False):
        x = self.embedding(ids)
        c, start = self.config, caches[0].used if caches else 0
        positions = rope(ids.shape[1], c.head_width, c.theta, start)
        for i, block in enumerate(self.blocks):
            x = block(x, positions, causal, cache=caches[i] if caches else None)
        return self.head(self.norm(x[:, -1:] if last_only else x))

    def new_caches(self, batch_size: int, length: int) -> list[KVCache]:
        """Return one empty cache per layer, each with room for ``length`` positions."""
        c, like = self.config, self.embedding.weight.data
        return [KVCache(batch_size, c.kv_heads, length, c.head_width, like) for _ in range(c.layers)]

    def load(self, weights: dict[str, torch.Tensor]) -> "Llama":
        """Use the tensors of a published Llama checkpoint, given by their published names, without copying them."""
        aliases = {"head.weight": "embedding.weight"} if self.config.tied else {}
        ours = {name: weights[published_name(aliases.get(name, name))] for name in self.state_dict()}
        self.load_state_dict(ours, assign=True)
        if self.config.tied:
            self.head.weight = self.embedding.weight
        return self

    @classmethod
    def of(cls, model) -> "Llama":
        """Return a ``Llama`` that shares the weights of a transformers Llama and needs no memory of its own."""
        c = model.config
        config = LlamaConfig(
            c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
            c.num_key_value_heads, c.head_dim, c.tie_word_embeddings, c.rope_parameters["rope_theta"], c.rms_norm_eps,
        )  # fmt: skip
        with torch.device("meta"):
            empty = cls(config)
        return empty.load(model.state_dict()).eval()


def published_name(ours: str) -> str:
    """Return the name that a parameter of ``Llama`` has in published checkpoints."""
    parts = {
        "embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head", "blocks": "model.layers",
        "attention": "self_attn", "feed_forward": "mlp", "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm", "q": "q_proj", "k": "k_proj", "v": "v_proj",
        "o": "o_proj", "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
    }  # fmt: skip
    return ".".join(parts.get(part, part) for part in ours.split("."))
