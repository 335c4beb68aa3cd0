"""What came before the transformer: the Kneser-Ney n-gram and the LSTM, on token ids."""

import numpy as np
import torch
from torch import nn


class KneserNey:
    """An interpolated, modified Kneser-Ney n-gram model (Chen & Goodman 1999, section 3).

    tokens: ids below ``vocabulary``, one stream. An n-gram keeps its count less a discount;
    what the discounts save goes to the next shorter context, whose counts are of *distinct*
    words before, not of occurrences.
    """

    def __init__(self, tokens, order: int, vocabulary: int):
        tokens = np.asarray(tokens, dtype=np.int64)
        assert tokens.min() >= 0 and tokens.max() < vocabulary  # else two n-grams could share a number
        self.order, self.vocabulary = order, vocabulary
        self.keys = []  # of each length: context's number x vocabulary + last token, sorted
        self.counts, self.discounts, self.totals, self.saved = [], [], [], []
        ends = np.zeros(len(tokens), dtype=np.int64)  # number of the n-gram that ends at each position
        occurrences, firsts, numbers = [], [], []
        for n in range(1, order + 1):
            # the first n - 1 positions have no n-gram; ends[i - 1] is the context of position i
            key = np.roll(ends, 1) * vocabulary + tokens
            unique, first, inverse, count = np.unique(
                key[n - 1 :], return_index=True, return_inverse=True, return_counts=True
            )
            ends = np.concatenate((np.zeros(n - 1, dtype=np.int64), inverse))
            self.keys.append(unique)
            occurrences.append(count)
            firsts.append(first + n - 1)
            numbers.append(ends)
        for n in range(1, order + 1):
            count = occurrences[n - 1]
            if n < order:  # how many distinct tokens come before it
                suffix = numbers[n - 1][firsts[n]]
                count = np.bincount(suffix, minlength=len(count))
            self._add(n, count)

    def _add(self, n: int, count: np.ndarray) -> None:
        """Keep the statistics of length n: discounts (section 3.2, eq. 17), each context's sum and what it saves."""
        n1, n2, n3, n4 = (max(int((count == c).sum()), 1) for c in (1, 2, 3, 4))
        y = n1 / (n1 + 2 * n2)
        d = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]).clip(0, (0, 1, 2, 3))
        discount = d[count.clip(max=3)]
        context = self.keys[n - 1] // self.vocabulary
        size = 1 if n == 1 else len(self.keys[n - 2])
        self.counts.append(count)
        self.discounts.append(discount)
        self.totals.append(np.bincount(context, count, minlength=size))
        self.saved.append(np.bincount(context, discount, minlength=size))

    def _find(self, n: int, context: np.ndarray, token: np.ndarray) -> np.ndarray:
        """Return the numbers of n-grams, -1 for unseen ones (and for a context of -1)."""
        key = context * self.vocabulary + token
        place = np.searchsorted(self.keys[n - 1], key).clip(max=len(self.keys[n - 1]) - 1)
        return np.where((context >= 0) & (self.keys[n - 1][place] == key), place, -1)

    def log_probabilities(self, tokens) -> np.ndarray:
        """Return log p of each token given those before it (nats), all orders mixed."""
        tokens = np.asarray(tokens, dtype=np.int64)
        if not len(tokens):
            return np.zeros(0)
        p = np.full(len(tokens), 1 / self.vocabulary)
        context = np.zeros(len(tokens), dtype=np.int64)
        for n in range(1, self.order + 1):
            gram = self._find(n, context, tokens)
            seen = np.where(context >= 0, self.totals[n - 1][context], 0) > 0
            c = context[seen]
            own = np.where(gram >= 0, self.counts[n - 1][gram] - self.discounts[n - 1][gram], 0)[seen]
            p[seen] = (own + self.saved[n - 1][c] * p[seen]) / self.totals[n - 1][c]
            context = np.concatenate(([-1], gram[:-1]))  # the n-gram that ends just before
        return np.log(p)

    def distribution(self, context) -> np.ndarray:
        """Return p(token | context) for every token, (vocabulary,); it sums to one."""
        context = context[max(len(context) - self.order + 1, 0) :] if self.order > 1 else []
        context = np.asarray(context, dtype=np.int64).tolist()
        p = np.full(self.vocabulary, 1 / self.vocabulary)
        for n in range(1, len(context) + 2):
            number = np.zeros(1, dtype=np.int64)
            for i, token in enumerate(context[len(context) - n + 1 :], 1):
                number = self._find(i, number, np.array([token]))
            number = int(number[0])
            if number < 0 or self.totals[n - 1][number] == 0:
                break
            low, high = np.searchsorted(self.keys[n - 1], (number * self.vocabulary, (number + 1) * self.vocabulary))
            own = np.zeros(self.vocabulary)
            own[self.keys[n - 1][low:high] % self.vocabulary] = (self.counts[n - 1] - self.discounts[n - 1])[low:high]
            p = (own + self.saved[n - 1][number] * p) / self.totals[n - 1][number]
        return p


class LSTM(nn.Module):
    """An LSTM language model (Hochreiter & Schmidhuber 1997): ids (B, T) to logits (B, T, vocabulary).

    The output head is the embedding. ``state`` carries over from one piece of text to the next.
    """

    def __init__(self, vocabulary: int, width: int = 192, hidden: int = 512, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.back = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, ids: torch.Tensor, state=None):
        """Return (logits, state)."""
        out, state = self.lstm(self.dropout(self.embedding(ids)), state)
        return nn.functional.linear(self.back(self.dropout(out)), self.embedding.weight), state
