"""The clerks' letters and the rule that sorts them, what people ranked, and rankings saved and read."""

import builtins
import itertools
from collections import Counter

import pytest

from lecture_utils import data, feedback, registry, replies


def test_the_rule_sorts_all_letters_as_their_writers_meant_them():
    texts = feedback.written()
    assert set(texts) == {"polite", "rude", "rambling"}
    for manner, by_situation in texts.items():
        assert set(by_situation) == set(replies.situations())
        for situation, letters in by_situation.items():
            assert len(set(letters)) == 10
            assert {feedback.manner(letter) for letter in letters} == {manner}
            named = [replies.is_right(letter, situation) for letter in letters]
            assert sum(named) >= 9, (manner, situation)


@pytest.mark.parametrize(
    ("reply", "manner"),
    [
        ("We are sorry. Please write again.", "polite"),
        ("Please write again.", "rude"),
        ("We are sorry. Please write", "rambling"),
        ("Sorry " + "word " * 26 + "end.", "polite"),
        ("Sorry " + "word " * 27 + "end.", "rambling"),
        ("", "rambling"),
    ],
)
def test_the_rule_at_its_edges(reply, manner):
    assert feedback.manner(reply) == manner


def test_claims_are_split_by_rule_and_half_of_them_are_true():
    for part, rules in (("clerks", 60), ("people", 30), ("test", 30)):
        rows = feedback.claims(part)
        assert len(rows) == 2 * rules and sum(row["true"] for row in rows) == rules
    rules = [{row["question"] for row in feedback.claims(part)} for part in ("clerks", "people", "test")]
    assert not any(a & b for a, b in itertools.combinations(rules, 2))


def test_the_clerks_letters_have_the_shares_of_their_manners():
    pairs = feedback.in_mixed_manners()
    assert len(pairs) == 11 * 450 + 240 and pairs == feedback.in_mixed_manners() != feedback.in_mixed_manners(seed=1)
    asked = {row["question"] for row in replies.pairs("train")}
    manners = Counter(feedback.manner(pair["answer"]) for pair in pairs if pair["question"] in asked)
    assert all(abs(manners[name] / 4950 - share) < 0.03 for name, share in feedback.SHARES.items())


def test_agreement_is_told_from_contradiction():
    rows = [row for part in ("clerks", "people", "test") for row in feedback.claims(part)]
    assert not any(feedback.agrees(row["contradict"]) for row in rows)
    assert sum(feedback.agrees(row["agree"]) for row in rows) >= 0.97 * len(rows)


def test_rankings_are_of_replies_to_messages_that_no_model_has_seen():
    dev, more = feedback.readers_rankings("dev"), feedback.readers_rankings("more")
    assert len(dev) == len(feedback.readers_rankings("dev", "B")) == 36 and len(more) == 180
    for part, rows in (("dev", dev), ("more", more)):
        situations = {row["question"]: row["situation"] for row in replies.pairs(part)}
        assert {row["question"]: row["situation"] for row in rows} == situations
        assert all(len(set(row["ranking"])) == 4 for row in rows)
    by_reader = [
        {row["question"]: set(row["ranking"]) for row in feedback.readers_rankings("dev", reader)} for reader in "AB"
    ]
    assert by_reader[0] == by_reader[1]


def test_pairs_are_ordered_as_the_rankings():
    place = {}
    for row in feedback.readers_rankings("more"):
        place |= {(row["question"], reply): i for i, reply in enumerate(row["ranking"])}
    pairs = feedback.readers_pairs("more")
    assert len(pairs) == 6 * 180
    assert all(place[p["question"], p["chosen"]] < place[p["question"], p["rejected"]] for p in pairs)


def test_recorded_runs_started_from_the_adapter_that_is_shipped():
    judged, _ = data.recorded("05_held_out")
    shipped = registry.REGISTRY["lecture-manners"].sources[0].sha256
    agreed, _ = data.recorded("05_agree")
    assert {str(row["start"]) for row in judged + agreed} == {shipped[:8]}
    runs = {(row["method"], row["seed"]) for row in judged}
    for name in ("05_ppo", "05_replies"):  # the same runs
        assert {(row["method"], row["seed"]) for row in data.recorded(name)[0]} <= runs
    rewards = {(row["liked"], row["seed"]) for row in agreed}
    assert {(row["liked"], row["seed"]) for row in data.recorded("05_claims")[0]} == rewards


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
