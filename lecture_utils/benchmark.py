"""A multiple-choice benchmark of our own: 140 facts of this course and 160 of the shop's handbook, with four options each."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lecture_utils import data, runtime, shop

LETTERS = "ABCD"
# How a question is put. The options are listed only if the answer is a letter. {options} ends with a line break.
PROMPTS = {
    "Question: … Answer:": "Question: {question}\n{options}Answer:",
    "Q: … A:": "Q: {question}\n{options}A:",
    "an exam": "The following question is from an exam.\n\n{question}\n{options}\nThe correct answer is:",
    "nothing around it": "{question}\n{options}\n",
    "chat": "{question}\n{options}",  # inside the chat template
}


@dataclass(frozen=True)
class Item:
    """A question with its options. ``gold`` is the position of the right one, ``key`` what a free answer must contain, and
    ``answer`` the right answer as a sentence, which contains the right option."""

    id: str
    question: str
    options: tuple[str, ...]
    gold: int
    key: str
    answer: str
    phrasings: tuple[str, ...] = ()  # other ways to ask the same; only the handbook's items have them

    def listed(self) -> str:
        """Return the options with their letters, one in each line."""
        return "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, self.options, strict=True))

    def sentence(self, i: int) -> str:
        """Return the answer with option ``i`` in place of the right one."""
        at = self.answer.lower().index(self.options[self.gold].lower())
        option = self.options[i] if at else self.options[i][0].upper() + self.options[i][1:]
        return self.answer[:at] + option + self.answer[at + len(self.options[self.gold]) :]


def items(part: str, seed: int = 0) -> list[Item]:
    """Return the items on the ``course`` (asked in words that no adapter was trained on) or on the ``handbook``. The order
    of the options is random."""
    if part == "course":
        rows = [row | {"questions": [row["question"]]} for row in data.lecture_qa()["test"]]
    else:
        rows = shop.handbook_questions()
    options = {row["id"]: row for row in data.read_jsonl(data.ASSETS / "benchmark" / "options.jsonl")}
    rng, made = random.Random(seed), []
    for row in rows:
        four = [options[row["id"]]["right"], *options[row["id"]]["wrong"]]
        order = rng.sample(range(4), 4)
        question, *phrasings = row["questions"]
        mixed = tuple(four[i] for i in order)
        made.append(Item(row["id"], question, mixed, order.index(0), row["key"], row["answer"], tuple(phrasings)))
    return made


def with_options_of_others(these: Sequence[Item], seed: int = 0) -> list[Item]:
    """Return the items with wrong options that are *right* answers to other questions of the same kind (numbers, names
    with a capital letter, other words). A model that has merely seen the right options before gains nothing from it."""
    rng, made = random.Random(seed), []
    for item in these:
        right = item.options[item.gold]
        others = {o.options[o.gold] for o in these if _kind(o) == _kind(item)} - {right}
        four = [right, *rng.sample(sorted(others), 3)]
        order = rng.sample(range(4), 4)
        made.append(replace(item, options=tuple(four[i] for i in order), gold=order.index(0)))
    return made


@dataclass(frozen=True)
class Vote:
    """Somebody preferred the answer of one system to that of another. The answers are in the record ``13_answers``."""

    id: str  # of the question
    winner: str
    loser: str


def votes(voter: str = "customer") -> list[Vote]:
    """Return 600 votes on the answers of six systems to customers' questions, by a ``customer`` who does not know the
    handbook, or by one who was shown the passage (``with_handbook``)."""
    rows = data.read_jsonl(data.ASSETS / "benchmark" / "votes.jsonl")
    return [Vote(row["id"], *((row["a"], row["b"]) if row[voter] == "a" else (row["b"], row["a"]))) for row in rows]


def _kind(item: Item) -> str:
    right = item.options[item.gold]
    return "number" if any(c.isdigit() for c in right) else "name" if right[0].isupper() else "words"


def context(tokenizer, item: Item, prompt: str = "Question: … Answer:", listed: bool = False) -> str:
    """Return the text that stands before the answer. ``listed``: the options are shown, and the answer is a letter."""
    text = PROMPTS[prompt].format(question=item.question, options=item.listed() if listed else "")
    return data.render(tokenizer, text.rstrip())[0] if prompt == "chat" else text


def space(prompt: str) -> str:
    """Return what stands between the context and the answer."""
    return " " if PROMPTS[prompt].endswith(":") else ""


def option_log_likelihoods(model, tokenizer, before: str, options: Sequence[str]) -> list[float]:
    """Return log p(option | text before) in nats for each option, summed over its tokens.

    The text before is read once; its keys and values are then used for all options. It is tokenized together with each
    option, as the evaluation harness does.
    """
    import torch

    start = tokenizer(before, add_special_tokens=False)["input_ids"]
    rows = [tokenizer(before + o, add_special_tokens=False)["input_ids"][len(start) :] for o in options]
    longest = max(map(len, rows))
    with torch.inference_mode():
        out = model(torch.tensor([start], device=model.device), use_cache=True, logits_to_keep=1)
        first = out.logits[0, -1].float().log_softmax(-1)
        sums = [first[row[0]].item() for row in rows]
        if longest > 1:
            out.past_key_values.batch_repeat_interleave(len(rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
            log_p = model(ids[:, :-1], past_key_values=out.past_key_values).logits.float().log_softmax(-1)
            for i, row in enumerate(rows):
                sums[i] += log_p[i, range(len(row) - 1), row[1:]].sum().item()
    return sums


def score_options(model, tokenizer, these: Sequence[Item], prompt: str = "Question: … Answer:", listed: bool = False):
    """Return the log-likelihoods of all options, (items, 4), in nats: of the letters if the options are ``listed``, or
    else of the options themselves."""
    import torch
    from tqdm.auto import tqdm

    few, gap = runtime.few(these), space(prompt)
    rows = [
        option_log_likelihoods(
            model, tokenizer, context(tokenizer, item, prompt, listed),
            [gap + text for text in (LETTERS if listed else item.options)],
        )
        for item in tqdm(few, desc="scoring", leave=False, disable=len(few) < 20)
    ]  # fmt: skip
    return runtime.spread(torch.tensor(rows), len(these))
