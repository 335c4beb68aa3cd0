"""The pretraining loop: batches, schedule, and checkpoints that resume bit for bit.

A model maps ids (B, T) to logits (B, T, vocabulary), as ``transformer.Llama`` does, or to
(logits, state), as ``baselines.LSTM`` does.
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional as F

from lecture_utils import runtime


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained: sizes of a step, how many, and how far each goes."""

    steps: int
    batch_size: int = 8  # texts in a batch
    context_length: int = 256  # tokens of each
    gradient_accumulation_steps: int = 1  # batches added up before a step
    learning_rate: float = 3e-3  # learning rate after warm-up
    warmup_ratio: float = 0.05  # share of the steps
    min_lr_ratio: float = 0.1  # share of the peak that the cosine ends at
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0  # of the gradient's norm
    muon: bool = False  # Muon for the hidden matrices, else AdamW for all
    seed: int = 0

    def __post_init__(self):
        runtime.require_positive(self, "batch_size", "context_length", "gradient_accumulation_steps", "learning_rate")
        object.__setattr__(self, "steps", runtime.limited(self.steps, 20))


def get_learning_rate(config: TrainingConfig, step: int) -> float:
    """Return the rate of a step, counted from 0: a straight line up, then half a cosine down."""
    up = max(round(config.warmup_ratio * config.steps), 1)
    if step < up:
        return config.learning_rate * (step + 1) / up
    share = (step - up) / max(config.steps - up - 1, 1)
    return config.learning_rate * (
        config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * min(share, 1)))
    )


def get_batch(
    tokens: torch.Tensor, config: TrainingConfig, number: int, shard: tuple[int, int] = (0, 1)
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets, both (rows, time): the targets are the inputs one token later.

    The batch is a function of its number and the plan's seed alone, so that a resumed run goes on with the very
    batches it would have had. share: (i, n) gives the i-th of n processes its own rows of the batch.
    """
    assert config.batch_size % shard[1] == 0, "each process gets the same number of rows"
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
    starts = torch.randint(len(tokens) - config.context_length, (config.batch_size,), generator=generator)[
        shard[0] :: shard[1]
    ]
    window = tokens[starts[:, None] + torch.arange(config.context_length + 1)]
    return window[:, :-1], window[:, 1:]


def next_token_loss(model, inputs: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the cross-entropy (nats a token) of each target given the inputs before it."""
    device = next(model.parameters()).device
    inputs, targets = inputs.to(device), targets.to(device)
    out = model(inputs)
    logits = out[0] if isinstance(out, tuple) else out
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


def autocast():
    """Return the mixed precision of this machine: bf16 where it is fast, else none."""
    dtype = runtime.compute_dtype()
    half = dtype if dtype != torch.float32 else torch.bfloat16
    return torch.autocast(runtime.device(), half, enabled=dtype != torch.float32)


class Muon(torch.optim.Muon):
    """torch's Muon, its steps scaled to the size of AdamW's (2502.16982, section 2.2).

    torch makes the update orthogonal in bf16. A processor without bf16 takes some ten times as long for
    that as for fp32; there the same iteration is done in fp32.
    """

    def __init__(self, parameters, lr: float, weight_decay: float):
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure=None):
        if runtime.compute_dtype() == torch.bfloat16:
            return super().step(closure)
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                kept = state.setdefault("momentum_buffer", torch.zeros_like(p.grad))
                kept.lerp_(p.grad, 1 - group["momentum"])
                update = newton_schulz(
                    p.grad.lerp(kept, group["momentum"]), group["ns_coefficients"], group["ns_steps"]
                )
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(p.shape)))


def newton_schulz(matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int) -> torch.Tensor:
    """Return (m, n) -> (m, n) with all singular values near 1 (0.7 to 1.2), in the matrix's own precision.

    Newton-Schulz, an odd polynomial of fifth degree applied ``steps`` times (Jordan 2024, "Muon").
    """
    a, b, c = coefficients
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@dataclass
class Trainer:
    """A training run: the model, its optimizers, the steps done, and what was seen on the way.

    With ``plan.muon``, hidden matrices are moved by Muon, and one learning rate serves both.
    """

    model: torch.nn.Module
    config: TrainingConfig
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0  # processor time spent in steps, all threads together
    shard: tuple[int, int] = (0, 1)  # this process's number, and how many there are

    def __post_init__(self):
        config, adamw = self.config, {"lr": self.config.learning_rate, "betas": (0.9, 0.95), "fused": True}
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]  # gains are not decayed
        if config.muon:
            ends = {id(p) for name, p in self.model.named_parameters() if {"embedding", "head"} & set(name.split("."))}
            others += [p for p in matrices if id(p) in ends]
            matrices = [p for p in matrices if id(p) not in ends]
            first = Muon(matrices, lr=config.learning_rate, weight_decay=config.weight_decay)
        else:
            first = torch.optim.AdamW(matrices, weight_decay=config.weight_decay, **adamw)
        self.optimizers = [first, torch.optim.AdamW(others, weight_decay=0.0, **adamw)] if others else [first]

    def training_step(self, tokens: torch.Tensor) -> float:
        """Take one step and return its loss."""
        config, loss, begun = self.config, 0.0, time.process_time()
        for i in range(config.gradient_accumulation_steps):
            inputs, targets = get_batch(tokens, config, self.step * config.gradient_accumulation_steps + i, self.shard)
            with autocast():
                part = next_token_loss(self.model, inputs, targets) / config.gradient_accumulation_steps
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = get_learning_rate(config, self.step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.seconds += time.process_time() - begun
        self.losses.append(loss)
        return loss

    def train(
        self, tokens: torch.Tensor, until: int | None = None, callback: Callable | None = None, progress: bool = True
    ) -> "Trainer":
        """Go on to step ``until`` (default: the plan's last); ``callback(trainer)`` is called after every step."""
        from tqdm.auto import tqdm

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
        """Write all that a resumed run needs, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".part")
        what = {
            "model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step, "losses": self.losses, "seconds": self.seconds, "plan": vars(self.config),
            "chance": torch.get_rng_state(),
        }  # fmt: skip
        torch.save(what, half)
        half.replace(path)

    def resume(self, path: Path | str) -> "Trainer":
        """Take up a saved run of the same plan, if there is one. Raises ValueError for another plan's."""
        if not Path(path).exists():
            return self
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["plan"] != vars(self.config):
            differ = [k for k, v in vars(self.config).items() if saved["plan"].get(k) != v]
            raise ValueError(f"{path} is of another plan ({', '.join(differ)} differ). Remove it to start anew.")
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.losses, self.seconds = saved["step"], saved["losses"], saved["seconds"]
        torch.set_rng_state(saved["chance"])
        return self


@torch.inference_mode()
def mean_loss(model, tokens: torch.Tensor, context_length: int = 256, batch_size: int = 16) -> float:
    """Return the mean loss (nats a token) over ``tokens``, each scored once.

    Windows of ``context_length`` tokens overlap by half; but for the first, only a window's second half is scored, so that
    every token has text before it.
    """
    assert context_length % 2 == 0  # windows overlap by half
    tokens = runtime.few(tokens, 1_000)
    half, was_training = context_length // 2, model.training
    model.eval()
    windows = [tokens[s : s + context_length + 1] for s in range(0, max(len(tokens) - 1 - half, 1), half)]
    total = 0.0
    for i, group in enumerate(_alike(windows, batch_size)):
        with autocast():
            losses = next_token_loss(model, group[:, :-1], group[:, 1:], "none").view(len(group), -1)
        total += losses[:, half:].sum().item() + (losses[0, :half].sum().item() if i == 0 else 0)
    model.train(was_training)
    return total / (len(tokens) - 1)


def _alike(windows: list[torch.Tensor], batch_size: int):
    """Yield windows of the same length stacked, up to ``batch_size`` at a time, in order."""
    for _, same in itertools.groupby(windows, key=len):
        same = list(same)
        for i in range(0, len(same), batch_size):
            yield torch.stack(same[i : i + batch_size])


def bits_per_byte(loss: float, tokens: int, text_bytes: int) -> float:
    """Return a loss in nats a token as bits a byte of text: it compares across tokenizers."""
    return loss / math.log(2) * tokens / text_bytes
