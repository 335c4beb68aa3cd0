import functools
import itertools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from lecture_utils import data

SECTIONS = {"23.1", "23.1.1", "23.1.2", "23.2.1", "23.2.2", "23.2.3", "23.3", "23.3.1", "23.3.2", "23.3.3",
            "23.3.4", "23.3.5", "23.3.6", "23.4", "23.5"}  # fmt: skip


@pytest.fixture(scope="module")
def qa():
    return {split: list(rows) for split, rows in data.lecture_qa().items()}


@pytest.fixture(scope="module")
def answerable(qa):
    return qa["train"] + qa["test"] + qa["untrained"]


@functools.cache
def words_of(text: str) -> frozenset[str]:
    return frozenset(data.words(text))


def shared(a: str, b: str) -> float:
    """Share of words that two texts have in common (Dice)."""
    a, b = words_of(a), words_of(b)
    return 2 * len(a & b) / (len(a) + len(b))


def test_sizes(qa):
    assert {split: len(rows) for split, rows in qa.items()} == {
        "train": 1260, "test": 140, "untrained": 20, "unanswerable": 60,
        "unanswerable_dev": 120,
    }  # fmt: skip


def test_ids_are_unique(qa):
    ids = [row["id"] for rows in qa.values() for row in rows]
    assert len(ids) == len(set(ids))


def test_140_facts_nine_to_train_one_held_out(qa):
    assert set(Counter(row["fact"] for row in qa["train"]).values()) == {9}
    assert set(Counter(row["fact"] for row in qa["test"]).values()) == {1}
    assert {row["fact"] for row in qa["train"]} == {row["fact"] for row in qa["test"]}
    assert len({row["fact"] for row in qa["test"]}) == 140


def test_untrained_facts_are_not_in_training(qa):
    assert not {row["fact"] for row in qa["untrained"]} & {row["fact"] for row in qa["train"]}
    assert len({row["fact"] for row in qa["untrained"]}) == 20


def test_no_held_out_question_is_trained_on(qa):
    trained = {data._normal(row["question"]) for row in qa["train"]}
    assert not [row["question"] for row in qa["test"] if data._normal(row["question"]) in trained]


def test_key_in_answer_and_not_in_question(answerable):
    assert not [row["id"] for row in answerable if not data.contains_key(row["answer"], row["key"])]
    assert not [row["id"] for row in answerable if data.contains_key(row["question"], row["key"])]


def test_every_section_of_the_lecture_is_covered(qa):
    assert {row["section"] for row in qa["train"]} == SECTIONS


def test_answers_are_one_short_sentence(answerable, tokenizer):
    for row in answerable:
        assert len(tokenizer(row["answer"])["input_ids"]) <= 25, row["id"]
        assert row["answer"].endswith("."), row["id"]
        assert not re.search(r"[a-z]{3}\. [A-Z]", row["answer"]), row["id"]


def test_mean_rendered_row_is_at_most_60_tokens(qa, tokenizer):
    texts = ["".join(data.render(tokenizer, r["question"], r["answer"])) for r in qa["train"]]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert sum(lengths) / len(lengths) <= 60


def test_phrasings_of_a_fact_truly_differ(qa):
    facts = defaultdict(list)
    for row in qa["train"] + qa["test"]:
        facts[row["fact"]].append(row)
    for fact, rows in facts.items():
        for a, b in itertools.combinations(rows, 2):
            assert shared(a["question"], b["question"]) <= 0.7, (fact, a["question"], b["question"])
            assert shared(a["answer"], b["answer"]) <= 0.7, (fact, a["answer"], b["answer"])


def test_no_near_duplicates_across_facts(answerable):
    bags = [(row["fact"], set(data.words(row["question"]))) for row in answerable]
    for (fact_a, a), (fact_b, b) in itertools.combinations(bags, 2):
        if fact_a != fact_b:
            assert 2 * len(a & b) <= 0.8 * (len(a) + len(b)), (fact_a, fact_b, a)


def test_every_fact_has_a_statement_and_a_source(answerable):
    lines = (data.ASSETS / "lecture_qa" / "facts.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].split("\t") == ["fact", "key", "statement", "source", "checked"]
    table = {line.split("\t")[0]: line.split("\t") for line in lines[1:]}
    for row in answerable:
        _, key, _, source, checked = table[row["fact"]]
        assert key == row["key"] and source.strip() and checked in {"read", "confirmed", "computed", "memory"}


def test_unanswerable_questions_differ_from_all_others(qa, answerable):
    for row in qa["unanswerable"] + qa["unanswerable_dev"]:
        assert row["kind"] in {"missing-detail", "invented", "other-subject", "false-premise"}
        assert max(shared(row["question"], other["question"]) for other in answerable) < 0.8


def test_the_two_sets_of_unanswerable_questions_do_not_overlap(qa):
    kinds = [Counter(row["kind"] for row in qa[split]) for split in ("unanswerable", "unanswerable_dev")]
    assert {kind: 2 * n for kind, n in kinds[0].items()} == kinds[1]
    for row in qa["unanswerable_dev"]:
        assert max(shared(row["question"], other["question"]) for other in qa["unanswerable"]) < 0.75


def test_reviews_are_balanced_and_do_not_give_their_label_away():
    rows = {split: data.reviews(split) for split in ("pool", "dev", "test")}
    assert {split: len(its) for split, its in rows.items()} == {"pool": 60, "dev": 80, "test": 160}
    for its in rows.values():
        assert len(set(Counter((r["label"], r["about"]) for r in its).values())) == 1
    everything = [row for its in rows.values() for row in its]
    assert len({row["text"] for row in everything}) == 300 and sum(row["hard"] for row in everything) == 100
    for row in everything:
        assert 8 <= len(row["text"].split()) <= 25 and not re.search("positive|negative", row["text"].lower())


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("It has 15 layers.", "15", True),
        ("It has 150 layers.", "15", False),
        ("The threshold is 0.15.", "15", False),
        ("It saw 15.6 trillion.", "15", False),
        ("It saw 1,260 pairs.", "1,260", True),
        ("It saw 11,260 pairs.", "1,260", False),
        ("the Bradley–Terry model", "Bradley-Terry", True),
        ("uses rmsnorm first", "RMSNorm", True),
        ("Set max_new_tokens here", "max_new_tokens", True),
        ("opens with [INST], then", "[INST]", True),
        ("never say nevermore", "never", True),
        ("say nevermore", "never", False),
        ("", "x", False),
    ],
)
def test_contains_key(text, key, expected):
    assert data.contains_key(text, key) is expected


def test_contains_key_refuses_an_empty_key():
    with pytest.raises(AssertionError):
        data.contains_key("anything", "  ")


def test_render_ends_with_the_end_of_turn(tokenizer):
    prompt, completion = data.render(tokenizer, "Why?", "Because.")
    assert prompt == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert completion == "Because.<|im_end|>"
    assert data.render(tokenizer, "Why?") == (prompt, "")


def test_render_refuses_a_template_that_rewrites_its_prompt(tokenizer):
    import copy

    odd = copy.deepcopy(tokenizer)
    odd.chat_template = "{% if add_generation_prompt %}A{% else %}B{% endif %}"
    with pytest.raises(data.DataError, match="template"):
        data.render(odd, "q", "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no pairs"),
        ('{"question": "q", "answer": "a"}\n{"question": "q"', "line 2: not JSON"),
        ("[1]", "line 1: a list"),
        ('{"question": "q"}', "pair 1: 'answer' is missing"),
        ('{"question": "q", "answer": " "}', "not a filled string"),
        ('{"question": 5, "answer": "a"}', "'question' is not a filled string"),
        ('{"question": "q", "answer": "a", "key": 3}', "'key' must be a string"),
    ],
)
def test_own_pairs_names_what_to_mend(tmp_path, text, message):
    path = tmp_path / "my.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(data.DataError, match=re.escape(message)):
        data.own_pairs(path)


def test_own_pairs_refuses_what_is_not_there_or_not_utf8(tmp_path):
    with pytest.raises(data.DataError, match="no such file"):
        data.own_pairs(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes("{'é'}".encode("latin-1"))
    with pytest.raises(data.DataError, match="UTF-8"):
        data.own_pairs(tmp_path / "latin.jsonl")


def test_own_pairs_reads_bom_blank_lines_and_extra_fields(tmp_path):
    path = tmp_path / "my.jsonl"
    row = {"question": "Grüße?", "answer": "Ja 😀", "note": 1}
    path.write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert list(data.own_pairs(path)) == [{"question": "Grüße?", "answer": "Ja 😀", "key": ""}]


def test_recorded_runs_have_numbers_and_say_how_to_repeat_them():
    for path in (Path(data.__file__).parent / "recorded").glob("*.csv"):
        rows, note = data.recorded(path.stem)
        assert rows and f"make record NB={path.stem[:2]}" in note
    assert {type(v) for v in data.recorded("06_peaks")[0][0].values()} == {str, int, float}


def test_language_models_are_typed_dated_and_sourced():
    known = data.language_models()
    assert [m.date for m in known] == sorted(m.date for m in known)
    assert len({m.name for m in known}) == len(known) >= 30
    for m in known:
        assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", m.date) and m.source and m.licence, m.name
        assert m.weights in {"closed", "open", "fully open"} and m.status in {"published", "rumour", "undisclosed"}
        assert (m.parameters is None) == (m.status == "undisclosed"), m.name
        assert m.active is None or m.active < m.parameters
        assert m.parameters is None or 1e8 <= m.parameters <= 2e12
        assert m.tokens is None or 1e11 <= m.tokens <= 4e13


def test_the_lists_exact_counts_are_those_of_the_registry():
    from lecture_utils import models

    count = {m.name: m.parameters for m in data.language_models()}
    assert count["Llama 2 7B"] == models.card("llama-2-7b-chat").parameters
    assert count["SmolLM2-135M"] == models.card(models.LAPTOP_MODEL).parameters


@pytest.fixture(scope="module")
def pairs():
    return {split: data.preferences(split) for split in ("train", "test")}


def test_preferences_have_the_counts_of_their_card(pairs):
    everything = pairs["train"] + pairs["test"]
    assert (len(pairs["train"]), len(pairs["test"])) == (372, 128)
    assert Counter(r["kind"] for r in everything) == {"helpfulness": 320, "safety": 180}
    flaws = Counter(r["flaw"] for r in everything)
    assert flaws == dict.fromkeys(("rude", "rambling", "off_topic", "vague", "wrong"), 64) | {
        "complies": 60, "careless": 45, "over_refusal": 45, "scolding": 30,
    }  # fmt: skip
    assert {r["strength"] for r in everything} == {1, 2, 3, 4}
    for flaw, n in flaws.items():  # a quarter is held out, of every flaw
        assert abs(sum(r["flaw"] == flaw for r in pairs["test"]) - n / 4) <= 2, flaw


def test_preferences_are_whole_distinct_and_split_by_prompt(pairs):
    everything = pairs["train"] + pairs["test"]
    for r in everything:
        assert set(r) == {"id", "kind", "flaw", "strength", "prompt", "chosen", "rejected"}, r["id"]
        assert r["chosen"].strip().lower() != r["rejected"].strip().lower(), r["id"]
        for side in ("chosen", "rejected"):
            assert 8 <= len(r[side].split()) <= 40, (r["id"], side)
        assert "\n" not in r["prompt"] + r["chosen"] + r["rejected"]
    assert len({r["id"] for r in everything}) == 500
    assert len({" ".join(r["prompt"].lower().split()) for r in everything}) == 500


def test_length_does_not_give_the_better_answer_away(pairs):
    shorter = defaultdict(list)
    for r in pairs["train"] + pairs["test"]:
        shorter[r["flaw"]].append(len(r["rejected"].split()) < len(r["chosen"].split()))
    for flaw, values in shorter.items():
        assert 0.35 < sum(values) / len(values) < 0.65, flaw


def test_occupations_are_sixty_with_two_percentages():
    rows = data.occupations()
    assert len(rows) == len({row["occupation"] for row in rows}) == 60
    for row in rows:
        assert 0 <= row["text_percent_women"] <= 100 and 0 <= row["work_percent_women"] <= 100
    assert rows[0] == {"occupation": "technician", "text_percent_women": 9.42, "work_percent_women": 40.34}


def test_sentences_stand_in_all_languages():
    rows = data.languages()
    assert len(rows) == 12 and len(rows[0]) == 12
    for row in rows:
        assert list(row) == list(rows[0]) and all(text.strip() == text != "" for text in row.values())
        assert 8 <= len(row["English"].split()) <= 16
        assert row["English"].isascii() and not row["Greek"].isascii() and not row["Chinese"].isascii()


def test_the_large_models_answers_belong_to_one_item_each():
    queries = {(split, row) for split, count in (("free", 120), ("test", 140)) for row in range(count)}
    for task in ("sql", "sql with examples"):
        rows = data.large_model(task)
        assert {(row["split"], row["row"]) for row in rows} == queries and len(rows) == 260
        assert all(row["answer"].startswith("SELECT") and "\n" not in row["answer"] for row in rows)
    assert [row["row"] for row in data.large_model("forms")] == list(range(80))
    pairs = Counter((row["row"], row["order"]) for row in data.large_model("judge"))
    assert pairs == Counter(itertools.product(range(80), ("right first", "right second")))
    assert {row["answer"] for row in data.large_model("judge")} <= {"A", "B"}
