"""Prompting: prompts as data, choices scored, text held to a grammar, problems made by code, a safe calculator.

Notebook 10 measures with it what a prompt is worth.
"""

import ast
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lecture_utils import data


@dataclass(frozen=True)
class Prompt:
    """A prompt as data: what is said to the system, the examples, and the question's ``{text}``."""

    ask: str  # holds {text} once
    system: str = ""
    shots: tuple[tuple[str, str], ...] = ()  # (text, answer): earlier turns of the conversation

    def messages(self, text: str) -> list[dict]:
        """Return the conversation that ends with the question on ``text``. Raises ValueError if ``ask`` has no {text}."""
        if self.ask.count("{text}") != 1:
            raise ValueError(f"ask={self.ask!r}: it needs {{text}} once, where the text belongs.")
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for shown, answer in self.shots:
            messages += data.chat(self.ask.replace("{text}", shown), answer)
        return messages + data.chat(self.ask.replace("{text}", text))


# Choices ------------------------------------------------------------------------------------


def choice_log_probabilities(model, tokenizer, conversations, choices: Sequence[str], rows: int = 16):
    """Return log p of each whole choice as the answer (conversations, choices), nats, end of turn not counted.

    The prompt is read once for all choices of one token; longer ones are read behind it.
    """
    import torch

    from lecture_utils.alignment import token_log_probabilities

    ids = [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in choices]
    prompts = [
        tokenizer(data.render(tokenizer, asked)[0], add_special_tokens=False)["input_ids"] for asked in conversations
    ]
    out = torch.zeros(len(prompts), len(choices))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest = max(map(len, ids))
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        columns = range(len(choices)) if longest > 1 else (0,)
        for column in columns:
            tail = ids[column][:-1] if longest > 1 else []
            texts = [prompts[i] + tail for i in batch]
            width = max(map(len, texts))
            given = torch.full((len(texts), width), tokenizer.pad_token_id)
            seen = torch.zeros_like(given)
            for row, text in enumerate(texts):  # padded on the left: all end in the last column
                given[row, width - len(text) :], seen[row, width - len(text) :] = torch.tensor(text), 1
            with torch.inference_mode():
                logits = model(
                    input_ids=given.to(model.device), attention_mask=seen.to(model.device),
                    position_ids=(seen.cumsum(1) - 1).clamp(min=0).to(model.device), logits_to_keep=len(tail) + 1,
                ).logits.cpu()  # fmt: skip
            if longest == 1:
                log_p = logits[:, -1].float().log_softmax(-1)
                out[batch] = log_p[:, [i[0] for i in ids]]
            else:
                wanted = torch.tensor(ids[column]).expand(len(texts), -1)
                out[batch, column] = token_log_probabilities(logits, wanted).sum(1)
    return out


def calibrated(scores, empty):
    """Return choice scores (n, choices) less those of a question without content (choices,): the model's
    liking for a word as such is taken off (contextual calibration, Zhao et al. 2021)."""
    return scores - empty


# Grammars -----------------------------------------------------------------------------------


def write_within(
    model, tokenizer, asked, may_begin: Callable[[str], bool], whole: Callable[[str], bool], most: int = 80
):
    """Return the greedy answer among the texts that a grammar allows, by hand: at each step the most
    probable token after which the text can still become one of them.

    may_begin(text): is it the beginning of an allowed text?  whole(text): is it one?
    Raises ValueError if no token goes on, or none has ended it after ``most`` tokens.
    """
    import torch

    ids = tokenizer(data.render(tokenizer, asked)[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    new, text, cache = ids.to(model.device), "", None
    for _ in range(most):
        with torch.inference_mode():
            out = model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        for token in out.logits[0, -1].float().argsort(descending=True).tolist():
            if token == tokenizer.eos_token_id:
                if whole(text):
                    return text
                continue
            piece = tokenizer.decode([token])
            if piece and "\ufffd" not in piece and may_begin(text + piece):
                break
        else:
            raise ValueError(f"No token goes on after {text!r}: the grammar and the vocabulary do not meet.")
        text += piece
        new = torch.tensor([[token]], device=model.device)
    raise ValueError(f"After {most} tokens the text is not whole: {text!r}. Allow more tokens.")


# Problems made by code ----------------------------------------------------------------------

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip


def dates(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return ``count`` different dates as people write them, with their ISO form: ("3 May 2019", "2019-05-03")."""
    chance, made = random.Random(seed), {}
    forms = ("{d} {name} {y}", "{name} {d}, {y}", "the {d}{th} of {name} {y}", "{d} {short} {y}", "{short}. {d}, {y}")
    while len(made) < count:
        y, m, d = chance.randint(1950, 2029), chance.randint(1, 12), chance.randint(1, 28)
        th = "th" if 4 <= d <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(d % 10, "th")
        text = chance.choice(forms).format(d=d, th=th, name=MONTHS[m - 1], short=MONTHS[m - 1][:3], y=y)
        made[text] = f"{y}-{m:02}-{d:02}"
    return list(made.items())


@dataclass(frozen=True)
class Problem:
    """An arithmetic word problem in two steps."""

    text: str
    steps: str  # the reasoning, in words
    answer: int


_STORIES = (  # (text, first step, second step, answer from a, b, c)
    ("{n} has {a} {x}. {n} buys {b} more and then gives away {c}. How many {x} does {n} have now?",
     "{a} + {b} = {ab}.", "{ab} - {c} = {r}.", lambda a, b, c: (a + b, a + b - c)),
    ("A box holds {a} {x}. There are {b} boxes and {c} loose {x}. How many {x} are there in all?",
     "{b} x {a} = {ab}.", "{ab} + {c} = {r}.", lambda a, b, c: (a * b, a * b + c)),
    ("{n} bakes {b} trays of {a} {x} and sells {c}. How many {x} are left?",
     "{b} x {a} = {ab}.", "{ab} - {c} = {r}.", lambda a, b, c: (a * b, a * b - c)),
    ("There are {a} {x} on one shelf and {b} on another. {n} takes {c} of them. How many {x} remain?",
     "{a} + {b} = {ab}.", "{ab} - {c} = {r}.", lambda a, b, c: (a + b, a + b - c)),
    ("{n} reads {a} pages a day for {b} days, and {c} pages on the last day. How many pages is that?",
     "{b} x {a} = {ab}.", "{ab} + {c} = {r}.", lambda a, b, c: (a * b, a * b + c)),
    ("A bus starts with {a} people. At the first stop {b} get on, at the second {c} get off. How many are on the bus?",
     "{a} + {b} = {ab}.", "{ab} - {c} = {r}.", lambda a, b, c: (a + b, a + b - c)),
)  # fmt: skip


def problems(count: int, seed: int = 0, stories: Sequence[int] = range(len(_STORIES))) -> list[Problem]:
    """Return ``count`` different word problems; ``stories`` picks their patterns, so that examples and test
    need not share one."""
    chance, made = random.Random(seed), {}
    while len(made) < count:
        text, first, second, solve = _STORIES[chance.choice(list(stories))]
        a, b, c = chance.randint(2, 12), chance.randint(2, 9), chance.randint(1, 9)
        ab, r = solve(a, b, c)
        if r < 1:
            continue
        words = {"n": chance.choice(("Mia", "Tom", "Ada", "Sam", "Lea", "Ben")),
                 "x": chance.choice(("apples", "books", "cookies", "marbles", "stamps", "pens"))}  # fmt: skip
        values = {"a": a, "b": b, "c": c, "ab": ab, "r": r}
        steps = f"{first.format(**values)} {second.format(**values)} The answer is {r}."
        problem = Problem(text.format(**words, **values), steps, r)
        made[problem.text] = problem
    return list(made.values())


def last_number(text: str) -> int | None:
    """Return the last whole number of a text, None if there is none (1,200 is one number)."""
    found = re.findall(r"-?\d[\d,]*", text)
    return int(found[-1].rstrip(",").replace(",", "")) if found else None


def majority(answers: Sequence):
    """Return the commonest answer that is not None, the first of equals; None if there is none (Wang et al. 2022)."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


# A tool -------------------------------------------------------------------------------------

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
