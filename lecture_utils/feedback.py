"""Who says which answer is better: a scripted annotator, and you.

The scripted annotator reads with rules, no model: phrases of contempt, sentences that wander,
whether the answer ends. Its rules were written from the training pairs of ``preferences`` and
the remarks of ``manners.json``; what they miss is measured on held-out pairs in notebook 05.
"""

import json
import random
import re
from collections import Counter
from pathlib import Path

from lecture_utils import data, plotting

_RUDE = r"""
any(one|body) (who|with|can|could|would|knows)|every(one|body) (else )?knows|most (people|children) (know|manage|can)
even (you|the|small)|child(ren)? (can|could|manage|know|before)|toddlers can|ten-year-olds|grown-ups?|cheapskate|mangle
bother (to|with|reading|looking|asking|me)|pester\w*|spare (me|us|the)|obvious\w*|clearly|evidently|apparently|presumably
surely|frankly|brilliant|drama|fuss|whin(e|ing)|lazy|laziness|clumsy|sloppy|stupid\w*|silly|fool\w*|idiot\w*|hopeless
ridiculous|embarrass\w*|pathetic|ignoran\w*|careless\w*|congratulations|competent|capable of|no (wonder|surprise)
(would|could|should|might) have (been|told|shown|spared|settled|managed|tried|thought|noticed|known|answered|looked)
ask(ed|ing)? (me|again|anyone|next|this|such)|(before|hardly|needed|worth|of) asking|(your|next) question
nobody (ever )?(told|mentioned|cleans|asked)|in case (nobody|that was)|common (knowledge|sense)|what did you expect
(that|this|it)('s| is) all there is|(isn't|not) (really |exactly |that |so |rocket )?(complicated|difficult|hard|science)
nothing (complicated|difficult)|of course you can|do (try|read|keep|learn|look)|try not to|perhaps (let|have|read|pick|try)
as any|(pick|find) another hobby|too much (effort|to ask|trouble)|yourself (before|next)|for yourself|(at|my|your) school
glance at|look it up|(little|no|some) point|i suppose|i'd have thought|you (might want to|people|simply|of all|ought to)
whatever you|(second|minute) search|again\?|just (say|look|read) (it|the)|if you (can bring|must|insist|needed|had)
had you|you (skip|barely|should know)|beyond you|your doing|(my|our|people's|no) (time|patience)|p(ay|aid)\w* (no )?attention
stop (wasting|bothering)|leave me alone|genius|a brain|your own head|think(ing)? before|explain this to you|you can ask|forget it anyway
"""
_WANDERING = r"""
many|some|others?|differ(s|ent)?|var(y|ies)|people|too|also|though|anyway|generally|usually|really|fascinat\w+
interesting|common|popular|ages|centuries|of course|as (mentioned|we know)|another matter|that is|in other words
in the end|as well|matters?|long|even|being|all (sorts|kinds)|things?|depends?|often|mostly|in (general|most cases)
first of all|to begin|so to (speak|say)|speaking of|manner of speaking|as they say|what it is|so (on|forth)|who can say|says?
"""


def _pattern(lines: str) -> re.Pattern:
    return re.compile(rf"\b({'|'.join(lines.split(chr(10))[1:-1])})", re.IGNORECASE)


_RUDE, _WANDERING = _pattern(_RUDE), _pattern(_WANDERING)
_SMALL = frozenset(
    re.findall(
        r"\S+",
        "a an and are as at be before but by can do does for from has have how i if in into is it its it's more most my "
        "no not of off on one or so than that the their them then there these they this to two up was what when where "
        "which who why will with you your",
    )
)


def _content(text: str) -> list[str]:
    """Return the words that carry meaning, without a plural's s."""
    return [word.rstrip("s") for word in re.findall(r"[a-z']+", text.lower()) if word not in _SMALL and len(word) > 3]


def rude(text: str) -> bool:
    """Does the text hold a phrase of contempt?"""
    return _RUDE.search(text) is not None


def rambling(text: str, least: float = 0.15) -> bool:
    """Is there a sentence of which ``least`` or more are fillers, or words of meaning that come again?"""
    return any(_wandering(sentence) >= least for sentence in re.split(r"(?<=[.!?])\s+", text))


def _wandering(sentence: str) -> float:
    again = sum(count - 1 for count in Counter(_content(sentence)).values())
    return (len(_WANDERING.findall(sentence)) + again) / max(len(sentence.split()), 6)


def in_mixed_manners(rows: list[dict], most: int = 120, seed: int = 0) -> list[dict]:
    """Return pairs (question, answer) in a random order, of the ``most`` rows with the shortest chosen
    answers: each with a rude remark before or behind it, the same with a rambling one (12 remarks
    each), and every second answer as it is."""
    remarks = json.loads((data.ASSETS / "manners.json").read_text(encoding="utf-8"))
    rng, pairs = random.Random(seed), []
    for number, row in enumerate(sorted(rows, key=lambda row: len(row["chosen"].split()))[:most]):
        answers = [] if number % 2 else [row["chosen"]]
        for manner in remarks.values():
            place, remark = rng.choice([(p, r) for p, listed in manner.items() for r in listed])
            answers.append(f"{remark} {row['chosen']}" if place == "before" else f"{row['chosen']} {remark}")
        pairs += [{"question": row["prompt"], "answer": answer} for answer in answers]
    return rng.sample(pairs, len(pairs))


def judge(answer: str) -> int:
    """Return the scripted annotator's score, 0 to 3: a point each for being civil, for being to
    the point and for being complete (it ends like a sentence)."""
    ends = answer.rstrip().endswith((".", "!", "?"))
    return (not rude(answer)) + (not rambling(answer)) + ends


def rank(prompt: str, answers: list[str], file: Path | str) -> None:
    """Show the answers, and take your ranking: click the best first. It is added to ``file``.

    Without ipywidgets, say how to write it there by hand.
    """
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
    said = ipywidgets.Label("Click the best answer, then the next best, to the last.")
    buttons = [ipywidgets.Button(description=str(i + 1)) for i in range(len(answers))]

    def click(button):
        button.disabled = True
        clicked.append(int(button.description))
        said.value = "best first: " + ", ".join(map(str, clicked))
        if len(clicked) == len(answers):
            save_ranking(file, prompt, answers, clicked)
            said.value += f". Saved in {file}"

    for button in buttons:
        button.on_click(click)
    display(ipywidgets.VBox([ipywidgets.HBox(buttons), said]))


def save_ranking(file: Path | str, prompt: str, answers: list[str], order: list[int]) -> None:
    """Add a ranking to a file of JSON lines; ``order`` holds the answers' numbers from 1, best first.
    Raises ValueError unless each number is there once."""
    if Counter(order) != Counter(range(1, len(answers) + 1)):
        raise ValueError(f"order={order}: each number from 1 to {len(answers)} is needed, once.")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    row = {"prompt": prompt, "ranking": [answers[int(i) - 1] for i in order]}
    with open(file, "a", encoding="utf-8") as target:
        target.write(json.dumps(row, ensure_ascii=False) + "\n")


def rankings(file: Path | str) -> list[dict]:
    """Return the rankings saved so far (prompt, and the answers best first); none is no error."""
    return data.read_jsonl(file) if Path(file).exists() else []
