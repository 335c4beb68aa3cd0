"""LoRA: h = W x + (alpha / r) B A x, with W frozen (Hu et al. 2021, 2106.09685, section 4.1)."""

import math

import torch
from torch import nn

from lecture_utils.quantization import Linear4bit


class LoRALinear(nn.Module):
    """A linear layer with an adapter beside it: maps (..., inputs) to (..., outputs).

    base: the frozen layer; an ``nn.Linear``, or anything with ``weight`` (outputs, inputs)
    such as ``quantization.Linear4bit``. A (rank, inputs) starts random, B (outputs, rank)
    at zero, so that the layer's output is unchanged at first.
    """

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

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the base weight: same outputs, no more cost."""
        self._add(1, merged=True)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the update off the base weight again (exact up to rounding)."""
        self._add(-1, merged=False)

    def _add(self, sign: int, merged: bool) -> None:
        assert isinstance(self.base.weight, nn.Parameter), "a 4-bit weight cannot be added to: dequantize it first"
        if self.merged != merged:
            self.base.weight += sign * self.delta().to(self.base.weight.dtype)
            self.merged = merged


def add_adapters(model: nn.Module, targets: tuple[str, ...], rank: int, alpha: float, dropout: float = 0.0) -> int:
    """Freeze a model and put an adapter on each linear layer whose last name is one of ``targets``.

    Changes the model in place and returns the number of adapters. Raises ValueError where
    nothing matches, the rank is below 1 or the model has adapters already, TypeError for targets as one
    string or a rank that is no whole number.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in targets and isinstance(module, nn.Linear | Linear4bit)
    ]
    if not found:
        raise ValueError(f"No linear layer is named one of {targets}.")
    model.requires_grad_(False)
    for name, module in found:
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], LoRALinear(module, rank, alpha, dropout))
    return len(found)
