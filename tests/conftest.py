"""Shared fixtures: a small random Llama with the laptop model's real tokenizer."""

import pytest

from lecture_utils import models, runtime

runtime.quiet()


@pytest.fixture(scope="session")
def tokenizer():
    return models.load_tokenizer(models.LAPTOP_MODEL)


@pytest.fixture
def tiny(tokenizer):
    """A random two-layer Llama with grouped-query attention; fresh for each test."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_folder(tiny, tokenizer, tmp_path):
    folder = tmp_path / "tiny"
    tiny.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
