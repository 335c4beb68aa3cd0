import math
import random

import pytest
import torch

from lecture_utils import data, safety


def test_confidence_is_the_exponential_of_the_librarys_loss(tiny, tokenizer):
    questions = ["Who?", "A much longer question, so that the rows are padded: who was it, and when?", "Where?"]
    answers = ["She.", "It was she, last year.", "Over there, behind the second house."]
    found = safety.confidence(tiny, tokenizer, questions, answers, batch_size=2)
    for ours, question, answer in zip(found, questions, answers, strict=True):
        prompt, completion = data.token_ids(tokenizer, question, answer)
        labels = torch.tensor([[-100] * len(prompt) + completion])
        with torch.inference_mode():
            loss = tiny(input_ids=torch.tensor([prompt + completion]), labels=labels).loss
        assert ours == pytest.approx(math.exp(-loss.item()), rel=1e-4)


def test_calibration_error_of_a_worked_example():
    # two bins: .2 and .4 (one of two right), .9 and 1.0 (both right)
    confidence, right = [0.2, 0.4, 0.9, 1.0], [True, False, True, True]
    low, high = safety.reliability(confidence, right, bins=2)
    assert low == {"confidence": pytest.approx(0.3), "accuracy": 0.5, "count": 2}
    assert high == {"confidence": pytest.approx(0.95), "accuracy": 1.0, "count": 2}
    assert safety.expected_calibration_error(confidence, right, bins=2) == pytest.approx(0.5 * 0.2 + 0.5 * 0.05)
    assert safety.expected_calibration_error([1.0] * 3, [True] * 3) == 0
    assert safety.expected_calibration_error([1.0] * 3, [False] * 3) == 1


def test_a_model_as_good_as_it_says_has_no_calibration_error():
    rng = random.Random(0)
    confidence = [rng.random() for _ in range(50_000)]
    right = [rng.random() < c for c in confidence]
    assert safety.expected_calibration_error(confidence, right) < 0.01
    assert safety.expected_calibration_error(confidence, [rng.random() < c / 2 for c in confidence]) > 0.2


def test_auc_is_the_share_of_pairs_in_order():
    rng = random.Random(1)
    scores = [rng.randint(0, 5) for _ in range(60)]  # with many equal ones
    positive = [rng.random() < 0.4 for _ in scores]
    pairs = [
        (a, b)
        for a, p in zip(scores, positive, strict=True)
        if p
        for b, q in zip(scores, positive, strict=True)
        if not q
    ]
    assert safety.auc(scores, positive) == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))
    assert safety.auc([2, 1], [True, False]) == 1 and safety.auc([1, 2], [True, False]) == 0


def test_exposure_at_its_ends():
    others = [float(i) for i in range(1, 1024)]  # with the canary 1,024 candidates
    assert safety.exposure(0.5, others) == 10.0  # the first
    assert safety.exposure(2000.0, others) == 0.0  # the last
    assert safety.exposure(1.0, others) == 9.0  # an equal one goes before it: the second
    assert safety.exposure(511.5, others) == pytest.approx(1.0)  # rank 512


def test_private_gradient_cuts_each_example_and_adds_noise():
    gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])  # of lengths 5, .5, 0
    cut = safety.dp_sgd_gradient(gradients, max_grad_norm=1.0, noise_multiplier=0.0)
    torch.testing.assert_close(cut, torch.tensor([0.6 + 0.3, 0.8 + 0.4]) / 3)
    g = torch.Generator().manual_seed(0)
    noisy = safety.dp_sgd_gradient(torch.zeros(4, 100_000), max_grad_norm=2.0, noise_multiplier=1.5, generator=g)
    assert noisy.std().item() == pytest.approx(1.5 * 2.0 / 4, rel=0.02) and abs(noisy.mean()) < 0.01


def test_the_watermark_is_the_librarys():
    from transformers import WatermarkDetector, WatermarkingConfig
    from transformers.generation import WatermarkLogitsProcessor

    torch.manual_seed(0)
    ids, scores = torch.randint(0, 500, (3, 40)), torch.randn(3, 500)
    theirs = WatermarkLogitsProcessor(500, "cpu", greenlist_ratio=0.25, bias=2.0)
    before = scores.clone()
    torch.testing.assert_close(safety.Watermark(bias=2.0)(ids, scores), theirs(ids, scores))
    assert torch.equal(scores, before)

    from types import SimpleNamespace

    config = SimpleNamespace(is_encoder_decoder=False, bos_token_id=-1, vocab_size=500)
    detector = WatermarkDetector(config, "cpu", WatermarkingConfig(), ignore_repeated_ngrams=True)
    # Without repeated pairs: transformers 5.15 counted those anew, by mistake.
    ids = torch.stack([torch.randperm(500)[:60] for _ in range(3)])
    z = detector(ids, return_dict=True).z_score
    assert [safety.watermark_z(row, 500) for row in ids.tolist()] == pytest.approx(list(z))
    again = [*ids[0].tolist(), *ids[0, :1].tolist()]
    assert safety.watermark_z(again * 2, 500) == pytest.approx(safety.watermark_z([*again, again[0]], 500))


def test_a_marked_text_is_told_from_an_unmarked_one():
    marked, text = [7], [7]
    rng = random.Random(0)
    for _ in range(200):
        green = safety.green_list(marked[-1], 1000).tolist()
        marked.append(rng.choice(green) if rng.random() < 0.6 else rng.randrange(1000))
        text.append(rng.randrange(1000))
    assert safety.watermark_z(marked, 1000) > 8 > 3 > abs(safety.watermark_z(text, 1000))
    assert safety.watermark_z(marked, 1000, key=7) < 3  # another key sees nothing
    all_green = safety.watermark_z([7, safety.green_list(7, 1000)[0].item()], 1000)
    assert all_green == pytest.approx(0.75 / math.sqrt(0.25 * 0.75))


def test_canaries_stand_once_four_and_sixteen_times():
    secrets = safety.canaries(seed=1)
    assert [s.times for s in secrets] == [1] * 4 + [4] * 4 + [16] * 4 and len({s.animal for s in secrets}) == 12
    assert all(s.code in safety.CODES and s.text() == f"{s.beginning} {s.code}." for s in secrets)
    assert secrets[0].text("123").endswith(" 123.") and secrets == safety.canaries(seed=1) != safety.canaries(seed=2)


def test_text_losses_are_the_librarys_whatever_stands_beside(tiny, tokenizer):
    texts = ["Short.", "A text that is a good deal longer than the first one.", "And a third."]
    found = safety.text_losses(tiny, tokenizer, texts, batch_size=2)
    for ours, text in zip(found, texts, strict=True):
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.inference_mode():
            mean = tiny(input_ids=ids, labels=ids).loss.item()
        assert ours == pytest.approx(mean * (ids.shape[1] - 1), rel=1e-4)


def test_what_is_repeated_in_training_becomes_exposed(tiny, tokenizer):
    secrets = safety.canaries(seed=0)[:1]
    candidates = [*safety.CODES[::20], secrets[0].code]
    safety.train_on_texts(tiny, tokenizer, [secrets[0].text()] * 32, epochs=10, learning_rate=3e-3)
    assert not tiny.training
    assert safety.exposures(tiny, tokenizer, secrets, candidates) == [pytest.approx(math.log2(len(candidates)))]


def test_a_private_step_with_every_example_is_adamw_on_the_mean_of_the_cut_gradients(tiny, tokenizer):
    import copy

    other, texts = copy.deepcopy(tiny), ["One text.", "Another one, longer."]
    safety.train_on_texts(tiny, tokenizer, texts, epochs=1, learning_rate=1e-3, noise_multiplier=0.0, batch_size=2)
    other.train()
    adam, each = torch.optim.AdamW(other.parameters(), lr=1e-3), []
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        grads = torch.autograd.grad(other(input_ids=ids, labels=ids).loss, list(other.parameters()))
        length = torch.cat([g.flatten() for g in grads]).norm()
        assert length > 1  # so that something is cut
        each.append([g / length for g in grads])
    for p, a, b in zip(other.parameters(), *each, strict=True):
        p.grad = (a + b) / 2
    adam.step()
    for ours, theirs in zip(tiny.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_noise_is_for_the_lot_not_for_the_examples_drawn():
    g = torch.ones(2, 3)
    assert torch.allclose(safety.dp_sgd_gradient(g, 10.0, 0.0, batch_size=8), torch.full((3,), 0.25))
    none = safety.dp_sgd_gradient(torch.zeros(0, 1000), 1.0, 2.0, torch.Generator().manual_seed(0), batch_size=4)
    assert none.std().item() == pytest.approx(0.5, rel=0.1)  # a step that drew nobody still has its noise


def test_epsilon_of_a_known_case_and_of_the_plain_gaussian():
    # 60,000 examples, lots of 256, noise 1.12, 60 passes: 2.92 by TensorFlow Privacy's accountant of this kind
    assert safety.dp_epsilon(1.12, 256 / 60_000, 14_063, 1e-5) == pytest.approx(2.92, abs=0.005)
    plain = min(a / (2 * 4) + math.log(1e5) / (a - 1) for a in range(2, 257))  # every example, one step, noise 2
    assert safety.dp_epsilon(2.0, 1 - 1e-12, 1, 1e-5) == pytest.approx(plain, rel=1e-6)
    assert safety.dp_epsilon(1.0, 0.01, 200, 1e-5) > safety.dp_epsilon(1.0, 0.01, 100, 1e-5)
    for noise, share in ((0.0, 0.1), (1.0, 0.0), (1.0, 1.0)):
        with pytest.raises(AssertionError):
            safety.dp_epsilon(noise, share, 10, 1e-5)


@pytest.mark.parametrize("seed", range(20))  # drawn blindly, seed 9 repeats one
def test_no_two_canaries_share_a_code(seed):
    codes = [canary.code for canary in safety.canaries(seed)]
    assert len(set(codes)) == len(codes) == 12
