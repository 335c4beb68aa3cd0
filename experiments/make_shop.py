"""Make the shop's questions from its patterns and values: `python experiments/make_shop.py`, in seconds.

``assets/shop/patterns.jsonl`` has questions with slots, and the query that each one means. Here the slots are filled, and the
result is written to ``train.jsonl``, ``dev.jsonl`` and ``test.jsonl`` beside it. Which combinations of query and conditions
are kept out of the training set is decided by a hash, so that an added pattern does not move the others.
"""

import hashlib
import json
import random
import re

from lecture_utils import data, shop

COUNTS = {"train": 5_040, "dev": 100, "test": 140}
NEW = 0.12  # share of the combinations of query and conditions that the training set never sees


def combination(pattern: dict) -> str:
    """Return what kind of query a pattern is: what it selects, and which columns its conditions use."""
    columns = "+".join(column for column, *_ in pattern["where"])
    return f"{pattern['select']} {pattern.get('group', '')} {pattern.get('value', '')} {pattern.get('order') or ''}: {columns}"


def is_new(pattern: dict) -> bool:
    """Return whether a pattern's combination is kept for the test set. Simple ones are always trained on."""
    share = int(hashlib.md5(combination(pattern).encode()).hexdigest()[:8], 16) / 16**8
    return len(pattern["where"]) >= 2 and share < NEW


def plural(product: str) -> str:
    """Return the plural of a product."""
    for end, ends in (("fe", "ves"), ("lf", "lves"), ("rf", "rves")):
        if product.endswith(end):
            return product.removesuffix(end) + ends
    if re.search(r"(s|x|ch|sh|z)$", product):
        return product + "es"
    return product[:-1] + "ies" if re.search(r"[^aeiou]y$", product) else product + "s"


def sql(pattern: dict, filled: dict) -> str:
    """Return the query that a pattern means, with the values of its slots."""
    select = pattern["select"]
    group, order, limit = "", pattern.get("order"), pattern.get("limit")
    if select in ("GROUP", "BEST"):
        column, value = pattern["group"], pattern["value"]
        group = f" GROUP BY {column}"
        select = column if select == "BEST" else f"{column}, {value}"
        order, limit = (f"{value} DESC", "=1") if pattern["select"] == "BEST" else (None, None)
    conditions = []
    for column, operator, value in pattern["where"]:
        value = value[1:] if value.startswith("=") else str(filled[value])
        text = column in ("customer", "city", "product", "status", "month")
        conditions.append(f"{column} {operator} '{value}'" if text else f"{column} {operator} {value}")
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    ordered = f" ORDER BY {order}" if order else ""
    limited = f" LIMIT {limit[1:] if limit.startswith('=') else filled['n']}" if limit else ""
    return f"SELECT {select} FROM orders{where}{group}{ordered}{limited}"


def fill(pattern: dict, values: dict[str, list[str]], rng: random.Random) -> dict:
    """Return a question and its query: a pattern with values in its slots."""
    product = rng.choice(values["products"])
    filled = {
        "customer": rng.choice(values["customers"]), "city": rng.choice(values["cities"]), "product": product,
        "products": plural(product), "status": rng.choice(shop.STATUSES), "month": rng.choice(shop.MONTHS),
        "n": rng.randint(2, 9), "price": 10 * rng.randint(2, 30), "quantity": rng.randint(2, 5),
    }  # fmt: skip
    question = pattern["text"].format(**filled)
    question = re.sub(r"\b([Aa])(?= [aeiou])", r"\1n", question)  # "a armchair"
    lowered = question == question.lower() or pattern["text"] == pattern["text"].lower()
    return {"question": question if lowered else question[0].upper() + question[1:], "answer": sql(pattern, filled)}


def make(patterns: list[dict], values: dict, count: int, seed: int) -> list[dict]:
    """Return ``count`` different questions: each pattern in turn, in a new random order each time."""
    rng, made, order = random.Random(seed), {}, []
    while len(made) < count:
        order = order or rng.sample(patterns, len(patterns))
        row = fill(order.pop(), values, rng)
        made[row["question"]] = row
    return list(made.values())


def main() -> None:
    patterns = data.read_jsonl(shop.FOLDER / "patterns.jsonl")
    old, new = ([p for p in patterns if is_new(p) == wanted] for wanted in (False, True))
    named = re.compile(r"\{(customer|city|product)")  # what a test question must have, so that it is unseen
    for seed, (split, count) in enumerate(COUNTS.items()):
        values = shop.values(split)
        if split == "train":
            rows = make(old, values, count, seed)
        else:
            halves = [
                make([p for p in half if named.search(p["text"])], values, count // 2, seed) for half in (old, new)
            ]
            rows = [row | {"new": half is halves[1]} for half in halves for row in half]
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (shop.FOLDER / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{split}: {len(rows)} questions, {len(old if split == 'train' else patterns)} patterns")


if __name__ == "__main__":
    main()
