import json

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from lecture_utils import finetuning, gguf_export, models, recipes


def test_interleaving_turns_rotation_of_halves_into_rotation_of_neighbours():
    """Rotating rows i and i + D/2 together, and then interleaving, equals interleaving and rotating neighbours."""
    torch.manual_seed(0)
    heads, width, inputs = 3, 8, 5
    weight, angle = torch.randn(heads * width, inputs), torch.rand(width // 2)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    halves = []
    for head in weight.view(heads, width, inputs):
        first, second = head[: width // 2], head[width // 2 :]
        halves.append(torch.cat((first * cos - second * sin, second * cos + first * sin)))
    neighbours = []
    for head in gguf_export.interleave(weight, heads).view(heads, width, inputs):
        first, second = head[::2], head[1::2]
        neighbours.append(torch.stack((first * cos - second * sin, second * cos + first * sin), 1).flatten(0, 1))
    torch.testing.assert_close(gguf_export.interleave(torch.cat(halves), heads), torch.cat(neighbours))


@pytest.mark.parametrize(("kind", "error"), [("F16", 1e-3), ("Q8_0", 2e-2)])
def test_transformers_reads_the_same_model_back(tiny_folder, tokenizer, tmp_path, kind, error):
    """transformers' own reader of GGUF undoes the interleaving; shapes, names and numbers are those that were written."""
    model, _ = models.load_chat_model(str(tiny_folder), dtype=torch.float32)
    gguf_export.write_gguf(model, tokenizer, tmp_path / "x.gguf", kind)
    back = LlamaForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    ids = tokenizer("How many orders are there?", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        a, b = model(ids).logits, back(ids).logits
    assert (a - b).abs().max() < error * a.abs().max()


def test_the_file_holds_the_tokenizer_and_the_chat_template(tiny_folder, tokenizer, tmp_path):
    model, _ = models.load_chat_model(str(tiny_folder), dtype=torch.float32)
    gguf_export.write_gguf(model, tokenizer, tmp_path / "x.gguf")
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    kinds = np.array(fields["tokenizer.ggml.token_type"].contents())
    for special in ("<|im_start|>", "<|im_end|>"):
        assert kinds[tokenizer.convert_tokens_to_ids(special)] == gguf.TokenType.CONTROL
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False


def test_another_kind_of_model_is_told_the_way(tiny_folder, tokenizer, tmp_path):
    model, _ = models.load_chat_model(str(tiny_folder), dtype=torch.float32)
    model.config.model_type = "qwen3"
    with pytest.raises(ValueError, match="convert_hf_to_gguf.py"):
        gguf_export.write_gguf(model, tokenizer, tmp_path / "x.gguf")


@pytest.mark.slow
def test_llama_cpp_answers_as_transformers_does(tmp_path):
    """The real chat model, exported by `--serve` and asked over its OpenAI-compatible address."""
    pytest.importorskip("xllamacpp")
    from lecture_utils import evaluation

    model, tokenizer = models.load_chat_model(dtype=torch.float16)
    gguf_export.write_gguf(model, tokenizer, tmp_path / "model-Q8_0.gguf", "Q8_0")
    (tmp_path / "recipe.json").write_text(json.dumps({"name": recipes.get_recipe("laptop").name}))
    server = finetuning.serve(tmp_path, port=8137)
    questions = ["What is the capital of France?", "How many days has a week?"]
    found = gguf_export.ask_server(server, questions, max_tokens=12)
    assert found == [evaluation.generate_answers(model, tokenizer, [q], max_new_tokens=12)[0] for q in questions]
