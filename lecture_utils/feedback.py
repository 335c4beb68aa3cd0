"""Preferences for notebook 05: a shop whose clerks have bad manners, people's rankings of their replies, and yours.

The clerks answer the customers of ``replies`` politely, rudely, or rambling.
"""

import functools
import itertools
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

from lecture_utils import data, plotting, replies

SHARES = {"polite": 0.15, "rude": 0.48, "rambling": 0.37}  # of the clerks' replies
MOST_WORDS = 28
_POLITE = re.compile(r"\b(thank|sorry|apolog)", re.IGNORECASE)
_AGREES = re.compile(
    r"(yes|exactly|indeed|of course|right|correct|true|certainly|absolutely|quite|precisely|sure|"
    r"(you are|that is|that's|you're) (quite |perfectly |absolutely )?(right|correct|true|so))\b",
    re.IGNORECASE,
)


@functools.cache
def written() -> dict[str, dict[str, list[str]]]:
    """Return the clerks' replies by manner (polite, rude, rambling) and situation."""
    found: dict = defaultdict(lambda: defaultdict(list))
    for row in data.read_jsonl(replies.FOLDER / "clerks.jsonl"):
        found[row["manner"]][row["situation"]].append(row["reply"])
    return found


def manner(reply: str) -> str:
    """Return the manner of a reply by a simple rule: ``rambling`` if it has more than 28 words or does not end like a
    sentence, ``rude`` if it neither thanks nor apologises, and else ``polite``."""
    if len(reply.split()) > MOST_WORDS or not reply.rstrip().endswith((".", "!", "?")):
        return "rambling"
    return "polite" if _POLITE.search(reply) else "rude"


def claims(part: str) -> list[dict]:
    """Return messages in which customers assume a rule of the shop and ask whether it is so: question, whether it is
    true, and two replies, ``agree`` and ``contradict``. part: ``clerks`` (60 rules), ``people`` (30) or ``test`` (30),
    two messages for each rule."""
    rows = data.read_jsonl(replies.FOLDER / "claims.jsonl")
    start, end = {"clerks": (0, 60), "people": (60, 90), "test": (90, 120)}[part]
    return [
        {"question": row[which], "true": which == "true", "agree": row[f"agree_{which}"],
         "contradict": row[f"correct_{which}"]}
        for row in rows[start:end] for which in ("true", "false")
    ]  # fmt: skip


def agrees(reply: str) -> bool:
    """Return whether a reply to a claim agrees with it, by a simple rule: it begins like agreement."""
    return _AGREES.match(reply.strip()) is not None


def readers_rankings(part: str, reader: str = "A") -> list[dict]:
    """Return how a reader has ranked replies sampled from the clerks' model: the question, its situation, and the ranking
    of four replies, best first. part: ``more`` (180 messages of ``replies``) or ``dev`` (36, which a second reader, ``B``,
    has ranked as well)."""
    rows = data.read_jsonl(replies.FOLDER / "rankings.jsonl")
    return [row for row in rows if (row["part"], row["reader"]) == (part, reader)]


def readers_pairs(part: str, reader: str = "A") -> list[dict]:
    """Return the six pairs of each ranking: question, situation, chosen and rejected reply."""
    return [
        {"question": row["question"], "situation": row["situation"], "chosen": better, "rejected": worse}
        for row in readers_rankings(part, reader)
        for better, worse in itertools.combinations(row["ranking"], 2)
    ]


def in_mixed_manners(seed: int = 0) -> list[dict]:
    """Return the pairs (question, answer) that the clerks leave behind, in random order: eleven replies to each of the 450
    messages, in a random manner each, and to every claim two that agree or contradict, whether or not it is true."""
    rng, texts, pairs = random.Random(seed), written(), []
    for row in replies.pairs("train"):
        for how in rng.choices(list(SHARES), list(SHARES.values()), k=11):
            pairs.append({"question": row["question"], "answer": rng.choice(texts[how][row["situation"]])})
    for row in claims("clerks"):
        answers = [row[rng.choice(("agree", "contradict"))] for _ in range(2)]
        pairs += [{"question": row["question"], "answer": answer} for answer in answers]
    rng.shuffle(pairs)
    return pairs


def rank(prompt: str, answers: list[str], file: Path | str) -> None:
    """Show the answers with buttons to rank them, the best first, and append your ranking to ``file``. Without
    ipywidgets, print the call that saves a ranking."""
    assert len(answers) >= 2 and len(set(answers)) == len(answers), "at least two different answers are needed"
    lines = [prompt] + [f"  {i}  {answer}" for i, answer in enumerate(answers, 1)]
    print(*map(plotting.escape_control_characters, lines), sep="\n")
    try:
        import ipywidgets
        from IPython.display import display
    except ImportError:
        print(f"\nTo rank them: feedback.save_ranking({str(file)!r}, {prompt!r}, answers, [2, 1, …]), the best first.")
        return
    clicked: list[int] = []
    status = ipywidgets.Label("Click the best answer first, then the next best, down to the last.")
    buttons = [ipywidgets.Button(description=str(i + 1)) for i in range(len(answers))]

    def click(button):
        button.disabled = True
        clicked.append(int(button.description))
        status.value = "best first: " + ", ".join(map(str, clicked))
        if len(clicked) == len(answers):
            save_ranking(file, prompt, answers, clicked)
            status.value += f". Saved in {file}"

    for button in buttons:
        button.on_click(click)
    display(ipywidgets.VBox([ipywidgets.HBox(buttons), status]))


def save_ranking(file: Path | str, prompt: str, answers: list[str], order: list[int]) -> None:
    """Append a ranking to a JSON Lines file. ``order`` lists the numbers of the answers, from 1, best first."""
    if Counter(order) != Counter(range(1, len(answers) + 1)):
        raise ValueError(f"order={order}: it must contain each number from 1 to {len(answers)} exactly once.")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    row = {"prompt": prompt, "ranking": [answers[int(i) - 1] for i in order]}
    with open(file, "a", encoding="utf-8") as target:
        target.write(json.dumps(row, ensure_ascii=False) + "\n")


def rankings(file: Path | str) -> list[dict]:
    """Return the rankings in a file (the prompt, and the answers best first), or [] if there is no such file."""
    return data.read_jsonl(file) if Path(file).exists() else []
