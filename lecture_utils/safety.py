"""Measures of what can go wrong: confidence against correctness, memorization, watermarks, privacy.

Notebook 11 measures with it the limits that the lecture names.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lecture_utils import evaluation, runtime

# Confidence ---------------------------------------------------------------------------------


def confidence(model, tokenizer, questions: Sequence, answers: Sequence[str], batch_size: int = 8) -> list[float]:
    """Return how probable the model finds each answer: the geometric mean over its tokens (and its end), 0 to 1."""
    pairs = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    found = evaluation.answer_log_probabilities(model, tokenizer, pairs, batch_size)
    return [each.mean().exp().item() for each in found]


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[dict]:
    """Return for each bin of equal width that holds an answer: mean confidence, accuracy, count.

    confidence: probabilities (n,), 1.0 belongs to the last bin.
    """
    assert all(0 <= c <= 1 for c in confidence)
    held = [[] for _ in range(bins)]
    for c, r in zip(confidence, right, strict=True):
        held[min(int(c * bins), bins - 1)].append((c, bool(r)))
    return [
        {"confidence": sum(c for c, _ in b) / len(b), "accuracy": sum(r for _, r in b) / len(b), "count": len(b)}
        for b in held
        if b
    ]


def expected_calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Return the gap between confidence and accuracy, averaged over the answers by bin (Guo et al. 2017)."""
    found = reliability(confidence, right, bins)
    return sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in found) / len(right)


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative, equal ones half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores))


# Memorization -------------------------------------------------------------------------------


def exposure(loss: float, others: Sequence[float]) -> float:
    """Return a canary's exposure in bits: log2 of the number of candidates less log2 of its rank among them
    (Carlini et al. 2019, the Secret Sharer).

    loss: the canary's; others: those of candidates of the same form that were not trained on. An equal
    loss counts as better than the canary's.
    """
    rank = 1 + sum(other <= loss for other in others)
    return math.log2(len(others) + 1) - math.log2(rank)


ANIMALS = ("fox", "owl", "bear", "seal", "crow", "deer", "hare", "wolf", "toad", "mole", "swan", "lynx")
CODES = tuple(f"{n:03d}" for n in range(1000))


@dataclass(frozen=True)
class Canary:
    """A secret to plant in training data, ``times`` times."""

    animal: str
    code: str
    times: int

    @property
    def beginning(self) -> str:
        return f"The code of the {self.animal} door is"

    def text(self, code: str | None = None) -> str:
        """Return the sentence with its own code, or with another."""
        return f"{self.beginning} {code or self.code}."


def canaries(seed: int = 0) -> list[Canary]:
    """Return twelve, each with a code of its own: four to stand in the data once, four 4 times, four 16 times."""
    rng, codes = random.Random(seed), []
    while len(codes) < len(ANIMALS):
        if (code := rng.choice(CODES)) not in codes:
            codes.append(code)
    return [
        Canary(animal, code, (1, 4, 16)[i // 4]) for i, (animal, code) in enumerate(zip(ANIMALS, codes, strict=True))
    ]


def text_losses(model, tokenizer, texts: Sequence[str], batch_size: int = 250) -> list[float]:
    """Return the loss of each text as a whole, in nats, its end included."""
    import torch

    count, texts = len(texts), runtime.few(texts)
    found = []
    for start in range(0, len(texts), batch_size):
        ids, labels = _sheet(tokenizer, texts[start : start + batch_size])
        with torch.inference_mode():
            logits = model(ids).logits[:, :-1].float()
        wanted = labels[:, 1:]
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        found += each.view(wanted.shape).sum(1).tolist()
    return runtime.spread(found, count)


def exposures(model, tokenizer, secrets: Sequence[Canary], candidates: Sequence[str] = CODES) -> list[float]:
    """Return each canary's exposure in bits, its code among the candidates."""
    found = []
    for secret in secrets:
        others = [code for code in candidates if code != secret.code]
        own, *losses = text_losses(model, tokenizer, [secret.text(code) for code in (secret.code, *others)])
        assert not any(loss != loss for loss in (own, *losses)), "NaN would rank first"
        found.append(exposure(own, losses))
    return found


def _sheet(tokenizer, texts):
    import torch

    rows = [torch.tensor([*tokenizer(t)["input_ids"], tokenizer.eos_token_id]) for t in texts]
    return tuple(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad) for pad in (0, -100))


def train_on_texts(
    model, tokenizer, texts: Sequence[str], epochs: float = 1, learning_rate: float = 5e-4, noise_multiplier: float | None = None,
    max_grad_norm: float = 1.0, seed: int = 0, batch_size: int = 16,
) -> None:  # fmt: skip
    """Train all parameters on whole texts, ``batch_size`` at a time.

    noise_multiplier: a number trains by DP-SGD instead: each example is drawn for a step with the same probability, its
    gradient cut to a length of ``max_grad_norm``, and noise of this many times ``max_grad_norm`` added to the sum. Parameters
    move by AdamW either way.
    """
    import torch
    from tqdm.auto import tqdm

    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=learning_rate)
    model.train()
    order = []
    steps = runtime.limited(round(epochs * math.ceil(len(texts) / batch_size)), 3)
    for _ in tqdm(range(steps), desc="training", leave=False):
        if noise_multiplier is None:
            order = order or rng.sample(range(len(texts)), len(texts))
            batch, order = order[:batch_size], order[batch_size:]
            ids, labels = _sheet(tokenizer, [texts[i] for i in batch])
            model(input_ids=ids, labels=labels).loss.backward()
        else:
            each = [torch.zeros(0, sum(p.numel() for p in weights))]
            for text in texts:
                if rng.random() < batch_size / len(texts):
                    ids, labels = _sheet(tokenizer, [text])
                    loss = model(input_ids=ids, labels=labels).loss
                    each.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])[None])
            mean = dp_sgd_gradient(torch.cat(each), max_grad_norm, noise_multiplier, generator, batch_size)
            for p, g in zip(weights, mean.split([p.numel() for p in weights]), strict=True):
                p.grad = g.view_as(p)
        adam.step()
        adam.zero_grad()
    model.eval()


def dp_sgd_gradient(
    gradients, max_grad_norm: float, noise_multiplier: float, generator=None, batch_size: int | None = None
):
    """Return the mean gradient of a step of DP-SGD (Abadi et al. 2016, algorithm 1).

    gradients: (examples, parameters), one for each example. Each is cut to a length of ``max_grad_norm`` at most;
    to their sum comes normal noise of standard deviation noise * clip. lot: how many examples a step is
    expected to have, where they are drawn at random; default as many as there are.
    """
    import torch

    lengths = gradients.norm(dim=1, keepdim=True)
    cut = gradients * (max_grad_norm / lengths.clamp(min=1e-12)).clamp(max=1.0)
    added = torch.randn(gradients.shape[1], generator=generator) * (
        noise_multiplier * max_grad_norm if noise_multiplier else 0.0
    )
    return (cut.sum(0) + added) / (batch_size or len(gradients))


def dp_epsilon(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> float:
    """Return epsilon: what ``steps`` of DP-SGD promise, each seeing an example with probability ``sample_rate``.

    By Renyi differential privacy of the subsampled Gaussian at whole orders (Mironov et al. 2019, arXiv:1908.10530,
    section 3.3), converted as in Mironov 2017.
    """
    assert noise_multiplier > 0 and 0 < sample_rate < 1 and 0 < delta < 1
    best = math.inf
    for order in range(2, 257):
        terms = [
            math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
            + (order - k) * math.log1p(-sample_rate) + k * math.log(sample_rate) + k * (k - 1) / (2 * noise_multiplier**2)
            for k in range(order + 1)
        ]  # fmt: skip
        top = max(terms)
        spent = (top + math.log(sum(math.exp(t - top) for t in terms))) / (order - 1)
        best = min(best, steps * spent + math.log(1 / delta) / (order - 1))
    return best


# Watermarks ---------------------------------------------------------------------------------


@lru_cache(maxsize=2048)
def green_list(previous: int, vocabulary: int, share: float = 0.25, key: int = 15485863):
    """Return the ids of the tokens that are green after the token ``previous`` (Kirchenbauer et al. 2023,
    algorithm 2): a share of the vocabulary, drawn anew for each previous token."""
    import torch

    generator = torch.Generator().manual_seed(key * previous % (2**64 - 1))
    return torch.randperm(vocabulary, generator=generator)[
        : int(vocabulary * share)
    ].int()  # half the memory of 64 bits


class Watermark:
    """A logits processor for ``generate`` that adds ``bias`` to the logits of the green tokens."""

    def __init__(self, bias: float = 2.0, share: float = 0.25, key: int = 15485863):
        self.bias, self.share, self.key = bias, share, key

    def __call__(self, ids, scores):
        """ids: (rows, time so far). scores: (rows, vocabulary)."""
        scores = scores.clone()
        for row, previous in enumerate(ids[:, -1].tolist()):
            scores[row, green_list(previous, scores.shape[1], self.share, self.key)] += self.bias
        return scores


def watermark_z(ids: Sequence[int], vocabulary: int, share: float = 0.25, key: int = 15485863) -> float:
    """Return by how many standard deviations a text holds more green tokens than chance: the z-score of Kirchenbauer
    et al. 2023. A pair of tokens that comes again is counted once, as repeats are not independent."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    assert 0 < share < 1
    pairs = set(zip(ids[:-1], ids[1:], strict=True))
    green = sum(bool((green_list(a, vocabulary, share, key) == b).any()) for a, b in pairs)
    return (green - share * len(pairs)) / math.sqrt(len(pairs) * share * (1 - share))
