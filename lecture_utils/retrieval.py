"""Retrieval: from a question to the passages that answer it.

Words (BM25), vectors (MiniLM's mean-pooled sentence embeddings), their fusion, reranking by
query likelihood, a vector database on disk, and what an answer owes to its passages. Notebook 09
builds each by hand.
"""

import math
import random
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lecture_utils import data, evaluation, expect, runtime
from lecture_utils.chunking import Chunk

_STOP_WORDS = """a about an and are as at be been but by can could did do does for from had has have he how i if in
into is it its me my no not of on or our she should so some such tell than that the their them then there these they
this those to us was we were what when where which who whom whose why will with would you your"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


# Search -------------------------------------------------------------------------------------


def terms(text: str) -> list[str]:
    """Return the words of a text that search goes by: lower case, no stop words, no plural s. Raises TypeError
    for anything but a text."""
    kept = [word for word in data.words(text) if word not in STOP_WORDS]
    return [word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in kept]


class BM25:
    """Lexical search (Robertson, Zaragoza 2009; the weights that Lucene takes). Raises TypeError for one text
    instead of a list, ValueError for a negative k1 or a b outside 0 to 1."""

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        import numpy as np

        expect.texts("texts", texts, least=0, whole=False)
        if not k1 >= 0 or not 0 <= b <= 1:
            raise ValueError(f"k1={k1}, b={b}: k1 must be 0 or more, b between 0 and 1.")
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
        """Return the score of each text (texts,), 0 where no term is shared. Raises TypeError for no text."""
        import numpy as np

        expect.text("query", query, whole=False)
        scores = np.zeros(self.size)
        for term in terms(query):
            if term in self.postings:
                at, add = self.postings[term]
                scores[at] += add
        return scores


class Embedder:
    """Sentence embeddings: MiniLM's last hidden states, averaged over the tokens, at length 1."""

    LONGEST = 256  # tokens that the model was made for

    def __init__(self):
        from lecture_utils import models

        self.model, self.tokenizer = models.load_encoder()
        self._known = {}  # text -> vector: a question is searched for again and again

    def __call__(self, texts: Sequence[str], rows: int = 32):
        """Return the embeddings (texts, 384) as a float32 tensor on the CPU. Raises TypeError for one text
        instead of a list, ValueError for half a character."""
        import torch
        from tqdm.auto import tqdm

        expect.texts("texts", texts, least=0)
        expect.whole("rows", rows)
        new = sorted({text for text in texts if text not in self._known}, key=lambda text: (len(text), text))
        new = self._stand_in(new)
        starts = range(0, len(new), rows)
        for start in tqdm(starts, desc="embedding", leave=False, disable=len(starts) < 5):
            chosen = new[start : start + rows]
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
        """Return the texts to embed. At smoke scale only a few; the others get random directions."""
        import torch

        read = runtime.few(texts, 16)
        if len(read) == len(texts):
            return texts
        chance = torch.Generator().manual_seed(len(self._known))
        vectors = torch.randn(len(texts) - len(read), self.model.config.hidden_size, generator=chance)
        self._known |= zip(texts[len(read) :], torch.nn.functional.normalize(vectors, dim=1), strict=True)
        return read


def mean_pool(hidden, mask):
    """Return the mean of hidden states (B, T, width) over the tokens that ``mask`` (B, T) keeps, at length 1."""
    import torch

    summed = (hidden * mask[..., None]).sum(1)
    return torch.nn.functional.normalize(summed / mask.sum(1, keepdim=True).clamp(min=1), dim=-1)


def ranking(scores, k: int | None = None) -> list[int]:
    """Return positions by falling score, the first ``k`` of them; equal scores keep their order. Raises
    ValueError for a NaN, which is neither above nor below, or a negative ``k``."""
    if k is not None:
        expect.whole("k", k, least=0)
    values = [float(score) for score in scores]
    if any(value != value for value in values):
        raise ValueError("scores holds NaN: it has no place in a ranking.")
    return sorted(range(len(values)), key=lambda i: -values[i])[:k]


def fuse(rankings: Sequence[Sequence[int]], k: int = 60) -> list[int]:
    """Return the reciprocal rank fusion of rankings, best first: each gives 1 / (k + rank), rank from 1,
    to what it lists (Cormack, Clarke, Büttcher 2009). Raises ValueError for no rankings or a negative ``k``,
    TypeError for one ranking instead of several."""
    if not rankings:
        raise ValueError("rankings is empty: there is nothing to fuse.")
    if not k >= 0:
        raise ValueError(f"k={k}: it is added to a rank, so 0 or more.")
    if any(isinstance(listed, int | str) for listed in rankings):
        raise TypeError("rankings must be a list of rankings, even of one.")
    points: dict[int, float] = {}
    for listed in rankings:
        for rank, item in enumerate(listed, 1):
            points[item] = points.get(item, 0.0) + 1 / (k + rank)
    return sorted(points, key=lambda item: -points[item])


def query_log_likelihood(model, tokenizer, question: str, texts: Sequence[str]):
    """Return log p(question | text), nats a token (texts,): a chat model as a reranker (Sachan et al. 2022).
    Raises TypeError for one text instead of a list, ValueError for half a character."""
    import torch

    expect.text("question", question)
    expect.texts("texts", texts, least=0)
    asked = "Passage: {}\n\nWrite a question that this passage answers."
    pairs = [{"question": asked.format(text), "answer": question} for text in texts]
    found = evaluation.answer_log_probabilities(model, tokenizer, pairs, batch_size=5)
    return torch.tensor([each.mean().item() for each in found])


def weighted_share(wanted: set[str], there: set[str], idf: dict[str, float]) -> float:
    """Return the share of the terms ``wanted`` that are ``there``, weighted by ``idf`` (``BM25.idf``; a term that
    no document has weighs most), 0 to 1; 0.0 if none is wanted."""
    most = max(idf.values(), default=1.0)
    weights = {term: idf.get(term, most) for term in wanted}
    return sum(w for term, w in weights.items() if term in there) / (sum(weights.values()) or 1.0)


def relevant(chunks: Sequence[Chunk], notebook: str, heading: str, key: str) -> set[int]:
    """Return the positions of the chunks of a section that hold ``key`` (as ``data.contains_key`` says)."""
    return {
        i
        for i, piece in enumerate(chunks)
        if (piece.notebook, piece.heading) == (notebook, heading) and data.contains_key(piece.titled, key)
    }


def recall_at(ranked: Sequence[int], relevant: set[int], k: int) -> float:
    """Return 1.0 if one of the first ``k`` is relevant, else 0.0. Raises ValueError if none is relevant or ``k``
    is below 1."""
    expect.whole("k", k)
    if not relevant:
        raise ValueError("relevant is empty: nothing could be found.")
    return float(any(item in relevant for item in ranked[:k]))


def reciprocal_rank(ranked: Sequence[int], relevant: set[int]) -> float:
    """Return 1 / rank of the first relevant one, 0.0 if there is none."""
    return next((1 / rank for rank, item in enumerate(ranked, 1) if item in relevant), 0.0)


def contrastive_loss(questions, passages, gold, temperature: float = 0.05):
    """Return the mean of -log p(a relevant passage | question), a scalar: softmax over all passages of
    cosine / temperature (InfoNCE; DPR, Karpukhin et al. 2020, section 3.2, with all passages as negatives).

    questions (n, width) and passages (m, width) of length 1, gold (n, m) bool: which are relevant, one or more.
    """
    log_p = (questions @ passages.T / temperature).log_softmax(-1)
    return -log_p.masked_fill(~gold, float("-inf")).logsumexp(-1).mean()


def train_questions(questions, passages, gold, steps: int = 150, tie: float = 0.01, rate: float = 1e-3):
    """Return the matrix (width, width) that turns question vectors towards the passages that answer them.

    It starts as the identity, and ``tie`` times its squared distance from it is added to the contrastive
    loss. Shapes as there; the passages stay as they are, so their index need not be built again.
    """
    import torch

    same = torch.eye(questions.shape[1])
    matrix = same.clone().requires_grad_()
    adam = torch.optim.Adam([matrix], lr=rate)
    for _ in range(runtime.limited(steps, 5)):
        turned = torch.nn.functional.normalize(questions @ matrix.T, dim=1)
        loss = contrastive_loss(turned, passages, gold) + tie * (matrix - same).square().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return matrix.detach()


def _expect_chunks(chunks, least: int = 1) -> None:
    expect.rows("chunks", chunks, least)
    if not all(isinstance(piece, Chunk) for piece in chunks):
        raise TypeError("chunks must be a list of Chunk, as chunking.corpus() returns it.")


class Index:
    """Chunks, ready to be searched by words, by meaning, or by both.

    ``matrix`` holds the chunks' vectors (chunks, 384); ``turn``, once :meth:`learn` has set it, turns questions'.
    Raises ValueError for no chunks, TypeError for texts instead of them.
    """

    def __init__(self, chunks: Sequence[Chunk], embed: Embedder | None = None):
        _expect_chunks(chunks)
        self.chunks, self.texts = list(chunks), [piece.titled for piece in chunks]
        self.lexical, self.embed = BM25(self.texts), embed or Embedder()
        self.matrix = self.embed(self.texts)
        self.terms = [set(terms(text)) for text in self.texts]
        self.turn = None

    def learn(self, questions: Sequence[str], gold: Sequence[set[int]]) -> None:
        """Train the questions' side of the search by meaning on questions and the positions of their chunks.
        Those without a chunk are left out. Raises ValueError if none is left, for a position that no chunk has,
        or unequal numbers of questions and sets."""
        import torch

        if len(questions) != len(gold):
            raise ValueError(f"{len(questions)} questions and {len(gold)} sets in gold: one of each is needed.")
        if wrong := [at for good in gold for at in good if not 0 <= at < len(self.chunks)]:
            raise ValueError(f"gold holds {wrong[0]}: the chunks go from 0 to {len(self.chunks) - 1}.")
        kept = [i for i, good in enumerate(gold) if good]
        if not kept:
            raise ValueError("gold is empty: no question has a chunk to be turned to.")
        mask = torch.zeros(len(kept), len(self.chunks), dtype=torch.bool)
        for row, i in enumerate(kept):
            mask[row, list(gold[i])] = True
        self.turn = train_questions(self.embed([questions[i] for i in kept]), self.matrix, mask)

    def vectors(self, questions: Sequence[str]):
        """Return the vectors that questions are searched by (questions, 384)."""
        import torch

        vectors = self.embed(questions)
        return vectors if self.turn is None else torch.nn.functional.normalize(vectors @ self.turn.T, dim=1)

    def scores(self, questions: Sequence[str]):
        """Return (BM25's scores, cosines), each a row of one number a chunk for each question."""
        return [self.lexical.scores(q).tolist() for q in questions], (self.vectors(questions) @ self.matrix.T).tolist()

    def rankings(self, questions: Sequence[str], k: int = 50) -> dict[str, list[list[int]]]:
        """Return the first ``k`` positions for each question: by ``words``, by ``meaning``, and ``both`` fused."""
        words, meaning = ([ranking(row, k) for row in rows] for rows in self.scores(questions))
        return {"words": words, "meaning": meaning, "both": [fuse(p)[:k] for p in zip(words, meaning, strict=True)]}

    def search(self, question: str, k: int = 3) -> list[int]:
        """Return the positions of the ``k`` best chunks, words and meaning fused. Raises TypeError for no text,
        ValueError for half a character in it or a ``k`` below 1."""
        expect.text("question", question)
        expect.whole("k", k)
        return self.rankings([question])["both"][0][:k]

    def signs(self, questions: Sequence[str]):
        """Return what speaks for an answer's being here (questions, 4): the best cosine of the question as it
        is and as it was learnt to be turned, the best BM25 score, and how much of the question, weighted by
        idf, stands in one of the three best chunks."""
        import torch

        rows = []
        plain = (self.embed(questions) @ self.matrix.T).amax(1).tolist()
        for question, as_it_is, word, cosine in zip(questions, plain, *self.scores(questions), strict=True):
            found = fuse([ranking(word, 50), ranking(cosine, 50)])[:3]
            asked = set(terms(question))
            shares = [weighted_share(asked, self.terms[i], self.lexical.idf) for i in found]
            rows.append([as_it_is, max(cosine), max(word), max(shares, default=0.0)])
        return torch.tensor(rows)


# Approximate search -------------------------------------------------------------------------


def clumped_vectors(around, count: int, seed: int = 0, noise: float = 0.06):
    """Return ``count`` vectors of length 1 as a float32 array: each is a row of ``around`` (n, width),
    drawn at random and shaken, so that they lie in clumps, as real texts do. Raises ValueError for no rows or
    a negative count."""
    import torch

    expect.rows("around", around)
    expect.whole("count", count, least=0)
    chance = torch.Generator().manual_seed(seed)
    vectors = around[torch.randint(len(around), (count,), generator=chance)]
    for block in vectors.split(10_000):  # in place: a million vectors are 1.5 GB
        block += noise * torch.randn(block.shape, generator=chance)
        torch.nn.functional.normalize(block, dim=1, out=block)
    return vectors.numpy()


def vector_index(kind: str, vectors):
    """Return a FAISS index of unit vectors (n, width) for inner products: ``flat`` (exact), ``IVF`` (4 √n
    clusters, fewer for few vectors) or ``HNSW`` (16 links a vector). Raises ValueError for another kind."""
    import faiss

    count, width = vectors.shape
    if kind == "flat":
        index = faiss.IndexFlatIP(width)
    elif kind == "IVF":
        clusters = max(1, min(int(4 * count**0.5), count // 39))  # k-means wants 39 vectors a cluster
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, clusters, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors[: 40 * clusters])
    elif kind == "HNSW":
        index = faiss.IndexHNSWFlat(width, 16, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 60
    else:
        raise ValueError(f"kind={kind!r}: choose 'flat', 'IVF' or 'HNSW'.")
    index.add(vectors)
    return index


# A vector database --------------------------------------------------------------------------

COLLECTION = "lecture"


def open_database(where: Path | str = ":memory:"):
    """Return a Qdrant client: in memory, on disk in the folder ``where`` (one process at a time), or of
    the server at ``where`` if it is an address (http…). The calls are the same. Raises TypeError for anything
    but a text or path."""
    from qdrant_client import QdrantClient

    if not isinstance(where, str | Path) or not str(where).strip():
        raise TypeError(f"where={where!r}: give ':memory:', a folder or an address.")
    where = str(where)
    if where.startswith(("http://", "https://")):
        return QdrantClient(url=where)
    return QdrantClient(":memory:") if where == ":memory:" else QdrantClient(path=where)


def point_id(chunk_id: str) -> str:
    """Return the id under which the database keeps a chunk: the same chunk has always the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, chunk_id))


def store(client, chunks: Sequence[Chunk], vectors) -> None:
    """Put chunks with their vectors (chunks, width) into the database; those it has already are replaced. Raises
    ValueError for no chunks or vectors that are not one for each, TypeError for what is neither."""
    from qdrant_client import models as q

    _expect_chunks(chunks)
    if getattr(vectors, "ndim", 0) != 2:
        raise TypeError("vectors must be a tensor, (chunks, width).")
    if len(chunks) != len(vectors):
        raise ValueError(f"{len(chunks)} chunks and {len(vectors)} vectors: one of each is needed.")
    if not client.collection_exists(COLLECTION):
        width = q.VectorParams(size=vectors.shape[1], distance=q.Distance.COSINE)
        client.create_collection(COLLECTION, vectors_config=width)
    client.upsert(
        COLLECTION,
        [
            q.PointStruct(id=point_id(piece.id), vector=vector.tolist(), payload=asdict(piece))
            for piece, vector in zip(chunks, vectors, strict=True)
        ],
    )


def lookup(client, vector, k: int = 5, notebook: str | None = None) -> list[tuple[Chunk, float]]:
    """Return the ``k`` nearest chunks and their cosines; with ``notebook``, only of that one. Raises ValueError
    for a ``k`` below 1 or a database without chunks, TypeError for what is not one vector."""
    from qdrant_client import models as q

    expect.whole("k", k)
    if getattr(vector, "ndim", 0) != 1:
        raise TypeError("vector must be a tensor, (width,): one vector, not a list of them.")
    if not client.collection_exists(COLLECTION):
        raise ValueError("client holds no chunks yet: put some in with store().")
    only = notebook and q.Filter(must=[q.FieldCondition(key="notebook", match=q.MatchValue(value=notebook))])
    found = client.query_points(COLLECTION, query=vector.tolist(), limit=k, query_filter=only, with_payload=True)
    return [(Chunk(**point.payload), point.score) for point in found.points]


# Answering ----------------------------------------------------------------------------------


TEMPLATE_MARKS = re.compile(r"<\|([^|<>]*)\|>|\[(/?INST)\]|<<(/?SYS)>>|<(/?s)>", re.IGNORECASE)


def defused(text: str) -> str:
    """Return a document's text with the marks of chat templates taken apart (``<|im_end|>`` is ``< im_end >``):
    tokenized as they are, they would end the user's turn and let the document begin one of its own."""
    return TEMPLATE_MARKS.sub(lambda match: f"< {next(g for g in match.groups() if g is not None)} >", text)


def prompt(question: str, chunks: Sequence[Chunk]) -> str:
    """Return what a chat model is asked: the passages, defused, then the question. Raises TypeError for texts
    instead of chunks, or a question that is none."""
    expect.text("question", question)
    _expect_chunks(chunks, least=0)
    passages = "\n\n".join(defused(piece.titled) for piece in chunks)
    return f"{passages}\n\nUsing only the text above, answer in one short sentence: {question}"


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text."""
    return [part for part in re.split(r"(?<=[.!?:;])\s+|\n+", text) if part.strip()]


def quote(embed: Embedder, question, chunks: Sequence[Chunk], k: int = 2) -> str:
    """Return the ``k`` sentences of the chunks that are nearest to the question's vector (width,), in their
    order: the answer of a reader that writes nothing of its own. Raises ValueError for a ``k`` below 1."""
    expect.whole("k", k)
    pieces = [sentence for piece in chunks for sentence in sentences(piece.text)]
    best = ranking(embed(pieces) @ question, k)
    return " … ".join(pieces[i] for i in sorted(best))


def support(answer: str, question: str, text: str, idf: dict[str, float]) -> float:
    """Return how much of what an answer says beyond its question stands in ``text``: the share of its
    terms, weighted by ``idf``, 0 to 1. An answer that adds nothing to its question has 0: there is nothing
    to support."""
    return weighted_share(set(terms(answer)) - set(terms(question)), set(terms(text)), idf)


def attribute(answer: str, question: str, chunks: Sequence[Chunk], idf: dict[str, float]) -> tuple[int, float]:
    """Return (position of the chunk that supports the answer best, its support); the first of equals.
    Raises ValueError without chunks."""
    if not chunks:
        raise ValueError("chunks is empty: there is no source to name.")
    found = [support(answer, question, piece.titled, idf) for piece in chunks]
    best = max(range(len(found)), key=found.__getitem__)
    return best, found[best]


# Teaching a model to read -------------------------------------------------------------------


def swapped(text: str, key: str, other: str) -> str:
    """Return ``text`` with every ``key``, as a whole word or number and in any case, replaced by ``other``."""
    whole = rf"(?<!\w)(?<!\d[.,]){re.escape(key)}(?!\w)(?![.,]\d)"
    return re.sub(whole, lambda _: other, text, flags=re.IGNORECASE)


def stand_in(key: str, keys: Sequence[str], chance: random.Random) -> str:
    """Return a false answer of the same kind: other digits, or another of the ``keys`` that have none.
    Raises ValueError where there is no other."""
    if not re.search(r"\d", key):
        others = [k for k in keys if k != key and not re.search(r"\d", k)]
        if not others:
            raise ValueError(f"keys has no other than {key!r} without digits: nothing can stand in for it.")
        return chance.choice(others)
    made = key
    while made == key:
        made = re.sub(r"\d", lambda digit: chance.choice("0123456789" if digit.start() else "123456789"), key)
    return made


def reading_pairs(index: Index, rows: Sequence[dict], seed: int = 0) -> list[dict]:
    """Return pairs that can only be answered by reading: each question under two passages that a search finds,
    the right one among them, and in the passages and the answer its key replaced by a false one, so that
    knowing the true one is of no use (entity substitution, Longpre et al. 2021, arXiv:2109.05052)."""
    chance, keys, pairs = random.Random(seed), sorted({row["key"] for row in rows}), []
    for row in rows:
        right = relevant(index.chunks, row["notebook"], row["heading"], row["key"])
        if not right:
            continue
        found = index.search(row["question"], 2)
        if not right & set(found):
            found = [found[0], min(right)]
        chance.shuffle(found)
        other = stand_in(row["key"], keys, chance)
        asked = swapped(prompt(row["question"], [index.chunks[i] for i in found]), row["key"], other)
        if not data.contains_key(asked, row["key"]):
            pairs.append({"question": asked, "answer": swapped(row["answer"], row["key"], other)})
    return pairs
