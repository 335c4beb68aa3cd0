"""The whole search of notebook 09: by words and by meaning, fused, reranked, with the answer marked."""

from lecture_utils import reading, retrieval, shop

COSINE_COUNTS = 20  # a cosine counts so many times as much as a ranker's score; chosen on the handbooks of "dev"


class Search:
    """Texts with the search by words, the search by meaning, their fusion, and the ranker. ``depth``: how many of each
    search are fused (all, if None)."""

    def __init__(self, texts: list[str], depth: int | None = None):
        self.texts, self.depth = texts, depth
        self.words, self.embed = retrieval.BM25(texts), retrieval.Embedder()
        self.vectors, self.ranker = self.embed(texts), reading.Ranker.packaged()

    def rankings(self, question: str) -> dict[str, list[int]]:
        words = retrieval.ranking(self.words.scores(question), self.depth)
        meaning = retrieval.ranking(self.vectors @ self.embed([question])[0], self.depth)
        return {"words": words, "meaning": meaning, "fused": retrieval.reciprocal_rank_fusion([words, meaning])}

    def reranked(self, question: str, found: list[int]) -> tuple[dict[str, list[int]], dict[int, reading.Reading]]:
        """Return the texts of ``found`` sorted by cosine, by score and by both, and what is marked in each of them."""
        readings = self.ranker([question] * len(found), [self.texts[i] for i in found])
        cosine = (self.vectors[found] @ self.embed([question])[0]).tolist()
        score = [r.score for r in readings]
        both = [s + COSINE_COUNTS * c for s, c in zip(score, cosine, strict=True)]
        signs = {"cosine": cosine, "score": score, "both": both}
        orders = {name: [found[i] for i in retrieval.ranking(sign)] for name, sign in signs.items()}
        return orders, dict(zip(found, readings, strict=True))

    def answer(self, question: str, candidates: int = 10) -> tuple[int, reading.Reading]:
        """Return the best text among the first ``candidates``, and what is marked in it."""
        orders, readings = self.reranked(question, self.rankings(question)["fused"][:candidates])
        best = orders["both"][0]
        return best, readings[best]


def shop_search() -> tuple[Search, list[str]]:
    """Return a search in the shop's handbook, and the ids of its passages."""
    handbook = shop.handbook()
    return Search([reading.titled(p) for p in handbook]), [p["id"] for p in handbook]
