"""Language models from before the transformer, on token ids: the Kneser-Ney n-gram and the LSTM."""

import numpy as np
import torch
from torch import nn


class KneserNey:
    """An interpolated, modified Kneser-Ney n-gram model (Chen & Goodman 1999, section 3) of a sequence of token ids
    below ``vocabulary``. The count of each n-gram is reduced by a discount. The probability that this saves goes to the
    next shorter context, whose n-grams are counted by the *distinct* tokens before them, not by their occurrences."""

    def __init__(self, tokens, order: int, vocabulary: int):
        tokens = np.asarray(tokens, dtype=np.int64)
        assert tokens.min() >= 0 and tokens.max() < vocabulary  # otherwise two n-grams could have the same key
        self.order, self.vocabulary = order, vocabulary
        self.keys = []  # for each n, the sorted keys of the n-grams: index of the context * vocabulary + last token
        self.counts, self.discounts, self.totals, self.saved = [], [], [], []
        ends = np.zeros(len(tokens), dtype=np.int64)  # index of the n-gram that ends at each position
        grams = []  # for each n: how often each n-gram occurs, where it ends first, and ``ends``
        for n in range(1, order + 1):
            # No n-gram ends at the first n - 1 positions; ends[i - 1] is the context of position i.
            key = (np.roll(ends, 1) * vocabulary + tokens)[n - 1 :]
            unique, first, inverse, count = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
            ends = np.concatenate((np.zeros(n - 1, dtype=np.int64), inverse))
            self.keys.append(unique)
            grams.append((count, first + n - 1, ends))
        for n, (count, _, ends) in enumerate(grams, 1):
            if n < order:  # count the distinct (n + 1)-grams that end with each n-gram instead of its occurrences
                count = np.bincount(ends[grams[n][1]], minlength=len(count))
            self._add(n, count)

    def _add(self, n: int, count: np.ndarray) -> None:
        """Store the n-grams' counts and discounts (section 3.2, equation 17), and their sums for each context."""
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
        """Return the indices of n-grams, or -1 where an n-gram or its context (-1) is unseen."""
        key = context * self.vocabulary + token
        place = np.searchsorted(self.keys[n - 1], key).clip(max=len(self.keys[n - 1]) - 1)
        return np.where((context >= 0) & (self.keys[n - 1][place] == key), place, -1)

    def log_probabilities(self, tokens) -> np.ndarray:
        """Return log p of each token given the tokens before it (nats), interpolated over all orders."""
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
        """Return p(token | context) for every token, (vocabulary,); they sum to one."""
        context = np.asarray(context, dtype=np.int64)[max(len(context) - self.order + 1, 0) :].tolist()
        p = np.full(self.vocabulary, 1 / self.vocabulary)
        for n in range(1, len(context) + 2):
            found = np.zeros(1, dtype=np.int64)
            for i, token in enumerate(context[len(context) - n + 1 :], 1):
                found = self._find(i, found, np.array([token]))
            index = int(found[0])  # of the last n - 1 tokens
            if index < 0 or self.totals[n - 1][index] == 0:
                break
            low, high = np.searchsorted(self.keys[n - 1], (index * self.vocabulary, (index + 1) * self.vocabulary))
            own = np.zeros(self.vocabulary)
            own[self.keys[n - 1][low:high] % self.vocabulary] = (self.counts[n - 1] - self.discounts[n - 1])[low:high]
            p = (own + self.saved[n - 1][index] * p) / self.totals[n - 1][index]
        return p


class LSTM(nn.Module):
    """An LSTM language model (Hochreiter & Schmidhuber 1997): ids (B, T) to logits (B, T, vocabulary) and the state,
    which continues the text if it is passed to the next call. The output head shares the embedding's weights."""

    def __init__(self, vocabulary: int, width: int = 192, hidden: int = 512, dropout: float = 0.0):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        self.back = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, ids: torch.Tensor, state=None):
        out, state = self.lstm(self.dropout(self.embedding(ids)), state)
        return nn.functional.linear(self.back(self.dropout(out)), self.embedding.weight), state
