"""The pretraining loop: batches, learning rate, and checkpoints from which a run resumes bit for bit. A model maps ids
(B, T) to logits (B, T, vocabulary), as ``transformer.Llama``, or to (logits, state), as ``baselines.LSTM``."""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from lecture_utils import runtime


@dataclass(frozen=True)
class TrainingConfig:
    """The configuration of a training run: the batches, the number of steps, and the size of each step."""

    steps: int
    batch_size: int = 8
    context_length: int = 256  # in tokens
    gradient_accumulation_steps: int = 1  # batches whose gradients are added up for one step
    learning_rate: float = 3e-3  # the peak, after warm-up
    warmup_ratio: float = 0.05  # share of the steps
    min_lr_ratio: float = 0.1  # share of the peak at which the cosine ends
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    muon: bool = False  # Muon for the hidden matrices and AdamW for the rest, instead of AdamW for all
    seed: int = 0

    def __post_init__(self):
        runtime.require_positive(self, "batch_size", "context_length", "gradient_accumulation_steps", "learning_rate")
        object.__setattr__(self, "steps", runtime.limited(self.steps, 20))


def get_learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up, then a decay along half a cosine."""
    warmup = max(round(config.warmup_ratio * config.steps), 1)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    share = min((step - warmup) / max(config.steps - warmup - 1, 1), 1)
    cosine = (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * share))
    return config.learning_rate * (config.min_lr_ratio + cosine)


def get_batch(
    tokens: torch.Tensor, config: TrainingConfig, number: int, shard: tuple[int, int] = (0, 1)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets, both (rows, time), where the targets are the inputs shifted by one token.

    A batch depends only on its number and the seed of the configuration, so that a resumed run sees the same batches.
    With ``shard`` = (i, n), the i-th of n processes gets its own rows of the batch.
    """
    assert config.batch_size % shard[1] == 0, "the batch size must be a multiple of the number of processes"
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
    starts = torch.randint(len(tokens) - config.context_length, (config.batch_size,), generator=generator)
    window = tokens[starts[shard[0] :: shard[1], None] + torch.arange(config.context_length + 1)]
    return window[:, :-1], window[:, 1:]


def next_token_loss(model, inputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the cross-entropy (nats per token) of the targets, each given the inputs up to its position."""
    device = next(model.parameters()).device
    out = model(inputs.to(device))
    logits = out[0] if isinstance(out, tuple) else out
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.to(device).flatten(), reduction=reduction)


def autocast():
    """Return the context for mixed precision in ``runtime.compute_dtype()``; it does nothing where that is fp32."""
    dtype = runtime.compute_dtype()
    mixed = dtype != torch.float32
    return torch.autocast(runtime.device(), dtype if mixed else torch.bfloat16, enabled=mixed)


class Muon(torch.optim.Muon):
    """torch's Muon, with its updates scaled to the size of AdamW's (2502.16982, section 2.2). torch orthogonalizes the
    update in bf16. On a processor without bf16, this takes about ten times as long as in fp32, so there we use fp32."""

    def __init__(self, parameters, lr: float, weight_decay: float):
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure=None):
        if runtime.compute_dtype() == torch.bfloat16:
            return super().step(closure)
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                nesterov = p.grad.lerp(momentum, group["momentum"])
                update = newton_schulz(nesterov, group["ns_coefficients"], group["ns_steps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(p.shape)))


def newton_schulz(matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int) -> torch.Tensor:
    """Return the matrix (m, n) with all its singular values brought near 1 (0.7 to 1.2), in its own precision, by
    applying an odd polynomial of degree five ``steps`` times (Newton-Schulz iteration; Jordan 2024, "Muon")."""
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@dataclass
class Trainer:
    """A training run: the model, its optimizers, the number of steps so far and their losses. With
    ``config.muon``, Muon updates the hidden matrices and AdamW the rest, both with the same learning rate."""

    model: torch.nn.Module
    config: TrainingConfig
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0  # processor time spent in steps, summed over all threads
    shard: tuple[int, int] = (0, 1)  # the index of this process, and the number of processes

    def __post_init__(self):
        config, adamw = self.config, {"lr": self.config.learning_rate, "betas": (0.9, 0.95), "fused": True}
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]  # gains and biases get no weight decay
        if config.muon:
            ends = {id(p) for name, p in self.model.named_parameters() if {"embedding", "head"} & set(name.split("."))}
            others += [p for p in matrices if id(p) in ends]
            matrices = [p for p in matrices if id(p) not in ends]
            first = Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay)
        else:
            first = torch.optim.AdamW(matrices, weight_decay=config.weight_decay, **adamw)
        self.optimizers = [first, torch.optim.AdamW(others, weight_decay=0.0, **adamw)] if others else [first]

    def training_step(self, tokens: torch.Tensor) -> float:
        """Update the weights once, and return the loss of the step's batches before the update."""
        config, step_loss, started = self.config, 0.0, time.process_time()
        for i in range(config.gradient_accumulation_steps):
            inputs, targets = get_batch(tokens, config, self.step * config.gradient_accumulation_steps + i, self.shard)
            with autocast():
                loss = next_token_loss(self.model, inputs, targets) / config.gradient_accumulation_steps
            loss.backward()  # adds to the gradients of the batches before
            step_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = get_learning_rate(config, self.step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += time.process_time() - started
        self.losses.append(step_loss)
        return step_loss

    def train(
        self, tokens: torch.Tensor, until: int | None = None, callback: Callable | None = None, progress: bool = True
    ) -> "Trainer":
        """Train up to step ``until`` (default: the last), and call ``callback(trainer)`` after every step."""
        self.model.train()
        until = self.config.steps if until is None else until
        with tqdm(total=until, initial=self.step, desc="training", leave=False, disable=not progress) as bar:
            while self.step < until:
                self.training_step(tokens)
                if self.step % 10 == 0 or self.step == until:
                    bar.set_postfix_str(f"loss {self.losses[-1]:.2f}", refresh=False)
                bar.update()
                if callback is not None:
                    callback(self)
        self.model.eval()
        return self

    def save(self, path: Path | str) -> None:
        """Write a checkpoint for ``resume``, completely or (if writing fails) not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        checkpoint = {
            "model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step, "losses": self.losses, "seconds": self.seconds, "config": vars(self.config),
            "rng_state": torch.get_rng_state(),
        }  # fmt: skip
        torch.save(checkpoint, temporary)
        temporary.replace(path)

    def resume(self, path: Path | str) -> "Trainer":
        """Continue from the checkpoint at ``path``, if it exists. If its configuration differs, raise a ValueError."""
        if not Path(path).exists():
            return self
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["config"] != vars(self.config):
            differ = ", ".join(k for k, v in vars(self.config).items() if saved["config"].get(k) != v)
            raise ValueError(f"{path} has another configuration ({differ} differ). Remove the file to start again.")
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.losses, self.seconds = saved["step"], saved["losses"], saved["seconds"]
        torch.set_rng_state(saved["rng_state"])
        return self


@torch.inference_mode()
def mean_loss(model, tokens: torch.Tensor, context_length: int = 256, batch_size: int = 16) -> float:
    """Return the mean loss (nats per token) over ``tokens``, each scored once. Windows of ``context_length`` tokens
    overlap by half. After the first window, only the second half is scored, so that every token has text before it."""
    assert context_length % 2 == 0
    tokens = runtime.few(tokens, 1_000)
    half, was_training = context_length // 2, model.training
    model.eval()
    windows = [tokens[s : s + context_length + 1] for s in range(0, max(len(tokens) - 1 - half, 1), half)]
    same_length = itertools.groupby(windows, key=len)  # the last window may be shorter
    batches = [batch for _, group in same_length for batch in torch.stack(list(group)).split(batch_size)]
    total = 0.0
    for i, batch in enumerate(batches):
        with autocast():
            losses = next_token_loss(model, batch[:, :-1], batch[:, 1:], "none").view(len(batch), -1)
        total += losses[:, half:].sum().item() + (losses[0, :half].sum().item() if i == 0 else 0)
    model.train(was_training)
    return total / (len(tokens) - 1)


def bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """Convert a loss in nats per token into bits per byte of text, which can be compared between tokenizers."""
    return loss / math.log(2) * tokens / text_bytes
