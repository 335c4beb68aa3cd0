"""Reproduce what notebook 10 needs: `make record NB=10`, about an hour on two cores.

The notebook's experiments, on more questions and with more draws than a lesson has time for.
`10_prompts.csv` has a row for each setting; `right` has a letter for each question, x where it
was answered rightly, so that settings can be compared question by question.
"""

import json
import random
import re
import sys

import runner

from lecture_utils import grammars, problems

LABELS = ("positive", "negative")
OTHER = dict(zip(LABELS, LABELS[::-1], strict=True))
BEST = "mood"  # of the six wordings for reviews, on the development set


class Room:
    """The chat model, and the settings recorded so far."""

    def __init__(self):
        from lecture_utils import models, runtime

        runtime.quiet()
        runtime.use_less_memory()
        runtime.seed_everything(0)
        self.model, self.tokenizer = models.load_chat_model()
        self.done = {(row["bed"], row["setting"], row["draw"]) for row in runner.done("10_prompts")}

    def answers(self, prompt, texts, tokens: int, rows: int = 20, **how) -> list[str]:
        from lecture_utils import evaluation

        asked = [prompt.messages(text) for text in texts]
        return evaluation.generate_answers(self.model, self.tokenizer, asked, tokens, rows, **how)

    def complete(self, texts, tokens: int = 40) -> list[str]:
        from lecture_utils import evaluation

        return evaluation.complete(self.model, self.tokenizer, texts, tokens, 20)

    def missing(self, bed: str, setting, draw: int = 0) -> bool:
        return (bed, setting, draw) not in self.done

    def add(self, bed: str, setting, right, draw: int = 0) -> None:
        if self.missing(bed, setting, draw):
            marks = "".join("x" if r else "." for r in right)
            runner.add("10_prompts", {"bed": bed, "setting": setting, "draw": draw, "right": marks})
            print(f"{bed}: {setting} {draw}: {marks.count('x')} of {len(marks)}", flush=True)


def dates(room: Room) -> None:
    """How the question is put, and how many examples it has (three draws of each number)."""
    from lecture_utils import data, prompting

    asked, ask = problems.dates(200, seed=1), data.prompts("dates")
    settings = [(name, 0, prompting.Prompt(text)) for name, text in ask.items()]
    for count in (1, 2, 3, 5, 8):
        for draw in range(3):
            shots = tuple(problems.dates(count, seed=9 + draw))
            settings.append((f"{count} shown", draw, prompting.Prompt(ask["clear"], shots=shots)))
    for name, draw, prompt in settings:
        if room.missing("dates", name, draw):
            said = room.answers(prompt, [text for text, _ in asked], 14)
            room.add("dates", name, [iso in a for a, (_, iso) in zip(said, asked, strict=True)], draw)
    if room.missing("dates, 60 tokens", "at length"):  # is it cut off, or does it not come?
        said = room.answers(prompting.Prompt(ask["at length"]), [text for text, _ in asked], 60)
        room.add("dates, 60 tokens", "at length", [iso in a for a, (_, iso) in zip(said, asked, strict=True)])


def feedback(room: Room) -> None:
    """Three examples, judged by the form of the date; then two more, of those forms not yet shown that went
    worst, or of the forms already shown, judged on other dates."""
    from lecture_utils import data, prompting

    ask, forms = data.prompts("dates")["clear"], problems.DATE_FORMS
    three = tuple(problems.dates(3, seed=11))

    def judge(setting: str, shots, seed: int) -> None:
        for i, form in enumerate(forms):
            if room.missing("feedback", setting, i):
                asked = problems.dates(40, seed, (form,))
                said = room.answers(prompting.Prompt(ask, shots=shots), [text for text, _ in asked], 14)
                room.add("feedback", setting, [iso in a for a, (_, iso) in zip(said, asked, strict=True)], i)

    def two_more(places):
        return three + tuple(problems.dates(1, 21 + i, (forms[i],))[0] for i in places)

    judge("looked at", three, seed=2)
    rows = [row for row in runner.done("10_prompts") if row["setting"] == "looked at"]
    worst = sorted(range(3), key=lambda i: rows[i]["right"].count("x"))[:2]  # of the three forms not shown
    judge("three examples", three, seed=3)
    judge("and two forms not shown", two_more(worst), seed=3)
    judge("and two forms shown", two_more((3, 4)), seed=3)


def reviews(room: Room) -> None:
    """Six candidates on the development reviews and the test reviews; four roles; the labels named in the
    other order; longer answers."""
    from lecture_utils import data, prompting

    ask = data.prompts("reviews")
    settings = [(name, prompting.Prompt(text)) for name, text in ask.items()]
    settings += [(f"role: {name}", prompting.Prompt(ask[BEST], s)) for name, s in data.prompts("roles").items()]
    for split in ("dev", "test"):
        rows = data.reviews(split)
        texts = [r["text"] for r in rows]
        for name, prompt in settings:
            if room.missing(f"reviews, {split}", name):
                said = [prompting.first_of(a, LABELS) for a in room.answers(prompt, texts, 16)]
                room.add(f"reviews, {split}", name, [a == r["label"] for a, r in zip(said, rows, strict=True)])
    more = [("reviews, 60 tokens", "plain", settings[0][1], 60)]
    for name, text in ask.items():
        other = re.sub("|".join(LABELS), lambda word: OTHER[word[0]], text)
        more.append(("reviews, other order", name, prompting.Prompt(other), 16))
    for bed, name, prompt, tokens in more:
        if room.missing(bed, name):
            said = [prompting.first_of(a, LABELS) for a in room.answers(prompt, texts, tokens)]
            room.add(bed, name, [a == r["label"] for a, r in zip(said, rows, strict=True)])


def scored(room: Room) -> None:
    """Labels by log-probability, raw and calibrated in two ways: on a text without content, and on the mean of
    40 development reviews without their labels. Six wordings; then, with the best on the development set,
    examples: their number, draw, order, and wrong labels."""
    from lecture_utils import data, prompting

    ask, rows, pool = data.prompts("reviews"), data.reviews("test"), data.reviews("pool")
    texts = [r["text"] for r in rows] + [r["text"] for r in data.reviews("dev")[:40]] + ["N/A"]

    def judge(setting: str, draw: int, prompt) -> None:
        if room.missing("scored, mean", setting, draw):
            asked = [prompt.messages(text) for text in texts]
            scores = prompting.choice_log_probabilities(room.model, room.tokenizer, asked, LABELS)
            for bed, liking in (("scored", 0), ("scored, N/A", scores[-1]), ("scored, mean", scores[160:200].mean(0))):
                picked = [LABELS[i] for i in prompting.calibrated(scores[:160], liking).argmax(1)]
                room.add(bed, setting, [a == r["label"] for a, r in zip(picked, rows, strict=True)], draw)

    for name, text in ask.items():
        judge(name, 0, prompting.Prompt(text))

    def few(setting: str, draw: int, shots) -> None:
        judge(setting, draw, prompting.Prompt(ask[BEST], shots=tuple(shots)))

    for count in (2, 4, 8):
        for draw in range(6):
            few(f"{count} shown", draw, prompting.balanced_examples(pool, count, draw))
    four = prompting.balanced_examples(pool, 4, 0)
    for draw in range(6):
        few("another order", draw, random.Random(draw).sample(four, 4))
        few("wrong labels", draw, [(t, OTHER[label]) for t, label in prompting.balanced_examples(pool, 4, draw)])


def parses(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def notices(room: Room) -> None:
    """JSON from notices: is it an object, has it our form, are its fields right?"""
    import llguidance.hf

    from lecture_utils import data, prompting

    rows, engine = data.notices("test"), llguidance.hf.from_tokenizer(room.tokenizer)
    shown = [(r["text"], grammars.as_json(r)) for r in data.notices("pool")]
    for count in (0, 2, 5):
        for how in ("free", "held"):
            name = f"{count} shown, {how}"
            if not room.missing("notices, parsed" if how == "free" else "notices, fields", name):
                continue
            prompt = prompting.Prompt(data.prompts("notices")["extract"], shots=tuple(shown[:count]))
            held = (
                (lambda: grammars.GrammarLogitsProcessor(engine, grammars.EVENT, room.tokenizer.eos_token_id))
                if how == "held"
                else None
            )
            said = room.answers(prompt, [r["text"] for r in rows], 90, 12, processor=held)
            room.add("notices, valid", name, [re.fullmatch(grammars.EVENT, a) for a in said])
            fields = [grammars.fields_right(a, r) for a, r in zip(said, rows, strict=True)]
            room.add("notices, fields", name, [right for notice in fields for right in notice])
            room.add("notices, parsed", name, [parses(a) for a in said])


def set_up(answer: str, problem) -> bool:
    """Are the two sums of an answer the right ones, whatever their results?"""
    sums = re.findall(r"(\d+) ([+-]) (\d+)\)? = (-?\d+)", answer)
    a, b, c = map(str, problem.numbers)
    return len(sums) >= 2 and sums[0][:3] == (a, "+", b) and sums[1][:3] == (sums[0][3], "-", c)


def word_problems(room: Room) -> None:
    """Word problems: five ways, of one pattern and of three; a spoiled first step."""
    from lecture_utils import data

    for bed, stories in (("problems", (0,)), ("problems, mixed", (0, 1, 2))):
        ways = problems.ways_to_solve(problems.problems(8, seed=5, stories=stories))
        asked = problems.problems(100, seed=6, stories=stories)
        texts = [p.text for p in asked]

        longest = {"answers shown": 60, "steps shown": 60, "calls without a calculator": 80}  # unprompted steps: 150
        for name, prompt in (ways | {"calls without a calculator": ways["calculator"]}).items():
            with_steps = name not in ("no example", "step by step", "answers shown")
            if room.missing(bed, name) or with_steps and room.missing(f"{bed}, set up", name):
                if name == "calculator":
                    begun = [data.render(room.tokenizer, prompt.messages(text))[0] for text in texts]
                    said = problems.with_calculator(room.complete, begun)
                else:
                    said = room.answers(prompt, texts, longest.get(name, 150))
                room.add(bed, name, [problems.last_number(a) == p.answer for a, p in zip(said, asked, strict=True)])
                if with_steps:
                    room.add(f"{bed}, set up", name, [set_up(a, p) for a, p in zip(said, asked, strict=True)])
    # the rest with one pattern
    asked = problems.problems(100, seed=6, stories=(0,))
    steps = problems.ways_to_solve(problems.problems(8, seed=5, stories=(0,)))["steps shown"]
    for error in (0, 1):
        if room.missing("spoiled", error):
            start = [data.render(room.tokenizer, steps.messages(p.text))[0] + p.first_step(error) for p in asked]
            ends = [problems.last_number(a) for a in room.complete(start)]
            room.add("spoiled", error, [e == p.answer + error for e, p in zip(ends, asked, strict=True)])
            room.add("spoiled, yet right", error, [e == p.answer for e, p in zip(ends, asked, strict=True)])


def votes(room: Room) -> None:
    """Ten sampled chains for each of 50 problems, and what a majority says."""
    import torch

    asked = problems.problems(100, seed=6, stories=(0,))[:50]
    texts = [p.text for p in asked]
    steps = problems.ways_to_solve(problems.problems(8, seed=5, stories=(0,)))["steps shown"]
    if room.missing("votes", "majority of 10"):
        torch.manual_seed(0)
        said = [[] for _ in asked]
        for draw in range(10):
            for i, answer in enumerate(room.answers(steps, texts, 60, temperature=0.7)):
                said[i].append(problems.last_number(answer))
            room.add("votes", "one sample", [s[-1] == p.answer for s, p in zip(said, asked, strict=True)], draw)
        for first in (3, 5, 10):
            voted = [problems.majority(s[:first]) for s in said]
            room.add("votes", f"majority of {first}", [v == p.answer for v, p in zip(voted, asked, strict=True)])
        room.add("votes", "right at least once", [p.answer in s for s, p in zip(said, asked, strict=True)])


def main() -> None:
    room = Room()
    for experiment in (dates, feedback, problems, notices, reviews, scored, votes):
        experiment(room)


if __name__ == "__main__":
    sys.exit(main())
