"""Measures of confidence, memorization, privacy and watermarks, for the limits that the lecture names (notebook 11)."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from lecture_utils import evaluation, runtime


def confidence(model, tokenizer, questions: Sequence, answers: Sequence[str], batch_size: int = 8) -> list[float]:
    """Return the model's confidence in each answer: the geometric mean of its tokens' probabilities, including the
    end-of-turn token."""
    pairs = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    log_probabilities = evaluation.answer_log_probabilities(model, tokenizer, pairs, batch_size)
    return [each.mean().exp().item() for each in log_probabilities]


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[dict]:
    """Return the mean confidence, the accuracy and the count of each bin that is not empty. The bins have equal width.
    ``confidence`` contains probabilities (n,), and 1.0 belongs to the last bin."""
    assert all(0 <= c <= 1 for c in confidence)
    binned = [[] for _ in range(bins)]
    for c, r in zip(confidence, right, strict=True):
        binned[min(int(c * bins), bins - 1)].append((c, bool(r)))
    return [
        {"confidence": sum(c for c, _ in b) / len(b), "accuracy": sum(r for _, r in b) / len(b), "count": len(b)}
        for b in filter(None, binned)
    ]


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Return the absolute gap between confidence and accuracy, averaged over the answers by bin (Guo et al. 2017)."""
    found = reliability(confidence, right, bins)
    return sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in found) / len(right)


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative, where ties count half."""
    from scipy.stats import rankdata  # ten times as fast as scikit-learn's roc_auc_score, which matters for intervals

    truth = torch.tensor(positive, dtype=torch.bool)
    above, below = int(truth.sum()), int((~truth).sum())
    ranks = torch.tensor(rankdata(scores))[truth].sum().item()  # equal scores share their mean rank
    return (ranks - above * (above + 1) / 2) / (above * below)  # the Mann-Whitney statistic


def exposure(loss: float, others: Sequence[float]) -> float:
    """Return the exposure of a canary in bits: log2 of the number of candidates minus log2 of the canary's rank by its
    ``loss`` (Carlini et al. 2019, the Secret Sharer). ``others`` are the losses of candidates of the same form that
    were not in the training data. A candidate with the same loss ranks before the canary."""
    rank = 1 + sum(other <= loss for other in others)
    return math.log2(len(others) + 1) - math.log2(rank)


ANIMALS = ("fox", "owl", "bear", "seal", "crow", "deer", "hare", "wolf", "toad", "mole", "swan", "lynx")
CODES = tuple(f"{n:03d}" for n in range(1000))


@dataclass(frozen=True)
class Canary:
    """A secret that is inserted ``times`` times into the training data."""

    animal: str
    code: str
    times: int

    @property
    def beginning(self) -> str:
        return f"The code of the {self.animal} door is"

    def text(self, code: str | None = None) -> str:
        """Return the sentence with its own code, or with another one."""
        return f"{self.beginning} {code or self.code}."


def canaries(seed: int = 0) -> list[Canary]:
    """Return twelve canaries with different codes: four to be inserted once, four 4 times, and four 16 times."""
    rng, codes = random.Random(seed), []
    while len(codes) < len(ANIMALS):
        if (code := rng.choice(CODES)) not in codes:
            codes.append(code)
    return list(map(Canary, ANIMALS, codes, [1] * 4 + [4] * 4 + [16] * 4))


def text_losses(model, tokenizer, texts: Sequence[str], batch_size: int = 250) -> list[float]:
    """Return the total loss of each text in nats, including its end-of-text token."""
    count, texts, losses = len(texts), runtime.few(texts), []
    for start in range(0, len(texts), batch_size):
        ids, labels = _padded(tokenizer, texts[start : start + batch_size])
        with torch.inference_mode():
            logits = model(ids).logits[:, :-1].float()
        targets = labels[:, 1:]  # padding has the label -100, for which cross_entropy returns 0
        token_losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        losses += token_losses.view(targets.shape).sum(1).tolist()
    return runtime.spread(losses, count)


def exposures(model, tokenizer, secrets: Sequence[Canary], candidates: Sequence[str] = CODES) -> list[float]:
    """Return the exposure of each canary in bits, with its code ranked among the candidates."""
    found = []
    for secret in secrets:
        others = [code for code in candidates if code != secret.code]
        own, *losses = text_losses(model, tokenizer, [secret.text(code) for code in (secret.code, *others)])
        assert not any(map(math.isnan, (own, *losses))), "NaN would rank first"
        found.append(exposure(own, losses))
    return found


def _padded(tokenizer, texts):
    """Return (ids, labels), both (batch, time) and padded on the right, labels with -100."""
    rows = [torch.tensor([*tokenizer(t)["input_ids"], tokenizer.eos_token_id]) for t in texts]
    return tuple(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad) for pad in (0, -100))


def train_on_texts(
    model, tokenizer, texts: Sequence[str], epochs: float = 1, learning_rate: float = 5e-4,
    noise_multiplier: float | None = None, max_grad_norm: float = 1.0, seed: int = 0, batch_size: int = 16,
) -> None:  # fmt: skip
    """Train all parameters on whole texts with AdamW, by default in batches of ``batch_size``. With a
    ``noise_multiplier`` the gradients are those of DP-SGD: each step draws every example with the same probability, so
    that ``batch_size`` are expected, and passes their gradients to ``dp_sgd_gradient``."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    sizes = [p.numel() for p in weights]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate)
    model.train()
    order = []
    steps = runtime.limited(round(epochs * math.ceil(len(texts) / batch_size)), 3)
    for _ in tqdm(range(steps), desc="training", leave=False):
        if noise_multiplier is None:
            order = order or rng.sample(range(len(texts)), len(texts))
            batch, order = order[:batch_size], order[batch_size:]
            ids, labels = _padded(tokenizer, [texts[i] for i in batch])
            model(input_ids=ids, labels=labels).loss.backward()
        else:
            gradients = [torch.zeros(0, sum(sizes))]  # a step may draw no example at all
            for text in texts:
                if rng.random() < batch_size / len(texts):
                    ids, labels = _padded(tokenizer, [text])
                    loss = model(input_ids=ids, labels=labels).loss
                    gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])[None])
            mean = dp_sgd_gradient(torch.cat(gradients), max_grad_norm, noise_multiplier, generator, batch_size)
            for p, g in zip(weights, mean.split(sizes), strict=True):
                p.grad = g.view_as(p)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def dp_sgd_gradient(
    gradients, max_grad_norm: float, noise_multiplier: float, generator=None, batch_size: int | None = None
):
    """Return the mean gradient of one step of DP-SGD (Abadi et al. 2016, algorithm 1) from the gradients of its
    examples (examples, parameters). Each norm is clipped to ``max_grad_norm``, and normal noise with the standard
    deviation ``noise_multiplier * max_grad_norm`` is added to the sum. The sum is divided by ``batch_size``, the
    expected number of examples if they are drawn at random (by default their actual number)."""
    clipped = gradients * (max_grad_norm / gradients.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)
    std = noise_multiplier * max_grad_norm if noise_multiplier else 0.0  # an infinite norm times 0 would be NaN
    noise = std * torch.randn(gradients.shape[1], generator=generator)
    return (clipped.sum(0) + noise) / (batch_size or len(gradients))


def dp_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """Return the epsilon that ``steps`` of DP-SGD guarantee if each step draws an example with probability
    ``sample_rate``, from the Renyi differential privacy of the subsampled Gaussian at integer orders (Mironov et al.
    2019, arXiv:1908.10530, section 3.3), converted as in Mironov 2017."""
    assert noise_multiplier > 0 and 0 < sample_rate < 1 and 0 < delta < 1
    best = math.inf
    for order in range(2, 257):
        terms = [
            math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
            + (order - k) * math.log1p(-sample_rate) + k * math.log(sample_rate)
            + k * (k - 1) / (2 * noise_multiplier**2)
            for k in range(order + 1)
        ]  # fmt: skip
        largest = max(terms)  # subtracted so that exp does not overflow
        spent = (largest + math.log(sum(math.exp(t - largest) for t in terms))) / (order - 1)
        best = min(best, steps * spent + math.log(1 / delta) / (order - 1))
    return best


@lru_cache(maxsize=2048)
def green_list(previous: int, vocabulary: int, share: float = 0.25, key: int = 15485863):
    """Return the ids of the tokens that are green after the token ``previous``: a random share of the vocabulary, drawn
    anew for each previous token (Kirchenbauer et al. 2023, algorithm 2)."""
    generator = torch.Generator().manual_seed(key * previous % (2**64 - 1))
    greens = torch.randperm(vocabulary, generator=generator)[: int(vocabulary * share)]
    return greens.int()  # 32 bits take half the memory of 64 in the cache


class Watermark:
    """A logits processor for ``generate`` that adds ``bias`` to the logits of the green tokens."""

    def __init__(self, bias: float = 2.0, share: float = 0.25, key: int = 15485863):
        self.bias, self.share, self.key = bias, share, key

    def __call__(self, ids, scores):
        """Return the biased scores (rows, vocabulary) of the tokens that follow ids (rows, time)."""
        scores = scores.clone()
        for row, previous in enumerate(ids[:, -1].tolist()):
            scores[row, green_list(previous, scores.shape[1], self.share, self.key)] += self.bias
        return scores


def watermark_z(ids: Sequence[int], vocabulary: int, share: float = 0.25, key: int = 15485863) -> float:
    """Return the z-score of Kirchenbauer et al. 2023: by how many standard deviations the number of green tokens in a
    text exceeds chance. A repeated pair of tokens is counted once, because repeats are not independent."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    assert 0 < share < 1
    pairs = set(zip(ids[:-1], ids[1:], strict=True))
    green = sum(bool((green_list(a, vocabulary, share, key) == b).any()) for a, b in pairs)
    return (green - share * len(pairs)) / math.sqrt(len(pairs) * share * (1 - share))
