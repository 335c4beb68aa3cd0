"""Proximal policy optimization of a chat model against a reward model, in one small model's memory.

Four networks share one set of frozen weights: the policy is the model with its adapter on, the
reference the same with the adapter off, whose pass also gives the reward model its features,
and the value head reads the policy's last hidden state. The equations are in ``alignment``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from lecture_utils import alignment, data, evaluation, runtime


@dataclass(frozen=True)
class PPOConfig:
    """How a policy is trained; sizes are those of one round."""

    iterations: int = 10
    batch_size: int = 32  # answers written in a round
    max_new_tokens: int = 40  # of an answer, at most
    temperature: float = 0.8  # the policy is the model at this temperature, in writing and in learning
    num_ppo_epochs: int = 2  # passes over a round's answers
    mini_batch_size: int = 4  # answers in a minibatch
    learning_rate: float = 1.5e-3  # of the adapter; both rates fall linearly towards 0
    value_learning_rate: float = 5e-3
    kl_coef: float = 0.05  # of the KL penalty
    cliprange: float = 0.2
    gamma: float = 1.0
    lam: float = 1.0  # of GAE: an answer is short, so its reward counts in full for its first token
    seed: int = 0

    def __post_init__(self):
        runtime.require_positive(
            self, "batch_size", "mini_batch_size", "max_new_tokens", "temperature", "learning_rate"
        )
        for name, most in (("iterations", 1), ("batch_size", 2), ("max_new_tokens", 4)):
            object.__setattr__(self, name, runtime.limited(getattr(self, name), most))


@dataclass
class RewardModel:
    """A linear head on the mean hidden state of an answer, in layer ``layer`` of the reference."""

    layer: int
    weight: torch.Tensor  # (width,)
    mean: torch.Tensor
    scale: torch.Tensor
    offset: float = 0.0
    unit: float = 1.0

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Return the rewards (B,) of features (B, width): mean 0 and variance 1 over the pairs it was made of."""
        return ((features - self.mean) / self.scale @ self.weight - self.offset) / self.unit

    def win_probability(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return the Bradley-Terry probability (B,) that the first is preferred, of features (B, width) each."""
        return (self.unit * (self(one) - self(other))).sigmoid()


def fit_reward_model(chosen, rejected, layer: int, decay: float = 0.03) -> RewardModel:
    """Return the reward model that Bradley-Terry likes best, features (pairs, width) each; it is a convex problem,
    solved to the end. decay: of the squared weights."""
    both = torch.cat((chosen, rejected))
    assert both.isfinite().all()
    mean, scale = both.mean(0), both.std(0).clamp(min=1e-6)
    apart = (chosen - rejected) / scale
    weight = torch.zeros(chosen.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        gap = apart @ weight
        loss = alignment.bradley_terry_loss(gap, torch.zeros_like(gap)) + decay * weight @ weight
        loss.backward()
        return loss

    solver.step(closure)
    model = RewardModel(layer, weight.detach(), mean, scale)
    rewards = model(both)
    model.offset, model.unit = rewards.mean().item(), rewards.std().item()
    return model


def hidden_states(model, ids, attention_mask, layer: int | None = None, onward: bool = True):
    """Return (last hidden state, that behind block ``layer``) of a causal model, adapter as it is switched.
    onward=False: the blocks after it are not run, and there is no last state (None)."""
    lm = (model.get_base_model() if hasattr(model, "get_base_model") else model).model
    assert layer is None or layer >= 1  # blocks count from 1
    kept, blocks = [], lm.layers
    if layer is not None:  # a hook keeps one layer's states; output_hidden_states would keep all
        watch = lm.layers[layer - 1].register_forward_hook(
            lambda block, given, out: kept.append(out[0] if isinstance(out, tuple) else out)
        )
    try:
        if not onward:
            lm.layers = blocks[:layer]
        last = lm(input_ids=ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    finally:
        lm.layers = blocks
        if layer is not None:
            watch.remove()
    return last if onward else None, kept[0].float() if kept else None


@torch.inference_mode()
def answer_features(
    model, tokenizer, pairs: list[tuple[str, str]], layer: int, last: bool = False, batch_size: int = 16
) -> torch.Tensor:
    """Return the mean hidden state (pairs, width) over each answer's tokens behind block ``layer``, or its last
    one."""
    from tqdm.auto import tqdm

    made = [data.token_ids(tokenizer, prompt, answer) for prompt, answer in runtime.few(pairs, 4)]
    out: list = [None] * len(made)
    with tqdm(total=len(made), desc="reading answers", leave=False) as bar:
        for places, ids, mask, labels in evaluation.answer_batches(model, made, tokenizer.pad_token_id, batch_size):
            _, hidden = hidden_states(model, ids, mask, layer, onward=False)
            for i, states, label in zip(places, hidden, labels, strict=True):
                answer = states[label != -100]  # (tokens, width)
                out[i] = (answer[-1] if last else answer.mean(0)).cpu()
            bar.update(len(places))
    runtime.trim_memory()
    return runtime.spread(torch.stack(out), len(pairs))


@dataclass
class Answers:
    """What a policy wrote, and what is known of it; tensors are (B, T) over the answers' tokens."""

    ids: torch.Tensor  # (B, prompt + T), prompts padded on the left
    attention_mask: torch.Tensor  # (B, prompt + T): 1 where there is a token
    mask: torch.Tensor
    log_p: torch.Tensor
    reference: torch.Tensor
    values: torch.Tensor
    score: torch.Tensor  # (B,), the reward model's
    texts: list[str] = field(default_factory=list)

    @property
    def kl(self) -> torch.Tensor:
        """KL estimate of each answer, nats (B,)."""
        return ((self.log_p - self.reference) * self.mask).sum(1)


@dataclass
class Samples:
    """Sampled answers to held-out prompts, and what is known of them: (n,) each."""

    score: torch.Tensor
    kl: torch.Tensor
    texts: list[str]


class PPOTrainer:
    """A training run. model: a PEFT model whose adapter is the policy; ``reward`` may be any
    function of features (B, width) and answers' texts."""

    def __init__(self, model, tokenizer, reward: Callable, layer: int, config: PPOConfig):
        self.model, self.tokenizer, self.reward, self.layer, self.config = model, tokenizer, reward, layer, config
        width = model.get_base_model().config.hidden_size
        self.value = nn.Linear(width, 1).to(model.device)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        adapter = [p for p in model.parameters() if p.requires_grad]
        groups = ((adapter, config.learning_rate), (list(self.value.parameters()), config.value_learning_rate))
        groups = [{"params": parameters, "lr": rate, "initial_lr": rate} for parameters, rate in groups]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self.history: list[dict] = []

    def _pass(self, ids, attention_mask, count: int, layer: int | None = None):
        """Return (log p (B, T), values (B, T), hidden states of ``layer`` (B, T, width)) for the last ``count`` tokens.

        Columns in which no row has a token are not read, and the output head sees the answers' own tokens alone;
        behind an answer's end log p is 0.
        """
        columns, own = attention_mask.any(0), attention_mask[:, -count:].bool()
        kept = int(own.any(0).sum())
        last, hidden = hidden_states(self.model, ids[:, columns], attention_mask[:, columns], layer)
        last, own = last[:, -kept - 1 : -1], own[:, :kept]  # the state before each token
        logits = self.model.get_base_model().lm_head(last[own]) / self.config.temperature  # (tokens, vocabulary)
        found = alignment.token_log_probabilities(logits, ids[:, -count:][:, :kept][own])
        log_p = torch.zeros(own.shape, device=ids.device).masked_scatter(own, found)
        values = self.value(last.detach().float())[..., 0]
        unread = count - kept
        hidden = None if hidden is None else F.pad(hidden[:, -kept:], (0, 0, 0, unread))
        return F.pad(log_p, (0, unread)), F.pad(values, (0, unread)), hidden

    def _passes(self, ids, attention_mask, count: int, layer: int | None = None):
        """Return what ``_pass`` does, some rows at a time (memory), those alike in length together."""
        order = attention_mask.sum(1).argsort()
        made = zip(
            *(
                self._pass(ids[part], attention_mask[part], count, layer)
                for part in order.split(self.config.mini_batch_size)
            ),
            strict=True,
        )
        return [None if several[0] is None else torch.cat(several)[order.argsort()] for several in made]

    @torch.no_grad()
    def write(self, prompts: list[str], seed: int) -> Answers:
        """Sample an answer to each prompt and judge it."""
        config, tokenizer = self.config, self.tokenizer
        self.model.eval()
        texts = [data.render(tokenizer, prompt)[0] for prompt in prompts]
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        inputs = inputs.to(self.model.device)
        torch.manual_seed(seed)
        ids = self.model.generate(
            **inputs, max_new_tokens=config.max_new_tokens, do_sample=True, temperature=config.temperature, top_k=0, top_p=1.0,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        count = ids.shape[1] - inputs["input_ids"].shape[1]
        ended = (ids[:, -count:] == tokenizer.eos_token_id).int()
        mask = (ended.cumsum(1) - ended) == 0  # up to and with the first end of turn
        attention_mask = torch.cat((inputs["attention_mask"], mask.long()), 1)
        log_p, values, _ = self._passes(ids, attention_mask, count)
        with self.model.disable_adapter():
            reference, _, hidden = self._passes(ids, attention_mask, count, self.layer)
        weights = mask / mask.sum(1, keepdim=True)
        features = (hidden * weights[..., None]).sum(1)
        written = [
            tokenizer.decode(row[m], skip_special_tokens=True).strip()
            for row, m in zip(ids[:, -count:], mask, strict=True)
        ]
        return Answers(ids, attention_mask, mask, log_p, reference, values, self.reward(features, written), written)

    def sample_answers(self, prompts: list[str], seed: int = 0) -> Samples:
        """Sample an answer to each of many prompts, without learning from them."""
        from tqdm.auto import tqdm

        prompts = runtime.few(prompts)
        starts = tqdm(range(0, len(prompts), 16), desc="surveying", leave=False)
        parts = [self.write(prompts[i : i + 16], seed=seed + i) for i in starts]
        score, kl = torch.cat([part.score for part in parts]), torch.cat([part.kl for part in parts])
        return Samples(score, kl, [text for part in parts for text in part.texts])

    def learn(self, answers: Answers) -> dict:
        """Take a round's steps on what was written; return the means of clip share and losses."""
        config, mask = self.config, answers.mask
        rewards = alignment.token_rewards(answers.score, answers.log_p, answers.reference, mask, config.kl_coef)
        gain, returns = alignment.advantages(rewards, answers.values, mask, config.gamma, config.lam)
        gain = alignment.whiten(gain, mask)
        seen: list[tuple] = []
        for epoch in range(config.num_ppo_epochs):
            order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(config.seed + epoch))
            for rows in order.split(config.mini_batch_size):
                log_p, values, _ = self._pass(answers.ids[rows], answers.attention_mask[rows], mask.shape[1])
                loss, clipped = alignment.ppo_loss(log_p, answers.log_p[rows], gain[rows], mask[rows], config.cliprange)
                error = alignment.value_loss(values, answers.values[rows], returns[rows], mask[rows], config.cliprange)
                (loss + error).backward()
                nn.utils.clip_grad_norm_([p for g in self.optimizer.param_groups for p in g["params"]], 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                seen.append((clipped.item(), loss.item(), error.item()))
        clipped, loss, error = (sum(x) / len(seen) for x in zip(*seen, strict=True))
        return {"clipped": clipped, "policy loss": loss, "value loss": error}

    def train(self, prompts: list[str], until: int | None = None) -> "PPOTrainer":
        """Go on to round ``until`` (default: the plan's last), each with the next prompts in turn."""
        from tqdm.auto import tqdm

        until = self.config.iterations if until is None else until
        for number in tqdm(range(len(self.history), until), desc="PPO", leave=False):
            start = number * self.config.batch_size
            chosen = [prompts[(start + i) % len(prompts)] for i in range(self.config.batch_size)]
            for group in self.optimizer.param_groups:  # rates fall linearly to (nearly) 0
                group["lr"] = group["initial_lr"] * (1 - number / self.config.iterations)
            answers = self.write(chosen, seed=1000 * self.config.seed + number)
            report = self.learn(answers)
            report |= {"round": number, "reward": answers.score.mean().item(), "KL": answers.kl.mean().item()}
            report["tokens"] = answers.mask.sum(1).float().mean().item()
            self.history.append(report)
            runtime.trim_memory()
        return self
