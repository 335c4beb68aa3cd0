"""The shop's letters: messages of customers, the shop's replies to them, and the rules of its house style.

A reply has two sentences. The first is polite and names the order, the second says what happens next.
"""

import functools
import random
import re
import tomllib

from lecture_utils import data, shop

FOLDER = shop.FOLDER
RULES = ("two sentences", "polite", "order number", "next step")


@functools.cache
def situations() -> dict[str, dict]:
    """Return the nine situations: the first and second sentences of the replies, and the key of a correct one."""
    return tomllib.loads((FOLDER / "replies.toml").read_text(encoding="utf-8"))


def pairs(split: str, seed: int = 0) -> list[dict]:
    """Return messages of customers with the shop's replies, in random order: question, answer, situation, order.

    split: ``train`` (450 messages), ``dev`` (36), ``test`` (72) or ``more`` (180, for notebook 05). No message of one split
    occurs in another, and of dev and test no name or article. seed: of the order numbers, articles, replies and the order of the rows.
    """
    known = shop.values("train" if split == "more" else split)
    rng, texts, rows = random.Random(seed), situations(), []
    for message in data.read_jsonl(FOLDER / "messages.jsonl"):
        if message["split"] != split:
            continue
        order, article = str(rng.randrange(10_000, 100_000)), rng.choice(known["products"])
        name, text = rng.choice(known["customers"]), texts[message["situation"]]
        sentences = f"{rng.choice(text['first'])} {rng.choice(text['second'])}"
        thing = article if "{product}" in message["message"] else "article"
        rows.append({
            "question": message["message"].format(order=order, product=article, name=name),
            "answer": sentences.format(order=order, thing=thing),
            "situation": message["situation"], "order": order,
        })  # fmt: skip
    rng.shuffle(rows)
    return rows


def style(reply: str, order: str) -> dict[str, bool]:
    """Return which rules of the house style a reply to a message about an order obeys."""
    sentences = re.split(r"(?<=[.!?])\s+", reply.strip())
    first, rest = sentences[0].lower(), " ".join(sentences[1:]).lower()
    return {
        "two sentences": len(sentences) == 2 and reply.strip().endswith((".", "!")),
        "polite": bool(re.search(r"\b(thank|sorry|apolog)", first)),
        "order number": order in re.findall(r"\d+", first),
        "next step": bool(re.search(r"\b(please|will)\b", rest)),
    }


def is_right(reply: str, situation: str) -> bool:
    """Return whether a reply names the next step that belongs to the situation, and no other one."""
    named = {name for name, text in situations().items() if text["key"].lower() in reply.lower()}
    return named == {situation}


def judge(answers: list[str], rows: list[dict]) -> dict[str, int]:
    """Return how many replies to the messages of ``pairs`` obey each rule, obey all, and name the right next step."""
    obeyed = [style(answer, row["order"]) for answer, row in zip(answers, rows, strict=True)]
    right = [is_right(answer, row["situation"]) for answer, row in zip(answers, rows, strict=True)]
    counts = {rule: sum(rules[rule] for rules in obeyed) for rule in RULES}
    return counts | {"all rules": sum(all(rules.values()) for rules in obeyed), "right step": sum(right)}
