"""The 7B path (`make prove-7b`): the same code on a shrunk Llama 2 here, the real size when slow."""

import prove_7b
import pytest

from lecture_utils import memory, models, shapes


def check(found, shape):
    assert found["trainable"] == memory.lora_parameters(shape, 64, ("q_proj", "v_proj"))
    assert len(found["losses"]) == 2 and all(float(loss) > 1 for loss in found["losses"])
    assert found["answer"] == found["reloaded"]
    assert 0 < found["merge_error"] < 0.5


def test_a_shrunk_llama_goes_the_whole_way(tmp_path):
    shape = shapes.Shape(2_000, 128, 256, 2, 4, 4, 32, tied=False)
    check(prove_7b.prove(shape, tmp_path), shape)
    assert len(list((tmp_path / "weights").glob("model-*.safetensors"))) == shape.layers + 1


@pytest.mark.slow
def test_the_real_llama_2_7b_goes_the_whole_way(tmp_path):
    shape = models.card("llama-2-7b-chat").shape
    found = prove_7b.prove(shape, tmp_path)
    check(found, shape)
    assert (found["total_2023"], found["trainable_2023"]) == (7_067_934_720, 67_108_864)
    assert found["peak_gb"] <= 12
