"""Learning from preferences: the functions of reward models, PPO and DPO, on tensors.

Shapes: B answers with T tokens each; a mask (B, T) is True on an answer's own tokens. Sources: InstructGPT
(2203.02155), Llama 2 (2307.09288), PPO (1707.06347), GAE (1506.02438), DPO (2305.18290). The tests compare every
function with a slow loop, with TRL or with a known result.
"""

import itertools

import torch
from torch.nn import functional as F


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor, margin: torch.Tensor | float = 0.0):
    """Return the mean of -log sigmoid(chosen - rejected - margin) for rewards (B,) of the chosen and the rejected
    answers (2203.02155, equation 1; with the margin 2307.09288, equation 2)."""
    assert chosen.shape == rejected.shape  # different shapes would be broadcast
    return -F.logsigmoid(chosen - rejected - margin).mean()


def ranked_pairs(ranking: list) -> list[tuple]:
    """Return the K(K-1)/2 pairs (better, worse) of a ranking of K answers, best first."""
    pairs = list(itertools.combinations(ranking, 2))
    assert not any(better == worse for better, worse in pairs), "equal answers cannot be ranked"
    return pairs


def cohen_kappa(one: list, other: list) -> float:
    """Return Cohen's kappa (Cohen 1960): the agreement of two annotators, where 1 is perfect and 0 chance level."""
    one, other = (x.tolist() if hasattr(x, "tolist") else list(x) for x in (one, other))
    n, labels = len(one), set(one) | set(other)
    agreed = sum(a == b for a, b in zip(one, other, strict=True)) / n
    by_chance = sum(one.count(label) * other.count(label) for label in labels) / n**2
    return 1.0 if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


def whiten(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return x shifted to mean 0 and scaled to variance 1, both over the mask; outside the mask it is 0."""
    assert mask is None or mask.dtype == torch.bool  # an integer mask would be taken as indices
    selected = x if mask is None else x[mask]
    out = (x - selected.mean()) * (selected.var(correction=0) + 1e-8).rsqrt()
    return out if mask is None else out * mask


def llama2_reward(helpful: torch.Tensor, safe: torch.Tensor, safety_prompt: torch.Tensor) -> torch.Tensor:
    """Return Llama 2's reward of each answer (2307.09288, section 3.2.3), whitened over the batch. The probabilities
    ``helpful`` and ``safe`` of the two reward models, both in (0, 1), are not added: ``safe`` is used where the boolean
    ``safety_prompt`` is True or ``safe`` is below 0.15, and ``helpful`` everywhere else."""
    assert helpful.shape == safe.shape == safety_prompt.shape
    return whiten(torch.where(safety_prompt | (safe < 0.15), safe, helpful).logit())


def token_rewards(score, log_p, reference, mask, beta: float) -> torch.Tensor:
    """Return the reward of each token (B, T): the KL penalty -beta (log p - log reference), plus the answer's score
    (B,) on its last token (2203.02155, equation 2, token by token)."""
    rewards = -beta * (log_p - reference) * mask
    last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
    return rewards.index_put((torch.arange(len(last)), last), score.to(rewards.dtype), accumulate=True)


def advantages(rewards, values, mask, gamma: float = 1.0, lam: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (advantages, returns), both (B, T), by generalized advantage estimation (1506.02438, equation 16):
    A_t = sum over k of (gamma lam)^k delta_{t+k}, with delta_t = r_t + gamma V_{t+1} - V_t. The value after an answer's
    last token is 0. The tokens of an answer must be contiguous."""
    out, next_advantage, next_value = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        inside = mask[:, t].to(rewards)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        out[:, t] = next_advantage = inside * (delta + gamma * lam * next_advantage)
        next_value = inside * values[:, t]
    return out, (out + values) * mask


def ppo_loss(log_p, old, advantage, mask, clip: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (loss, share of clipped tokens), where the loss is the negative clipped objective (1707.06347,
    equation 7). Gradients flow through ``log_p`` alone."""
    assert mask.dtype == torch.bool  # an integer mask would be taken as indices
    ratio = (log_p - old).exp()
    plain, clipped = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return -torch.minimum(plain, clipped)[mask].mean(), (clipped < plain)[mask].float().mean()


def kl_estimates(log_p, reference) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two unbiased estimates of KL(p || reference) in nats for tokens sampled from p. The first, log p -
    log reference, can be negative. The second, ratio - 1 - log ratio with ratio = reference / p, cannot."""
    log_ratio = reference - log_p
    return -log_ratio, log_ratio.exp() - 1 - log_ratio


def dpo_loss(chosen, rejected, chosen_reference, rejected_reference, beta: float = 0.1) -> torch.Tensor:
    """Return the DPO loss (2305.18290, equation 7). All arguments are summed log-probabilities (B,) of answers, the
    first two under the policy and the other two under the reference."""
    assert chosen.shape == chosen_reference.shape and rejected.shape == rejected_reference.shape
    return bradley_terry_loss(beta * (chosen - chosen_reference), beta * (rejected - rejected_reference))


def token_log_probabilities(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return log p (B, T) of each token in ids (B, T) under the logits (B, T, vocabulary) of the same positions."""
    assert logits.shape[:-1] == ids.shape  # gather would accept fewer ids than positions
    logits = logits.float()
    # log_softmax would need one more copy of the logits.
    return logits.gather(-1, ids[..., None])[..., 0] - logits.logsumexp(-1)
