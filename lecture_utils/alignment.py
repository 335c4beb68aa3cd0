"""Learning from preferences: reward models, PPO and DPO, as functions on tensors.

Shapes: B answers, T tokens of each; a mask (B, T) is True on an answer's own tokens. Sources:
InstructGPT (2203.02155), Llama 2 (2307.09288), PPO (1707.06347), GAE (1506.02438), DPO
(2305.18290). Everything is held to a slow loop, to TRL or to a known answer by tests.
"""

import itertools

import torch
from torch.nn import functional as F

# Llama 2, Table 27: how far rewards should lie apart, by the strength of the preference (1 … 4).
MARGINS = {"small": (0.0, 1 / 3, 2 / 3, 1.0), "large": (0.0, 1.0, 2.0, 3.0)}


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | float = 0.0):
    """Return the mean of -log sigmoid(chosen - rejected - margin), rewards (B,) each (2203.02155, equation 1; with
    the margin 2307.09288, equation 2)."""
    assert chosen.shape == rejected.shape  # else they would be broadcast
    return -F.logsigmoid(chosen - rejected - margin).mean()


def ranked_pairs(ranking: list) -> list[tuple]:
    """Return the K(K-1)/2 pairs (better, worse) of a ranking, best first."""
    ranking = list(ranking)
    assert not any(a == b for a, b in itertools.combinations(ranking, 2)), "equal answers cannot be ranked"
    return list(itertools.combinations(ranking, 2))


def cohen_kappa(one: list, other: list) -> float:
    """Return the agreement of two annotators beyond chance (Cohen 1960): 1 is perfect, 0 chance."""
    one, other = (x.tolist() if hasattr(x, "tolist") else list(x) for x in (one, other))
    n, labels = len(one), set(one) | set(other)
    agreed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    by_chance = sum(one.count(label) * other.count(label) for label in labels) / n**2
    return 1.0 if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


def whiten(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return x shifted to mean 0 over the mask and scaled to variance 1."""
    assert mask is None or mask.dtype == torch.bool  # whole numbers would index
    kept = x if mask is None else x[mask]
    mean, scale = kept.mean(), (kept.var(correction=0) + 1e-8).rsqrt()
    out = (x - mean) * scale
    return out if mask is None else out * mask


def llama2_reward(helpful: torch.Tensor, safe: torch.Tensor, safety_prompt: torch.Tensor) -> torch.Tensor:
    """Return Llama 2's reward of each answer (2307.09288, section 3.2.3), whitened over the batch.

    helpful, safe: the two reward models' probabilities in (0, 1); safety_prompt: bool. The safety
    model decides where the prompt asks for it or its score is under 0.15; else the helpfulness
    model does. A switch, no sum.
    """
    assert helpful.shape == safe.shape == safety_prompt.shape
    chosen = torch.where(safety_prompt | (safe < 0.15), safe, helpful)
    return whiten(chosen.logit())


def token_rewards(score, log_p, reference, mask, beta: float) -> torch.Tensor:
    """Return the reward of each token (B, T): -beta (log p - log reference) everywhere, and the
    answer's score (B,) on its last token (2203.02155, equation 2, token by token)."""
    rewards = -beta * (log_p - reference) * mask
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    return rewards.index_put((torch.arange(len(last)), last), score.to(rewards.dtype), accumulate=True)


def advantages(rewards, values, mask, gamma: float = 1.0, lam: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (advantages, returns), both (B, T), by generalized advantage estimation (1506.02438,
    equation 16): A_t = sum over k of (gamma lam)^k delta_{t+k}, delta_t = r_t + gamma V_{t+1} - V_t.

    Behind an answer's last token the value is 0. An answer's tokens stand in one piece.
    """
    out, ahead, next_value = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t].to(rewards)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        ahead = here * (delta + gamma * lam * ahead)
        next_value = here * values[:, t]
        out[:, t] = ahead
    return out, (out + values) * mask


def ppo_loss(log_p, old, advantage, mask, clip: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss, share of clipped tokens): the clipped objective (1707.06347, equation 7), to be made small.
    Gradients flow through ``log_p`` alone."""
    assert mask.dtype == torch.bool  # whole numbers would index
    ratio = (log_p - old).exp()
    plain, cut = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    worse = torch.minimum(plain, cut)
    return -worse[mask].mean(), (cut < plain)[mask].float().mean()


def value_loss(values, old, returns, mask, clip: float = 0.2) -> torch.Tensor:
    """Return half the mean squared error of the values, each kept within ``clip`` of its old one (the larger of both
    errors counts)."""
    assert mask.dtype == torch.bool  # whole numbers would index
    near = old + (values - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2)[mask].mean()


def kl_estimates(log_p, reference) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two estimates of KL(p || reference) for tokens drawn from p, both unbiased: the
    plain one, log p - log reference, can be negative; the other, ratio - 1 - log ratio, cannot."""
    log_ratio = reference - log_p
    return -log_ratio, log_ratio.exp() - 1 - log_ratio


def dpo_loss(chosen, rejected, chosen_reference, rejected_reference, beta: float = 0.1) -> torch.Tensor:
    """Return DPO's loss of answers' summed log-probabilities (B,) each, under the policy and under
    the reference (2305.18290, equation 7)."""
    assert chosen.shape == chosen_reference.shape and rejected.shape == rejected_reference.shape
    return bradley_terry_loss(beta * (chosen - chosen_reference), beta * (rejected - rejected_reference))


def token_log_probabilities(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return log p of each of the ids (B, T) under logits (B, T, vocabulary) for the same positions."""
    assert logits.shape[:-1] == ids.shape  # gather would also take fewer
    logits = logits.float()
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)  # one copy less than log_softmax
