"""Prompting: prompts as data, choices scored, text held to a grammar, problems made by code, a safe calculator.

Notebook 10 measures with it what a prompt is worth.
"""

import ast
import json
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from lecture_utils import data, expect, runtime


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


def balanced(rows: Sequence[dict], count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return ``count`` (text, label) examples drawn from rows, as many of each label, in random order.
    Raises ValueError if ``count`` cannot be shared out so, or there are no rows or too few of a label."""
    expect.rows("rows", rows)
    expect.whole("count", count, least=0)
    chance, labels = random.Random(seed), sorted({row["label"] for row in rows})
    if count % len(labels):
        raise ValueError(f"count={count} examples cannot be shared out among {len(labels)} labels.")
    fewest = min(Counter(row["label"] for row in rows).values())
    if count > fewest * len(labels):
        raise ValueError(f"count={count}: a label has only {fewest} rows, so {fewest * len(labels)} are the most.")
    drawn = [
        (row["text"], label)
        for label in labels
        for row in chance.sample([r for r in rows if r["label"] == label], count // len(labels))
    ]
    chance.shuffle(drawn)
    return drawn


# Choices ------------------------------------------------------------------------------------


def _expect_choices(choices) -> None:
    expect.texts("choices", choices)
    if "" in choices:  # it would be said by every answer, with a probability of 1
        raise ValueError("choices holds an empty text.")


def choice_log_probabilities(model, tokenizer, conversations, choices: Sequence[str], rows: int = 16):
    """Return log p of each whole choice as the answer (conversations, choices), nats, end of turn not counted.

    The prompt is read once for all choices of one token; longer ones are read behind it. Raises ValueError
    for no choices or an empty one, TypeError for one text instead of a list.
    """
    import torch

    from lecture_utils.alignment import token_log_probabilities
    from lecture_utils.evaluation import read_together

    _expect_choices(choices)
    expect.rows("conversations", conversations, least=0)
    expect.whole("rows", rows)
    ids = [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in choices]
    prompts = [
        tokenizer(data.render(tokenizer, asked)[0], add_special_tokens=False)["input_ids"]
        for asked in runtime.few(conversations)
    ]
    out = torch.zeros(len(prompts), len(choices))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest = max(map(len, ids))
    for start in range(0, len(order), rows):
        batch = order[start : start + rows]
        for column in range(len(choices)) if longest > 1 else (0,):
            tail = ids[column][:-1] if longest > 1 else []
            given, seen, cache = read_together(model, [prompts[i] + tail for i in batch], tokenizer.pad_token_id)
            read = cache.get_seq_length() if cache else 0
            with torch.inference_mode():
                logits = model(
                    input_ids=given[:, read:], attention_mask=seen, past_key_values=cache,
                    position_ids=(seen.cumsum(1) - 1).clamp(min=0)[:, read:], logits_to_keep=len(tail) + 1,
                ).logits.cpu()  # fmt: skip
            if longest == 1:
                log_p = logits[:, -1].float().log_softmax(-1)
                out[batch] = log_p[:, [i[0] for i in ids]]
            else:
                wanted = torch.tensor(ids[column]).expand(len(batch), -1)
                out[batch, column] = token_log_probabilities(logits, wanted).sum(1)
    return runtime.spread(out, len(conversations))


def first_of(answer: str, choices: Sequence[str]) -> str | None:
    """Return the choice that an answer says first, in whatever case; None if it says none. Raises ValueError
    for no choices or an empty one, TypeError for one text instead of a list, or an answer that is none."""
    _expect_choices(choices)
    expect.text("answer", answer, whole=False)
    found = re.search("|".join(f"({re.escape(choice)})" for choice in choices), answer, re.IGNORECASE)
    return found and choices[found.lastindex - 1]


def calibrated(scores, liking):
    """Return choice scores (n, choices) less the model's ``liking`` for each word as such (choices,): its scores
    for a text without content (contextual calibration, Zhao et al. 2021), or the mean over texts without labels
    (batch calibration, Zhou et al. 2023)."""
    return scores - liking


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
        for token in out.logits[0, -1].float().argsort(descending=True, stable=True).tolist():
            if token == tokenizer.eos_token_id:
                if whole(text):
                    return text
                continue
            piece = tokenizer.decode([token], skip_special_tokens=True)
            if piece and "\ufffd" not in piece and may_begin(text + piece):
                break
        else:
            raise ValueError(f"No token goes on after {text!r}: the grammar and the vocabulary do not meet.")
        text += piece
        new = torch.tensor([[token]], device=model.device)
    raise ValueError(f"After {most} tokens the text is not whole: {text!r}. Allow more tokens.")


class Held:
    """A logits processor for ``generate``: only tokens after which the text can still match a regular
    expression, as the compiled grammar of llguidance says. Make a new one for each batch.

    engine: llguidance.hf.from_tokenizer(tokenizer).  end: the id of the end-of-turn token.
    """

    def __init__(self, engine, pattern: str, end: int):
        import llguidance

        # no_forcing: any tokens that spell the text, as in write_within, and not one spelling alone
        grammar = llguidance.LLMatcher.grammar_from_lark(
            '%llguidance {"no_forcing": true}\nstart: /' + pattern.replace("/", r"\/") + "/"
        )
        self.new_matcher, self.end = lambda: llguidance.LLMatcher(engine, grammar), end
        self.matchers, self.read = [], 0

    def __call__(self, ids, scores):
        """ids: (rows, time so far). scores: (rows, vocabulary). Returns them with -inf where a token may not follow."""
        import torch

        if not self.matchers:
            self.matchers, self.read = [self.new_matcher() for _ in ids], ids.shape[1]
        held = torch.full_like(scores, -torch.inf)
        for row, matcher in enumerate(self.matchers):
            if not matcher.is_stopped():
                matcher.consume_tokens(ids[row, self.read :].tolist())
            if matcher.is_stopped():  # nothing can follow the whole text but its end
                may_follow = torch.tensor([self.end])
            else:
                bits = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
                may_follow = bits.nonzero().flatten()
            held[row, may_follow] = scores[row, may_follow]
        self.read = ids.shape[1]
        return held


EVENT_FIELDS = ("event", "place", "day", "time", "price")
_TEXT = r'"[ !#-\[\]-~]{1,50}"'  # printable ASCII but the quotation mark and the backslash
EVENT = (  # a notice as JSON, as a regular expression
    rf'\{{"event": {_TEXT}, "place": {_TEXT}, "day": "(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day", '
    r'"time": "([01][0-9]|2[0-3]):[0-5][0-9]", "price": (0|[1-9][0-9]{0,2})\}'
)


def as_json(notice: dict) -> str:
    """Return a notice's fields as the JSON that ``EVENT`` matches."""
    return json.dumps({field: notice[field] for field in EVENT_FIELDS})


def fields_right(answer: str, notice: dict) -> list[bool]:
    """Return for each field of ``EVENT_FIELDS`` whether a JSON answer gives it as the notice does; no JSON object, none.
    Raises TypeError for an answer that is no text."""
    expect.text("answer", answer, whole=False)
    try:
        given = json.loads(answer)
    except (ValueError, RecursionError):
        given = None
    given = given if isinstance(given, dict) else {}
    return [field in given and given[field] == notice[field] for field in EVENT_FIELDS]


# Problems made by code ----------------------------------------------------------------------

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip


def _until(made: dict, count: int) -> Iterator[None]:
    """Go on until ``made`` holds ``count``. Raises ValueError where nothing new comes any more."""
    before, idle = 0, 0
    while len(made) < count:
        before, idle = len(made), idle + 1 if len(made) == before else 0
        if idle > 10_000:
            raise ValueError(f"count={count}: hardly more than {len(made)} different ones can be made.")
        yield


DATE_FORMS = ("{d} {name} {y}", "{name} {d}, {y}", "the {d}{th} of {name} {y}", "{d} {short} {y}", "{short}. {d}, {y}")


def dates(count: int, seed: int = 0, forms: Sequence[str] = DATE_FORMS) -> list[tuple[str, str]]:
    """Return ``count`` different dates as people write them, with their ISO form: ("3 May 2019", "2019-05-03").
    Raises ValueError for no forms, a negative count, or more than the forms make; TypeError for one form alone."""
    expect.whole("count", count, least=0)
    expect.texts("forms", forms)
    chance, made = random.Random(seed), {}
    for _ in _until(made, count):
        y, m, d = chance.randint(1950, 2029), chance.randint(1, 12), chance.randint(1, 28)
        th = "th" if 4 <= d <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(d % 10, "th")
        text = chance.choice(forms).format(d=d, th=th, name=MONTHS[m - 1], short=MONTHS[m - 1][:3], y=y)
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
    """Return ``count`` different word problems with numbers from 2 to 9; ``stories`` picks their patterns. Raises
    ValueError for a pattern that there is not, a negative count, or more than the patterns make."""
    expect.whole("count", count, least=0)
    expect.rows("stories", stories)
    if wrong := [story for story in stories if story not in range(len(_STORIES))]:
        raise ValueError(f"stories holds {wrong[0]!r}: there are the patterns 0 to {len(_STORIES) - 1}.")
    chance, made = random.Random(seed), {}
    for _ in _until(made, count):
        text, steps = _STORIES[chance.choice(list(stories))]
        a, b, c = (chance.randint(2, 9) for _ in range(3))
        ab, r = a + b, a + b - c
        if r < 1:
            continue
        words = {"n": chance.choice(("Mia", "Tom", "Ada", "Sam", "Lea", "Ben")),
                 "x": chance.choice(("apples", "books", "cookies", "marbles", "stamps", "pens"))}  # fmt: skip
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
    """Return the last whole number of a text, None if there is none (1,200 is one number) or Python does not
    read it (more than 4,300 digits). Raises TypeError for anything but a text."""
    expect.text("text", text, whole=False)
    found = re.findall(r"-?\d[\d,]*", text)
    try:
        return int(found[-1].rstrip(",").replace(",", "")) if found else None
    except ValueError:
        return None


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
