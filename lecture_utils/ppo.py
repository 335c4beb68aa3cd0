"""Proximal policy optimization of a chat model against a reward model, in the memory of one small model.

Four networks share one set of frozen weights. The policy is the model with its adapter, which sits in the upper blocks, and
the reference is the same model with the adapter off. The lower blocks are the same for both, so they read each answer only
once. The reward model reads their last hidden states, and the value head the policy's. The equations are in ``alignment``.
Shapes: B answers with T tokens each.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from lecture_utils import alignment, data, evaluation, runtime


@dataclass(frozen=True)
class PPOConfig:
    """The hyperparameters of a training run; the sizes are those of one iteration."""

    iterations: int = 10
    batch_size: int = 32  # answers sampled in an iteration
    max_new_tokens: int = 40  # per answer
    temperature: float = 0.7  # the policy is the model at this temperature, in sampling and in learning
    num_ppo_epochs: int = 2  # passes over the answers of an iteration
    mini_batch_size: int = 8  # answers
    learning_rate: float = 1.5e-3  # of the adapter; both learning rates decay linearly towards 0
    value_learning_rate: float = 5e-3
    kl_coef: float = 0.25  # of the KL penalty
    cliprange: float = 0.2
    gamma: float = 1.0
    lam: float = 1.0  # of GAE: an answer is short, so even its first token is credited with the full reward
    seed: int = 0

    def __post_init__(self):
        runtime.require_positive(
            self, "batch_size", "mini_batch_size", "max_new_tokens", "temperature", "learning_rate"
        )
        for name, most in (("iterations", 1), ("batch_size", 2), ("max_new_tokens", 4)):
            object.__setattr__(self, name, runtime.limited(getattr(self, name), most))


@dataclass
class RewardModel:
    """A linear head on the mean hidden state of an answer after block ``layer`` of the reference."""

    layer: int
    weight: torch.Tensor  # (width,), like mean and scale
    mean: torch.Tensor
    scale: torch.Tensor
    offset: float = 0.0
    unit: float = 1.0

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return the rewards (B,) of features (B, width), with mean 0 and variance 1 over the training pairs."""
        return ((features - self.mean) / self.scale @ self.weight - self.offset) / self.unit


def fit_reward_model(chosen, rejected, layer: int, decay: float = 0.03) -> RewardModel:
    """Return the reward model that maximises the likelihood under the Bradley-Terry model, for features (pairs, width)
    of the chosen and the rejected answers. ``decay`` is the coefficient of the squared weights. The problem is convex
    and is solved to convergence."""
    features = torch.cat((chosen, rejected))
    assert features.isfinite().all()
    mean, scale = features.mean(0), features.std(0).clamp(min=1e-6)
    differences = (chosen - rejected) / scale
    weight = torch.zeros(chosen.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        gap = differences @ weight
        loss = alignment.bradley_terry_loss(gap, torch.zeros_like(gap)) + decay * weight @ weight
        loss.backward()
        return loss

    optimizer.step(closure)
    model = RewardModel(layer, weight.detach(), mean, scale)
    rewards = model(features)
    model.offset, model.unit = rewards.mean().item(), rewards.std().item()
    return model


def _body(model):
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model


def lower_states(model, ids, attention_mask, layer: int) -> torch.Tensor:
    """Return the hidden states (B, L, width) after block ``layer`` (counted from 1) of a causal model. The blocks above
    are not run."""
    body, captured = _body(model), []
    blocks = body.layers
    hook = blocks[layer - 1].register_forward_hook(
        lambda block, inputs, out: captured.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        body.layers = blocks[:layer]
        body(input_ids=ids, attention_mask=attention_mask, use_cache=False)
    finally:
        body.layers = blocks
        hook.remove()
    return captured[0]


def upper_states(model, hidden, attention_mask, layer: int) -> torch.Tensor:
    """Return the last hidden states (B, L, width) of a causal model, continued from those after block ``layer``."""
    body = _body(model)
    blocks = body.layers
    try:
        body.layers = blocks[layer:]
        return body(inputs_embeds=hidden, attention_mask=attention_mask, use_cache=False).last_hidden_state
    finally:
        body.layers = blocks


def mean_state(hidden, mask) -> torch.Tensor:
    """Return the features (B, width) of answers: the mean of the hidden states (B, L, width) of their own tokens, which
    are the last columns of ``hidden``; mask (B, T)."""
    own = hidden[:, -mask.shape[1] :].float() * mask[..., None]
    return own.sum(1) / mask.sum(1, keepdim=True)


@torch.inference_mode()
def answer_features(model, tokenizer, pairs: list[tuple[str, str]], layer: int, batch_size: int = 16) -> torch.Tensor:
    """Return the mean hidden state (pairs, width) of each answer's tokens after block ``layer``. Each pair is (prompt,
    answer)."""
    rows = [data.token_ids(tokenizer, prompt, answer) for prompt, answer in runtime.few(pairs, 4)]
    out: list = [None] * len(rows)
    with tqdm(total=len(rows), desc="reading answers", leave=False) as bar:
        for places, ids, mask, labels in evaluation.answer_batches(model, rows, tokenizer.pad_token_id, batch_size):
            hidden = lower_states(model, ids, mask, layer).float()
            for i, states, label in zip(places, hidden, labels, strict=True):
                out[i] = states[label != -100].mean(0).cpu()
            bar.update(len(places))
    runtime.trim_memory()
    return runtime.spread(torch.stack(out), len(pairs))


def features_of(model, tokenizer, pairs: list[dict], layer: int) -> dict[str, torch.Tensor]:
    """Return features (pairs, width) of the chosen and of the rejected replies, as ``answer_features`` does. Replies that
    are part of several pairs are read only once."""
    asked = {which: [(pair["question"], pair[which]) for pair in pairs] for which in ("chosen", "rejected")}
    distinct = list(dict.fromkeys(asked["chosen"] + asked["rejected"]))
    features = answer_features(model, tokenizer, distinct, layer)
    places = {reply: i for i, reply in enumerate(distinct)}
    return {which: features[[places[reply] for reply in replies]] for which, replies in asked.items()}


@dataclass
class Answers:
    """Answers sampled from a policy. Tensors are (B, T), one entry for each token, if not stated otherwise."""

    ids: torch.Tensor  # (B, prompt + T), with prompts padded on the left
    attention_mask: torch.Tensor  # (B, prompt + T)
    mask: torch.Tensor
    hidden: torch.Tensor  # (B, prompt + T, width), after the lower blocks, which the adapter leaves alone
    log_p: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor
    score: torch.Tensor  # (B,), from the reward model
    texts: list[str] = field(default_factory=list)

    @property
    def kl(self) -> torch.Tensor:
        """The KL estimate (B,) of each answer in nats."""
        return ((self.log_p - self.reference) * self.mask).sum(1)


@dataclass
class Samples:
    """Answers sampled for n held-out prompts, with their scores (n,) and KL estimates (n,)."""

    score: torch.Tensor
    kl: torch.Tensor
    texts: list[str]


class PPOTrainer:
    """A training run. ``model`` is a PEFT model whose adapter, above block ``layer``, is the policy. ``reward`` may be any
    function of features (B, width) and the texts of the answers."""

    def __init__(self, model, tokenizer, reward: Callable, layer: int, config: PPOConfig):
        self.model, self.tokenizer, self.reward, self.layer, self.config = model, tokenizer, reward, layer, config
        self.value = nn.Linear(model.get_base_model().config.hidden_size, 1).to(model.device)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        adapter = [p for p in model.parameters() if p.requires_grad]
        rates = ((adapter, config.learning_rate), (list(self.value.parameters()), config.value_learning_rate))
        groups = [{"params": parameters, "lr": rate, "initial_lr": rate} for parameters, rate in rates]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self.history: list[dict] = []

    def _pass(self, hidden, ids, attention_mask, count: int):
        """Return (log p (B, T), values (B, T)) of the last T = ``count`` tokens from the hidden states after the lower
        blocks. After the end of an answer log p is 0. To save work, columns that contain only padding are left out, and
        the output head reads only the answers' own tokens."""
        columns, own = attention_mask.any(0), attention_mask[:, -count:].bool()
        kept = int(own.any(0).sum())
        last = upper_states(self.model, hidden[:, columns], attention_mask[:, columns], self.layer)
        last, own = last[:, -kept - 1 : -1], own[:, :kept]  # the state before each token predicts it
        logits = self.model.get_base_model().lm_head(last[own]) / self.config.temperature  # (tokens, vocabulary)
        token_log_p = alignment.token_log_probabilities(logits, ids[:, -count:][:, :kept][own])
        log_p = torch.zeros(own.shape, device=ids.device).masked_scatter(own, token_log_p)
        values = self.value(last.detach().float())[..., 0]
        padding = (0, count - kept)
        return F.pad(log_p, padding), F.pad(values, padding)

    def _passes(self, hidden, ids, attention_mask, count: int):
        """Return the result of ``_pass``, computed in minibatches to save memory."""
        batches = torch.arange(len(ids)).split(self.config.mini_batch_size)
        parts = [self._pass(hidden[rows], ids[rows], attention_mask[rows], count) for rows in batches]
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    @torch.no_grad()
    def write(self, prompts: list[str], seed: int) -> Answers:
        """Sample an answer to each prompt, and score it with the reward model and the reference."""
        config, tokenizer = self.config, self.tokenizer
        self.model.eval()
        texts = [data.render(tokenizer, prompt)[0] for prompt in prompts]
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        inputs = inputs.to(self.model.device)
        torch.manual_seed(seed)
        ids = self.model.generate(
            **inputs, max_new_tokens=config.max_new_tokens, do_sample=True, temperature=config.temperature,
            top_k=0, top_p=1.0, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        count = ids.shape[1] - inputs["input_ids"].shape[1]
        ended = (ids[:, -count:] == tokenizer.eos_token_id).int()
        mask = (ended.cumsum(1) - ended) == 0  # up to and including the first end-of-turn token
        attention_mask = torch.cat((inputs["attention_mask"], mask.long()), 1)
        batches = torch.arange(len(ids)).split(8)
        hidden = torch.cat([lower_states(self.model, ids[rows], attention_mask[rows], self.layer) for rows in batches])
        log_p, values = self._passes(hidden, ids, attention_mask, count)
        with self.model.disable_adapter():
            reference, _ = self._passes(hidden, ids, attention_mask, count)
        rows = zip(ids[:, -count:], mask, strict=True)
        answers = [tokenizer.decode(row[own], skip_special_tokens=True).strip() for row, own in rows]
        score = self.reward(mean_state(hidden, mask), answers)
        return Answers(ids, attention_mask, mask, hidden, log_p, reference, values, score, answers)

    def sample_answers(self, prompts: list[str], seed: int = 0) -> Samples:
        """Sample an answer to each of any number of prompts, in batches and without training on them."""
        prompts = runtime.few(prompts)
        starts = tqdm(range(0, len(prompts), 16), desc="surveying", leave=False)
        parts = [self.write(prompts[i : i + 16], seed=seed + i) for i in starts]
        score, kl = torch.cat([part.score for part in parts]), torch.cat([part.kl for part in parts])
        return Samples(score, kl, [text for part in parts for text in part.texts])

    def learn(self, answers: Answers) -> dict:
        """Update the policy and the value head on the answers of one iteration, and return the share of clipped tokens
        and both losses, each as the mean over the minibatches."""
        config, mask, clip = self.config, answers.mask, self.config.cliprange
        rewards = alignment.token_rewards(answers.score, answers.log_p, answers.reference, mask, config.kl_coef)
        advantages, returns = alignment.advantages(rewards, answers.values, mask, config.gamma, config.lam)
        advantages = alignment.whiten(advantages, mask)
        metrics: list[tuple] = []
        for epoch in range(config.num_ppo_epochs):
            order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(config.seed + epoch))
            for rows in order.split(config.mini_batch_size):
                given = (answers.hidden[rows], answers.ids[rows], answers.attention_mask[rows])
                log_p, values = self._pass(*given, mask.shape[1])
                ppo_loss, clipped = alignment.ppo_loss(log_p, answers.log_p[rows], advantages[rows], mask[rows], clip)
                value_loss = 0.5 * ((values - returns[rows]) ** 2)[mask[rows]].mean()
                (ppo_loss + value_loss).backward()
                nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                metrics.append((clipped.item(), ppo_loss.item(), value_loss.item()))
        means = (sum(column) / len(metrics) for column in zip(*metrics, strict=True))
        return dict(zip(("clipped", "policy loss", "value loss"), means, strict=True))

    def train(self, prompts: list[str], until: int | None = None) -> "PPOTrainer":
        """Continue the training up to iteration ``until`` (by default that of the configuration) and return the
        trainer. Each iteration takes the next prompts, and starts over when all have been used."""
        config = self.config
        until = config.iterations if until is None else until
        for iteration in tqdm(range(len(self.history), until), desc="PPO", leave=False):
            start = iteration * config.batch_size
            batch = [prompts[(start + i) % len(prompts)] for i in range(config.batch_size)]
            for group in self.optimizer.param_groups:  # linear decay to (nearly) 0
                group["lr"] = group["initial_lr"] * (1 - iteration / config.iterations)
            answers = self.write(batch, seed=1000 * config.seed + iteration)
            report = self.learn(answers)
            report |= {"iteration": iteration, "reward": answers.score.mean().item(), "KL": answers.kl.mean().item()}
            report["tokens"] = answers.mask.sum(1).float().mean().item()
            self.history.append(report)
            runtime.trim_memory()
        return self
