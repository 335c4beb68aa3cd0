"""Reasoning on a small scale: a lock with four dials, solved step by step, and its solutions (notebook 14).

A lock shows four digits, and a list of moves changes them: ``L`` moves all digits one place to the left (the first
becomes the last), ``S`` swaps the first two, ``+`` turns the first dial up by three and ``-`` down by one. Three kinds of
writers solve such problems: ``careful`` ones move by move, ``hasty`` ones two moves at a time, and those who write the
answer ``at once``. A solution ends with ``#``, the digits that the lock shows and a full stop. Shapes: B solutions with T
tokens. ``grpo`` trains with rewards.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from lecture_utils import downloads, runtime
from lecture_utils.transformer import Llama, LlamaConfig

VOCABULARY = " 0123456789LS+-;?#."  # a token is a character, and the blank is the padding
IDS = {character: i for i, character in enumerate(VOCABULARY)}
PAD, END = IDS[" "], IDS["."]
WIDTHS = {"careful": 1, "hasty": 2, "at once": 0}  # how many moves a step takes
SHARES = {"careful": 0.25, "hasty": 0.50, "at once": 0.25}  # of the writers in the packaged model's corpus
FORGOTTEN = {"careful": 0.1, "hasty": 0.7, "at once": 0.0}  # how often they overlook a swap
LONGEST = 60  # tokens of a solution. Eight careful moves need 54


def turned(digits: str, move: str) -> str:
    """Return what a lock that shows ``digits`` shows after a move."""
    if move == "L":
        return digits[1:] + digits[0]
    if move == "S":
        return digits[1] + digits[0] + digits[2:]
    return str((int(digits[0]) + {"+": 3, "-": -1}[move]) % 10) + digits[1:]


@dataclass(frozen=True)
class Problem:
    """What does a lock that shows ``digits`` show after these moves?"""

    digits: str
    moves: str

    @property
    def question(self) -> str:
        return f"{self.digits}{self.moves}?"

    @property
    def answer(self) -> str:
        shown = self.digits
        for move in self.moves:
            shown = turned(shown, move)
        return shown


def problems(moves: int | Sequence[int], seed: int = 0, without: Sequence[Problem] = ()) -> Iterator[Problem]:
    """Yield random problems for ever, each with one of these numbers of moves."""
    rng, seen = random.Random(seed), set(without)
    lengths = [moves] if isinstance(moves, int) else list(moves)
    while True:
        digits = "".join(rng.choice("0123456789") for _ in range(4))
        problem = Problem(digits, "".join(rng.choice("LS+-") for _ in range(rng.choice(lengths))))
        if problem not in seen:
            yield problem


def held_out(count: int, moves: int = 8) -> list[Problem]:
    """Return ``count`` different test problems, always the same ones."""
    assert count <= 4**moves * 5_000, "there are not so many different problems"
    found: dict = {}
    for problem in problems(moves, seed=2023):
        found[problem] = None
        if len(found) == count:
            return list(found)


def solution(
    problem: Problem, writer: str = "careful", forgotten: float = 0.0, rng: random.Random | None = None
) -> str:
    """Return the solution of a writer who overlooks each swap with probability ``forgotten``."""
    width, shown, steps = WIDTHS[writer], problem.digits, ""
    rng = rng or random.Random(0)
    if not width:
        return f"#{problem.answer}."
    for begin in range(0, len(problem.moves), width):
        part = problem.moves[begin : begin + width]
        for move in part:
            if move != "S" or rng.random() >= forgotten:
                shown = turned(shown, move)
        steps += f"{part}{shown};"
    return f"{steps}#{shown}."


def corpus(moves: Sequence[int], seed: int, without: Sequence[Problem] = ()) -> Iterator[tuple[str, str]]:
    """Yield (question, solution) for ever: the solutions of all three kinds of writers, with their mistakes."""
    rng = random.Random(f"writers {seed}")
    for problem in problems(moves, seed, without):
        writer = rng.choices(list(SHARES), list(SHARES.values()))[0]
        yield problem.question, solution(problem, writer, FORGOTTEN[writer], rng)


def read_answer(text: str) -> str | None:
    """Return what stands between the first ``#`` and the full stop that ends the text, or None."""
    _, _, tail = text.partition("#")
    return tail[:-1] if tail.endswith(".") else None


def is_right(problem: Problem, text: str) -> bool:
    """The verifier: is the answer at the end of a solution right? It does not look at the steps."""
    return read_answer(text) == problem.answer


def steps_right(problem: Problem, text: str) -> list[bool]:
    """Return for each written step whether it takes the next moves of the problem and its digits follow from the step
    before. An answer without steps gives an empty list."""
    shown, moves, marks = problem.digits, problem.moves, []
    for step in text.split("#")[0].split(";")[:-1]:
        part = step.rstrip("0123456789")
        possible = bool(part) and moves.startswith(part) and len(shown) == 4
        expected = Problem(shown, part).answer if possible else None
        shown, moves = step[len(part) :], moves[len(part) :]
        marks.append(shown == expected)
    return marks


def writer_of(text: str) -> str:
    """Return how a solution begins: like that of a careful, of a hasty writer, or with the answer at once."""
    return "at once" if text.startswith("#") else "careful" if text[1:2].isdigit() else "hasty"


def room(asked: Sequence[Problem]) -> int:
    """Return how many tokens a careful solution of these problems may have: a few more than it needs."""
    return 6 * max(len(problem.moves) for problem in asked) + 12


def encode(text: str) -> list[int]:
    return [IDS[character] for character in text]


def decode(ids: Sequence[int]) -> str:
    return "".join(VOCABULARY[i] for i in ids).rstrip(" ")


def rows(pairs: Sequence[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ids, labels), each (B, T), of pairs (question, solution). Labels are -100 on questions and padding."""
    longest = max(len(question) + len(text) for question, text in pairs)
    ids = torch.full((len(pairs), longest), PAD)
    labels = torch.full_like(ids, -100)
    for row, (question, text) in enumerate(pairs):
        tokens = torch.tensor(encode(question + text))
        ids[row, : len(tokens)] = tokens
        labels[row, len(question) : len(tokens)] = tokens[len(question) :]
    return ids, labels


def load_start() -> Llama:
    """Return the packaged ``lock-solver``: ``new_model`` after 2,500 steps on ``corpus``, with all the writers' habits."""
    from safetensors.torch import load_file

    weights = load_file(downloads.fetch("lock-solver") / "model.safetensors")
    model = new_model()
    model.load_state_dict(weights | {"head.weight": weights["embedding.weight"]})  # the head is tied
    return model


def new_model(seed: int = 0, blocks: int = 3) -> Llama:
    """Return an untrained Llama with a width of 96; with three blocks it has 334,272 parameters."""
    torch.manual_seed(seed)
    return Llama(LlamaConfig(len(VOCABULARY), 96, 256, layers=blocks, heads=4, kv_heads=4, head_width=24))


def progress(steps: int):
    """Return a range of ``steps`` with a progress bar (at smoke scale, two steps)."""
    return tqdm(range(runtime.limited(steps, 2)), desc="training", leave=False)


def update(model, optimizer, loss: torch.Tensor) -> None:
    """Make one step down the gradient, whose norm is clipped to 1."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def train(model, pairs: Iterator[tuple[str, str]], steps: int, batch_size: int = 64, learning_rate: float = 2e-3):
    """Train on the solutions, with the loss on their tokens alone. The learning rate rises for 50 steps and then falls
    linearly. Return the losses."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01, fused=True)
    losses = []
    for step in progress(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 50, max(0.05, 1 - step / steps))
        ids, labels = rows([next(pairs) for _ in range(batch_size)])
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        update(model, optimizer, loss)
        losses.append(loss.item())
    return losses


@dataclass
class Samples:
    """Solutions that a model has written: G for each question, those of one question beside each other."""

    ids: torch.Tensor  # (B, prompt + T)
    start: int  # where the solutions begin
    texts: list[str]

    @property
    def mask(self) -> torch.Tensor:
        """(B, T), True on the tokens of the solutions, the full stop included."""
        return self.ids[:, self.start :] != PAD


@torch.no_grad()
def sample(model, starts: Sequence[str], count: int = 1, temperature: float = 1.0, longest: int = LONGEST) -> Samples:
    """Continue texts of equal length, each ``count`` times, until the full stop. Temperature 0 is greedy decoding."""
    assert len({len(text) for text in starts}) == 1, "the texts need the same length, because nothing is padded"
    ids = torch.tensor([encode(text) for text in starts]).repeat_interleave(count, 0)
    longest = runtime.limited(longest, 8)
    caches, token, ended = model.new_caches(len(ids), ids.shape[1] + longest), ids, torch.zeros(len(ids), dtype=bool)
    written = []
    for _ in range(longest):
        logits = model(token, caches=caches, last_only=True)[:, -1]
        if temperature == 0:
            token = logits.argmax(-1, keepdim=True)
        else:
            token = torch.multinomial((logits / temperature).softmax(-1), 1)
        token[ended] = PAD
        written.append(token)
        ended |= token[:, 0] == END
        if ended.all():
            break
    start = ids.shape[1]
    ids = torch.cat((ids, *written), dim=1)
    return Samples(ids, start, [decode(row[start:]) for row in ids.tolist()])


def solve(model, asked: Sequence[Problem], count: int = 1, temperature: float = 1.0, batch: int = 512):
    """Return (texts, right): the solutions of each problem, and which are right, (problems, count)."""
    texts: list[str] = []
    shown, size = runtime.few(list(asked), 2), max(1, batch // count)
    for i in range(0, len(shown), size):
        part = shown[i : i + size]
        texts += sample(model, [problem.question for problem in part], count, temperature, room(asked)).texts
    texts = runtime.spread(texts, len(asked) * count)
    groups = [texts[i : i + count] for i in range(0, len(texts), count)]
    right = torch.tensor([
        [is_right(problem, text) for text in group] for problem, group in zip(asked, groups, strict=True)
    ])  # fmt: skip
    return groups, right


def pass_at_k(right: int, total: int, k: int) -> float:
    """Return the probability that at least one of k solutions, drawn without replacement from ``total`` of which
    ``right`` are right, is right: 1 - C(total - right, k) / C(total, k) (2107.03374, section 2.1)."""
    assert 0 <= right <= total and 1 <= k <= total
    return 1 - math.comb(total - right, k) / math.comb(total, k)
