"""Dates and word problems made by code, and a safe calculator for a model to call."""

import ast
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lecture_utils.prompting import Prompt

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip


def _until(made: dict, count: int) -> Iterator[None]:
    """Go on until ``made`` holds ``count``."""
    before, idle = 0, 0
    while len(made) < count:
        before, idle = len(made), idle + 1 if len(made) == before else 0
        assert idle <= 10_000, f"hardly more than {len(made)} different ones can be made"
        yield


DATE_FORMS = ("{d} {name} {y}", "{name} {d}, {y}", "the {d}{th} of {name} {y}", "{d} {short} {y}", "{short}. {d}, {y}")


def dates(count: int, seed: int = 0, forms: Sequence[str] = DATE_FORMS) -> list[tuple[str, str]]:
    """Return ``count`` different dates as people write them, with their ISO form: ("3 May 2019", "2019-05-03")."""
    rng, made = random.Random(seed), {}
    for _ in _until(made, count):
        y, m, d = rng.randint(1950, 2029), rng.randint(1, 12), rng.randint(1, 28)
        th = "th" if 4 <= d <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(d % 10, "th")
        text = rng.choice(forms).format(d=d, th=th, name=MONTHS[m - 1], short=MONTHS[m - 1][:3], y=y)
        made[text] = f"{y}-{m:02}-{d:02}"
    return list(made.items())


@dataclass(frozen=True)
class Problem:
    """An arithmetic word problem in two steps: a + b, then less c."""

    text: str
    steps: str  # the reasoning, in words
    numbers: tuple[int, int, int]  # a, b, c

    @property
    def answer(self) -> int:
        a, b, c = self.numbers
        return a + b - c

    def first_step(self, error: int = 0) -> str:
        """Return the reasoning up to its first result, which is made wrong by ``error``."""
        begun = self.steps[: self.steps.index(" = ")]
        return f"{begun} = {sum(self.numbers[:2]) + error}"


_STORIES = (  # (text, reasoning)
    ("{n} has {a} {x}. {n} buys {b} more and then gives away {c}. How many {x} does {n} have now?",
     "{n} starts with {a} {x}. After buying {b} more, {n} has {a} + {b} = {ab} {x}. "
     "After giving away {c}, {n} has {ab} - {c} = {r} {x}."),
    ("A bus starts with {a} people. At the first stop {b} get on, at the second {c} get off. How many are on the bus?",
     "The bus starts with {a} people. After the first stop there are {a} + {b} = {ab}. "
     "After the second stop there are {ab} - {c} = {r}."),
    ("There are {a} {x} on one shelf and {b} on another. {n} takes {c} of them. How many {x} remain?",
     "Together there are {a} + {b} = {ab} {x}. After {n} takes {c}, there are {ab} - {c} = {r} {x}."),
)  # fmt: skip


def problems(count: int, seed: int = 0, stories: Sequence[int] = range(len(_STORIES))) -> list[Problem]:
    """Return ``count`` different word problems with numbers from 2 to 9; ``stories`` picks their patterns."""
    rng, made = random.Random(seed), {}
    for _ in _until(made, count):
        text, steps = _STORIES[rng.choice(list(stories))]
        a, b, c = (rng.randint(2, 9) for _ in range(3))
        ab, r = a + b, a + b - c
        if r < 1:
            continue
        words = {"n": rng.choice(("Mia", "Tom", "Ada", "Sam", "Lea", "Ben")),
                 "x": rng.choice(("apples", "books", "cookies", "marbles", "stamps", "pens"))}  # fmt: skip
        values = words | {"a": a, "b": b, "c": c, "ab": ab, "r": r}
        problem = Problem(text.format(**values), f"{steps.format(**values)} The answer is {r}.", (a, b, c))
        made[problem.text] = problem
    return list(made.values())


def ways_to_solve(examples: Sequence[Problem]) -> dict[str, Prompt]:
    """Return five prompts for a word problem. All but the first two show the examples: with their answers
    alone, with their steps, or with calls of a calculator in the steps."""

    def shown(answer) -> Prompt:
        return Prompt("{text}", shots=tuple((p.text, answer(p)) for p in examples))

    return {
        "no example": Prompt("{text} Answer with a number."),
        "step by step": Prompt("{text}\nLet's think step by step."),
        "answers shown": shown(lambda p: f"The answer is {p.answer}."),
        "steps shown": shown(lambda p: p.steps),
        "calculator": shown(lambda p: re.sub(r"(\d+ [+-] \d+) =", r"CALC(\1) =", p.steps)),
    }


def last_number(text: str) -> int | None:
    """Return the last whole number of a text, None if there is none (1,200 is one number) or Python does not read it
    (more than 4,300 digits)."""
    found = re.findall(r"-?\d[\d,]*", text)
    try:
        return int(found[-1].rstrip(",").replace(",", "")) if found else None
    except ValueError:
        return None


def majority(answers: Sequence):
    """Return the commonest answer that is not None, the first of equals; None if there is none (Wang et al. 2022)."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(expression: str) -> int | float:
    """Return the value of an expression of numbers, + - * / and brackets. Nothing else is evaluated.

    Raises ValueError for anything else, for a division by zero, and for more than 100 characters.
    """
    if len(expression) > 100:
        raise ValueError(f"The expression has {len(expression)} characters; 100 are allowed.")

    def value(node):
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"{expression!r}: only numbers, + - * / and brackets are calculated.")

    try:
        return value(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError as error:
        raise ValueError(f"{expression!r} is no expression: {error.msg}.") from error
    except ZeroDivisionError as error:
        raise ValueError(f"{expression!r} divides by zero.") from error


def with_calculator(complete: Callable[[list[str]], list[str]], begun: list[str], rounds: int = 4) -> list[str]:
    """Return the answers of a model that may write ``CALC(...) =``: the text is cut there, the result
    written behind it, and the model goes on. A call that is no calculation is refused in the text.

    complete: texts to what the model writes next. begun: prompts. rounds: calls at most for each.
    """
    said, busy = [""] * len(begun), list(range(len(begun)))
    for turn in range(rounds + 1):
        new = complete([begun[i] + said[i] for i in busy]) if busy else []
        for i, text in zip(tuple(busy), new, strict=True):
            call = re.search(r"CALC\((.*?)\) =", text)
            said[i] += text[: call.end()] if call else text
            if not call or turn == rounds:
                busy.remove(i)
                continue
            try:
                said[i] += f" {calculate(call[1])}"
            except ValueError:
                said[i] += " [refused]"
    return said
