"""GRPO's advantages and loss against a slow loop and TRL, and what a training changes."""

import itertools

import pytest
import torch

from lecture_utils import grpo, reasoning

VARIANTS = [
    ({}, {}),
    ({"epsilon_high": 0.28}, {"clip": (0.2, 0.28)}),
    ({"loss_type": "dr_grpo"}, {"average": "constant"}),
    ({"loss_type": "dapo"}, {"average": "token"}),
    ({"kl_coef": 0.04, "use_bias_correction_kl": False}, {"kl_coef": 0.04}),
]


@pytest.fixture(scope="module")
def batch():
    model, problem = reasoning.load_start(), reasoning.held_out(1)[0]
    torch.manual_seed(0)
    samples = reasoning.sample(model, [problem.question], 8)
    with torch.no_grad():
        log_p = grpo.log_probabilities(model, samples.ids, samples.start)
    old, reference = (log_p + 0.3 * torch.randn_like(log_p) for _ in range(2))
    return model, samples, log_p, old, torch.randn(8), reference


@pytest.mark.parametrize(("theirs", "ours"), VARIANTS)
def test_the_loss_is_that_of_trl(batch, theirs, ours):
    model, samples, log_p, old, advantages, reference = batch
    if ours.get("average") == "constant":
        ours = ours | {"longest": log_p.shape[1]}
    if "kl_coef" in ours:
        ours = ours | {"reference": reference}
    expected = grpo.trl_loss(model, samples.ids, samples.start, old, advantages, reference, **theirs)
    assert grpo.grpo_loss(log_p, old, advantages, samples.mask, **ours) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("average", ["answer", "token", "constant"])
def test_the_loss_is_that_of_a_loop(average):
    torch.manual_seed(1)
    log_p, old, advantages = torch.randn(3, 5), torch.randn(3, 5), torch.randn(3)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)
    sums, count = [], 0
    for i in range(3):
        own = []
        for t in range(5):
            if mask[i, t]:
                ratio = float((log_p[i, t] - old[i, t]).exp())
                a = float(advantages[i])
                own.append(-min(ratio * a, min(max(ratio, 0.9), 1.3) * a))
        sums.append((sum(own), len(own)))
        count += len(own)
    total = sum(s for s, _ in sums)
    expected = {"answer": sum(s / n for s, n in sums) / 3, "token": total / count, "constant": total / 21}[average]
    found = grpo.grpo_loss(log_p, old, advantages, mask, (0.1, 0.3), average, longest=7)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_only_ratios_that_have_gone_too_far_lose_their_gradient():
    log_p = torch.tensor([[0.5, -0.5], [0.5, -0.5]], requires_grad=True)  # ratios 1.65 and 0.61
    loss = grpo.grpo_loss(log_p, torch.zeros(2, 2), torch.tensor([1.0, -1.0]), torch.ones(2, 2, dtype=torch.bool))
    loss.backward()
    assert (log_p.grad != 0).tolist() == [[False, True], [True, False]]


def test_the_kl_estimate_is_zero_where_both_agree_and_positive_elsewhere():
    zeros, mask = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
    losses = [
        grpo.grpo_loss(zeros, zeros, torch.zeros(1), mask, reference=zeros + gap, kl_coef=1.0).item()
        for gap in (-0.5, 0.0, 0.5)
    ]
    assert losses[1] == 0 and min(losses[0], losses[2]) > 0


def test_advantages():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    scaled, plain = grpo.group_advantages(rewards), grpo.group_advantages(rewards, scale=False)
    assert scaled[0].mean().abs() < 1e-6 and scaled[0].std() == pytest.approx(1, abs=1e-3)
    assert plain[0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert not scaled[1:].any() and not plain[1:].any()


def test_the_log_probabilities_are_those_of_the_solutions_tokens(batch):
    model, samples, log_p, *_ = batch
    ids = samples.ids[0]
    for t in (0, 3):
        with torch.no_grad():
            p = model(ids[None, : samples.start + t])[0, -1].softmax(-1)
        assert log_p[0, t].exp().item() == pytest.approx(p[ids[samples.start + t]].item(), rel=1e-4)


def wanted(problem, text) -> bool:
    return reasoning.writer_of(text) == "careful"


def test_a_training_makes_rewarded_solutions_more_common():
    model, problem = reasoning.load_start(), reasoning.held_out(1)[0]
    config = grpo.GRPOConfig(steps=6, questions=8, learning_rate=5e-4)
    history = grpo.train(model, itertools.repeat(problem), config, wanted)
    assert history.reward[-1] > history.reward[0] + 0.2


@pytest.mark.parametrize(("baseline", "reward"), [(True, 0.0), (True, 1.0), (False, 0.0)])
def test_nothing_is_learnt_from_equal_rewards_or_without_right_solutions(baseline, reward):
    model = reasoning.load_start()
    before = {name: p.clone() for name, p in model.named_parameters()}
    config = grpo.GRPOConfig(steps=1, questions=1, baseline=baseline)
    grpo.train(model, reasoning.problems(8), config, lambda problem, text: reward)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
