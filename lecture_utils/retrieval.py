"""Retrieval: from a question to the passages that answer it.

Lexical search (BM25), dense search (mean-pooled MiniLM embeddings), their fusion, and reranking by query likelihood.
Notebook 09 builds each of them by hand.
"""

import math
from collections import Counter
from collections.abc import Sequence

from lecture_utils import data, evaluation, runtime
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


def query_log_likelihood(model, tokenizer, question: str, texts: Sequence[str]):
    """Return log p(question | text) in nats per token, (texts,), by a chat model (Sachan et al. 2022)."""
    import torch

    asked = "Passage: {}\n\nWrite a question that this passage answers."
    pairs = [{"question": asked.format(text), "answer": question} for text in texts]
    found = evaluation.answer_log_probabilities(model, tokenizer, pairs, batch_size=5)
    return torch.tensor([each.mean().item() for each in found])


def idf_overlap(wanted: set[str], there: set[str], idf: dict[str, float]) -> float:
    """Return the share of the terms ``wanted`` that are ``there``, weighted by ``idf`` (0 to 1). A term that occurs in no
    document has the largest weight."""
    most = max(idf.values(), default=1.0)
    weights = {term: idf.get(term, most) for term in wanted}
    return sum(w for term, w in weights.items() if term in there) / (sum(weights.values()) or 1.0)


def relevant(chunks: Sequence[Chunk], notebook: str, heading: str, key: str) -> set[int]:
    """Return the positions of the chunks of a section that contain ``key``."""
    return {
        i
        for i, piece in enumerate(chunks)
        if (piece.notebook, piece.heading) == (notebook, heading) and data.contains_key(piece.titled, key)
    }


def recall_at(ranked: Sequence[int], relevant: set[int], k: int) -> float:
    """Return 1.0 if one of the first ``k`` is relevant, else 0.0."""
    assert relevant, "nothing could be found"
    return float(any(item in relevant for item in ranked[:k]))


def reciprocal_rank(ranked: Sequence[int], relevant: set[int]) -> float:
    """Return 1 / rank of the first relevant one, 0.0 if there is none."""
    return next((1 / rank for rank, item in enumerate(ranked, 1) if item in relevant), 0.0)


def contrastive_loss(questions, passages, gold, temperature: float = 0.05):
    """Return the mean of -log p(a relevant passage | question), with a softmax of cosine / temperature over all passages
    (InfoNCE; DPR, Karpukhin et al. 2020, section 3.2).

    questions: (n, width) and passages: (m, width), of length 1. gold: (n, m) bool, which passages are relevant.
    """
    log_p = (questions @ passages.T / temperature).log_softmax(-1)
    return -log_p.masked_fill(~gold, float("-inf")).logsumexp(-1).mean()


def train_query_projection(questions, passages, gold, steps: int = 150, tie: float = 0.01, learning_rate: float = 1e-3):
    """Return a matrix (width, width) that moves question vectors towards the passages that answer them.

    It starts as the identity, and ``tie`` times its squared distance from the identity is added to the contrastive loss.
    The vectors of the passages do not change, so that their index stays valid.
    """
    import torch

    same = torch.eye(questions.shape[1])
    matrix = same.clone().requires_grad_()
    adam = torch.optim.Adam([matrix], lr=learning_rate)
    for _ in range(runtime.limited(steps, 5)):
        turned = torch.nn.functional.normalize(questions @ matrix.T, dim=1)
        loss = contrastive_loss(turned, passages, gold) + tie * (matrix - same).square().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return matrix.detach()


class Index:
    """Chunks that can be searched by words, by meaning, or by both.

    ``matrix`` holds the vectors of the chunks, (chunks, 384). ``turn`` projects question vectors, once it is learnt.
    """

    def __init__(self, chunks: Sequence[Chunk], embed: Embedder | None = None):
        self.chunks, self.texts = list(chunks), [piece.titled for piece in chunks]
        self.lexical, self.embed = BM25(self.texts), embed or Embedder()
        self.matrix = self.embed(self.texts)
        self.terms = [set(terms(text)) for text in self.texts]
        self.turn = None

    def learn(self, questions: Sequence[str], gold: Sequence[set[int]]) -> None:
        """Train the projection of questions on questions and the positions of their relevant chunks."""
        import torch

        kept = [i for i, good in enumerate(gold) if good]
        mask = torch.zeros(len(kept), len(self.chunks), dtype=torch.bool)
        for row, i in enumerate(kept):
            mask[row, list(gold[i])] = True
        self.turn = train_query_projection(self.embed([questions[i] for i in kept]), self.matrix, mask)

    def vectors(self, questions: Sequence[str]):
        """Return the vectors of questions, (questions, 384), projected if the projection is learnt."""
        import torch

        vectors = self.embed(questions)
        return vectors if self.turn is None else torch.nn.functional.normalize(vectors @ self.turn.T, dim=1)

    def scores(self, questions: Sequence[str]):
        """Return BM25 scores and cosines as two lists, with one row for each question and one number for each chunk."""
        return [self.lexical.scores(q).tolist() for q in questions], (self.vectors(questions) @ self.matrix.T).tolist()

    def rankings(self, questions: Sequence[str], k: int = 50) -> dict[str, list[list[int]]]:
        """Return for each question the best ``k`` positions by ``words``, by ``meaning``, and by ``both`` fused."""
        words, meaning = ([ranking(row, k) for row in rows] for rows in self.scores(questions))
        return {
            "words": words,
            "meaning": meaning,
            "both": [reciprocal_rank_fusion(p)[:k] for p in zip(words, meaning, strict=True)],
        }

    def search(self, question: str, k: int = 3) -> list[int]:
        """Return the positions of the ``k`` best chunks, with both rankings fused."""
        return self.rankings([question])["both"][0][:k]

    def answerability_features(self, questions: Sequence[str]):
        """Return four signs that a question can be answered, (questions, 4): its best cosine without and with the learnt
        projection, the best BM25 score, and the best idf overlap with one of the top three chunks."""
        import torch

        rows = []
        plain = (self.embed(questions) @ self.matrix.T).amax(1).tolist()
        for question, as_it_is, word, cosine in zip(questions, plain, *self.scores(questions), strict=True):
            found = reciprocal_rank_fusion([ranking(word, 50), ranking(cosine, 50)])[:3]
            asked = set(terms(question))
            shares = [idf_overlap(asked, self.terms[i], self.lexical.idf) for i in found]
            rows.append([as_it_is, max(cosine), max(word), max(shares, default=0.0)])
        return torch.tensor(rows)
