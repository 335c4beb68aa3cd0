"""Retrieval: from a question to the passages that answer it.

Lexical search (BM25), dense search (mean-pooled MiniLM embeddings), and their fusion. Notebook 09 builds each of them by
hand.
"""

import math
from collections import Counter
from collections.abc import Sequence

from lecture_utils import data, runtime
from lecture_utils.chunking import Chunk

_STOP_WORDS = """a about an and are as at be been but by can could did do does for from had has have he how i if in
into is it its me my no not of on or our she should so some such tell than that the their them then there these they
this those to us was we were what when where which who whom whose why will with would you your"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def terms(text: str) -> list[str]:
    """Return the search terms of a text: its words in lower case, without stop words and plural s."""
    kept = [word for word in data.words(text) if word not in STOP_WORDS]
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in kept]


class BM25:
    """Lexical search with BM25 (Robertson and Zaragoza 2009), with the idf weights of Lucene."""

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        import numpy as np

        counts = [Counter(terms(text)) for text in texts]
        lengths = np.array([sum(count.values()) for count in counts], dtype=float)
        self.size = len(counts)
        holders: dict[str, list[int]] = {}
        for i, count in enumerate(counts):
            for term in count:
                holders.setdefault(term, []).append(i)
        relative = 1 - b + b * lengths / max(lengths.mean(), 1e-9) if self.size else lengths
        self.idf = {t: math.log(1 + (self.size - len(at) + 0.5) / (len(at) + 0.5)) for t, at in holders.items()}
        self.postings = {}  # term -> (texts that hold it, what it adds to their scores)
        for term, at in holders.items():
            times = np.array([counts[i][term] for i in at], dtype=float)
            self.postings[term] = (np.array(at), self.idf[term] * times / (times + k1 * relative[at]))

    def scores(self, query: str):
        """Return the score of each text, (texts,). A text that shares no term with the query has 0."""
        import numpy as np

        scores = np.zeros(self.size)
        for term in terms(query):
            if term in self.postings:
                at, add = self.postings[term]
                scores[at] += add
        return scores


class Embedder:
    """Sentence embeddings of length 1: MiniLM's last hidden states, averaged over the tokens."""

    LONGEST = 256  # tokens; the model was trained with this maximum

    def __init__(self):
        from lecture_utils import models

        self.model, self.tokenizer = models.load_encoder()
        self._known = {}  # text -> vector: a question is searched for again and again

    def __call__(self, texts: Sequence[str], batch_size: int = 32):
        """Return the embeddings (texts, 384) as a float32 tensor on the CPU."""
        import torch
        from tqdm.auto import tqdm

        new = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        new = self._stand_in(new)
        starts = range(0, len(new), batch_size)
        for start in tqdm(starts, desc="embedding", leave=False, disable=len(starts) < 5):
            chosen = new[start : start + batch_size]
            inputs = self.tokenizer(
                chosen, padding=True, truncation=True, max_length=self.LONGEST, return_tensors="pt"
            ).to(self.model.device)
            with torch.inference_mode():
                hidden = self.model(**inputs).last_hidden_state
            self._known |= zip(chosen, mean_pool(hidden, inputs["attention_mask"]).cpu(), strict=True)
        if not texts:
            return torch.zeros(0, self.model.config.hidden_size)
        return torch.stack([self._known[text] for text in texts])

    def _stand_in(self, texts: list[str]) -> list[str]:
        """Return the texts to embed. At smoke scale these are a few, and the others get random vectors."""
        import torch

        read = runtime.few(texts, 16)
        if len(read) == len(texts):
            return texts
        generator = torch.Generator().manual_seed(len(self._known))
        vectors = torch.randn(len(texts) - len(read), self.model.config.hidden_size, generator=generator)
        self._known |= zip(texts[len(read) :], torch.nn.functional.normalize(vectors, dim=1), strict=True)
        return read


def mean_pool(hidden, attention_mask):
    """Return the mean of hidden states (B, T, width) over the tokens of ``attention_mask`` (B, T), with length 1."""
    import torch

    summed = (hidden * attention_mask[..., None]).sum(1)
    return torch.nn.functional.normalize(summed / attention_mask.sum(1, keepdim=True).clamp(min=1), dim=-1)


def ranking(scores, k: int | None = None) -> list[int]:
    """Return the positions of the ``k`` highest scores, best first. Equal scores keep their order."""
    values = [float(score) for score in scores]
    assert not any(value != value for value in values), "NaN has no rank"
    return sorted(range(len(values)), key=lambda i: -values[i])[:k]


def reciprocal_rank_fusion(rankings: Sequence[Sequence[int]], k: int = 60) -> list[int]:
    """Return items by the sum of 1 / (k + rank) over all rankings, best first (Cormack, Clarke, Büttcher 2009)."""
    points: dict[int, float] = {}
    for listed in rankings:
        for rank, item in enumerate(listed, 1):
            points[item] = points.get(item, 0.0) + 1 / (k + rank)
    return sorted(points, key=lambda item: -points[item])


def relevant(chunks: Sequence[Chunk], notebook: str, heading: str, key: str) -> set[int]:
    """Return the positions of the chunks of a section that contain ``key``."""
    return {
        i
        for i, piece in enumerate(chunks)
        if (piece.notebook, piece.heading) == (notebook, heading) and data.contains_key(piece.titled, key)
    }
