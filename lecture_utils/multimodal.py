"""For notebook 12: pictures drawn by code, a small CLIP (two encoders that learn to map a picture and its caption to
similar vectors; Radford et al. 2021), and a projector from its vectors into a language model."""

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
          ("ring", "green")]  # held out from training  # fmt: skip
SEEN = [pair for pair in EVERY if pair not in UNSEEN]


@dataclass(frozen=True)
class Scene:
    """What a picture shows: a shape of one colour in one place."""

    shape: str
    colour: str
    place: str

    def caption(self, form: int = 0) -> str:
        """Return one of three captions with the same meaning."""
        shape, colour, place = self.shape, self.colour, self.place
        what = f"{'an' if colour == 'orange' else 'a'} {colour} {shape}"
        return (f"{what} {place}", f"{place} there is {what}", f"a {shape} {place} , {colour}")[form]


def scenes(count: int, seed: int = 0, pairs: Sequence[tuple[str, str]] | None = None) -> list[Scene]:
    """Return ``count`` random scenes whose (shape, colour) is one of ``pairs``, by default one of all 40."""
    pairs = EVERY if pairs is None else list(pairs)
    rng = random.Random(seed)
    return [Scene(*rng.choice(pairs), rng.choice(list(PLACES))) for _ in range(count)]


def draw(shown: Sequence[Scene], seed: int = 0, size: int = 24) -> torch.Tensor:
    """Draw the scenes as pictures (n, 3, size, size) with values from 0 to 1. The size, exact place and shade of the
    shape, the background and the noise vary from picture to picture."""
    generator = torch.Generator().manual_seed(seed)

    def vary(*shape) -> torch.Tensor:  # uniform from -1 to 1
        return torch.rand(len(shown), *shape, generator=generator) * 2 - 1

    grid = torch.linspace(0, 1, size)
    centre = torch.tensor([PLACES[s.place] for s in shown]) + 0.06 * vary(2)  # (n, 2): x, y
    half = 0.17 + 0.04 * vary(1, 1)  # (n, 1, 1): half the width of the shape
    x = (grid[None, None, :] - centre[:, 0, None, None]) / half  # (n, 1, size)
    y = (grid[None, :, None] - centre[:, 1, None, None]) / half  # (n, size, 1)
    radius, distance = (x**2 + y**2).sqrt(), torch.maximum(x.abs(), y.abs())
    inside = {  # (n, size, size) each
        "circle": radius < 1,
        "square": distance < 0.88,
        "triangle": (y < 0.85) & (y > -1) & (x.abs() < (y + 1) * 0.55),
        "cross": (distance < 1) & (torch.minimum(x.abs(), y.abs()) < 0.34),
        "ring": (radius < 1.05) & (radius > 0.55),
    }
    mask = torch.stack([inside[s.shape][i] for i, s in enumerate(shown)])[:, None].float()  # (n, 1, size, size)
    colour = torch.tensor([COLOURS[s.colour] for s in shown]) + 0.1 * vary(3)
    background = 0.5 + 0.4 * vary(1, 1, 1)
    picture = mask * colour[:, :, None, None] + (1 - mask) * background
    return (picture + 0.05 * vary(3, size, size)).clamp(0, 1)


class WordTokenizer:
    """A tokenizer with a vocabulary of whole words; id 0 is the padding."""

    def __init__(self, captions: Sequence[str]):
        words = sorted({word for caption in captions for word in caption.split()})
        self.ids = {word: i for i, word in enumerate(words, 1)}

    def __len__(self) -> int:
        return len(self.ids) + 1

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Return the token ids (n, length of the longest caption)."""
        rows = [torch.tensor([self.ids[word] for word in caption.split()]) for caption in captions]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


class CLIP(nn.Module):
    """Two encoders into one space: a convolutional network for pictures (n, 3, 24, 24), and the sum of the word
    embeddings for captions (n, time)."""

    def __init__(self, vocabulary: int, width: int = 64):
        super().__init__()
        self.see = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 2, 1),
            nn.ReLU(), nn.Flatten(), nn.Linear(64 * 9, 128), nn.ReLU(), nn.Linear(128, width),
        )  # fmt: skip
        self.word = nn.Embedding(vocabulary, width, padding_idx=0)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())  # of 1 / temperature, which is learned

    def pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the pictures' vectors (n, width), of length 1."""
        return F.normalize(self.see(pixels), dim=-1)

    def captions(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the captions' vectors (n, width), of length 1."""
        return F.normalize(self.word(ids).sum(1), dim=-1)  # the embedding of the padding is 0

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the cosine similarities (pictures, captions), divided by the temperature."""
        return self.log_scale.exp() * self.pictures(pixels) @ self.captions(ids).T


def clip_loss(logits: torch.Tensor) -> torch.Tensor:
    """Return the symmetric contrastive loss of (n, n) scaled cosines in which row i belongs to column i: the mean of
    the cross-entropies from picture to caption and from caption to picture (Radford et al. 2021, figure 3)."""
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def train(
    pairs: Sequence[tuple[str, str]], steps: int = 2000, batch_size: int = 128, seed: int = 0
) -> tuple[CLIP, WordTokenizer]:
    """Train a CLIP on scenes of these (shape, colour) pairs, drawn anew in every step; return it with its tokenizer."""
    torch.manual_seed(seed)
    captions = [Scene(*pair, place).caption(form) for pair in EVERY for place in PLACES for form in range(3)]
    tokenizer = WordTokenizer(captions)
    clip = CLIP(len(tokenizer))
    optimizer = torch.optim.AdamW(clip.parameters(), weight_decay=0.2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for step in tqdm(range(runtime.limited(steps, 10)), desc="training", leave=False):
        batch = scenes(batch_size, step, pairs)
        ids = tokenizer([scene.caption(i % 3) for i, scene in enumerate(batch)])
        clip_loss(clip(draw(batch, step), ids)).backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return clip.eval(), tokenizer


class Projector(nn.Module):
    """One matrix that turns a picture's vector (n, width) into a few input embeddings of a language model, as in the
    first stage of LLaVA (Liu et al. 2023, section 4.2). The language model itself is not trained."""

    def __init__(self, chat, width: int = 64, tokens: int = 4):
        super().__init__()
        self.tokens = tokens
        self.embed = [chat.get_input_embeddings()]  # in a list, so that the projector's parameters exclude its weights
        self.matrix = nn.Linear(width, tokens * self.embed[0].embedding_dim)
        nn.init.normal_(self.matrix.weight, std=0.02)

    def forward(self, vectors: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return embeddings (n, tokens + time, model width): the pictures', then those of the token ids (n, time)."""
        text = self.embed[0](ids)
        picture = self.matrix(vectors).view(len(vectors), self.tokens, -1)
        return torch.cat((picture.to(text), text), 1)


PROMPT = " The picture shows"


def caption_loss(chat, tokenizer, projector: Projector, vectors: torch.Tensor, shown: Sequence[Scene]) -> torch.Tensor:
    """Return the loss of the captions, in nats per token, given the pictures' vectors (n, width) and the prompt."""
    prompt = tokenizer(PROMPT)["input_ids"]
    rows = [torch.tensor([*prompt, *tokenizer(f" {scene.caption()}.")["input_ids"]]) for scene in shown]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)[:, len(prompt) :]
    logits = chat(inputs_embeds=projector(vectors, ids), logits_to_keep=labels.shape[1] + 1).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def describe(chat, tokenizer, projector: Projector, vectors: torch.Tensor, max_new_tokens: int = 10) -> list[str]:
    """Return what the language model writes after each picture's vector and the prompt, up to the first full stop."""
    ids = torch.tensor(tokenizer(PROMPT)["input_ids"]).expand(len(vectors), -1)
    with torch.inference_mode():
        embeddings = projector(vectors, ids)
        attention_mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        written = chat.generate(inputs_embeds=embeddings, attention_mask=attention_mask, **options)
    return [text.split(".")[0].strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
