"""Put four tasks of this course to a large language model of your own, and collect its answers.

    python experiments/large_model.py write build/large      # writes four text files; give each to a new conversation
    python experiments/large_model.py collect build/large    # reads NAME.answers of each, writes the packaged file

An answers file has one line for each number of the task: the number, a tab, and the answer.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import record_13

from lecture_utils import benchmark, data, inbox, shop

SQL = f"Translate each question into one SQL query (SQLite). The table is {shop.SCHEMA}.\n"


def tasks() -> dict[str, tuple[str, list[tuple[dict, str]]]]:
    """Return for each task what stands above it, and its items in random order: what identifies an item, and its text."""
    questions = [
        ({"split": split, "row": i}, pair["question"])
        for split in ("free", "test") for i, pair in enumerate(shop.questions(split))
    ]  # fmt: skip
    solved = [pair for pair in shop.questions("train") if "WHERE" in pair["answer"]][:8]
    examples = "".join(f"Question: {pair['question']}\nQuery: {pair['answer']}\n" for pair in solved)
    instruction = data.prompts("inbox")["clear"].replace("{text}", "").strip()
    messages = [({"row": i}, row["text"]) for i, row in enumerate(inbox.messages("test")[:80])]
    judged = []
    for i, item in enumerate(benchmark.items("handbook")[::2]):
        two = (item.answer, item.sentence((item.gold + 1) % 4) + record_13.FRIENDLY)
        for order, (a, b) in (("right first", two), ("right second", two[::-1])):
            text = record_13.JUDGES["with the reference"].format(question=item.question, answer=item.answer, a=a, b=b)
            judged.append(({"row": i, "order": order}, text))
    found = {
        "sql": (SQL, questions), "sql with examples": (f"{SQL}\nExamples:\n{examples}", questions),
        "forms": (f"For each message: {instruction}\n", messages), "judge": ("", judged),
    }  # fmt: skip
    return {name: (above, random.Random(0).sample(items, len(items))) for name, (above, items) in found.items()}


def write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (above, items) in tasks().items():
        body = "".join(f"--- {number}\n{text}\n" for number, (_, text) in enumerate(items))
        (folder / f"{name}.txt").write_text(above + body, encoding="utf-8")


def collect(folder: Path) -> None:
    rows = []
    for name, (_, items) in tasks().items():
        lines = (folder / f"{name}.answers").read_text(encoding="utf-8").splitlines()
        said = dict(line.split("\t", 1) for line in lines if "\t" in line)
        if missing := [number for number in range(len(items)) if str(number) not in said]:
            sys.exit(f"{name}.answers lacks {missing[:10]}. Each line is a number, a tab, and an answer.")
        rows += [{"task": name, **key, "answer": said[str(number)]} for number, (key, _) in enumerate(items)]
    rows.sort(key=lambda row: (row["task"], row.get("split", ""), row["row"], row.get("order", "")))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (data.ASSETS / "large_model" / "answers.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("step", choices=("write", "collect"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    (write if given.step == "write" else collect)(given.folder)
