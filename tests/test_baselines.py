"""Kneser-Ney against its definition, written out with dictionaries; the LSTM's state."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from lecture_utils import baselines

RANDOM = np.random.default_rng(0)
TEXT = RANDOM.zipf(1.5, 600).clip(max=9) % 10


def by_definition(tokens, order, vocabulary, context, word):
    """p(word | context) from the formulas, with nothing clever."""
    tokens = [int(t) for t in tokens]
    p = 1 / vocabulary
    for n in range(1, order + 1):
        if n - 1 > len(context):
            break
        grams = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        if n < order:
            longer = {tuple(tokens[i : i + n + 1]) for i in range(len(tokens) - n)}
            grams = Counter(gram[1:] for gram in longer) | Counter({g: 0 for g in grams})
        of = Counter(grams.values())
        n1, n2, n3, n4 = (max(of[c], 1) for c in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        d = {0: 0.0}
        for c, (more, here) in enumerate(((n2, n1), (n3, n2), (n4, n3)), 1):
            d[c] = min(max(c - (c + 1) * y * more / here, 0), c)
        before = tuple(context[len(context) - n + 1 :]) if n > 1 else ()
        mine = {g: c for g, c in grams.items() if g[:-1] == before}
        total = sum(mine.values())
        if not total:
            break
        saved = sum(d[min(c, 3)] for c in mine.values())
        own = mine.get((*before, word), 0)
        p = (own - d[min(own, 3)] + saved * p) / total
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_equals_the_definition(order):
    model = baselines.KneserNey(TEXT, order, 12)  # ids 10 and 11 never occur
    for _ in range(25):
        context = [int(t) for t in RANDOM.integers(0, 11, RANDOM.integers(0, 6))]
        row = model.distribution(context)
        for word in (0, 3, 11):
            assert row[word] == pytest.approx(by_definition(TEXT, order, 12, context, word), rel=1e-9)


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_sums_to_one_and_both_ways_agree(order):
    model = baselines.KneserNey(TEXT, order, 12)
    text = RANDOM.integers(0, 12, 60)
    log = model.log_probabilities(text)
    for i in range(60):
        row = model.distribution(text[:i])
        assert row.sum() == pytest.approx(1, abs=1e-9) and row.min() > 0
        assert log[i] == pytest.approx(math.log(row[text[i]]), abs=1e-9)


def test_longer_contexts_help_where_text_repeats():
    text = list(range(8)) * 30 + [3, 3, 5]
    losses = [-baselines.KneserNey(text, n, 8).log_probabilities(list(range(8)) * 4).mean() for n in (1, 2)]
    assert losses[1] < losses[0] / 4


def test_lstm_carries_its_state():
    torch.manual_seed(0)
    model = baselines.LSTM(20, 8, 16).eval()
    ids = torch.randint(0, 20, (2, 9))
    whole, _ = model(ids)
    first, state = model(ids[:, :4])
    rest, _ = model(ids[:, 4:], state)
    assert whole.shape == (2, 9, 20) and torch.allclose(torch.cat((first, rest), 1), whole, atol=1e-6)
    assert not torch.allclose(model(ids[:, 4:])[0], rest, atol=1e-3)
