import pytest

from lecture_utils import data, memory, models, recipes, registry

SHAPES = {name: card.shape for name, card in registry.REGISTRY.items() if card.shape}
LLAMA = {"7B": 6_738_415_616, "13B": 13_015_864_320, "65B": 65_285_660_672, "70B": 68_976_648_192}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_count_what_the_library_builds(name):
    empty = SHAPES[name].build_empty()
    assert sum(p.numel() for p in empty.parameters()) == SHAPES[name].parameters()
    inside = sum(p.numel() for n, p in empty.named_parameters() if "_proj" in n)
    assert inside == SHAPES[name].layers * sum(i * o for i, o in SHAPES[name].linear_layers().values())


@pytest.mark.parametrize("name", LLAMA)
def test_the_llama_family_by_formula_and_built_empty(name):
    shape = memory.LLAMA[name]
    assert shape.parameters() == LLAMA[name]
    assert sum(p.numel() for p in shape.build_empty().parameters()) == LLAMA[name]


def test_the_figures_of_the_lecture():
    llama = SHAPES["llama-2-7b-chat"]
    assert llama.parameters() == 6_738_415_616
    assert memory.lora_parameters(llama, 64, ("q_proj", "v_proj")) == 33_554_432
    assert memory.lora_parameters(llama, 64) == 159_907_840
    assert memory.weight_bytes(llama, None) / 1e9 == pytest.approx(13.48, abs=0.01)
    assert memory.weight_bytes(llama, "nf4", double_quant=False) / 1e9 == pytest.approx(4.17, abs=0.01)
    assert memory.weight_bytes(llama, "nf4") / 1e9 == pytest.approx(3.87, abs=0.01)
    assert pytest.approx(0.127, abs=5e-4) == memory.NF4_DQ_BITS - 4


@pytest.mark.parametrize("name", SHAPES)
def test_lora_count_equals_peft(name):
    from peft import get_peft_model

    chosen = recipes.Recipe(name="t", model=name, rank=3)
    adapted = get_peft_model(SHAPES[name].build_empty(), recipes.lora_config(chosen))
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trainable == memory.lora_parameters(SHAPES[name], 3)


@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_weights_equal_the_loaded_model(double_quant):
    """Codes, scales, and the scales of the scales, byte by byte."""
    model, _ = models.load_chat_model(quantization="nf4", double_quant=double_quant)
    held = model.get_memory_footprint()  # counts the codes, not the scales
    for parameter in model.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            held += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    expected = memory.weight_bytes(SHAPES[models.LAPTOP_MODEL], "nf4", double_quant, model.dtype.itemsize)
    assert held == pytest.approx(expected, rel=1e-3)


def test_fp4_takes_what_nf4_takes():
    shape = models.card(models.LAPTOP_MODEL).shape
    for double_quant in (False, True):
        found = [memory.weight_bytes(shape, kind, double_quant) for kind in ("fp4", "nf4")]
        assert found[0] == found[1] < memory.weight_bytes(shape, "int8")


def test_checkpointing_saves_and_errors_are_clear():
    llama = SHAPES["llama-2-7b-chat"]
    assert memory.activations(llama, 1000, True) < memory.activations(llama, 1000, False) / 5


def test_budget_ends_with_its_sum():
    rows = memory.budget(recipes.get_recipe("lecture-2023"))
    assert rows[-1]["part"] == "sum"
    assert rows[-1]["GB"] == pytest.approx(sum(r["GB"] for r in rows[:-1]), abs=0.03)


def test_estimate_is_within_10_percent_of_measured_peaks():
    """Nothing was fitted to these runs. Full finetuning with 32 pairs is the exception that notebook 06 reports."""
    shape = SHAPES[models.LAPTOP_MODEL]
    runs, _ = data.recorded("06_peaks")
    assert len(runs) == 12
    for r in runs:
        bits, checkpointing = "nf4" if r["method"] == "QLoRA" else None, "checkpointing" in r["method"]
        size = r["before_gb"] + memory.finetuning_bytes(shape, r["trained"], r["tokens"], bits, checkpointing) / 1e9
        allowed = 0.3 if r["method"] == "full" and r["rows"] == 32 else 0.1
        assert size == pytest.approx(r["peak_gb"], rel=allowed), r
