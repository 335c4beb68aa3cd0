"""Byte-level byte-pair encoding, written to be read; the fast one is the ``tokenizers`` library."""

import re
from collections import Counter
from dataclasses import dataclass

PIECES = r" ?[^\W\d]+| ?\d+| ?[^\w\s]+|\s+| ?_+"  # merges never cross from one piece into the next


def byte_symbols() -> dict[int, str]:
    """Return a printable stand-in for each of the 256 bytes, as GPT-2 chose them: a printable
    Latin-1 character is itself, each other byte one of the 68 characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def pretokenize(text: str) -> list[str]:
    """Return the text cut into words (each with the space before it), numbers, signs and white space."""
    return re.findall(PIECES, text)


def merge(symbols: tuple, pair: tuple, new) -> tuple:
    """Return the symbols with each occurrence of ``pair`` replaced by ``new``, from left to right."""
    symbols, pair = tuple(symbols), tuple(pair)  # a slice of a list never equals a tuple
    out, i = [], 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            out.append(new)
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return tuple(out)


@dataclass(frozen=True)
class BPE:
    """A trained tokenizer: ``vocabulary`` by id, ``merges`` in the order they were learnt."""

    vocabulary: list[str]
    merges: list[tuple[str, str]]

    @classmethod
    def train(cls, text: str, size: int) -> "BPE":
        """Learn merges until the vocabulary has ``size`` entries (or no pair is left): always the most frequent pair
        of neighbours, of equals the one with the lower ids (Sennrich et al. 2016, 1508.07909, section 3.2)."""
        symbol = byte_symbols()
        vocabulary, merges = sorted(symbol.values()), []
        number = {s: i for i, s in enumerate(vocabulary)}
        words = Counter(tuple(number[symbol[b]] for b in piece.encode()) for piece in pretokenize(text))
        while len(vocabulary) < size:
            pairs = Counter()
            for word, count in words.items():
                for pair in zip(word, word[1:], strict=False):
                    pairs[pair] += count
            if not pairs:
                break
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            left, right = (vocabulary[i] for i in best)
            merges.append((left, right))
            vocabulary.append(left + right)
            merged = Counter()
            for word, count in words.items():
                merged[merge(word, best, len(vocabulary) - 1)] += count
            words = merged
        return cls(vocabulary, merges)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text: in each piece, the earliest learnt merge first, until none applies."""
        symbol, rank = byte_symbols(), {pair: i for i, pair in enumerate(self.merges)}
        number, ids = {s: i for i, s in enumerate(self.vocabulary)}, []
        for piece in pretokenize(text):
            word = tuple(symbol[b] for b in piece.encode())
            while found := [p for p in zip(word, word[1:], strict=False) if p in rank]:
                first = min(found, key=rank.get)
                word = merge(word, first, "".join(first))
            ids += [number[s] for s in word]
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are no whole character come out as the sign for that."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        byte = {s: b for b, s in byte_symbols().items()}
        return bytes(byte[s] for i in ids for s in self.vocabulary[i]).decode(errors="replace")


def train_with_library(texts: list[str], size: int, special: tuple[str, ...] = ()):
    """Return a ``tokenizers.Tokenizer`` with the same merges as ``BPE.train`` on the texts, in seconds.

    special: tokens that no text contains; they take the first ids.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PIECES), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
