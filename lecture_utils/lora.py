"""LoRA: h = W x + (alpha / r) B A x, with W frozen (Hu et al. 2021, 2106.09685, section 4.1)."""

import math

import torch
from torch import nn


class LoRALinear(nn.Module):
    """A frozen linear layer ``base`` with an adapter beside it, which maps (..., inputs) to (..., outputs). The base is
    an ``nn.Linear`` or another layer with a ``weight`` (outputs, inputs), such as ``Linear4bit``. A (rank, inputs) is
    random at first and B (outputs, rank) is zero, so that the output is still that of the base."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0):
        super().__init__()
        weight = base.weight
        outputs, inputs = weight.shape
        self.base = base.requires_grad_(False)
        self.A = nn.Parameter(torch.empty(rank, inputs, device=weight.device))
        self.B = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # PEFT's choice; the paper draws from a Gaussian
        self.scale = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.merged = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base(x)
        if self.merged:
            return out
        update = self.dropout(x.to(self.A.dtype)) @ self.A.T @ self.B.T  # in fp32, whatever the base's dtype
        return out + (self.scale * update).to(out.dtype)

    def delta(self) -> torch.Tensor:
        """Return the update of the weight, (alpha / r) B A, (outputs, inputs)."""
        return self.scale * (self.B @ self.A)

    def merge(self) -> None:
        """Add the update to the base weight: the outputs stay the same, and the adapter costs nothing any more."""
        self._add(1, merged=True)

    def unmerge(self) -> None:
        """Subtract the update from the base weight again, which restores it up to rounding."""
        self._add(-1, merged=False)

    @torch.no_grad()
    def _add(self, sign: int, merged: bool) -> None:
        assert isinstance(self.base.weight, nn.Parameter), "a 4-bit weight cannot be updated: dequantize it first"
        if self.merged != merged:
            self.base.weight += sign * self.delta().to(self.base.weight.dtype)
            self.merged = merged
