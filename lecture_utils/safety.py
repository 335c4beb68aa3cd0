"""Measures of what can go wrong: confidence against correctness, memorization, watermarks, privacy.

Notebook 11 measures with it the limits that the lecture names.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from lecture_utils import evaluation, expect, runtime

# Confidence ---------------------------------------------------------------------------------


def confidence(model, tokenizer, questions: Sequence, answers: Sequence[str], rows: int = 8) -> list[float]:
    """Return how probable the model finds each answer: the geometric mean over its tokens (and its end), 0 to 1.
    Raises ValueError for unequal numbers of them, TypeError for one text instead of a list."""
    expect.rows("questions", questions, least=0)
    expect.texts("answers", answers, least=0)
    expect.whole("rows", rows)
    if len(questions) != len(answers):
        raise ValueError(f"{len(questions)} questions and {len(answers)} answers: one of each is needed.")
    pairs = [{"question": q, "answer": a} for q, a in zip(questions, answers, strict=True)]
    found = evaluation.answer_log_probabilities(model, tokenizer, pairs, rows)
    return [each.mean().exp().item() for each in found]


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[dict]:
    """Return for each bin of equal width that holds an answer: mean confidence, accuracy, count.

    confidence: probabilities (n,), 1.0 belongs to the last bin. Raises ValueError for unequal lengths,
    none, a confidence outside 0 to 1, or fewer than one bin.
    """
    expect.whole("bins", bins)
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
    """Return the gap between confidence and accuracy, averaged over the answers by bin (Guo et al. 2017). Raises
    as ``reliability`` does."""
    found = reliability(confidence, right, bins)
    return sum(b["count"] * abs(b["confidence"] - b["accuracy"]) for b in found) / len(right)


def roc(scores: Sequence[float], positive: Sequence[bool]) -> tuple[list[float], list[float]]:
    """Return (false positive rates, true positive rates) as the threshold on the score falls, from (0, 0) to (1, 1).
    Raises ValueError unless there are positives and negatives, and for a NaN."""
    total = sum(map(bool, positive))
    if not 0 < total < len(positive) or len(scores) != len(positive):
        raise ValueError(
            f"{total} positives among {len(positive)}, {len(scores)} scores: some of both kinds are needed."
        )
    if any(score != score for score in scores):
        raise ValueError("scores holds NaN: it is neither above nor below a threshold.")
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
    chance, codes = random.Random(seed), []
    while len(codes) < len(ANIMALS):
        if (code := chance.choice(CODES)) not in codes:
            codes.append(code)
    return [
        Canary(animal, code, (1, 4, 16)[i // 4]) for i, (animal, code) in enumerate(zip(ANIMALS, codes, strict=True))
    ]


def text_losses(model, tokenizer, texts: Sequence[str], rows: int = 250) -> list[float]:
    """Return the loss of each text as a whole, in nats, its end included."""
    import torch

    count, texts = len(texts), runtime.few(texts)
    found = []
    for start in range(0, len(texts), rows):
        ids, labels = _sheet(tokenizer, texts[start : start + rows])
        with torch.inference_mode():
            logits = model(ids).logits[:, :-1].float()
        wanted = labels[:, 1:]
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        found += each.view(wanted.shape).sum(1).tolist()
    return runtime.spread(found, count)


def exposures(model, tokenizer, secrets: Sequence[Canary], candidates: Sequence[str] = CODES) -> list[float]:
    """Return each canary's exposure in bits, its code among the candidates. Raises ValueError for no candidates
    or a model whose losses are NaN (a canary's would rank first)."""
    expect.texts("candidates", candidates)
    found = []
    for secret in secrets:
        others = [code for code in candidates if code != secret.code]
        own, *losses = text_losses(model, tokenizer, [secret.text(code) for code in (secret.code, *others)])
        if any(loss != loss for loss in (own, *losses)):
            raise ValueError("model gives losses of NaN: has its training gone wrong?")
        found.append(exposure(own, losses))
    return found


def _sheet(tokenizer, texts):
    import torch

    expect.texts("texts", texts)
    rows = [torch.tensor([*tokenizer(t)["input_ids"], tokenizer.eos_token_id]) for t in texts]
    return tuple(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad) for pad in (0, -100))


def learn_texts(
    model, tokenizer, texts: Sequence[str], passes: float = 1, rate: float = 5e-4, noise: float | None = None,
    clip: float = 1.0, seed: int = 0, lot: int = 16,
) -> None:  # fmt: skip
    """Train all parameters on whole texts, ``lot`` at a time.

    noise: a number trains by DP-SGD instead: each example is drawn for a step with the same probability, its
    gradient cut to a length of ``clip``, and noise of this many times ``clip`` added to the sum. Parameters
    move by AdamW either way. Raises ValueError for no texts, negative passes, or a ``lot`` below 1.
    """
    import torch
    from tqdm.auto import tqdm

    expect.texts("texts", texts)
    expect.whole("lot", lot)
    if not passes >= 0:
        raise ValueError(f"passes={passes}: how often the texts are seen, so 0 or more.")
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=rate)
    model.train()
    order = []
    steps = runtime.limited(round(passes * math.ceil(len(texts) / lot)), 3)
    for _ in tqdm(range(steps), desc="training", leave=False):
        if noise is None:
            order = order or chance.sample(range(len(texts)), len(texts))
            batch, order = order[:lot], order[lot:]
            ids, labels = _sheet(tokenizer, [texts[i] for i in batch])
            model(input_ids=ids, labels=labels).loss.backward()
        else:
            each = [torch.zeros(0, sum(p.numel() for p in weights))]
            for text in texts:
                if chance.random() < lot / len(texts):
                    ids, labels = _sheet(tokenizer, [text])
                    loss = model(input_ids=ids, labels=labels).loss
                    each.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])[None])
            mean = private_gradient(torch.cat(each), clip, noise, generator, lot)
            for p, g in zip(weights, mean.split([p.numel() for p in weights]), strict=True):
                p.grad = g.view_as(p)
        adam.step()
        adam.zero_grad()
    model.eval()


def private_gradient(gradients, clip: float, noise: float, generator=None, lot: int | None = None):
    """Return the mean gradient of a step of DP-SGD (Abadi et al. 2016, algorithm 1).

    gradients: (examples, parameters), one for each example. Each is cut to a length of ``clip`` at most;
    to their sum comes normal noise of standard deviation noise * clip. lot: how many examples a step is
    expected to have, where they are drawn at random; default as many as there are. Raises ValueError for a
    ``clip`` that is not positive, negative noise, or no gradients without a lot.
    """
    import torch

    if gradients.ndim != 2 or not gradients.is_floating_point():
        raise TypeError(f"gradients is {gradients.dtype}, {tuple(gradients.shape)}: floats, (examples, parameters).")
    if not clip > 0 or not noise >= 0:
        raise ValueError(f"clip={clip}, noise={noise}: clip must be above 0, noise 0 or more.")
    expect.whole("lot", len(gradients) if lot is None else lot)
    lengths = gradients.norm(dim=1, keepdim=True)
    cut = gradients * (clip / lengths.clamp(min=1e-12)).clamp(max=1.0)
    added = torch.randn(gradients.shape[1], generator=generator) * (noise * clip if noise else 0.0)
    return (cut.sum(0) + added) / (lot or len(gradients))


def privacy_spent(noise: float, share: float, steps: int, delta: float) -> float:
    """Return epsilon: what ``steps`` of DP-SGD promise, each seeing an example with probability ``share``.

    By Renyi differential privacy of the subsampled Gaussian at whole orders (Mironov et al. 2019,
    arXiv:1908.10530, section 3.3), converted as in Mironov 2017. Raises ValueError for noise that is not
    positive, a share or a delta that is not between 0 and 1, or negative steps.
    """
    expect.whole("steps", steps, least=0)
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta}: the probability that the promise fails, between 0 and 1.")
    if not noise > 0 or not 0 < share < 1:
        raise ValueError(f"noise {noise}, share {share}: noise must be above 0, the share between 0 and 1.")
    best = math.inf
    for order in range(2, 257):
        terms = [
            math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
            + (order - k) * math.log1p(-share) + k * math.log(share) + k * (k - 1) / (2 * noise**2)
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

    chance = torch.Generator().manual_seed(key * previous % (2**64 - 1))
    return torch.randperm(vocabulary, generator=chance)[: int(vocabulary * share)].int()  # half the memory of 64 bits


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
    independent. Raises ValueError for fewer than two tokens, ids outside the vocabulary or a share that is not
    between 0 and 1, TypeError for text instead of ids."""
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(ids, str) or not all(isinstance(i, int) for i in ids):
        raise TypeError("ids must be token ids, a list of whole numbers in one row.")
    if not 0 < share < 1:
        raise ValueError(f"share={share}: of the vocabulary, between 0 and 1.")
    if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
        raise ValueError(f"ids go from {min(ids)} to {max(ids)}, outside of vocabulary={vocabulary}.")
    pairs = set(zip(ids[:-1], ids[1:], strict=True))
    if not pairs:
        raise ValueError(f"A text of {len(ids)} tokens has no pair to judge.")
    green = sum(bool((green_list(a, vocabulary, share, key) == b).any()) for a, b in pairs)
    return (green - share * len(pairs)) / math.sqrt(len(pairs) * share * (1 - share))
