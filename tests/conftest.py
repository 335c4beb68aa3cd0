"""Shared fixtures: a small random Llama with the laptop model's real tokenizer; copies of this repository."""

import shutil
import subprocess
from pathlib import Path

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


@pytest.fixture(scope="session")
def copy_repository():
    """Returns a function that copies this working tree, what is not yet committed included, without what git ignores."""
    root = Path(__file__).resolve().parent.parent

    def copy(target: Path) -> list[Path]:
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        said = subprocess.run(listed, cwd=root, capture_output=True, text=True)
        if said.returncode:
            pytest.skip("not a git checkout")
        # a file that was deleted is still listed
        names = sorted({name for name in said.stdout.split("\0") if name and (root / name).is_file()})
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
        return [target / name for name in names]

    return copy
