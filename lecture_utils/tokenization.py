"""Byte-level byte-pair encoding in readable Python; the ``tokenizers`` library has the fast implementation."""

import re
from collections import Counter
from dataclasses import dataclass

PIECES = r" ?[^\W\d]+| ?\d+| ?[^\w\s]+|\s+| ?_+"  # merges never cross the boundary between two pieces


def byte_symbols() -> dict[int, str]:
    """Return GPT-2's printable symbol for each of the 256 bytes: printable Latin-1 characters stand for themselves,
    the other bytes get the 68 characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def pretokenize(text: str) -> list[str]:
    """Split a text into words (each with the space before it), numbers, punctuation and white space."""
    return re.findall(PIECES, text)


def merge(symbols: tuple, pair: tuple, new) -> tuple:
    """Return the symbols with each occurrence of ``pair`` replaced by ``new``, from left to right."""
    symbols, pair = tuple(symbols), tuple(pair)  # a slice of a list never equals a tuple
    out, i = [], 0
    while i < len(symbols):
        found = symbols[i : i + 2] == pair
        out.append(new if found else symbols[i])
        i += 2 if found else 1
    return tuple(out)


@dataclass(frozen=True)
class BPE:
    """A trained tokenizer: the ``vocabulary`` in the order of the ids, the ``merges`` in the order of training."""

    vocabulary: list[str]
    merges: list[tuple[str, str]]

    @classmethod
    def train(cls, text: str, size: int) -> "BPE":
        """Merge the most frequent pair of neighbours (among equals, the one with the lowest ids) until the vocabulary
        has ``size`` entries or no pair is left (Sennrich et al. 2016, 1508.07909, section 3.2)."""
        symbol = byte_symbols()
        vocabulary, merges = sorted(symbol.values()), []
        ids = {s: i for i, s in enumerate(vocabulary)}
        words = Counter(tuple(ids[symbol[b]] for b in piece.encode()) for piece in pretokenize(text))
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
            words = {merge(word, best, len(vocabulary)): count for word, count in words.items()}
            vocabulary.append(left + right)
        return cls(vocabulary, merges)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text: in each piece, apply the merge that was learned first until none is left."""
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
        """Return the text of token ids; bytes that are not valid UTF-8 become the replacement character U+FFFD."""
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        byte = {s: b for b, s in byte_symbols().items()}
        return bytes(byte[s] for i in ids for s in self.vocabulary[i]).decode(errors="replace")


def train_with_library(texts: list[str], size: int, special: tuple[str, ...] = ()):
    """Return a ``tokenizers.Tokenizer`` with the merges of ``BPE.train``, trained on the texts within seconds. The
    ``special`` tokens, which no text contains, get the first ids."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    split_pieces = pre_tokenizers.Split(Regex(PIECES), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split_pieces, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()  # all 256 bytes, so that every text can be encoded
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
