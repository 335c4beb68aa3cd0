"""Choosing tokens, held against the library's processors and its generate."""

import pytest
import torch

from lecture_utils import generation
from lecture_utils import transformer as tf


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    small = tf.Llama(tf.LlamaConfig(12, 16, 24, 2, 4, 2, 4)).eval()
    for p in small.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return small


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 5, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.2, 1e-6])
def test_filtered_equals_the_library(temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    torch.manual_seed(0)
    logits = torch.randn(3, 40) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    got = generation.next_token_probabilities(logits, temperature, top_k, top_p)
    assert torch.allclose(got, expected.softmax(-1), atol=1e-6)
    assert torch.allclose(got.sum(-1), torch.ones(3))


def test_temperature_zero_is_the_greatest():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert generation.next_token_probabilities(logits, 0).tolist() == [[0.0, 1.0, 0.0]]


def test_cache_changes_nothing_and_stop_stops(model):
    ids = torch.tensor([[3, 1, 4]])
    for how in ({}, {"temperature": 1.0, "seed": 5}, {"temperature": 0.7, "top_k": 4, "top_p": 0.8, "seed": 1}):
        cached = generation.generate(model, ids, 20, **how)
        assert cached == generation.generate(model, ids, 20, use_cache=False, **how) and len(cached) == 20
    greedy = generation.generate(model, ids, 20)
    assert generation.generate(model, ids, 20, stop_ids=(greedy[4],)) == greedy[: greedy.index(greedy[4])]


def test_greedy_equals_the_library(model):
    from transformers import LlamaConfig, LlamaForCausalLM

    c = model.config
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=c.vocabulary, hidden_size=c.width, intermediate_size=c.feed_forward, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_width, rms_norm_eps=c.eps,
        tie_word_embeddings=True, rope_theta=c.theta, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )).eval()  # fmt: skip
    theirs.load_state_dict({tf.published_name(k): v for k, v in model.state_dict().items()})
    ids = torch.tensor([[7, 2, 9, 9]])
    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=15, do_sample=False)
    assert generation.generate(model, ids, 15) == expected[0, 4:].tolist()
