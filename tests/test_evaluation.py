import math
import os
import random

import pytest
import torch

from lecture_utils import data, evaluation


def test_token_f1_by_hand():
    assert evaluation.token_f1("the cat sat", "the cat ran fast") == pytest.approx(2 * 2 / 7)
    assert evaluation.token_f1("", "the cat") == 0.0
    assert evaluation.token_f1("The Cat.", "the cat") == 1.0
    assert evaluation.token_f1("a a a", "a") == pytest.approx(2 * 1 / 4)  # counted once


def test_rouge_l_against_the_definition():
    def lcs(a, b):  # straight from the recurrence
        if not a or not b:
            return 0
        return lcs(a[:-1], b[:-1]) + 1 if a[-1] == b[-1] else max(lcs(a[:-1], b), lcs(a, b[:-1]))

    rng = random.Random(0)
    for _ in range(30):
        a, b = ([rng.choice("uvwx") for _ in range(rng.randint(1, 7))] for _ in "ab")
        expected = 2 * lcs(a, b) / (len(a) + len(b))
        assert evaluation.rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected)
    assert evaluation.rouge_l("", "x") == 0.0


def test_wilson_against_known_values_and_edges():
    low, high = evaluation.wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert evaluation.wilson(0, 10)[0] == 0.0 and evaluation.wilson(10, 10)[1] == 1.0


def test_completion_loss_equals_the_full_cross_entropy(tiny):
    torch.manual_seed(1)
    ids = torch.randint(3, 1000, (3, 12))
    labels = ids.clone()
    labels[0, :5] = labels[1, :2] = labels[2, :9] = -100
    labels[1, 8:] = -100
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    with torch.no_grad():
        loss, count = evaluation.completion_loss(tiny, ids, mask, labels)
        logits = tiny(input_ids=ids, attention_mask=mask).logits
    full = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    assert count == int((labels[:, 1:] != -100).sum())
    assert loss.item() == pytest.approx(full.item(), rel=1e-5)


def test_answer_loss_does_not_depend_on_the_batch(tiny, tokenizer):
    pairs = [{"question": "a" * n, "answer": "b c d"[: n + 1]} for n in range(1, 6)]
    one = evaluation.answer_loss(tiny, tokenizer, pairs, batch_size=1)
    assert one == pytest.approx(evaluation.answer_loss(tiny, tokenizer, pairs, batch_size=5), rel=1e-4)
    assert one == pytest.approx(math.log(len(tokenizer)), rel=0.05)  # a random model guesses evenly


def test_generation_keeps_the_order_and_is_independent_of_the_batch(tiny, tokenizer):
    questions = ["A much longer question than the others, is it not?", "Hi", "What is this?"]
    alone = [evaluation.generate_answers(tiny, tokenizer, [q], max_new_tokens=6)[0] for q in questions]
    assert evaluation.generate_answers(tiny, tokenizer, questions, max_new_tokens=6, batch_size=2) == alone
    assert len(set(alone)) > 1


def test_evaluate_counts_keys_and_leaves_eval_mode(tiny, tokenizer, monkeypatch):
    monkeypatch.setattr(evaluation, "generate_answers", lambda *_, **__: ["It is 42.", "No idea."])
    pairs = [
        {"question": "q", "answer": "It is 42.", "key": "42"},
        {"question": "r", "answer": "It is 43.", "key": "43"},
    ]
    report = evaluation.evaluate(tiny.train(), tokenizer, pairs)
    assert (report.right, report.total, report.key_accuracy) == (1, 2, 0.5)
    assert report.f1 == pytest.approx(0.5) and not tiny.training
    assert "1/2" in str(report)


@pytest.mark.parametrize("least", [1, 8, 10_000])
def test_texts_read_together_are_read_as_alone(tiny, tokenizer, least):
    texts = [f"One beginning, which all of them share. {end}" for end in ("Then?", "And then, after a while?", "")]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids, mask, cache = evaluation.prefill_shared_prefix(tiny, rows, tokenizer.pad_token_id, least)
    read = cache.get_seq_length() if cache else 0
    assert read == (0 if least == 10_000 else min(len(os.path.commonprefix(rows)), min(map(len, rows)) - 1))
    assert [row[seen.bool()].tolist() for row, seen in zip(ids, mask, strict=True)] == rows
    with torch.inference_mode():
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, read:]
        ours = tiny(ids[:, read:], attention_mask=mask, position_ids=places, past_key_values=cache).logits[:, -1]
        for row, logits in zip(rows, ours, strict=True):
            torch.testing.assert_close(logits, tiny(torch.tensor([row])).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_completions_with_a_shared_beginning_are_those_of_each_text_alone(tiny, tokenizer):
    shared = "A long beginning that stands in front of every text. " * 12
    texts = [shared + end for end in ("Yes", "No, or rather yes", "Perhaps, said the second of them")]
    together = evaluation.complete(tiny, tokenizer, texts, max_new_tokens=8)
    assert together == [evaluation.complete(tiny, tokenizer, [text], max_new_tokens=8)[0] for text in texts]
    assert len(set(together)) > 1


def test_answer_batches_hold_each_row_once_with_labels_on_its_answer_alone(tiny):
    rows = [([1, 2, 3], [4, 5]), ([6], [7]), ([8, 9], [10, 11, 12, 13])]
    batches = [
        [places, *(part.tolist() for part in parts)] for places, *parts in evaluation.answer_batches(tiny, rows, 0, 2)
    ]
    assert batches == [
        [
            [1, 0],  # the shortest first
            [[6, 7, 0, 0, 0], [1, 2, 3, 4, 5]],
            [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]],
            [[-100, 7, -100, -100, -100], [-100, -100, -100, 4, 5]],
        ],
        [[2], [[8, 9, 10, 11, 12, 13]], [[1] * 6], [[-100, -100, 10, 11, 12, 13]]],
    ]
    assert list(evaluation.answer_batches(tiny, [], 0, 2)) == []


def test_answer_log_probabilities_keep_the_order_of_the_pairs(tiny, tokenizer):
    pairs = [{"question": "Why?" * n, "answer": "So." * (5 - n)} for n in (4, 1, 3)]
    together = evaluation.answer_log_probabilities(tiny, tokenizer, pairs, batch_size=3)
    for pair, found in zip(pairs, together, strict=True):
        prompt, answer = data.token_ids(tokenizer, pair["question"], pair["answer"])
        with torch.inference_mode():
            log_p = tiny(torch.tensor([prompt + answer])).logits[0].float().log_softmax(-1)
        wanted = log_p[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None])[:, 0]
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
