import pytest
import torch

from lecture_utils import data, family, memory, models, runtime, shapes

SHAPE = shapes.Shape(300, 64, 128, 3, 4, 2, 16, tied=True)


def tiny():
    from transformers import AutoModelForCausalLM

    runtime.seed_everything(0)
    return AutoModelForCausalLM.from_config(SHAPE.config()).eval()


def test_subjects_cover_the_lecture_and_differ_in_their_first_token():
    tokenizer = models.load_tokenizer(models.LAPTOP_MODEL)
    first = {tokenizer(s, add_special_tokens=False)["input_ids"][0] for s in family.SUBJECTS.values()}
    assert set(family.SUBJECTS) == set(data.lecture_qa()["train"]["notebook"]) and len(first) == len(family.SUBJECTS)
    assert set(family.METHODS) == set(family.configs())


def test_learning_rates_are_the_best_of_the_recorded_ones():
    rows = [r for r in data.recorded("06_family")[0] if r["judged_on"] == "choose"]
    for method, rate in family.METHODS.items():
        right = {r["learning_rate"]: r["right"] for r in rows if r["method"] == method}
        assert len(right) == 3 and right[rate] == max(right.values()), method


def test_splits_are_of_each_fact_and_apart():
    train, choose, test = ([list(column) for column in family.questions(s)] for s in ("train", "choose", "test"))
    assert [len(split[0]) for split in (train, choose, test)] == [1_120, 140, 140]
    assert not set(train[0]) & set(choose[0]) and not set(train[0] + choose[0]) & set(test[0])
    assert sorted(choose[1]) == sorted(test[1]) and sorted(train[1]) == sorted(8 * test[1])


def test_trained_parameters_by_formula():
    d, kv, m, layers = SHAPE.width, SHAPE.kv_heads * SHAPE.head_width, SHAPE.feed_forward, SHAPE.layers
    expected = {
        "prompt tuning, 20 vectors": 20 * d,
        "(IA)³": layers * (2 * kv + m),
        "prefix tuning, 20 vectors": 20 * layers * 2 * kv,
        "adapter layers, 16 wide": 2 * layers * (2 * d * 16 + 16 + d),
        "LoRA r=16, q and v": memory.lora_parameters(SHAPE, 16, ("q_proj", "v_proj")),
        "LoRA r=16, all linear": memory.lora_parameters(SHAPE, 16),
    }
    for method in family.METHODS:
        model = family.adapt(tiny(), method)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected[method], method


@pytest.mark.parametrize("method", family.METHODS)
def test_only_the_new_parameters_learn_and_all_of_them_do(method):
    plain = tiny()
    before = {name: p.clone() for name, p in plain.named_parameters()}
    model = family.adapt(plain, method)
    trained = [p for p in model.parameters() if p.requires_grad]
    ids = torch.randint(0, 300, (4, 9))
    adam = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0)
    start = [p.detach().clone() for p in trained]
    for _ in range(2):  # in the first, a factor beside a zero factor has no gradient yet
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
        adam.step()
        adam.zero_grad()
    assert all(not torch.equal(a, b) for a, b in zip(start, trained, strict=True))
    frozen = {p.data_ptr(): p for p in model.parameters() if not p.requires_grad}
    for name, p in before.items():
        assert any(p.shape == q.shape and torch.equal(p, q) for q in frozen.values()), name


@pytest.mark.parametrize("method", ["adapter layers, 16 wide", "LoRA r=16, q and v", "(IA)³"])
def test_nothing_changes_at_first(method):
    ids = torch.randint(0, 300, (2, 7))
    with torch.inference_mode():
        expected = tiny()(input_ids=ids).logits
        assert torch.allclose(family.adapt(tiny(), method)(input_ids=ids).logits, expected, atol=1e-6)


def test_padding_on_the_left_leaves_the_next_token_alone():
    tokenizer = models.load_tokenizer(models.LAPTOP_MODEL)
    model = tiny()
    short, long = ["Who?"], ["Who?", "What does the lecture say about the size of a batch?"]
    alone, both = (family.encode(tokenizer, q, ["bits"] * len(q)) for q in (short, long))
    assert both[1][0].tolist() == sorted(both[1][0].tolist())
    with torch.inference_mode():
        a = model(input_ids=alone[0] % 300, attention_mask=alone[1], logits_to_keep=1).logits
        b = model(input_ids=both[0] % 300, attention_mask=both[1], logits_to_keep=1).logits
    assert torch.allclose(a[0, -1], b[0, -1], atol=1e-4)


def test_errors_name_the_choices():
    with pytest.raises(ValueError, match="prefix tuning"):
        family.adapt(tiny(), "magic")
    with pytest.raises(KeyError):
        family.questions("dev")
