"""The transformer: the blocks of 2017 (Vaswani et al., 1706.03762) and a Llama of today (2302.13971).

Shapes: B rows, T positions, S positions of the context, W width, H heads, D width of a head.
A mask is boolean, True where a query may look, broadcastable to (B, H, T, S).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from lecture_utils.shapes import Dimensions


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Return absolute positions (length, width): sines in even columns, cosines in odd ones (1706.03762, section
    3.5)."""
    assert width % 2 == 0
    angles = torch.arange(length)[:, None] * 10_000 ** (-torch.arange(0, width, 2) / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rope(length: int, head_width: int, theta: float = 10_000.0, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines and sines, both (length, head_width), that ``rotate`` turns positions ``start``, ``start +
    1``, ... by (RoFormer, 2104.09864, section 3.2)."""
    assert head_width % 2 == 0
    speed = 1.0 / theta ** (torch.arange(0, head_width, 2, dtype=torch.int64).float() / head_width)
    angles = torch.arange(start, start + length)[:, None] * torch.cat((speed, speed))
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + D/2) of x (B, H, T, D) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x) + torch.cat((-second, first), dim=-1) * sin.to(x)


def causal_mask(queries: int, keys: int | None = None) -> torch.Tensor:
    """Return (queries, keys), True on and below the diagonal; the queries are the last positions."""
    keys = queries if keys is None else keys
    assert keys >= queries  # else the first query would see nothing, and its row be NaN
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


class KVCache:
    """The keys and values of positions already read, one layer: room for ``length`` of them.

    dtype and device are those of ``like``; ``used`` counts the positions.
    """

    def __init__(self, batch_size: int, kv_heads: int, length: int, head_width: int, like: torch.Tensor):
        self.keys, self.values = (like.new_zeros(batch_size, kv_heads, length, head_width) for _ in range(2))
        self.used = 0

    def add(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append k and v (B, H, T, D); return all keys and values so far."""
        end = self.used + k.shape[2]
        assert end <= self.keys.shape[2], "the cache is full"  # torch would drop the position silently
        self.keys[:, :, self.used : end], self.values[:, :, self.used : end] = k, v
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class Attention(nn.Module):
    """Multi-head attention, (B, T, W) to (B, T, W): self-attention, or cross-attention to a context.

    kv_heads: fewer heads of keys and values than of queries (grouped-query attention,
    2305.13245).
    """

    def __init__(self, width: int, heads: int, kv_heads: int | None = None, head_width: int | None = None, bias=False):
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        assert head_width or width % heads == 0
        assert heads % kv_heads == 0
        self.heads, self.kv_heads, self.head_width = heads, kv_heads, head_width or width // heads
        self.q = nn.Linear(width, heads * self.head_width, bias=bias)
        self.k = nn.Linear(width, kv_heads * self.head_width, bias=bias)
        self.v = nn.Linear(width, kv_heads * self.head_width, bias=bias)
        self.o = nn.Linear(heads * self.head_width, width, bias=bias)

    def forward(self, x, context=None, mask=None, causal=False, positions=None, cache: KVCache | None = None):
        q, k, v = self._project(x, context, positions)
        if cache is not None:
            k, v = cache.add(k, v)
            causal = causal and q.shape[2] > 1  # a single new position may see everything before it
            if causal and k.shape[2] > q.shape[2]:
                mask, causal = causal_mask(q.shape[2], k.shape[2]).to(q.device), False
        grouped = self.heads != self.kv_heads
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
        return self.o(out.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, H D) -> (B, T, W)

    def weights(self, x, context=None, mask=None, causal=False, positions=None) -> torch.Tensor:
        """Return who looks where, (B, H, T, S), each row a distribution: what ``forward`` averages by."""
        q, k, _ = self._project(x, context, positions)
        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_width)
        if causal:
            mask = causal_mask(*scores.shape[-2:]).to(scores.device)
        return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)

    def _project(self, x, context, positions):
        source = x if context is None else context
        q, k, v = (
            part.unflatten(-1, (-1, self.head_width)).transpose(1, 2)  # (B, T, H D) -> (B, H, T, D)
            for part in (self.q(x), self.k(source), self.v(source))
        )
        if positions is not None:
            q, k = rotate(q, *positions), rotate(k, *positions)
        return q, k, v


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each with residual, dropout and LayerNorm after (1706.03762,
    section 3.1); ``pre_norm`` puts the norm before, as everybody has since. (B, T, W) to (B, T, W)."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float = 0.1, pre_norm: bool = False):
        super().__init__()
        self.attention = Attention(width, heads, bias=True)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout, self.pre_norm = nn.Dropout(dropout), pre_norm

    def forward(self, x, mask=None, causal=False):
        x = self._add(0, x, lambda y: self.attention(y, mask=mask, causal=causal))
        return self._add(-1, x, self.feed)

    def feed(self, x):
        return self.down(self.dropout(F.relu(self.up(x))))

    def _add(self, i, x, part):
        if self.pre_norm:
            return x + self.dropout(part(self.norms[i](x)))
        return self.norms[i](x + self.dropout(part(x)))


class DecoderLayer(EncoderLayer):
    """*Masked* self-attention, then *cross-attention* to the encoder's output, then feed-forward.
    x (B, T, W), context (B, S, W); ``mask`` is the context's."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float = 0.1, pre_norm: bool = False):
        super().__init__(width, heads, feed_forward, dropout, pre_norm)
        self.cross = Attention(width, heads, bias=True)
        self.norms.insert(1, nn.LayerNorm(width))

    def forward(self, x, context, mask=None):
        x = self._add(0, x, lambda y: self.attention(y, causal=True))
        x = self._add(1, x, lambda y: self.cross(y, context, mask=mask))
        return self._add(-1, x, self.feed)


class Transformer(nn.Module):
    """The encoder-decoder of 2017: source (B, S) and target (B, T) token ids to logits (B, T, vocabulary).

    One embedding serves source, target and output head (section 3.4). ``pad`` is never looked at.
    """

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
        mask = (source != self.pad)[:, None, None]  # (B, 1, 1, S)
        x = self.embed(source)
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
    """x / root-mean-square(x), times a learnt gain (1910.07467); computed in fp32."""

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
    """Norm, attention, add; norm, SwiGLU, add."""

    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.attention = Attention(c.width, c.heads, c.kv_heads, c.head_width)
        self.feed_forward = SwiGLU(c.width, c.feed_forward)
        self.attention_norm, self.feed_forward_norm = RMSNorm(c.width, c.eps), RMSNorm(c.width, c.eps)

    def forward(self, x, positions, causal=True, cache=None):
        x = x + self.attention(self.attention_norm(x), causal=causal, positions=positions, cache=cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nn.Module):
    """Token ids (B, T) to logits (B, T, vocabulary); with ``causal=False``, an encoder of the same blocks."""

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
        start = caches[0].used if caches else 0
        positions = rope(ids.shape[1], self.config.head_width, self.config.theta, start)
        for i, block in enumerate(self.blocks):
            x = block(x, positions, causal, cache=caches[i] if caches else None)
        return self.head(self.norm(x[:, -1:] if last_only else x))

    def new_caches(self, batch_size: int, length: int) -> list[KVCache]:
        """Return one empty cache a layer, with room for ``length`` positions."""
        c = self.config
        return [
            KVCache(batch_size, c.kv_heads, length, c.head_width, self.embedding.weight.data) for _ in range(c.layers)
        ]

    def load(self, weights: dict[str, torch.Tensor]) -> "Llama":
        """Take the weights of a Llama by the names they are published under: the tensors themselves, not copies."""
        ours = {}
        for name in self.state_dict():
            theirs = published_name("embedding.weight" if name == "head.weight" and self.config.tied else name)
            ours[name] = weights[theirs]
        self.load_state_dict(ours, assign=True)
        if self.config.tied:
            self.head.weight = self.embedding.weight
        return self

    @classmethod
    def of(cls, model) -> "Llama":
        """Return a transformers Llama as one of ours: same weights, shared, no memory of its own."""
        c = model.config
        config = LlamaConfig(
            c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads,
            c.num_key_value_heads, c.head_dim, c.tie_word_embeddings, c.rope_parameters["rope_theta"], c.rms_norm_eps,
        )  # fmt: skip
        with torch.device("meta"):
            empty = cls(config)
        return empty.load(model.state_dict()).eval()


def published_name(ours: str) -> str:
    """Return the name under which a Llama's checkpoint holds one of ``Llama``'s parameters."""
    parts = {
        "embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head", "blocks": "model.layers",
        "attention": "self_attn", "feed_forward": "mlp", "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm", "q": "q_proj", "k": "k_proj", "v": "v_proj",
        "o": "o_proj", "gate": "gate_proj", "up": "up_proj", "down": "down_proj",
    }  # fmt: skip
    return ".".join(parts.get(part, part) for part in ours.split("."))
