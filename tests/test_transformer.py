"""Every block against the library's, on random inputs: masks, odd sizes, grouped heads, caches."""

import pytest
import torch
from torch import nn

from lecture_utils import models
from lecture_utils import transformer as tf


def torch_names(attention: tf.Attention) -> dict:
    """Our attention's weights as ``nn.MultiheadAttention`` holds them."""
    rows = (attention.q, attention.k, attention.v)
    return {
        "in_proj_weight": torch.cat([p.weight for p in rows]), "in_proj_bias": torch.cat([p.bias for p in rows]),
        "out_proj.weight": attention.o.weight, "out_proj.bias": attention.o.bias,
    }  # fmt: skip


@pytest.mark.parametrize(("rows", "time", "width", "heads"), [(1, 1, 4, 1), (2, 7, 12, 3), (3, 5, 20, 4)])
@pytest.mark.parametrize("kind", ["plain", "causal", "padding", "cross"])
def test_attention_equals_torch(rows, time, width, heads, kind):
    torch.manual_seed(0)
    ours, theirs = tf.Attention(width, heads, bias=True), nn.MultiheadAttention(width, heads, batch_first=True)
    theirs.load_state_dict(torch_names(ours))
    x, context = torch.randn(rows, time, width), torch.randn(rows, time + 2, width)
    visible = torch.ones(rows, time, dtype=torch.bool)
    visible[0, time // 2 + 1 :] = False
    given, mine = {
        "plain": ({}, {}),
        "causal": ({"attn_mask": ~tf.causal_mask(time)}, {"causal": True}),
        "padding": ({"key_padding_mask": ~visible}, {"mask": visible[:, None, None]}),
        "cross": ({}, {"context": context}),
    }[kind]
    source = context if kind == "cross" else x
    expected, weights = theirs(x, source, source, average_attn_weights=False, **given)
    assert torch.allclose(ours(x, **mine), expected, atol=1e-6)
    assert torch.allclose(ours.weights(x, **mine), weights, atol=1e-6)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_encoder_and_decoder_layer_equal_torch(pre_norm):
    torch.manual_seed(0)
    x, context = torch.randn(2, 6, 12), torch.randn(2, 9, 12)
    visible = torch.arange(9)[None] < torch.tensor([[9], [4]])
    sizes = dict(d_model=12, nhead=3, dim_feedforward=20, dropout=0.0, batch_first=True, norm_first=pre_norm)

    def shared(ours, attention):
        given = {f"self_attn.{k}": v for k, v in torch_names(ours.attention).items()}
        if attention:
            given |= {f"multihead_attn.{k}": v for k, v in torch_names(ours.cross).items()}
        for i, norm in enumerate(ours.norms, 1):
            nn.init.normal_(norm.weight)
            given |= {f"norm{i}.weight": norm.weight, f"norm{i}.bias": norm.bias}
        for name, layer in (("linear1", ours.up), ("linear2", ours.down)):
            given |= {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}
        return given

    ours, theirs = tf.EncoderLayer(12, 3, 20, 0.0, pre_norm), nn.TransformerEncoderLayer(**sizes)
    theirs.load_state_dict(shared(ours, False))
    got = ours(context, visible[:, None, None])
    assert torch.allclose(got, theirs(context, src_key_padding_mask=~visible), atol=1e-5)
    ours, theirs = tf.DecoderLayer(12, 3, 20, 0.0, pre_norm), nn.TransformerDecoderLayer(**sizes)
    theirs.load_state_dict(shared(ours, True))
    expected = theirs(x, context, tgt_mask=~tf.causal_mask(6), memory_key_padding_mask=~visible)
    assert torch.allclose(ours(x, context, visible[:, None, None]), expected, atol=1e-5)


def test_sinusoids_shift_by_a_rotation():
    """PE(pos + k) is linear in PE(pos): one matrix does it for every pos."""
    table = tf.sinusoids(50, 16).double()
    solution = torch.linalg.lstsq(table[:40], table[5:45]).solution
    assert torch.allclose(table[:40] @ solution, table[5:45], atol=1e-4)
    assert torch.equal(table[0], torch.tensor([0.0, 1.0] * 8).double())
    with pytest.raises(AssertionError):
        tf.sinusoids(3, 7)


def test_rotated_scores_depend_on_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8)
    scores = {}
    for at, other in ((0, 3), (10, 13), (500, 503)):
        turned = [tf.rotate(x, *tf.rope(1, 8, start=p)) for x, p in ((q, at), (k, other))]
        scores[at] = (turned[0] * turned[1]).sum().item()
    assert max(scores.values()) - min(scores.values()) < 1e-3 and abs(scores[0] - (q * k).sum().item()) > 1e-3


def test_transformer_ignores_padding_and_the_future():
    torch.manual_seed(0)
    model = tf.Transformer(20, width=16, heads=2, feed_forward=32).eval()
    source, target = torch.randint(1, 20, (2, 7)), torch.randint(1, 20, (2, 5))
    out = model(source, target)
    padded = torch.cat((source, torch.zeros(2, 3, dtype=torch.long)), 1)
    assert torch.allclose(model(padded, target), out, atol=1e-5)
    changed = target.clone()
    changed[:, 3] = 1 + target[:, 3] % 19
    again = model(source, changed)
    assert torch.allclose(again[:, :3], out[:, :3], atol=1e-6) and not torch.allclose(again[:, 3:], out[:, 3:])


CONFIGS = [  # vocabulary, width, feed-forward, layers, heads, kv heads, head width, tied
    (50, 24, 40, 2, 6, 2, 4, True), (31, 16, 20, 3, 4, 4, 6, False), (64, 20, 33, 1, 5, 1, 8, True),
]  # fmt: skip


@pytest.mark.parametrize("sizes", CONFIGS)
def test_llama_equals_transformers(sizes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    c = tf.LlamaConfig(*sizes, theta=5_000.0, eps=1e-6)
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=c.vocabulary, hidden_size=c.width, intermediate_size=c.feed_forward, num_hidden_layers=c.layers,
        num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_width,
        tie_word_embeddings=c.tied, rope_theta=c.theta, rms_norm_eps=c.eps,
    )).eval()  # fmt: skip
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.3)
    ours = tf.Llama.of(theirs).train()
    assert ours.config == c
    ids = torch.randint(0, c.vocabulary, (2, 11))
    assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-4)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    ours(ids).square().mean().backward()
    theirs(ids).logits.square().mean().backward()
    grads = {n: p.grad for n, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        assert torch.allclose(p.grad, grads[tf.published_name(name)], rtol=1e-3, atol=1e-3), name


@pytest.mark.parametrize("pieces", [(11,), (1,) * 11, (4, 1, 6)])
def test_cached_equals_whole(pieces):
    torch.manual_seed(0)
    model = tf.Llama(tf.LlamaConfig(*CONFIGS[0]))
    ids = torch.randint(0, 50, (2, 11))
    caches, out = model.new_caches(2, 11), []
    for part in ids.split(pieces, dim=1):
        out.append(model(part, caches=caches))
    assert torch.allclose(torch.cat(out, 1), model(ids), atol=1e-5)
    assert torch.allclose(model(ids, last_only=True)[:, 0], model(ids)[:, -1], atol=1e-6)
    with pytest.raises(AssertionError):
        model(ids[:, :1], caches=caches)


def test_encoder_of_the_same_blocks_sees_both_ways():
    torch.manual_seed(0)
    model = tf.Llama(tf.LlamaConfig(*CONFIGS[0]))
    ids = torch.randint(0, 50, (1, 6))
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 50
    assert torch.equal(model(ids)[:, 0], model(changed)[:, 0])
    assert not torch.allclose(model(ids, causal=False)[:, 0], model(changed, causal=False)[:, 0])


def test_real_weights_give_the_library_s_logits():
    theirs, tokenizer = models.load_chat_model(dtype=torch.float32)
    ours = tf.Llama.of(theirs)
    assert ours.embedding.weight.data_ptr() == theirs.model.embed_tokens.weight.data_ptr()  # shared, not copied
    ids = tokenizer("The three laws of thermodynamics say that energy", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-4)


def test_weights_of_another_depth_are_refused():
    with pytest.raises(KeyError, match="layers.1"):
        two, one = (tf.Llama(tf.LlamaConfig(20, 8, 8, n, 2, 1, 4)) for n in (2, 1))
        two.load({tf.published_name(k): v for k, v in one.state_dict().items()})
