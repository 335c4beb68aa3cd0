"""Our byte-pair encoding gives the library's merges and the library's ids."""

import pytest

from lecture_utils import tokenization

TEXT = """The lowest of the low is lower than the newest and the widest: low, lower, lowest!
A number such as 1,234,567 is cut into pieces; so is naïve café, 東京 and an 🙂 emoji.
def attention(q, k, v):  return softmax(q @ k.T) @ v   # the_same_name, the_same_thing
""" * 3  # fmt: skip


def library(text: str, size: int):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(tokenization.PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


@pytest.mark.parametrize("size", [256, 300, 380])
def test_merges_and_ids_equal_the_library(size):
    import json

    ours, theirs = tokenization.BPE.train(TEXT, size), library(TEXT, size)
    learnt = json.loads(theirs.to_str())["model"]
    assert ours.merges == [tuple(m) for m in learnt["merges"]]
    assert {s: i for i, s in enumerate(ours.vocabulary)} == learnt["vocab"]
    for text in (TEXT, "", " ", "unseen words, żółć \t\n  _x_ 42", "lowlowlow"):
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text


def test_pieces_lose_nothing():
    for text in (TEXT, "a_b __ c\r\n\x00", "½ ²x", "العربية हिन्दी"):
        assert "".join(tokenization.pretokenize(text)) == text


def test_symbols_are_the_library_s_and_apart():
    from tokenizers import pre_tokenizers

    symbols = tokenization.byte_symbols()
    assert set(symbols.values()) == set(pre_tokenizers.ByteLevel.alphabet()) and len(set(symbols.values())) == 256


def test_training_ends_where_nothing_is_left_to_merge():
    small = tokenization.BPE.train("ab ab", 400)
    assert small.merges == [("a", "b"), ("Ġ", "ab")] and len(small.vocabulary) == 258


def test_half_a_character_is_marked():
    bpe = tokenization.BPE.train("", 256)
    assert bpe.decode(bpe.encode("é")[:1]) == "\N{REPLACEMENT CHARACTER}"
