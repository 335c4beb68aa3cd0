"""The mathematics of alignment, held to slow loops written from the definitions, to TRL, and to known answers."""

import math

import pytest
import torch

from lecture_utils import alignment


def ragged(rows=5, time=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, time + 1, (rows,), generator=g)
    lengths[0], lengths[1] = 1, time
    return torch.arange(time)[None] < lengths[:, None], g


def test_bradley_terry_is_minus_log_of_the_probability_to_win():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    win = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))]
    assert alignment.bradley_terry_loss(chosen, rejected).item() == pytest.approx(-sum(map(math.log, win)) / 2)
    with_margin = alignment.bradley_terry_loss(chosen, rejected, torch.tensor([1.0, 0.0]))
    assert with_margin.item() == pytest.approx((math.log(2) - math.log(win[1])) / 2)
    with pytest.raises(AssertionError):
        alignment.bradley_terry_loss(torch.zeros(1), torch.zeros(2))


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_a_ranking_of_k_gives_k_choose_2_pairs(k):
    pairs = alignment.ranked_pairs(list(range(k)))
    assert len(pairs) == math.comb(k, 2) and all(better < worse for better, worse in pairs)


def test_equal_answers_have_no_better_one():
    with pytest.raises(AssertionError):
        alignment.ranked_pairs(["a", "b", "a"])


def test_kappa():
    assert alignment.cohen_kappa([1, 2, 1, 2], [1, 2, 1, 2]) == 1
    assert alignment.cohen_kappa([1, 1, 2, 2], [1, 2, 1, 2]) == 0
    assert alignment.cohen_kappa([1, 2], [2, 1]) == -1
    assert alignment.cohen_kappa([1, 1], [1, 1]) == 1


def test_llama2_rule_switches_at_its_threshold():
    helpful = torch.tensor([0.9, 0.9, 0.9, 0.2])
    safe = torch.tensor([0.149, 0.15, 0.5, 0.8])
    asked = torch.tensor([False, False, True, True])
    expected = torch.tensor([0.149, 0.9, 0.5, 0.8]).logit()
    got = alignment.llama2_reward(helpful, safe, asked)
    assert torch.allclose(got, (expected - expected.mean()) / expected.std(correction=0), atol=1e-5)
    assert got.mean().abs() < 1e-6 and got.var(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_whitening_ignores_what_the_mask_hides():
    mask, g = ragged()
    x = torch.randn(mask.shape, generator=g) * 3 + 5
    out = alignment.whiten(torch.where(mask, x, 1e6), mask)
    assert out[mask].mean().abs() < 1e-5 and out[mask].var(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert (out[~mask] == 0).all()


def test_token_rewards_put_the_score_on_the_last_token():
    mask, g = ragged()
    log_p, reference = torch.randn(2, *mask.shape, generator=g)
    score = torch.randn(len(mask), generator=g)
    got = alignment.token_rewards(score, log_p, reference, mask, beta=0.3)
    for b in range(len(mask)):
        n = int(mask[b].sum())
        expected = [-0.3 * (log_p[b, t] - reference[b, t]).item() for t in range(n)] + [0.0] * (mask.shape[1] - n)
        expected[n - 1] += score[b].item()
        assert got[b].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_equal_the_double_sum(gamma, lam):
    mask, g = ragged(seed=3)
    rewards, values = torch.randn(2, *mask.shape, generator=g)
    rewards = rewards * mask
    got, returns = alignment.advantages(rewards, values, mask, gamma, lam)
    for b in range(len(mask)):
        n = int(mask[b].sum())
        r, v = rewards[b, :n].tolist(), values[b, :n].tolist() + [0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
        expected = [sum((gamma * lam) ** k * delta[t + k] for k in range(n - t)) for t in range(n)]
        assert got[b, :n].tolist() == pytest.approx(expected, abs=1e-4)
        assert (got[b, n:] == 0).all() and (returns[b, n:] == 0).all()
        if lam == 1.0:  # then returns are the plain discounted sums of rewards
            plain = [sum(gamma**k * r[t + k] for k in range(n - t)) for t in range(n)]
            assert returns[b, :n].tolist() == pytest.approx(plain, abs=1e-4)


def test_ppo_loss_equals_the_loop_and_stops_at_the_clip():
    mask, g = ragged(seed=1)
    new, old, advantage = torch.randn(3, *mask.shape, generator=g)
    loss, clipped = alignment.ppo_loss(new, old, advantage, mask, clip=0.2)
    terms, cut = [], 0
    for n, o, a, m in zip(*(x.flatten().tolist() for x in (new, old, advantage, mask)), strict=True):
        if m:
            ratio = math.exp(n - o)
            bounded = min(max(ratio, 0.8), 1.2)
            terms.append(min(ratio * a, bounded * a))
            cut += bounded * a < ratio * a
    assert loss.item() == pytest.approx(-sum(terms) / len(terms), abs=1e-5)
    assert clipped.item() == pytest.approx(cut / len(terms))
    far = torch.full((1, 1), 0.5, requires_grad=True)  # ratio 1.65, and better than expected: no further pull
    alignment.ppo_loss(far, torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))[0].backward()
    assert far.grad.item() == 0


def test_kl_estimates_are_unbiased_against_the_exact_kl():
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(12, generator=g).log_softmax(-1) for _ in range(2))
    exact = (p.exp() * (p - q)).sum()
    plain, positive = alignment.kl_estimates(p, q)
    assert torch.allclose((p.exp() * plain).sum(), exact, atol=1e-5)
    assert torch.allclose((p.exp() * positive).sum(), exact, atol=1e-5)
    assert (positive >= -1e-7).all() and (plain < 0).any()


def test_dpo_loss_equals_the_formula_and_starts_at_ln_2():
    g = torch.Generator().manual_seed(0)
    w, l, rw, rl = torch.randn(4, 6, generator=g)  # noqa: E741
    expected = -(0.1 * ((w - rw) - (l - rl))).sigmoid().log().mean()
    assert torch.allclose(alignment.dpo_loss(w, l, rw, rl, beta=0.1), expected)
    assert alignment.dpo_loss(w, l, w, l).item() == pytest.approx(math.log(2))


def test_token_log_probabilities():
    logits, ids = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    got = alignment.token_log_probabilities(logits, ids)
    assert torch.allclose(got, -torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none"))


def test_ppo_solves_a_bandit_and_kl_holds_it_back():
    """One token, four arms: without the leash the best arm wins; with it the optimum is reference x exp(r / beta)."""
    arms, reference = torch.tensor([0.0, 1.0, 0.5, -1.0]), torch.full((4,), 0.25).log()
    for beta in (0.0, 0.5):
        g = torch.Generator().manual_seed(0)
        logits = torch.zeros(4, requires_grad=True)
        adam = torch.optim.Adam([logits], lr=0.05)
        for _ in range(400):
            with torch.no_grad():
                old_all = logits.log_softmax(0)
                ids = torch.multinomial(old_all.exp(), 256, replacement=True, generator=g)
                old, mask = old_all[ids][:, None], torch.ones(256, 1, dtype=torch.bool)
                reward = alignment.token_rewards(arms[ids], old, reference[ids][:, None], mask, beta)
                gain, _ = alignment.advantages(reward, reward.mean().expand_as(reward), mask)
            for _ in range(2):
                loss, _ = alignment.ppo_loss(logits.log_softmax(0)[ids][:, None], old, gain, mask)
                adam.zero_grad()
                loss.backward()
                adam.step()
        p = logits.detach().softmax(0)
        best = torch.tensor([0.0, 1.0, 0.0, 0.0]) if beta == 0 else (reference + arms / beta).softmax(0)
        assert (p - best).abs().max() < 0.06, (beta, p, best)
