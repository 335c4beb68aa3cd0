"""The 7B path (`make prove-7b`): the same code on a shrunk Llama 2 here, the real size when slow."""

import dataclasses

import prove_7b
import pytest

from lecture_utils import data, memory, models, registry, shapes


def check(found, shape):
    assert found["trainable"] == memory.lora_parameters(shape, 64, ("q_proj", "v_proj"))
    assert len(found["losses"]) == 2 and all(float(loss) > 1 for loss in found["losses"])
    assert found["answer"] == found["reloaded"]
    assert 0 < found["merge_error"] < 0.5


def test_a_shrunk_llama_goes_the_whole_way(tmp_path):
    shape = shapes.Shape(2_000, 128, 256, 2, 4, 4, 32, tied=False)
    check(prove_7b.prove(shape, tmp_path), shape)
    assert len(list((tmp_path / "weights").glob("model-*.safetensors"))) == shape.layers + 1


@pytest.fixture(scope="module")
def llama_tokenizer(tmp_path_factory):
    """A small tokenizer that puts a space in front of each text, as Llama 2's does."""
    folder = tmp_path_factory.mktemp("tokenizer")
    prove_7b.write_tokenizer(
        folder, 600, [*data.lecture_qa()["train"]["question"], *data.lecture_qa()["train"]["answer"]]
    )
    return models.load_tokenizer(str(folder))


def test_the_template_is_llama_2s(llama_tokenizer):
    assert data.render(llama_tokenizer, "How many?", "Two.") == ("<s>[INST] How many? [/INST]", " Two. </s>")
    talk = [{"role": "system", "content": "Be brief."}, *data.chat("Hi!", "Ho!"), *data.chat("How many?")]
    assert data.render(llama_tokenizer, talk)[0] == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi! [/INST] Ho! </s><s>[INST] How many? [/INST]"
    )


def test_prompt_and_answer_are_tokenized_as_one_text(llama_tokenizer):
    prompt, completion = data.render(llama_tokenizer, "How many?", "Two facts.")
    apart, whole = llama_tokenizer([completion, prompt + completion], add_special_tokens=False)["input_ids"]
    ids, answer = data.token_ids(llama_tokenizer, "How many?", "Two facts.")
    assert ids + answer == whole and answer != apart  # apart, a second space stands in front of the answer
    assert ids == llama_tokenizer(prompt, add_special_tokens=False)["input_ids"]  # what the model sees when it writes
    assert answer[-1] == llama_tokenizer.eos_token_id and llama_tokenizer.decode(answer).strip() == "Two facts. </s>"


def test_a_tokenizer_without_rows_in_the_embedding_is_refused_before_the_weights_are_loaded(
    llama_tokenizer, monkeypatch
):
    monkeypatch.setattr(models, "_from_sources", lambda known, load: llama_tokenizer)
    assert models.load_tokenizer("llama-2-7b-chat").pad_token == "<unk>"
    small = dataclasses.replace(
        models.card("llama-2-7b-chat"), shape=shapes.Shape(400, 128, 256, 2, 4, 4, 32, tied=False)
    )
    monkeypatch.setitem(registry.REGISTRY, "llama-2-7b-chat", small)
    with pytest.raises(models.ModelError, match="600 tokens, but the model's embedding has 400 rows"):
        models.load_chat_model("llama-2-7b-chat")


@pytest.mark.slow
def test_the_real_llama_2_7b_goes_the_whole_way(tmp_path):
    shape = models.card("llama-2-7b-chat").shape
    found = prove_7b.prove(shape, tmp_path)
    check(found, shape)
    assert (found["total_2023"], found["trainable_2023"]) == (7_067_934_720, 67_108_864)
    assert found["peak_gb"] <= 12
