"""For notebook 12: pictures drawn by code, a small CLIP (two encoders that learn to map a picture and its caption to
similar vectors; Radford et al. 2021), and a projector from its patches into a language model (Liu et al. 2023)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm.auto import tqdm

from lecture_utils import runtime
from lecture_utils.transformer import EncoderLayer, sinusoids

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {"red": (0.85, 0.15, 0.1), "green": (0.1, 0.65, 0.2), "blue": (0.1, 0.25, 0.85),
           "yellow": (0.95, 0.85, 0.1), "purple": (0.55, 0.15, 0.65), "orange": (0.95, 0.5, 0.05),
           "pink": (0.95, 0.55, 0.75), "cyan": (0.2, 0.8, 0.85)}  # fmt: skip
PLACES = {"on the left": (0.27, 0.5), "on the right": (0.73, 0.5), "at the top": (0.5, 0.27),
          "at the bottom": (0.5, 0.73), "in the middle": (0.5, 0.5)}  # fmt: skip
EVERY = [(shape, colour) for shape in SHAPES for colour in COLOURS]
DEVELOPMENT = [("circle", "purple"), ("circle", "orange"), ("square", "red"), ("triangle", "blue"), ("cross", "yellow"),
               ("ring", "green")]  # never trained on; all choices were made on them  # fmt: skip
UNSEEN = [("square", "blue"), ("cross", "green"), ("triangle", "red"), ("ring", "purple"), ("cross", "pink"),
          ("triangle", "cyan")]  # drawn at random, never trained on, and used for no choice  # fmt: skip
SEEN = [pair for pair in EVERY if pair not in DEVELOPMENT + UNSEEN]
FORMS = 3  # captions of the same meaning


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one thing, a (shape, colour), in a place, or two things, the left one first."""

    things: tuple[tuple[str, str], ...]
    place: str = ""

    def caption(self, form: int = 0) -> str:
        """Return one of three captions with the same meaning."""
        first, *second = (f"{'an' if colour == 'orange' else 'a'} {colour} {shape}" for shape, colour in self.things)
        if second:
            return (f"{first} left of {second[0]}", f"{second[0]} right of {first}",
                    f"on the left {first} , on the right {second[0]}")[form]  # fmt: skip
        shape, colour = self.things[0]
        return (f"{first} {self.place}", f"{self.place} there is {first}", f"a {shape} {self.place} , {colour}")[form]


def scenes(count: int, seed: int = 0, pairs: Sequence[tuple[str, str]] = EVERY, two: float = 0.3) -> list[Scene]:
    """Return ``count`` random scenes of things whose (shape, colour) is one of ``pairs``; a share ``two`` has two."""
    rng = random.Random(seed)

    def scene():
        if rng.random() < two:
            return Scene((rng.choice(pairs), rng.choice(pairs)))
        return Scene((rng.choice(pairs),), rng.choice(list(PLACES)))

    return [scene() for _ in range(count)]


def draw(shown: Sequence[Scene], seed: int = 0, size: int = 24) -> torch.Tensor:
    """Draw the scenes as pictures (n, 3, size, size) with values from 0 to 1. The size, exact place and shade of the
    shapes, the background and the noise vary from picture to picture."""
    generator = torch.Generator().manual_seed(seed)

    def vary(*shape) -> torch.Tensor:  # uniform from -1 to 1
        return torch.rand(len(shown), *shape, generator=generator) * 2 - 1

    picture = (0.5 + 0.4 * vary(1, 1, 1)).expand(-1, 3, size, size)
    for which, side in enumerate(("on the left", "on the right")):
        there = torch.tensor([len(scene.things) > which for scene in shown])
        things = [scene.things[min(which, len(scene.things) - 1)] for scene in shown]
        places = [PLACES[scene.place or side] for scene in shown]
        inside = _inside(things, torch.tensor(places) + 0.06 * vary(2), 0.17 + 0.04 * vary(1, 1), size)
        mask = (inside & there[:, None, None])[:, None].float()  # (n, 1, size, size)
        colour = torch.tensor([COLOURS[colour] for _, colour in things]) + 0.1 * vary(3)
        picture = mask * colour[:, :, None, None] + (1 - mask) * picture
    return (picture + 0.05 * vary(3, size, size)).clamp(0, 1)


def _inside(things, centre, half, size: int) -> torch.Tensor:
    """Return which pixels lie inside each shape (n, size, size). ``half`` (n, 1, 1): half the width of a shape."""
    grid = torch.linspace(0, 1, size)
    x = (grid[None, None, :] - centre[:, 0, None, None]) / half  # (n, 1, size)
    y = (grid[None, :, None] - centre[:, 1, None, None]) / half  # (n, size, 1)
    radius, distance = (x**2 + y**2).sqrt(), torch.maximum(x.abs(), y.abs())
    shapes = {
        "circle": radius < 1,
        "square": distance < 0.88,
        "triangle": (y < 0.85) & (y > -1) & (x.abs() < (y + 1) * 0.55),
        "cross": (distance < 1) & (torch.minimum(x.abs(), y.abs()) < 0.34),
        "ring": (radius < 1.05) & (radius > 0.55),
    }
    return torch.stack([shapes[shape][i] for i, (shape, _) in enumerate(things)])


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


class OrderedText(nn.Module):
    """A causal transformer over the words of a caption, ids (n, time). The vector (n, width) is the state of the last
    word, which has seen all others and their order (CLIP takes the end-of-text token)."""

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.word = nn.Embedding(vocabulary, width, padding_idx=0)
        nn.init.normal_(self.word.weight, std=0.3)
        self.layers = nn.ModuleList(EncoderLayer(width, 4, 2 * width, 0.0, pre_norm=True) for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        h = self.word(ids) + 0.3 * sinusoids(ids.shape[1], self.word.embedding_dim)
        for layer in self.layers:
            h = layer(h, causal=True)
        return h[torch.arange(len(ids)), (ids != 0).sum(1) - 1]


class WordSum(nn.Module):
    """The sum of the embeddings of a caption's words, which is the same for every order of them."""

    def __init__(self, vocabulary: int, width: int):
        super().__init__()
        self.word = nn.Embedding(vocabulary, width, padding_idx=0)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.word(ids).sum(1)  # the embedding of the padding is 0


class CLIP(nn.Module):
    """Two encoders into one space: a convolutional network for pictures (n, 3, 24, 24), and one for captions (n, time)."""

    def __init__(self, vocabulary: int, width: int = 64, text_encoder=OrderedText):
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(64, 64, 3, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(9 * 64, 128), nn.ReLU(), nn.Linear(128, width))
        self.text = text_encoder(vocabulary, width)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())  # of 1 / temperature, which is learned

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features (n, 9, 64) of the 3 x 3 patches, row by row."""
        return self.look(pixels).flatten(2).transpose(1, 2)

    def pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the pictures' vectors (n, width), of length 1."""
        return F.normalize(self.head(self.patches(pixels).flatten(1)), dim=-1)

    def captions(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the captions' vectors (n, width), of length 1."""
        return F.normalize(self.text(ids), dim=-1)

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return the cosine similarities (pictures, captions), divided by the temperature."""
        return self.log_scale.exp() * self.pictures(pixels) @ self.captions(ids).T


def clip_loss(logits: torch.Tensor) -> torch.Tensor:
    """Return the symmetric contrastive loss of (n, n) scaled cosines in which row i belongs to column i: the mean of
    the cross-entropies from picture to caption and from caption to picture (Radford et al. 2021, figure 3)."""
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


@cache
def vocabulary() -> WordTokenizer:
    """Return a tokenizer that knows the words of every caption."""
    one = [Scene((pair,), place) for pair in EVERY for place in PLACES]
    two = [Scene((EVERY[0], EVERY[1]))]
    return WordTokenizer([scene.caption(form) for scene in one + two for form in range(FORMS)])


def train(
    pairs: Sequence[tuple[str, str]] = SEEN, steps: int = 2000, batch_size: int = 128, seed: int = 0, text_encoder=OrderedText
) -> CLIP:  # fmt: skip
    """Train a CLIP on scenes of things from these (shape, colour) pairs, drawn anew in every step."""
    torch.manual_seed(seed)
    tokenizer = vocabulary()
    clip = CLIP(len(tokenizer), text_encoder=text_encoder)
    optimizer = torch.optim.AdamW(clip.parameters(), weight_decay=0.2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in tqdm(range(runtime.limited(steps, 10)), desc="training", leave=False):
        batch = scenes(batch_size, seed * 10**6 + step, pairs)
        ids = tokenizer([scene.caption(i % FORMS) for i, scene in enumerate(batch)])
        clip_loss(clip(draw(batch, seed * 10**6 + step), ids)).backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    return clip.eval()


def similarities(clip: CLIP, pixels: torch.Tensor, captions: Sequence[str]) -> torch.Tensor:
    """Return the cosines (n, captions) between pictures (n, 3, 24, 24) and captions."""
    with torch.inference_mode():
        return clip.pictures(pixels) @ clip.captions(vocabulary()(captions)).T


class Projector(nn.Module):
    """One matrix that turns vectors of a picture (n, vectors, features) into ``tokens`` input embeddings each, for a
    language model that is not trained itself. LLaVA projects each patch (Liu et al. 2023, section 4.1), and Frozen one
    vector of the whole picture into two embeddings (Tsimpoukelli et al. 2021, section 3.1)."""

    def __init__(self, chat, features: int = 64, tokens: int = 1):
        super().__init__()
        self.embed = [chat.get_input_embeddings()]  # in a list, so that the projector's parameters exclude its weights
        self.matrix = nn.Linear(features, tokens * self.embed[0].embedding_dim)
        nn.init.normal_(self.matrix.weight, std=0.02)

    def forward(self, picture: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Return embeddings (n, vectors * tokens + time, model width): the picture's, then those of the token ids."""
        text = self.embed[0](ids)  # (n, time, model width)
        soft = self.matrix(picture).view(len(picture), -1, text.shape[-1])
        return torch.cat((soft.to(text), text), 1)


PROMPT = " The picture shows"


def caption_loss(chat, tokenizer, projector: Projector, picture: torch.Tensor, shown: Sequence[Scene]) -> torch.Tensor:
    """Return the loss of the captions, in nats per token, given the pictures' vectors (n, vectors, 64) and the prompt."""
    prompt = tokenizer(PROMPT)["input_ids"]
    rows = [torch.tensor([*prompt, *tokenizer(f" {scene.caption()}.")["input_ids"]]) for scene in shown]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    labels = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)[:, len(prompt) :]
    logits = chat(inputs_embeds=projector(picture, ids), logits_to_keep=labels.shape[1] + 1).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


def describe(chat, tokenizer, projector: Projector, picture: torch.Tensor, max_new_tokens: int = 12) -> list[str]:
    """Return what the language model writes after each picture's vectors and the prompt, up to the first full stop."""
    ids = torch.tensor(tokenizer(PROMPT)["input_ids"]).expand(len(picture), -1)
    with torch.inference_mode():
        embeddings = projector(picture, ids)
        attention_mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        written = chat.generate(inputs_embeds=embeddings, attention_mask=attention_mask, **options)
    return [text.split(".")[0].strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
