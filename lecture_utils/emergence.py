"""Two small tasks with answers of five digits, and tiny transformers of many sizes that learn them: is a new ability
sudden, or only its measure? (Wei et al. 2022; Schaeffer et al. 2023; notebook 12.)"""

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from lecture_utils import runtime
from lecture_utils.transformer import Llama, LlamaConfig

ANSWER = 5  # digits at the end of each row
SEPARATOR = 10  # the token "="
WIDTHS = (4, 6, 8, 10, 12, 16, 20, 24, 32)


def _digits(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """Return the last ``count`` digits of each number (rows, count), the lowest first."""
    return numbers[:, None] // 10 ** torch.arange(count) % 10


def _rows(*questions: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    separator = torch.full((len(answers), 1), SEPARATOR)
    return torch.cat((*(_digits(q, 4) for q in questions), separator, _digits(answers, ANSWER)), 1)


def sums(count: int, seed: int) -> torch.Tensor:
    """Return token ids (count, 14): two random numbers of four digits, "=", and their sum, lowest digits first."""
    a, b = torch.randint(0, 10_000, (2, count), generator=torch.Generator().manual_seed(seed))
    return _rows(a, b, answers=a + b)


def phone_book(count: int = 1000, seed: int = 0) -> torch.Tensor:
    """Return token ids (count, 10): a subscriber's number, "=", and a random telephone number of five digits."""
    generator = torch.Generator().manual_seed(seed)
    return _rows(torch.arange(count), answers=torch.randint(0, 100_000, (count,), generator=generator))


def train(width: int, examples, steps: int = 1500, seed: int = 0) -> Llama:
    """Train a Llama with two layers of this width on the answers in ``examples(step)``, token ids (rows, time)."""
    torch.manual_seed(seed)
    heads = max(1, width // 8)
    feed_forward = 8 * round(width * 8 / 3 / 8)
    model = Llama(LlamaConfig(SEPARATOR + 1, width, feed_forward, layers=2, heads=heads, kv_heads=heads,
                              head_width=width // heads))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for step in tqdm(range(runtime.limited(steps, 10)), desc="training", leave=False):
        ids = examples(step)
        logits = model(ids[:, :-1])[:, -ANSWER:]
        F.cross_entropy(logits.flatten(0, 1), ids[:, -ANSWER:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return model


def digit_scores(model: Llama, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return, both (rows, 5), the log-probability in nats of each right digit of the answers, given the right digits
    before it, and whether it is the likeliest one."""
    with torch.inference_mode():
        log_p = model(ids[:, :-1])[:, -ANSWER:].log_softmax(-1)
    wanted = ids[:, -ANSWER:]
    return log_p.gather(-1, wanted[..., None])[..., 0], log_p.argmax(-1) == wanted
