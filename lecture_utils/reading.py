"""From retrieved passages to an answer: prompt, extracted sentences, source, and training data for a reader."""

import functools
import random
import re
from collections.abc import Sequence

from lecture_utils import data
from lecture_utils.chunking import Chunk
from lecture_utils.retrieval import Embedder, Index, idf_overlap, ranking, relevant, terms

TEMPLATE_MARKS = re.compile(r"<\|([^|<>]*)\|>|\[(/?INST)\]|<<(/?SYS)>>|<(/?s)>", re.IGNORECASE)


@functools.cache
def _handbooks() -> list[dict]:
    books = data.read_jsonl(data.ASSETS / "handbooks" / "handbooks.jsonl")
    random.Random(5).shuffle(books)  # they are in the order of their writers
    return books


def handbooks(part: str) -> list[dict]:
    """Return short handbooks of invented institutions to practise reading on: ``train`` (108) or ``dev`` (12). Each has an
    id, its kind, five passages, 15 to 18 facts with their questions, and four questions that it does not answer."""
    first, last = {"dev": (0, 12), "train": (12, 120)}[part]
    return _handbooks()[first:last]


def escape_chat_markers(text: str) -> str:
    """Return a text in which the markers of chat templates are broken up (``<|im_end|>`` becomes ``< im_end >``). As
    special tokens, they would let a document end the user's turn and begin another one."""
    return TEMPLATE_MARKS.sub(lambda match: f"< {next(g for g in match.groups() if g is not None)} >", text)


def rag_prompt(question: str, chunks: Sequence[Chunk]) -> str:
    """Return the prompt for a chat model: the passages, with chat markers escaped, and then the question."""
    passages = "\n\n".join(escape_chat_markers(piece.titled) for piece in chunks)
    return f"{passages}\n\nUsing only the text above, answer in one short sentence: {question}"


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text."""
    return [part for part in re.split(r"(?<=[.!?:;])\s+|\n+", text) if part.strip()]


def extract_sentences(embed: Embedder, question, chunks: Sequence[Chunk], k: int = 2) -> str:
    """Return the ``k`` sentences of the chunks that are nearest to the question's vector (width,), in their original
    order. This is an extractive reader, which writes nothing itself."""
    pieces = [sentence for piece in chunks for sentence in sentences(piece.text)]
    best = ranking(embed(pieces) @ question, k)
    return " … ".join(pieces[i] for i in sorted(best))


def support(answer: str, question: str, text: str, idf: dict[str, float]) -> float:
    """Return the idf-weighted share (0 to 1) of an answer's new terms, those not in the question, that occur in ``text``.
    An answer without new terms has a support of 0."""
    return idf_overlap(set(terms(answer)) - set(terms(question)), set(terms(text)), idf)


def attribute_answer(answer: str, question: str, chunks: Sequence[Chunk], idf: dict[str, float]) -> tuple[int, float]:
    """Return the position of the chunk that supports the answer best, and its support."""
    found = [support(answer, question, piece.titled, idf) for piece in chunks]
    best = max(range(len(found)), key=found.__getitem__)
    return best, found[best]


def replace_key(text: str, key: str, other: str) -> str:
    """Return ``text`` with every ``key``, as a whole word or number and in any case, replaced by ``other``."""
    return re.sub(data.whole_word(key), lambda _: other, text, flags=re.IGNORECASE)


def false_answer(key: str, keys: Sequence[str], rng: random.Random) -> str:
    """Return a false answer of the same kind: the key with other digits, or another one of ``keys`` without digits."""
    if not re.search(r"\d", key):
        return rng.choice([k for k in keys if k != key and not re.search(r"\d", k)])
    made = key
    while made == key:
        made = re.sub(r"\d", lambda digit: rng.choice("0123456789" if digit.start() else "123456789"), key)
    return made


def reading_pairs(index: Index, rows: Sequence[dict], seed: int = 0) -> list[dict]:
    """Return pairs that can only be answered by reading (entity substitution, Longpre et al. 2021, arXiv:2109.05052).

    Each question stands below two retrieved passages, one of which answers it. In passages and answer the key is replaced
    by a false one, so that knowing the true one does not help.
    """
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
