"""Few bits a number: absmax int8, NF4 and FP4, packing, double quantization.

Written to be read beside notebook 07, on a CPU. Four-bit codes, bytes and values equal
bitsandbytes' bit for bit (the tests hold them to it); its 8-bit scales come from a coarse
look-up table, which takes the neighbouring level for some values almost half way between. Sources: Dettmers et al., LLM.int8() (2208.07339, section 2) and QLoRA
(2305.14314, section 3).
"""

from dataclasses import dataclass
from statistics import NormalDist

import torch

from lecture_utils.memory import bits_per_parameter  # noqa: F401  (part of this subject; defined once)

TINY = 1e-38  # a block of zeros is divided by this


def absmax_int8(x: torch.Tensor, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(q, scale)``: x is about q * scale, q int8 in -127 … 127, one scale a row of ``dim``.

    x: any shape.
    """
    assert x.isfinite().all()  # one infinity or NaN would spoil its whole block
    scale = x.float().abs().amax(dim, keepdim=True).clamp(min=TINY) / 127
    return (x.float() / scale).round().to(torch.int8), scale


def nf4_levels() -> torch.Tensor:
    """Return NF4's 16 levels, ascending, float32, from the quantiles of a normal distribution.

    Eight positive and seven negative levels stand at evenly spaced *probabilities*, zero is
    added, and all are divided by the greatest, so that they end at -1 and 1 (after 2305.14314,
    equation 4; as the authors' code does, with quantiles themselves and not their means). The
    outermost probability, 0.9677083 in that code, is 1 - (1/32 + 1/30) / 2: half a step is left out,
    averaged over 16 and 15 steps.
    """
    outer, quantile = 0.9677083, NormalDist().inv_cdf
    positive = [quantile(p) for p in torch.linspace(outer, 0.5, 9).tolist()[:-1]]
    negative = [-quantile(p) for p in torch.linspace(outer, 0.5, 8).tolist()[:-1]]
    levels = torch.tensor(sorted([*negative, 0.0, *positive]))
    return levels / levels.max()


def fp4_levels() -> torch.Tensor:
    """Return bitsandbytes' FP4 in the order of its codes (not ascending), float32: one sign
    bit, two exponent bits, one fraction bit; the exponent counts in an order of its own."""
    magnitudes = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
    return torch.cat([magnitudes, -magnitudes])


def uniform_levels(bits: int = 4) -> torch.Tensor:
    """Return 2^bits evenly spaced levels from -1 to 1, ascending, float32."""
    return torch.linspace(-1, 1, 2**bits)


def int4_levels() -> torch.Tensor:
    """Return -7/7 … 7/7, ascending, float32: 15 levels, symmetric around an exact zero."""
    return torch.arange(-7, 8) / 7


def dynamic_levels() -> torch.Tensor:
    """Return the 256 levels of bitsandbytes' signed *dynamic* 8-bit type, ascending, float32.

    Seven decades, from 10^-7 to 1, with 1, 2, 4 ... 64 levels of each sign, in the middle of
    evenly spaced intervals (Dettmers 2015, 1511.04561).
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        for sign in (1, -1):
            levels += (sign * 10.0 ** (decade - 6) * middles).tolist()
    return torch.tensor(sorted(levels))


def nearest(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return the index of the level nearest to each value (uint8, shape of x)."""
    order = levels.argsort()
    ascending = levels[order]
    middles = (ascending[:-1] + ascending[1:]) / 2
    return order[torch.bucketize(x, middles)].to(torch.uint8)


def _blocks(x: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return the values as rows of ``block_size``, the last filled up with zeros."""
    flat = x.reshape(-1).float()
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Return two 4-bit codes a byte, the first in the high half; (n,) uint8 -> (ceil(n / 2),)."""
    assert (codes <= 15).all()  # more would spill into the neighbour
    even = torch.nn.functional.pad(codes.reshape(-1), (0, codes.numel() % 2))
    return (even[::2] << 4) | even[1::2]


def unpack(packed: torch.Tensor, n: int) -> torch.Tensor:
    """Return the first n 4-bit codes of packed bytes, (n,) uint8."""
    return torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[:n]


@dataclass
class Quantized4bit:
    """A tensor in four bits: packed codes and one scale a block."""

    packed: torch.Tensor  # (ceil(n / 2),) uint8
    absmax: torch.Tensor  # (blocks,) float32, the greatest magnitude of each block
    levels: torch.Tensor  # (16,) float32
    shape: torch.Size
    block_size: int

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return level * absmax in the tensor's shape."""
        n = self.shape.numel()
        values = self.levels[unpack(self.packed, n).long()]
        rows = _blocks(values, self.block_size) * self.absmax[:, None]
        return rows.reshape(-1)[:n].view(self.shape).to(dtype)


def quantize_4bit(x: torch.Tensor, levels: torch.Tensor | None = None, block_size: int = 64) -> Quantized4bit:
    """Quantize block by block: divide by the block's greatest magnitude, take the nearest level.

    x: any shape; levels: at most 16 values in -1 … 1, default NF4's; block: values a
    scale, even.
    """
    levels = nf4_levels() if levels is None else levels
    if not x.isfinite().all():
        raise ValueError("x holds an infinity or NaN: one such value would spoil its whole block.")
    rows = _blocks(x, block_size)
    absmax = rows.abs().amax(1)
    scaled = (rows * (1 / absmax.clamp(min=TINY))[:, None]).clamp(-1, 1)
    codes = nearest(scaled, levels).reshape(-1)[: x.numel() + x.numel() % 2]  # filled up with zero's code
    return Quantized4bit(pack(codes), absmax, levels, x.shape, block_size)


@dataclass
class Scales8bit:
    """Double quantization: the scales of a 4-bit tensor in eight bits each."""

    codes: torch.Tensor  # (blocks,) uint8
    absmax: torch.Tensor  # (ceil(blocks / 256),) float32
    offset: torch.Tensor  # () float32: scales are positive; their mean is taken off first

    def dequantize(self) -> torch.Tensor:
        """Return the scales, (blocks,) float32."""
        values = _blocks(dynamic_levels()[self.codes.long()], 256) * self.absmax[:, None]
        return values.reshape(-1)[: self.codes.numel()] + self.offset


def double_quantize(absmax: torch.Tensor) -> Scales8bit:
    """Quantize (blocks,) float32 scales to eight bits, 256 to a second-level scale (2305.14314, section 3)."""
    offset = absmax.mean()
    rows = _blocks(absmax - offset, 256)
    scale = rows.abs().amax(1)
    codes = nearest((rows * (1 / scale.clamp(min=TINY))[:, None]).clamp(-1, 1), dynamic_levels())
    return Scales8bit(codes.reshape(-1)[: absmax.numel()], scale, offset)


class _Product(torch.autograd.Function):
    """x @ W.T with W dequantized for the product, and again for the gradient of x."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return x @ weight.dequantize(x.dtype).T

    @staticmethod
    def backward(ctx, gradient):  # W is frozen: only x gets one
        return gradient @ ctx.weight.dequantize(gradient.dtype), None


class Linear4bit(torch.nn.Module):
    """A frozen linear layer whose weight is kept in four bits (QLoRA's base layer, equation 5).

    weight: (outputs, inputs). Maps (..., inputs) to (..., outputs), in the dtype of its input.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, **settings):
        super().__init__()
        self.weight4 = quantize_4bit(weight.detach(), **settings)
        self.register_buffer("bias", None if bias is None else bias.detach())

    @property
    def weight(self) -> torch.Tensor:
        """The dequantized weight, (outputs, inputs) float32."""
        return self.weight4.dequantize()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = _Product.apply(x, self.weight4)
        return out if self.bias is None else out + self.bias.to(out.dtype)
