import pytest
import torch

from lecture_utils import decoding, generation, transformer


@pytest.fixture(params=[(4, 4), (6, 2)], ids=["plain", "grouped"])
def model(request):
    torch.manual_seed(0)
    heads, kv_heads = request.param
    config = transformer.LlamaConfig(120, 48, 64, 3, heads, kv_heads, 8, tied=kv_heads == 2)
    return transformer.Llama(config).eval()


@torch.inference_mode()
def test_logits_equal_the_llamas_prompt_and_after(model):
    ids = torch.randint(120, (2, 9))
    ours = decoding.Decoder(model)
    caches = ours.new_caches(2, 9)
    prompt = ours(ids[:, :6], caches, last_only=False)
    assert torch.allclose(prompt, model(ids[:, :6]), atol=1e-5)
    for t in range(6, 9):
        assert torch.allclose(ours(ids[:, t : t + 1], caches), model(ids[:, : t + 1])[:, -1:], atol=1e-5)


@torch.inference_mode()
def test_a_prompt_in_two_pieces(model):
    ids = torch.randint(120, (1, 9))
    ours = decoding.Decoder(model)
    caches = ours.new_caches(1, 9)
    ours(ids[:, :4], caches)
    assert torch.allclose(ours(ids[:, 4:], caches), model(ids)[:, -1:], atol=1e-5)


def test_writes_what_the_llama_writes(model):
    ids = torch.randint(120, (1, 5))
    assert generation.generate(decoding.Decoder(model), ids, 20) == generation.generate(model, ids, 20)


@torch.inference_mode()
def test_int8_is_the_model_with_rounded_weights(model):
    ids = torch.randint(120, (1, 7))
    ours = decoding.Decoder(model, torch.float32, int8=True)
    for parameter in model.parameters():
        if parameter.ndim == 2 and parameter is not model.embedding.weight:
            scale = parameter.abs().amax(1, keepdim=True) / 127
            parameter.data = (parameter / scale).round() * scale
    if model.config.tied:  # the table stays as it was, the head is rounded
        head = model.head.weight.data
        scale = head.abs().amax(1, keepdim=True) / 127
        model.head.weight = torch.nn.Parameter((head / scale).round() * scale)
    assert torch.allclose(ours(ids, ours.new_caches(1, 7)), model(ids)[:, -1:], atol=1e-4)


def test_int8_reads_a_quarter_of_the_bytes(model):
    full, small = decoding.Decoder(model).nbytes, decoding.Decoder(model, int8=True).nbytes
    assert 0.25 < small / full < 0.3
