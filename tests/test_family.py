import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from lecture_utils import data, family, memory, models, runtime, shapes, shop

SHAPE = shapes.Shape(300, 64, 128, 3, 4, 2, 16, tied=True)


def tiny():
    runtime.seed_everything(0)
    return AutoModelForCausalLM.from_config(SHAPE.config()).eval()


def test_questions_are_simple_and_the_splits_share_no_names():
    splits = {name: family.questions(name) for name in ("train", "dev", "test")}
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 320, "dev": 45, "test": 59}
    for rows in splits.values():
        assert all(row["answer"].count("WHERE") == 1 and "AND" not in row["answer"] for row in rows)
    names = {name: set(re.findall("'(.*?)'", " ".join(r["answer"] for r in rows))) for name, rows in splits.items()}
    common = set(shop.STATUSES) | set(shop.MONTHS)
    assert (
        not (names["train"] - common) & (names["test"] | names["dev"]) and not (names["dev"] - common) & names["test"]
    )


def test_references_are_right_and_other_queries_are_not():
    rows = family.questions("test")
    assert family.right([row["answer"] for row in rows], rows, "test") == len(rows)
    assert family.right(["SELECT 1"] * len(rows), rows, "test") == 0


def test_batches_contain_every_pair_once_in_an_order_of_the_seed():
    tokenizer, model = models.load_tokenizer(models.LAPTOP_MODEL), tiny()
    first, again, other = (family.batches(model, tokenizer, seed) for seed in (0, 0, 1))
    rows = [row for batch in first for row in batch["input_ids"].tolist()]
    assert len(first) == 40 and len({tuple(row) for row in rows}) == 320
    assert all(torch.equal(a[key], b[key]) for a, b in zip(first, again, strict=True) for key in a)
    assert not torch.equal(first[0]["input_ids"], other[0]["input_ids"])
    batch = first[0]
    learned = batch["labels"] != -100
    assert torch.equal(batch["input_ids"][learned], batch["labels"][learned])
    assert (batch["attention_mask"][learned] == 1).all()
    answers = [tokenizer.decode(row[keep]) for row, keep in zip(batch["labels"], learned, strict=True)]
    assert all(text.startswith("SELECT") and "<|im_end|>" in text for text in answers)


def test_trained_parameters_by_formula():
    d, kv, m, layers = SHAPE.width, SHAPE.kv_heads * SHAPE.head_width, SHAPE.feed_forward, SHAPE.layers
    expected = {
        "prompt tuning, 20 vectors": 20 * d,
        "(IA)³": layers * (2 * kv + m),
        "prefix tuning, 20 vectors": 20 * layers * 2 * kv,
        "adapter layers, 16 wide": 2 * layers * (2 * d * 16 + 16 + d),
        "LoRA r=16, q and v": memory.lora_parameters(SHAPE, 16, ("q_proj", "v_proj")),
        "LoRA r=16, all linear": memory.lora_parameters(SHAPE, 16),
        "all parameters": SHAPE.parameters(),
    }
    for method in family.METHODS:
        model = family.adapt(tiny(), method)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected[method], method


def test_learning_rates_are_the_best_of_those_tried():
    dev = [row for row in data.recorded("06_methods")[0] if row["judged_on"] == "dev"]
    for method, rate in family.METHODS.items():
        tried = [row for row in dev if row["method"] == method]
        assert len(tried) >= 3
        assert max(tried, key=lambda row: (row["right"], -row["last_losses"]))["learning_rate"] == rate, method


@pytest.mark.parametrize("method", family.configs() | {"adapter layers, 16 wide": None})
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


def test_every_lora_has_the_factor_two():
    for rank in (1, 4, 64):
        config = family.lora(rank)
        assert config.r == rank and config.lora_alpha / config.r == 2


def test_errors_name_the_choices():
    with pytest.raises(ValueError, match="prefix tuning"):
        family.adapt(tiny(), "magic")
    with pytest.raises(KeyError):
        family.questions("free")


@pytest.mark.parametrize("method", ["prompt tuning, 20 vectors", "prefix tuning, 20 vectors"])
def test_soft_prompts_write_what_their_forward_pass_predicts(method):
    tokenizer = models.load_tokenizer(models.LAPTOP_MODEL)
    shape = shapes.Shape(len(tokenizer), 64, 128, 3, 4, 2, 16, tied=True)
    runtime.seed_everything(0)
    model = family.adapt(AutoModelForCausalLM.from_config(shape.config()), method).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    prompts = ["Who bought a kettle?", "How much did Ludmila spend in May?"]
    written = family.continue_after_soft_prompt(model, tokenizer, prompts, 5)
    for prompt, text in zip(prompts, written, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        for _ in range(5):
            with torch.inference_mode():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        assert text == tokenizer.decode(ids[0, -5:], skip_special_tokens=True)
