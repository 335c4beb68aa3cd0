"""Numbers of few bits: absmax int8, NF4 and FP4, packing, and double quantization, in readable code for a CPU.

Sources: Dettmers et al., LLM.int8() (2208.07339, section 2) and QLoRA (2305.14314, section 3). Four-bit codes, bytes
and values equal those of bitsandbytes bit for bit, which the tests check. Its 8-bit scales come from a coarse look-up
table, which returns the neighbouring level for some values that lie almost half way between two levels.
"""

from dataclasses import dataclass
from statistics import NormalDist

import torch

from lecture_utils.memory import bits_per_parameter  # noqa: F401  (part of this subject, but defined only once)

TINY = 1e-38  # the divisor of a block of zeros


def absmax_int8(x: torch.Tensor, dim: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(q, scale)`` so that q * scale approximates x (any shape): q is int8 from -127 to 127, and ``scale`` has
    size 1 along ``dim``."""
    assert x.isfinite().all()  # a single infinity or NaN would spoil its whole row
    scale = x.float().abs().amax(dim, keepdim=True).clamp(min=TINY) / 127
    return (x.float() / scale).round().to(torch.int8), scale


def nf4_levels() -> torch.Tensor:
    """Return the 16 levels of NF4, ascending, float32: quantiles of a normal distribution.

    Eight positive and seven negative quantiles at evenly spaced *probabilities*, and zero, are divided by the largest,
    so that the levels range from -1 to 1. Equation 4 of 2305.14314 averages neighbouring quantiles; the authors' code,
    which we follow, takes the quantiles themselves. Its outermost probability, 0.9677083, is 1 - (1/32 + 1/30) / 2: it
    leaves out half a step, averaged over 16 and 15 steps.
    """
    outer, quantile = 0.9677083, NormalDist().inv_cdf
    positive = [quantile(p) for p in torch.linspace(outer, 0.5, 9).tolist()[:-1]]
    negative = [-quantile(p) for p in torch.linspace(outer, 0.5, 8).tolist()[:-1]]
    levels = torch.tensor(sorted([*negative, 0.0, *positive]))
    return levels / levels.max()


def fp4_levels() -> torch.Tensor:
    """Return the levels of bitsandbytes' FP4, float32, in the order of its codes, which is not ascending: one sign bit,
    two exponent bits (whose codes do not count upwards) and one fraction bit."""
    magnitudes = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
    return torch.cat([magnitudes, -magnitudes])


def uniform_levels(bits: int = 4) -> torch.Tensor:
    """Return 2^bits evenly spaced levels from -1 to 1, ascending, float32."""
    return torch.linspace(-1, 1, 2**bits)


def int4_levels() -> torch.Tensor:
    """Return the 15 levels -7/7 … 7/7, ascending, float32, which are symmetric and contain zero."""
    return torch.arange(-7, 8) / 7


def dynamic_levels() -> torch.Tensor:
    """Return the 256 levels of bitsandbytes' signed *dynamic* 8-bit type, ascending, float32: 0, 1, and for each
    sign the middles of 1, 2, 4 ... 64 equal intervals in seven decades from 10^-7 to 1 (Dettmers 2015, 1511.04561)."""
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        for sign in (1, -1):
            levels += (sign * 10.0 ** (decade - 6) * middles).tolist()
    return torch.tensor(sorted(levels))


def nearest(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Return the index of the level nearest to each value (uint8, the shape of x)."""
    ascending, order = levels.sort()
    middles = (ascending[:-1] + ascending[1:]) / 2
    return order[torch.bucketize(x, middles)].to(torch.uint8)


def _blocks(x: torch.Tensor, block_size: int) -> torch.Tensor:
    """Return the values in rows of ``block_size``, the last one padded with zeros."""
    flat = x.reshape(-1).float()
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Pack two 4-bit codes into each byte, the first in the high half: (n,) uint8 to (ceil(n / 2),) uint8."""
    assert (codes <= 15).all()  # a larger code would change its neighbour
    even = torch.nn.functional.pad(codes.reshape(-1), (0, codes.numel() % 2))
    return (even[::2] << 4) | even[1::2]


def unpack(packed: torch.Tensor, n: int) -> torch.Tensor:
    """Return the first n 4-bit codes of packed bytes, (n,) uint8."""
    return torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[:n]


@dataclass
class Quantized4bit:
    """A tensor of n numbers in four bits: packed codes and one scale per block."""

    packed: torch.Tensor  # (ceil(n / 2),) uint8
    absmax: torch.Tensor  # (blocks,) float32, the largest magnitude in each block
    levels: torch.Tensor  # (16,) float32
    shape: torch.Size
    block_size: int

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return level * absmax in the tensor's shape."""
        n = self.shape.numel()
        rows = _blocks(self.levels[unpack(self.packed, n).long()], self.block_size) * self.absmax[:, None]
        return rows.reshape(-1)[:n].view(self.shape).to(dtype)


def quantize_4bit(x: torch.Tensor, levels: torch.Tensor | None = None, block_size: int = 64) -> Quantized4bit:
    """Quantize x (any shape) in blocks of ``block_size`` values (even): divide each block by its largest magnitude and
    take the nearest of ``levels``, at most 16 values from -1 to 1, by default NF4's."""
    levels = nf4_levels() if levels is None else levels
    if not x.isfinite().all():
        raise ValueError("x contains an infinity or NaN, which would spoil its whole block.")
    rows = _blocks(x, block_size)
    absmax = rows.abs().amax(1)
    scaled = (rows * (1 / absmax.clamp(min=TINY))[:, None]).clamp(-1, 1)
    codes = nearest(scaled, levels).reshape(-1)[: x.numel() + x.numel() % 2]  # padded with the code of zero
    return Quantized4bit(pack(codes), absmax, levels, x.shape, block_size)


@dataclass
class Scales8bit:
    """Double quantization: the scales of a 4-bit tensor in eight bits each."""

    codes: torch.Tensor  # (blocks,) uint8
    absmax: torch.Tensor  # (ceil(blocks / 256),) float32
    offset: torch.Tensor  # () float32, the mean, which is subtracted first because scales are positive

    def dequantize(self) -> torch.Tensor:
        """Return the scales, (blocks,) float32."""
        values = _blocks(dynamic_levels()[self.codes.long()], 256) * self.absmax[:, None]
        return values.reshape(-1)[: self.codes.numel()] + self.offset


def double_quantize(absmax: torch.Tensor) -> Scales8bit:
    """Quantize (blocks,) float32 scales to eight bits, with one second-level scale for 256 (2305.14314, section 3)."""
    offset = absmax.mean()
    rows = _blocks(absmax - offset, 256)
    scale = rows.abs().amax(1)
    codes = nearest((rows * (1 / scale.clamp(min=TINY))[:, None]).clamp(-1, 1), dynamic_levels())
    return Scales8bit(codes.reshape(-1)[: absmax.numel()], scale, offset)


class _Product(torch.autograd.Function):
    """x @ W.T, where W is dequantized for the product and again for the gradient of x instead of being stored."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight  # the 4-bit codes
        return x @ weight.dequantize(x.dtype).T

    @staticmethod
    def backward(ctx, grad_output):  # W is frozen, so only x gets a gradient
        return grad_output @ ctx.weight.dequantize(grad_output.dtype), None


class Linear4bit(torch.nn.Module):
    """A frozen linear layer with its weight (outputs, inputs) in four bits (QLoRA's base layer, equation 5). It maps
    (..., inputs) to (..., outputs) in the dtype of its input."""

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
