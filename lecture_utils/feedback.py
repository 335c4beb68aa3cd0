"""Two sources of preferences: a scripted annotator, and you.

The scripted annotator uses rules instead of a model: it looks for phrases of contempt, for sentences that ramble, and
for an end of the answer. The rules were written from the training pairs of ``preferences`` and the remarks of
``manners.json``. Notebook 05 measures on held-out pairs what they miss.
"""

import json
import random
import re
from collections import Counter
from pathlib import Path

from lecture_utils import data, plotting


def _pattern(lines: str) -> re.Pattern:
    return re.compile(rf"\b({'|'.join(lines.strip().splitlines())})", re.IGNORECASE)


_RUDE = _pattern(r"""
any(one|body) (who|with|can|could|would|knows)|every(one|body) (else )?knows|most (people|children) (know|manage|can)
even (you|the|small)|child(ren)? (can|could|manage|know|before)|toddlers can|ten-year-olds|grown-ups?|cheapskate|mangle
bother (to|with|reading|looking|asking|me)|pester\w*|spare (me|us|the)|obvious\w*|clearly|evidently|apparently
presumably|surely|frankly|brilliant|drama|fuss|whin(e|ing)|lazy|laziness|clumsy|sloppy|stupid\w*|silly|fool\w*|idiot\w*
hopeless|ridiculous|embarrass\w*|pathetic|ignoran\w*|careless\w*|congratulations|competent|capable of
no (wonder|surprise)
(would|could|should|might) have (been|told|shown|spared|settled|managed|tried|thought|noticed|known|answered|looked)
ask(ed|ing)? (me|again|anyone|next|this|such)|(before|hardly|needed|worth|of) asking|(your|next) question
nobody (ever )?(told|mentioned|cleans|asked)|in case (nobody|that was)|common (knowledge|sense)|what did you expect
(that|this|it)('s| is) all there is
(isn't|not) (really |exactly |that |so |rocket )?(complicated|difficult|hard|science)|nothing (complicated|difficult)
of course you can|do (try|read|keep|learn|look)|try not to|perhaps (let|have|read|pick|try)|as any
(pick|find) another hobby|too much (effort|to ask|trouble)|yourself (before|next)|for yourself|(at|my|your) school
glance at|look it up|(little|no|some) point|i suppose|i'd have thought|you (might want to|people|simply|of all|ought to)
whatever you|(second|minute) search|again\?|just (say|look|read) (it|the)|if you (can bring|must|insist|needed|had)
had you|you (skip|barely|should know)|beyond you|your doing|(my|our|people's|no) (time|patience)
p(ay|aid)\w* (no )?attention|stop (wasting|bothering)|leave me alone|genius|a brain|your own head|think(ing)? before
explain this to you|you can ask|forget it anyway
""")
_RAMBLING = _pattern(r"""
many|some|others?|differ(s|ent)?|var(y|ies)|people|too|also|though|anyway|generally|usually|really|fascinat\w+
interesting|common|popular|ages|centuries|of course|as (mentioned|we know)|another matter|that is|in other words
in the end|as well|matters?|long|even|being|all (sorts|kinds)|things?|depends?|often|mostly|in (general|most cases)
first of all|to begin|so to (speak|say)|speaking of|manner of speaking|as they say|what it is|so (on|forth)|who can say
says?
""")
_FUNCTION_WORDS = {  # those of four letters and more; shorter words never count as content
    "before", "does", "from", "have", "into", "it's", "more", "most", "than", "that", "their", "them", "then", "there",
    "these", "they", "this", "what", "when", "where", "which", "will", "with", "your",
}  # fmt: skip


def rude(text: str) -> bool:
    """Return whether the text contains a phrase of contempt."""
    return _RUDE.search(text) is not None


def rambling(text: str, least: float = 0.15) -> bool:
    """Return whether in some sentence the share of fillers and repeated content words is at least ``least``."""
    return any(_share_of_rambling(sentence) >= least for sentence in re.split(r"(?<=[.!?])\s+", text))


def _share_of_rambling(sentence: str) -> float:
    words = [w for w in re.findall(r"[a-z']+", sentence.lower()) if w not in _FUNCTION_WORDS and len(w) > 3]
    repeated = len(words) - len({w.rstrip("s") for w in words})  # singular and plural count as the same word
    return (len(_RAMBLING.findall(sentence)) + repeated) / max(len(sentence.split()), 6)


def in_mixed_manners(rows: list[dict], most: int = 120, seed: int = 0) -> list[dict]:
    """Return pairs (question, answer) in random order, made of the ``most`` rows with the shortest chosen answers. Each
    answer comes once with a rude and once with a rambling remark before or after it (there are 12 of each kind), and
    every second one also comes unchanged."""
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
    """Return the scripted annotator's score from 0 to 3: one point each if the answer is civil, if it is to the point,
    and if it is complete (it ends like a sentence)."""
    return (not rude(answer)) + (not rambling(answer)) + answer.rstrip().endswith((".", "!", "?"))


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
