"""Pictures drawn by code, and a small CLIP: two encoders that learn to put a picture and its caption close.

Notebook 12 trains it (Radford et al. 2021).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {"red": (0.85, 0.15, 0.1), "green": (0.1, 0.65, 0.2), "blue": (0.1, 0.25, 0.85),
           "yellow": (0.95, 0.85, 0.1), "purple": (0.55, 0.15, 0.65), "orange": (0.95, 0.5, 0.05)}  # fmt: skip
PLACES = {"on the left": (0.27, 0.5), "on the right": (0.73, 0.5), "at the top": (0.5, 0.27),
          "at the bottom": (0.5, 0.73), "in the middle": (0.5, 0.5)}  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one shape of one colour in one place."""

    shape: str
    colour: str
    place: str

    def caption(self, form: int = 0) -> str:
        """Return one of three captions that say the same."""
        what = f"{'an' if self.colour == 'orange' else 'a'} {self.colour} {self.shape}"
        return (
            f"{what} {self.place}",
            f"{self.place} there is {what}",
            f"a {self.shape} {self.place} , {self.colour}",
        )[form]


def scenes(count: int, seed: int = 0, pairs: Sequence[tuple[str, str]] | None = None) -> list[Scene]:
    """Return ``count`` random scenes; ``pairs`` says which (shape, colour) may come, default all 30."""
    chance = random.Random(seed)
    pairs = list(pairs or [(shape, colour) for shape in SHAPES for colour in COLOURS])
    return [Scene(*chance.choice(pairs), chance.choice(list(PLACES))) for _ in range(count)]


def draw(shown: Sequence[Scene], seed: int = 0, size: int = 24) -> torch.Tensor:
    """Return pictures (n, 3, size, size) from 0 to 1: each with its own size, place, shade, background and grain."""
    g = torch.Generator().manual_seed(seed)

    def vary(*shape) -> torch.Tensor:  # -1 to 1
        return torch.rand(len(shown), *shape, generator=g) * 2 - 1

    at = torch.linspace(0, 1, size)
    centre = torch.tensor([PLACES[s.place] for s in shown]) + 0.06 * vary(2)  # (n, 2): x, y
    half = 0.17 + 0.04 * vary(1, 1)  # (n, 1, 1)
    x = (at[None, None, :] - centre[:, 0, None, None]) / half  # (n, 1, size)
    y = (at[None, :, None] - centre[:, 1, None, None]) / half  # (n, size, 1)
    round_, square = (x**2 + y**2).sqrt(), torch.maximum(x.abs(), y.abs())
    inside = {  # (n, size, size) each
        "circle": round_ < 1,
        "square": square < 0.88,
        "triangle": (y < 0.85) & (y > -1) & (x.abs() < (y + 1) * 0.55),
        "cross": (square < 1) & (torch.minimum(x.abs(), y.abs()) < 0.34),
        "ring": (round_ < 1.05) & (round_ > 0.55),
    }
    mask = torch.stack([inside[s.shape][i] for i, s in enumerate(shown)])[:, None].float()  # (n, 1, size, size)
    colour = torch.tensor([COLOURS[s.colour] for s in shown]) + 0.1 * vary(3)
    ground = 0.5 + 0.4 * vary(1, 1, 1)
    picture = mask * colour[:, :, None, None] + (1 - mask) * ground
    return (picture + 0.05 * vary(3, size, size)).clamp(0, 1)


class Words:
    """A vocabulary of whole words; 0 pads."""

    def __init__(self, captions: Sequence[str]):
        words = sorted({word for caption in captions for word in caption.split()})
        self.ids = {word: i for i, word in enumerate(words, 1)}

    def __len__(self) -> int:
        return len(self.ids) + 1

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Return (n, longest) token ids. Raises ValueError for a word that is not in the vocabulary."""
        unknown = {word for caption in captions for word in caption.split()} - set(self.ids)
        if unknown:
            raise ValueError(f"Not in the vocabulary: {', '.join(sorted(unknown))}.")
        rows = [torch.tensor([self.ids[word] for word in caption.split()]) for caption in captions]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


class CLIP(nn.Module):
    """Two encoders into one space: a convolutional one for pictures (n, 3, 24, 24), one for captions (n, time)."""

    def __init__(self, vocabulary: int, width: int = 64):
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 9, 128), nn.ReLU(), nn.Linear(128, width),
        )  # fmt: skip
        self.word = nn.Embedding(vocabulary, width, padding_idx=0)
        self.read = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, width))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())  # 1 / temperature, learnt

    def pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (n, width) of length 1."""
        return F.normalize(self.see(pixels), dim=-1)

    def captions(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (n, width) of length 1: the words' mean, through two layers."""
        there = (ids != 0)[..., None]
        return F.normalize(self.read((self.word(ids) * there).sum(1) / there.sum(1)), dim=-1)

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the scaled cosines (pictures, captions)."""
        return self.log_scale.exp() * self.pictures(pixels) @ self.captions(ids).T


def clip_loss(logits: torch.Tensor) -> torch.Tensor:
    """Return the symmetric contrastive loss of (n, n) scaled cosines, row i belonging to column i: the mean of
    picture-to-caption and caption-to-picture cross-entropy (Radford et al. 2021, figure 3)."""
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
