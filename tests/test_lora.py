import copy

import peft
import pytest
import torch
from torch import nn

from lecture_utils import lora, memory, quantization, shapes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 4, bias=False)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def pair(rank=3, alpha=12):
    """The same network adapted by us and by PEFT, with equal adapters that are not zero."""
    torch.manual_seed(0)
    ours = Net()
    theirs = peft.get_peft_model(
        copy.deepcopy(ours), peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["up", "down"])
    )
    for name in ("up", "down"):
        setattr(ours, name, lora.LoRALinear(getattr(ours, name), rank, alpha))
        layer = getattr(theirs.base_model.model, name)
        nn.init.normal_(layer.lora_B["default"].weight)
        getattr(ours, name).A.data.copy_(layer.lora_A["default"].weight)
        getattr(ours, name).B.data.copy_(layer.lora_B["default"].weight)
    return ours, theirs


def test_outputs_and_gradients_equal_peft():
    ours, theirs = pair()
    x = torch.randn(5, 2, 16)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for name in ("up", "down"):
        layer = getattr(theirs.base_model.model, name)
        assert torch.allclose(getattr(ours, name).A.grad, layer.lora_A["default"].weight.grad, rtol=1e-4, atol=1e-4)
        assert torch.allclose(getattr(ours, name).B.grad, layer.lora_B["default"].weight.grad, rtol=1e-4, atol=1e-4)
        assert getattr(ours, name).base.weight.grad is None


def test_twenty_steps_of_training_equal_peft():
    losses = []
    for net in pair():
        torch.manual_seed(1)
        x, y = torch.randn(64, 16), torch.randn(64, 4)
        adam = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(20):
            loss = (net(x) - y).square().mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
    assert losses[:20] == pytest.approx(losses[20:], rel=1e-4) and losses[19] < 0.9 * losses[0]


def test_starts_unchanged_and_only_b_gets_a_gradient():
    base = nn.Linear(16, 8)
    layer, x = lora.LoRALinear(base, 2, 4), torch.randn(3, 16)
    assert torch.equal(layer(x), base(x))
    layer(x).square().sum().backward()
    assert layer.A.grad.abs().max() == 0 and layer.B.grad.abs().max() > 0


def test_the_update_has_the_rank():
    layer = lora.LoRALinear(nn.Linear(16, 8), 2, 4)
    nn.init.normal_(layer.B)
    assert torch.linalg.matrix_rank(layer.delta()) == 2


def test_merge_and_unmerge():
    ours, _ = pair()
    x = torch.randn(5, 16)
    before, weight = ours(x), ours.up.base.weight.clone()
    for layer in (ours.up, ours.down):
        layer.merge()
        layer.merge()  # a second time changes nothing
    assert torch.allclose(ours(x), before, atol=1e-5) and not torch.allclose(ours.up.base.weight, weight)
    ours.up.unmerge()
    assert torch.allclose(ours.up.base.weight, weight, atol=1e-6) and not ours.up.merged


def test_on_a_four_bit_base():
    base = quantization.Linear4bit(torch.randn(8, 64))
    layer, x = lora.LoRALinear(base, 2, 4), torch.randn(3, 64, requires_grad=True)
    assert torch.equal(layer(x), base(x))
    layer(x).sum().backward()
    assert x.grad is not None and [n for n, _ in layer.named_parameters()] == ["A", "B"]
    with pytest.raises(AssertionError):
        layer.merge()


def test_a_half_precision_base_keeps_its_dtype():
    layer = lora.LoRALinear(nn.Linear(16, 8).bfloat16(), 2, 4)
    nn.init.normal_(layer.B)
    x = torch.randn(3, 16).bfloat16()
    assert layer(x).dtype == torch.bfloat16 and layer.A.dtype == torch.float32
    before = layer(x)
    layer.merge()
    assert torch.allclose(layer(x), before, atol=0.1, rtol=0.05)


def test_counts_equal_the_formula():
    shape = shapes.Shape(100, 64, 96, 2, 4, 2, 16, tied=True)
    targets = ("q_proj", "v_proj")
    with torch.device("meta"):
        model = peft.get_peft_model(shape.build_empty(), peft.LoraConfig(r=4, target_modules=list(targets)))
    assert model.get_nb_trainable_parameters()[0] == memory.lora_parameters(shape, 4, targets)
