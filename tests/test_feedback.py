"""The scripted annotator's rules at their edges, the mixed manners, and rankings saved and read."""

import builtins
import json

import pytest

from lecture_utils import data, feedback

REMARKS = json.loads((data.ASSETS / "manners.json").read_text())


def test_every_remark_is_caught_by_its_rule_and_by_no_other():
    for place in ("before", "after"):
        assert all(feedback.rude(remark) for remark in REMARKS["rude"][place])
        assert all(feedback.rambling(remark) for remark in REMARKS["rambling"][place])
        assert not any(feedback.rude(remark) for remark in REMARKS["rambling"][place])


def test_good_answers_are_seldom_accused():
    """On held-out pairs: the share of good answers accused stays small, and flawed ones are accused more often."""
    held = data.preferences("test")
    good = [row["chosen"] for row in held]
    for rule, flaw, most in ((feedback.rude, "rude", 0.02), (feedback.rambling, "rambling", 0.10)):
        accused = sum(map(rule, good)) / len(good)
        bad = [rule(row["rejected"]) for row in held if row["flaw"] == flaw]
        assert accused < most and sum(bad) / len(bad) > 5 * accused


def test_judge_gives_a_point_each():
    assert feedback.judge("Boil the eggs for eight minutes.") == 3
    assert feedback.judge("Boil the eggs for eight") == 2
    assert feedback.judge("What a silly question. Boil the eggs for eight minutes.") == 2
    assert feedback.judge("What a silly question. Many people wonder about many things, and") == 0


def test_mixed_manners_are_the_chosen_answers_with_remarks():
    every = data.preferences("train")[:30]
    rows = sorted(every, key=lambda row: len(row["chosen"].split()))[:10]
    pairs = feedback.in_mixed_manners(every, most=10)
    assert len(pairs) == 25 and pairs == feedback.in_mixed_manners(rows) != feedback.in_mixed_manners(rows, seed=1)
    chosen = {row["prompt"]: row["chosen"] for row in rows}
    manners = {name: [r for listed in m.values() for r in listed] for name, m in REMARKS.items()}
    found = {"rude": 0, "rambling": 0, None: 0}
    for pair in pairs:
        assert chosen[pair["question"]] in pair["answer"]
        rest = pair["answer"].replace(chosen[pair["question"]], "").strip()
        found[next((name for name, listed in manners.items() if rest in listed), None)] += 1
        assert rest == "" or any(rest in listed for listed in manners.values())
    assert found == {"rude": 10, "rambling": 10, None: 5}


def test_rankings_are_saved_best_first_and_read_again(tmp_path):
    file = tmp_path / "new folder" / "mine.jsonl"
    assert feedback.rankings(file) == []
    feedback.save_ranking(file, "Why?", ["a", "b", "ü"], [3, 1, 2])
    feedback.save_ranking(file, "How?", ["a", "b"], [1, 2])
    assert feedback.rankings(file) == [
        {"prompt": "Why?", "ranking": ["ü", "a", "b"]}, {"prompt": "How?", "ranking": ["a", "b"]}
    ]  # fmt: skip
    for order in ([1, 1], [1], [0, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match="from 1 to 2"):
            feedback.save_ranking(file, "How?", ["a", "b"], order)
    assert len(feedback.rankings(file)) == 2


def test_clicks_are_a_ranking(tmp_path, monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets")
    made = []
    button = ipywidgets.Button
    monkeypatch.setattr(ipywidgets, "Button", lambda **how: made.append(button(**how)) or made[-1])
    file = tmp_path / "mine.jsonl"
    feedback.rank("Why?", ["one", "two", "three"], file)
    for i in (1, 2):
        made[i].click()
        assert not file.exists()
    made[0].click()
    assert feedback.rankings(file) == [{"prompt": "Why?", "ranking": ["two", "three", "one"]}]
    assert all(b.disabled for b in made)


def test_without_widgets_the_file_is_named(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "ipywidgets":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    feedback.rank("Why?", ["one", "two"], tmp_path / "mine.jsonl")
    said = capsys.readouterr().out
    assert "1  one" in said and "save_ranking" in said and "mine.jsonl" in said


@pytest.mark.parametrize("answers", [[], ["one"], ["one", "one"]])
def test_nothing_to_rank_is_an_error(answers, tmp_path):
    with pytest.raises(AssertionError):
        feedback.rank("Why?", answers, tmp_path / "mine.jsonl")
