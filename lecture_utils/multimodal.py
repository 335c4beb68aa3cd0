"""Pictures drawn by code, and a small CLIP: two encoders that learn to put a picture and its caption close.

Notebook 12 trains it (Radford et al. 2021).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm.auto import tqdm

from lecture_utils import runtime

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {"red": (0.85, 0.15, 0.1), "green": (0.1, 0.65, 0.2), "blue": (0.1, 0.25, 0.85),
           "yellow": (0.95, 0.85, 0.1), "purple": (0.55, 0.15, 0.65), "orange": (0.95, 0.5, 0.05),
           "pink": (0.95, 0.55, 0.75), "cyan": (0.2, 0.8, 0.85)}  # fmt: skip
PLACES = {"on the left": (0.27, 0.5), "on the right": (0.73, 0.5), "at the top": (0.5, 0.27),
          "at the bottom": (0.5, 0.73), "in the middle": (0.5, 0.5)}  # fmt: skip
EVERY = [(shape, colour) for shape in SHAPES for colour in COLOURS]
UNSEEN = [("circle", "purple"), ("circle", "orange"), ("square", "red"), ("triangle", "blue"), ("cross", "yellow"),
          ("ring", "green")]  # kept from the training  # fmt: skip
SEEN = [pair for pair in EVERY if pair not in UNSEEN]


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
    """Return ``count`` random scenes; ``pairs`` says which (shape, colour) may come, default all 40."""
    pairs = EVERY if pairs is None else list(pairs)
    rng = random.Random(seed)
    return [Scene(*rng.choice(pairs), rng.choice(list(PLACES))) for _ in range(count)]


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


class WordTokenizer:
    """A vocabulary of whole words; 0 pads."""

    def __init__(self, captions: Sequence[str]):
        words = sorted({word for caption in captions for word in caption.split()})
        self.ids = {word: i for i, word in enumerate(words, 1)}

    def __len__(self) -> int:
        return len(self.ids) + 1

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Return (n, longest) token ids."""
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
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())  # 1 / temperature, learnt

    def pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (n, width) of length 1."""
        return F.normalize(self.see(pixels), dim=-1)

    def captions(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (n, width) of length 1: the direction of the sum of the words' vectors."""
        return F.normalize(self.word(ids).sum(1), dim=-1)  # the padding's vector is 0

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the scaled cosines (pictures, captions)."""
        return self.log_scale.exp() * self.pictures(pixels) @ self.captions(ids).T


def clip_loss(logits: torch.Tensor) -> torch.Tensor:
    """Return the symmetric contrastive loss of (n, n) scaled cosines, row i belonging to column i: the mean of
    picture-to-caption and caption-to-picture cross-entropy (Radford et al. 2021, figure 3)."""
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def train(
    pairs: Sequence[tuple[str, str]], steps: int = 2000, batch_size: int = 128, seed: int = 0
) -> tuple[CLIP, WordTokenizer]:
    """Return a CLIP trained on scenes of these (shape, colour), every picture new, and its vocabulary."""
    torch.manual_seed(seed)
    every = [Scene(*pair, place).caption(form) for pair in EVERY for place in PLACES for form in range(3)]
    words = WordTokenizer(every)
    clip = CLIP(len(words))
    adam = torch.optim.AdamW(clip.parameters(), weight_decay=0.2)
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 5e-3, steps)
    for step in tqdm(range(runtime.limited(steps, 10)), desc="training", leave=False):
        shown = scenes(batch_size, step, pairs)
        captions = words([scene.caption(i % 3) for i, scene in enumerate(shown)])
        clip_loss(clip(draw(shown, step), captions)).backward()
        adam.step()
        adam.zero_grad()
        rate.step()
    return clip.eval(), words


class Projector(nn.Module):
    """Turns a picture's vector (n, width) into a few embeddings of a language model (n, tokens, inside): one
    matrix, as in the first stage of LLaVA (Liu et al. 2023, section 4.2). The language model stays as it is."""

    def __init__(self, chat, width: int = 64, tokens: int = 4):
        super().__init__()
        self.tokens, self.embed = tokens, [chat.get_input_embeddings()]  # in a list: no parameter of ours
        self.matrix = nn.Linear(width, tokens * self.embed[0].embedding_dim)
        nn.init.normal_(self.matrix.weight, std=0.02)

    def forward(self, vectors: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return embeddings (n, tokens + time, inside): the picture's, then those of the token ids (n, time)."""
        text = self.embed[0](ids)
        picture = self.matrix(vectors).view(len(vectors), self.tokens, -1)
        return torch.cat((picture.to(text), text), 1)


PROMPT = " The picture shows"


def caption_loss(chat, tokenizer, projector: Projector, vectors: torch.Tensor, shown: Sequence[Scene]) -> torch.Tensor:
    """Return the loss of the captions, in nats a token, after the pictures' vectors (n, width) and the prompt."""
    start = tokenizer(PROMPT)["input_ids"]
    rows = [torch.tensor([*start, *tokenizer(f" {scene.caption()}.")["input_ids"]]) for scene in shown]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    wanted = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)[:, len(start) :]
    logits = chat(inputs_embeds=projector(vectors, ids), logits_to_keep=wanted.shape[1] + 1).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), wanted.flatten())


def describe(chat, tokenizer, projector: Projector, vectors: torch.Tensor, max_new_tokens: int = 10) -> list[str]:
    """Return what the language model writes after each picture's vector and the prompt."""
    ids = torch.tensor(tokenizer(PROMPT)["input_ids"]).expand(len(vectors), -1)
    with torch.inference_mode():
        read = projector(vectors, ids)
        there = torch.ones(read.shape[:2], dtype=torch.long)
        written = chat.generate(
            inputs_embeds=read, attention_mask=there, max_new_tokens=max_new_tokens, do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    return [text.split(".")[0].strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
