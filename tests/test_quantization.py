import bitsandbytes.functional as bnb
import pytest
import torch

from lecture_utils import quantization as q

SHAPES = [(64,), (1,), (63,), (65, 3), (128, 64), (8, 512), (7, 11, 13), (1000,)]


def x_size(shape):
    return torch.Size(shape).numel()


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_levels_are_those_of_bitsandbytes():
    assert torch.equal(q.nf4_levels(), bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(q.fp4_levels(), bnb.get_4bit_type("fp4", device="cpu"))
    assert torch.equal(q.dynamic_levels(), bnb.create_dynamic_map())


def test_nf4_is_asymmetric_with_an_exact_zero():
    levels = q.nf4_levels()
    assert (levels < 0).sum() == 7 and (levels > 0).sum() == 8 and (levels == 0).sum() == 1
    assert levels[0] == -1 and levels[-1] == 1


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("block", [64, 256])
def test_four_bits_equal_bitsandbytes(kind, shape, block):
    """bitsandbytes 0.50 dequantizes wrongly on a CPU where an even row is no whole number of blocks."""
    x = draw(shape if shape[-1] >= block else (x_size(shape),))
    packed, state = bnb.quantize_4bit(x, blocksize=block, quant_type=kind)
    ours = q.quantize_4bit(x, bnb.get_4bit_type(kind, device="cpu"), block)
    assert torch.equal(ours.packed, packed.reshape(-1))
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.equal(ours.dequantize(), bnb.dequantize_4bit(packed, state).view(x.shape))


def test_our_own_levels_give_the_same_codes():
    x = draw((300, 64), seed=1)
    assert torch.equal(q.quantize_4bit(x).packed, bnb.quantize_4bit(x, quant_type="nf4")[0].reshape(-1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(dtype):
    x = draw((64, 64)).to(dtype)
    packed, state = bnb.quantize_4bit(x, quant_type="nf4")
    ours = q.quantize_4bit(x, bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(ours.packed, packed.reshape(-1))
    assert torch.equal(ours.dequantize(dtype), bnb.dequantize_4bit(packed, state))


def test_zeros_stay_zeros():
    x = torch.zeros(3, 64)
    x[1, 5] = 2.0
    assert torch.equal(q.quantize_4bit(x).dequantize(), x)


@pytest.mark.parametrize("n", [2, 255, 256, 257, 100_000])
def test_double_quantization_equals_bitsandbytes(n):
    absmax = draw((n,)).abs() + 0.5
    ours = q.double_quantize(absmax)
    codes, state = bnb.quantize_blockwise(absmax - absmax.mean(), blocksize=256)
    apart = (ours.codes.int() - codes.int()).abs()
    assert apart.max() <= 2 and (apart > 0).float().mean() < 0.005 and torch.equal(ours.absmax, state.absmax)
    theirs = q.Scales8bit(codes, state.absmax, absmax.mean())  # the same codes, the same values
    assert torch.equal(theirs.dequantize(), bnb.dequantize_blockwise(codes, state) + absmax.mean())
    error = lambda scales: (scales.dequantize() - absmax).abs().mean()  # noqa: E731
    assert error(ours) <= error(theirs)


def test_equal_scales_survive_double_quantization():
    assert torch.equal(q.double_quantize(torch.full((300,), 0.7)).dequantize(), torch.full((300,), 0.7))


def test_double_quantization_inside_bitsandbytes():
    x = draw((512, 64), seed=2)
    _, state = bnb.quantize_4bit(x, quant_type="nf4", compress_statistics=True)
    ours = q.double_quantize(q.quantize_4bit(x).absmax)
    assert (ours.codes.int() - state.absmax.int()).abs().max() <= 1
    assert torch.equal(ours.offset, state.offset) and torch.equal(ours.absmax, state.state2.absmax)


def test_bits_per_parameter():
    assert q.bits_per_parameter() == 4.5
    assert q.bits_per_parameter(double=True) == 4 + 8 / 64 + 32 / 64 / 256


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_unpack_undoes_pack(n):
    codes = torch.arange(n, dtype=torch.uint8) % 16
    assert q.pack(codes).numel() == (n + 1) // 2
    assert torch.equal(q.unpack(q.pack(codes), n), codes)


def test_first_code_is_in_the_high_half():
    assert q.pack(torch.tensor([10, 3], dtype=torch.uint8)).tolist() == [0xA3]


def test_absmax_int8_by_row_and_by_column():
    x = torch.tensor([[1.0, -2.0], [0.0, 0.0], [300.0, 1.0]])
    codes, scale = q.absmax_int8(x)
    assert codes.tolist() == [[64, -127], [0, 0], [127, 0]] and scale.shape == (3, 1)
    assert q.absmax_int8(x, dim=0)[1].shape == (1, 2)
    assert ((codes * scale - x).abs() <= scale / 2 + 1e-6).all()


def test_int8_rows_equal_bitsandbytes():
    x = draw((32, 64)).half()
    codes, absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(x)
    ours, scale = q.absmax_int8(x)
    assert torch.equal(absmax, scale.squeeze(1) * 127)
    assert (ours.int() - codes.int()).abs().max() <= 1 and (ours == codes).float().mean() > 0.995


def test_linear_layer_equals_bitsandbytes_with_its_gradient():
    weight, x = draw((24, 64)), draw((5, 3, 64), seed=1).requires_grad_()
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4")
    theirs_x = x.detach().clone().requires_grad_()
    theirs = theirs_x @ bnb.dequantize_4bit(packed, state).T
    ours = q.Linear4bit(weight)(x)
    assert ours.shape == (5, 3, 24) and torch.allclose(ours, theirs, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    assert torch.allclose(x.grad, theirs_x.grad, atol=1e-4)
    assert not list(q.Linear4bit(weight).parameters())


def test_bad_input_is_named():
    with pytest.raises(AssertionError):
        q.pack(torch.tensor([16], dtype=torch.uint8))
