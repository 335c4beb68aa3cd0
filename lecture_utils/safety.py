"""Measures of what can go wrong: confidence against correctness, memorization, watermarks, privacy.

Notebook 11 measures with it the limits that the lecture names.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

# Confidence ---------------------------------------------------------------------------------


def confidence(model, tokenizer, questions: Sequence, answers: Sequence[str], rows: int = 16) -> list[float]:
    """Return how probable the model finds each answer: the geometric mean over its tokens (and its end), 0 to 1."""
    import torch

    from lecture_utils.alignment import token_log_probabilities
    from lecture_utils.data import token_ids

    pairs = [token_ids(tokenizer, q, a) for q, a in zip(questions, answers, strict=True)]
    order, found = sorted(range(len(pairs)), key=lambda i: len(sum(pairs[i], []))), [0.0] * len(pairs)
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        texts = [torch.tensor(pairs[i][0] + pairs[i][1]) for i in batch]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=tokenizer.pad_token_id)
        there = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)
        keep = max(ids.shape[1] - len(pairs[i][0]) for i in batch) + 1  # the columns of the answers
        with torch.inference_mode():
            logits = model(
                input_ids=ids.to(model.device), attention_mask=there.to(model.device), logits_to_keep=keep
            ).logits.cpu()
        log_p = token_log_probabilities(logits[:, :-1], ids[:, 1 - keep :])
        for row, i in enumerate(batch):
            first = len(pairs[i][0]) - (ids.shape[1] - keep + 1)
            found[i] = log_p[row, first : first + len(pairs[i][1])].mean().exp().item()
    return found


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[dict]:
    """Return for each bin of equal width that holds an answer: mean confidence, accuracy, count.

    confidence: probabilities (n,), 1.0 belongs to the last bin. Raises ValueError for unequal lengths,
    none, or a confidence outside 0 to 1.
    """
    if len(confidence) != len(right) or not len(right):
        raise ValueError(f"{len(confidence)} confidences for {len(right)} answers: one each is needed.")
    if not all(0 <= c <= 1 for c in confidence):
        raise ValueError("A confidence is a probability: 0 to 1.")
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


def roc(scores: Sequence[float], positive: Sequence[bool]) -> tuple[list[float], list[float]]:
    """Return (false positive rates, true positive rates) as the threshold on the score falls, from (0, 0) to (1, 1).
    Raises ValueError unless there are positives and negatives."""
    total = sum(map(bool, positive))
    if not 0 < total < len(positive) or len(scores) != len(positive):
        raise ValueError(
            f"{total} positives among {len(positive)}, {len(scores)} scores: some of both kinds are needed."
        )
    false, true, x, y = 0, 0, [0.0], [0.0]
    ordered = sorted(zip(scores, positive, strict=True), key=lambda pair: -pair[0])
    for i, (score, is_positive) in enumerate(ordered):
        true, false = true + bool(is_positive), false + (not is_positive)
        if i + 1 == len(ordered) or ordered[i + 1][0] != score:  # equal scores fall together
            x.append(false / (len(positive) - total))
            y.append(true / total)
    return x, y


def auc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Return the area under the ROC curve: how often a positive scores above a negative, equal ones half."""
    x, y = roc(scores, positive)
    return sum((x[i + 1] - x[i]) * (y[i + 1] + y[i]) / 2 for i in range(len(x) - 1))


# Memorization -------------------------------------------------------------------------------


def exposure(loss: float, others: Sequence[float]) -> float:
    """Return a canary's exposure in bits: log2 of the number of candidates less log2 of its rank among them
    (Carlini et al. 2019, the Secret Sharer).

    loss: the canary's; others: those of candidates of the same form that were not trained on. An equal
    loss counts as better than the canary's.
    """
    rank = 1 + sum(other <= loss for other in others)
    return math.log2(len(others) + 1) - math.log2(rank)


def private_gradient(gradients, clip: float, noise: float, generator=None):
    """Return the mean gradient of a step of DP-SGD (Abadi et al. 2016, algorithm 1).

    gradients: (examples, parameters), one for each example. Each is cut to a length of ``clip`` at most;
    to their sum comes normal noise of standard deviation noise * clip.
    """
    import torch

    lengths = gradients.norm(dim=1, keepdim=True)
    cut = gradients * (clip / lengths.clamp(min=1e-12)).clamp(max=1.0)
    added = torch.randn(gradients.shape[1], generator=generator) * noise * clip
    return (cut.sum(0) + added) / len(gradients)


# Watermarks ---------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def green_list(previous: int, vocabulary: int, share: float = 0.25, key: int = 15485863):
    """Return the ids of the tokens that are green after the token ``previous`` (Kirchenbauer et al. 2023,
    algorithm 2): a share of the vocabulary, drawn anew for each previous token."""
    import torch

    chance = torch.Generator().manual_seed(key * previous % (2**64 - 1))
    return torch.randperm(vocabulary, generator=chance)[: int(vocabulary * share)]


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
    """Return by how many standard deviations a text holds more green tokens than chance: the z-score of
    Kirchenbauer et al. 2023. A pair of tokens that comes again is counted once, as repeats are not
    independent. Raises ValueError for fewer than two tokens."""
    pairs = set(zip(ids[:-1], ids[1:], strict=True))
    if not pairs:
        raise ValueError(f"A text of {len(ids)} tokens has no pair to judge.")
    green = sum(bool((green_list(a, vocabulary, share, key) == b).any()) for a, b in pairs)
    return (green - share * len(pairs)) / math.sqrt(len(pairs) * share * (1 - share))
