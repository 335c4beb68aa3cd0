"""From retrieved passages to an answer: the prompt, the quotation, its source, and data that teach a model to read."""

import random
import re
from collections.abc import Sequence

from lecture_utils import data
from lecture_utils.chunking import Chunk
from lecture_utils.retrieval import Embedder, Index, idf_overlap, ranking, relevant, terms

TEMPLATE_MARKS = re.compile(r"<\|([^|<>]*)\|>|\[(/?INST)\]|<<(/?SYS)>>|<(/?s)>", re.IGNORECASE)


def escape_chat_markers(text: str) -> str:
    """Return a document's text with the marks of chat templates taken apart (``<|im_end|>`` is ``< im_end >``):
    tokenized as they are, they would end the user's turn and let the document begin one of its own."""
    return TEMPLATE_MARKS.sub(lambda match: f"< {next(g for g in match.groups() if g is not None)} >", text)


def rag_prompt(question: str, chunks: Sequence[Chunk]) -> str:
    """Return what a chat model is asked: the passages, defused, then the question."""
    passages = "\n\n".join(escape_chat_markers(piece.titled) for piece in chunks)
    return f"{passages}\n\nUsing only the text above, answer in one short sentence: {question}"


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text."""
    return [part for part in re.split(r"(?<=[.!?:;])\s+|\n+", text) if part.strip()]


def extract_sentences(embed: Embedder, question, chunks: Sequence[Chunk], k: int = 2) -> str:
    """Return the ``k`` sentences of the chunks that are nearest to the question's vector (width,), in their
    order: the answer of a reader that writes nothing of its own."""
    pieces = [sentence for piece in chunks for sentence in sentences(piece.text)]
    best = ranking(embed(pieces) @ question, k)
    return " … ".join(pieces[i] for i in sorted(best))


def support(answer: str, question: str, text: str, idf: dict[str, float]) -> float:
    """Return how much of what an answer says beyond its question stands in ``text``: the share of its
    terms, weighted by ``idf``, 0 to 1. An answer that adds nothing to its question has 0: there is nothing
    to support."""
    return idf_overlap(set(terms(answer)) - set(terms(question)), set(terms(text)), idf)


def attribute_answer(answer: str, question: str, chunks: Sequence[Chunk], idf: dict[str, float]) -> tuple[int, float]:
    """Return (position of the chunk that supports the answer best, its support); the first of equals."""
    found = [support(answer, question, piece.titled, idf) for piece in chunks]
    best = max(range(len(found)), key=found.__getitem__)
    return best, found[best]


def replace_key(text: str, key: str, other: str) -> str:
    """Return ``text`` with every ``key``, as a whole word or number and in any case, replaced by ``other``."""
    whole = rf"(?<!\w)(?<!\d[.,]){re.escape(key)}(?!\w)(?![.,]\d)"
    return re.sub(whole, lambda _: other, text, flags=re.IGNORECASE)


def false_answer(key: str, keys: Sequence[str], rng: random.Random) -> str:
    """Return a false answer of the same kind: other digits, or another of the ``keys`` that have none."""
    if not re.search(r"\d", key):
        others = [k for k in keys if k != key and not re.search(r"\d", k)]
        return rng.choice(others)
    made = key
    while made == key:
        made = re.sub(r"\d", lambda digit: rng.choice("0123456789" if digit.start() else "123456789"), key)
    return made


def reading_pairs(index: Index, rows: Sequence[dict], seed: int = 0) -> list[dict]:
    """Return pairs that can only be answered by reading: each question under two passages that a search finds,
    the right one among them, and in the passages and the answer its key replaced by a false one, so that
    knowing the true one is of no use (entity substitution, Longpre et al. 2021, arXiv:2109.05052)."""
    rng, keys, pairs = random.Random(seed), sorted({row["key"] for row in rows}), []
    for row in rows:
        right = relevant(index.chunks, row["notebook"], row["heading"], row["key"])
        if not right:
            continue
        found = index.search(row["question"], 2)
        if not right & set(found):
            found = [found[0], min(right)]
        rng.shuffle(found)
        other = false_answer(row["key"], keys, rng)
        asked = replace_key(rag_prompt(row["question"], [index.chunks[i] for i in found]), row["key"], other)
        if not data.contains_key(asked, row["key"]):
            pairs.append({"question": asked, "answer": replace_key(row["answer"], row["key"], other)})
    return pairs
