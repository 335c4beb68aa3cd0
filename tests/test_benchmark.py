"""The benchmark's items, its scores against a direct computation and against lm-eval, and what intervals promise."""

import json
import math

import pytest
import torch

from lecture_utils import benchmark, data, evaluation, models


@pytest.fixture(scope="module")
def small():
    return models.load_chat_model("lecture-base", dtype=torch.float32)


@pytest.mark.parametrize(("part", "count"), [("course", 140), ("handbook", 160)])
def test_every_item_has_four_options_and_one_of_them_is_right(part, count):
    items = benchmark.items(part)
    assert len(items) == count and len({item.id for item in items}) == count
    for item in items:
        assert len({option.lower() for option in item.options}) == 4
        right = item.options[item.gold]
        assert item.key.lower() in right.lower()
        assert not any(data.contains_key(o, item.key) for i, o in enumerate(item.options) if i != item.gold)
        assert item.sentence(item.gold).lower() == item.answer.lower()
        assert len({item.sentence(i) for i in range(4)}) == 4


def test_no_position_is_right_much_more_often():
    for part in ("course", "handbook"):
        gold = [item.gold for item in benchmark.items(part)]
        assert all(0.15 < gold.count(i) / len(gold) < 0.37 for i in range(4))


def test_options_of_others_are_right_answers_to_other_questions():
    items = benchmark.items("course")
    rights = {item.options[item.gold] for item in items}
    for item, other in zip(items, benchmark.with_options_of_others(items), strict=True):
        assert other.options[other.gold] == item.options[item.gold]
        assert len(set(other.options)) == 4 and set(other.options) <= rights


def directly(model, tokenizer, before, option):
    start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
    ids = tokenizer(before + option, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        log_p = model(ids).logits[0].log_softmax(-1)
    return sum(log_p[t - 1, ids[0, t]].item() for t in range(start, ids.shape[1]))


@pytest.mark.parametrize("prompt", benchmark.PROMPTS)
def test_option_scores_equal_a_direct_computation(small, prompt):
    model, tokenizer = small
    item = benchmark.items("course")[3]
    before, gap = benchmark.context(tokenizer, item, prompt), benchmark.space(prompt)
    options = [gap + option for option in (*item.options, "a", "a much longer option, with a comma")]
    found = benchmark.option_log_likelihoods(model, tokenizer, before, options)
    expected = [directly(model, tokenizer, before, option) for option in options]
    assert found == pytest.approx(expected, abs=1e-3)


def test_letters_are_scored_after_the_listed_options(small):
    model, tokenizer = small
    items = benchmark.items("handbook")[:3]
    found = benchmark.score_options(model, tokenizer, items, listed=True)
    before = benchmark.context(tokenizer, items[1], listed=True)
    assert all(f"{letter}. {o}\n" in before for letter, o in zip("ABCD", items[1].options, strict=True))
    assert before.endswith("\nAnswer:")
    assert found[1].tolist() == pytest.approx([directly(model, tokenizer, before, f" {x}") for x in "ABCD"], abs=1e-3)


def test_the_harness_counts_the_same(small, tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = small
    items = benchmark.items("handbook")[:30]
    rows = [{"question": i.question, "options": i.options, "gold": i.gold} for i in items]
    (tmp_path / "items.json").write_text(json.dumps(rows))
    (tmp_path / "task.yaml").write_text(
        "task: ours\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: " + str(tmp_path / "items.json") + "}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "Question: {{question}}\\nAnswer:"\n'
        "doc_to_choice: options\ndoc_to_target: gold\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
    theirs = simple_evaluate(model=lm, tasks=["ours"], task_manager=manager, bootstrap_iters=0)["results"]["ours"]
    scores = benchmark.score_options(model, tokenizer, items)
    lengths = torch.tensor([[len(o) for o in item.options] for item in items])
    gold = torch.tensor([item.gold for item in items])
    for name, values in (("acc", scores), ("acc_norm", scores / lengths)):
        assert theirs[f"{name},none"] == pytest.approx((values.argmax(1) == gold).float().mean().item())


@pytest.mark.parametrize("p", [0.1, 0.56, 0.9])
def test_a_wilson_interval_contains_the_true_share_in_95_percent_of_tests(p):
    torch.manual_seed(0)
    hits = torch.distributions.Binomial(70, p).sample((4000,)).int().tolist()
    inside = sum(low <= p <= high for low, high in (evaluation.wilson(h, 70) for h in hits))
    assert 0.93 < inside / 4000 < 0.97


def test_a_paired_bootstrap_contains_the_true_difference_in_95_percent_of_tests():
    torch.manual_seed(0)
    cases = torch.tensor([0.15, 0.10, 0.45, 0.30])  # only a, only b, both, neither: the difference is 0.05
    inside = 0
    for _ in range(400):
        drawn = torch.multinomial(cases, 140, replacement=True)
        _, low, high = evaluation.paired_bootstrap((drawn == 0) | (drawn == 2), (drawn == 1) | (drawn == 2), 1000)
        inside += low <= 0.05 <= high
    assert 0.91 < inside / 400 < 0.98


def test_the_formula_for_the_number_of_questions_gives_80_percent_power():
    torch.manual_seed(0)
    gap, disagree = 0.03, 0.2
    n = math.ceil((1.96 + 0.84) ** 2 * (disagree - gap**2) / gap**2)
    cases = torch.tensor([(disagree + gap) / 2, (disagree - gap) / 2, 1 - disagree])
    counts = torch.distributions.Multinomial(n, cases).sample((4000,))
    noticed = (counts[:, 0] - counts[:, 1] > 1.96 * (counts[:, 0] + counts[:, 1]).sqrt()).float().mean()
    assert abs(noticed - 0.8) < 0.03
