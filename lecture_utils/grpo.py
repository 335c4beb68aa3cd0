"""GRPO, group relative policy optimization (2402.03300), for the networks of ``reasoning``, with the variants of Dr. GRPO
(2503.20783) and DAPO (2503.14476). Shapes: B solutions with T tokens, G solutions of each question.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from lecture_utils import alignment
from lecture_utils.reasoning import (
    END,
    IDS,
    LONGEST,
    PAD,
    Problem,
    is_right,
    progress,
    room,
    sample,
    update,
)
from lecture_utils.transformer import Llama, published_name


def group_advantages(rewards: torch.Tensor, scale: bool = True) -> torch.Tensor:
    """Return how much better each solution (questions, G) is than its group's mean, with ``scale`` in units of the
    group's standard deviation (2402.03300, section 4.1.2; without it 2503.20783)."""
    advantages = rewards - rewards.mean(1, keepdim=True)
    return advantages / (rewards.std(1, keepdim=True) + 1e-4) if scale else advantages


def log_probabilities(model, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Return the log-probability (B, T) of each token from position ``start`` on, given those before it."""
    return alignment.token_log_probabilities(model(ids[:, :-1])[:, start - 1 :], ids[:, start:])


def grpo_loss(
    log_p, old_log_p, advantages, mask, clip=(0.2, 0.2), average: str = "answer", longest: int = LONGEST,
    reference=None, kl_coef: float = 0.0,
):  # fmt: skip
    """Return GRPO's loss for log-probabilities (B, T), advantages (B,) and a mask (B, T).

    clip: how far the ratio of the probabilities may fall below 1 and rise above 1 before the gradient ends (DAPO,
    2503.14476, uses a larger second number). average: ``answer`` is the mean over each solution's tokens and then over
    solutions (2402.03300, equation 3); ``token`` the mean over all tokens (DAPO); ``constant`` the sum over the tokens
    divided by B and by ``longest`` (Dr. GRPO, 2503.20783). reference (B, T): with ``kl_coef``, the estimate of the KL
    divergence from these log-probabilities is added (2402.03300, equation 4).
    """
    ratio, advantages = (log_p - old_log_p).exp(), advantages[:, None]
    clipped = ratio.clamp(1 - clip[0], 1 + clip[1])
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if kl_coef:
        loss = loss + kl_coef * alignment.kl_estimates(log_p, reference)[1]
    loss = loss * mask
    if average == "answer":
        return (loss.sum(1) / mask.sum(1)).mean()
    return loss.sum() / (mask.sum() if average == "token" else len(mask) * longest)


@dataclass(frozen=True)
class GRPOConfig:
    """The hyperparameters of a training with GRPO."""

    steps: int = 100  # batches of solutions
    questions: int = 16  # in a batch
    group_size: int = 8  # solutions of each question
    epochs: int = 2  # updates with the same batch
    learning_rate: float = 2e-4
    clip: tuple[float, float] = (0.2, 0.2)
    baseline: bool = True  # subtract the group's mean; without it, the right solutions are imitated
    scale: bool = True  # divide by the group's standard deviation
    average: str = "answer"
    kl_coef: float = 0.0
    seed: int = 0


@dataclass
class History:
    """What happened in each step of a training: means over its batch."""

    reward: list[float] = field(default_factory=list)
    length: list[float] = field(default_factory=list)
    wrong_length: list[float] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)  # share of the tokens whose ratio left the range


def train(model, asked: Iterator[Problem], config: GRPOConfig, reward: Callable[[Problem, str], float] = is_right):
    """Train with GRPO on problems of equal length, and return the history. ``reward`` judges each solution."""
    torch.manual_seed(config.seed)
    reference = copy.deepcopy(model) if config.kl_coef else None
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.0, fused=True)
    history = History()
    for _ in progress(config.steps):
        batch = [next(asked) for _ in range(config.questions)]
        samples = sample(model, [problem.question for problem in batch], config.group_size, longest=room(batch))
        asked_for = [problem for problem in batch for _ in range(config.group_size)]
        rewards = torch.tensor([float(reward(p, text)) for p, text in zip(asked_for, samples.texts, strict=True)])
        advantages = rewards
        if config.baseline:
            advantages = group_advantages(rewards.view(-1, config.group_size), config.scale).flatten()
        ids, start, mask = samples.ids, samples.start, samples.mask
        with torch.no_grad():
            old = log_probabilities(model, ids, start)
            far = log_probabilities(reference, ids, start) if reference else None
        for _ in range(config.epochs):
            log_p = log_probabilities(model, ids, start)
            loss = grpo_loss(
                log_p, old, advantages, mask, config.clip, config.average, room(batch), far, config.kl_coef
            )
            update(model, optimizer, loss)
        lengths, wrong = mask.sum(1).float(), rewards == 0
        ratio = (log_p - old).detach().exp()[mask]
        outside = (ratio < 1 - config.clip[0]) | (ratio > 1 + config.clip[1])
        history.reward.append(rewards.mean().item())
        history.length.append(lengths.mean().item())
        history.wrong_length.append(lengths[wrong].mean().item() if wrong.any() else math.nan)
        history.clipped.append(outside.float().mean().item())
    return history


def trl_loss(model: Llama, ids, start: int, old_log_p, advantages, reference=None, kl_coef=0.0, **settings):
    """Return the loss of TRL's ``GRPOTrainer`` for the solutions ``ids`` (B, prompt + T) that begin at ``start``. The
    policy is a transformers model with the weights of ``model``; ``settings`` go to ``GRPOConfig``."""
    import tempfile

    import transformers
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from trl import GRPOConfig as Settings
    from trl import GRPOTrainer

    c = model.config
    policy = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=c.vocabulary, hidden_size=c.width, intermediate_size=c.feed_forward, num_hidden_layers=c.layers,
            num_attention_heads=c.heads, num_key_value_heads=c.kv_heads, head_dim=c.head_width, rms_norm_eps=c.eps,
            tie_word_embeddings=c.tied, bos_token_id=None, eos_token_id=END, pad_token_id=PAD,
        )
    )  # fmt: skip
    policy.load_state_dict({published_name(name): value for name, value in model.state_dict().items()})
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(IDS, unk_token=" ")), pad_token=" ", eos_token="."
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=policy, reward_funcs=lambda completions, **rest: [0.0] * len(completions), processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": "1"}] * 8),
            args=Settings(
                folder, per_device_train_batch_size=8, num_generations=8, report_to=[], use_cpu=True, bf16=False,
                max_completion_length=ids.shape[1] - start, **{"loss_type": "grpo"} | settings,
            ),
        )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = kl_coef  # later, because otherwise the trainer would download a reference model
    mask = (ids[:, start:] != PAD).int()
    batch = {
        "prompt_ids": ids[:, :start], "prompt_mask": torch.ones_like(ids[:, :start]), "completion_ids": ids[:, start:],
        "completion_mask": mask, "advantages": advantages, "old_per_token_logps": old_log_p,
        "ref_per_token_logps": reference, "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return trainer.compute_loss(policy, batch).detach()
