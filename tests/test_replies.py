import collections
import re

import pytest

from lecture_utils import data, replies, shop

MESSAGES = data.read_jsonl(shop.FOLDER / "messages.jsonl")


def test_each_split_has_its_own_messages_in_equal_numbers():
    counts = collections.Counter((row["split"], row["situation"]) for row in MESSAGES)
    expected = {"train": 50, "dev": 4, "test": 8, "more": 20}
    assert counts == {(split, name): n for split, n in expected.items() for name in replies.situations()}
    assert len({row["message"] for row in MESSAGES}) == len(MESSAGES)
    assert all(row["message"].count("{order}") == 1 for row in MESSAGES if row["split"] != "more")


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_the_shops_own_replies_obey_its_rules_and_name_the_right_step(split):
    for seed in range(3):
        for pair in replies.pairs(split, seed=seed):
            assert pair["order"] in pair["question"] and "{" not in pair["question"] + pair["answer"]
            assert all(replies.style(pair["answer"], pair["order"]).values()), pair["answer"]
            assert replies.is_right(pair["answer"], pair["situation"]), pair["answer"]


def test_every_combination_of_sentences_is_right():
    for name, text in replies.situations().items():
        for first in text["first"]:
            for second in text["second"]:
                reply = f"{first} {second}".format(thing="kettle", order="12345")
                assert all(replies.style(reply, "12345").values()) and replies.is_right(reply, name), reply


def test_pairs_are_the_same_each_time_and_have_the_values_of_their_split():
    assert replies.pairs("train") == replies.pairs("train") != replies.pairs("train", seed=1)
    assert [len(replies.pairs(split)) for split in ("train", "dev", "test")] == [450, 36, 72]
    asked = {split: " ".join(pair["question"] for pair in replies.pairs(split)) for split in ("train", "test")}
    for name in shop.values("test")["customers"]:
        assert name not in re.findall(r"\w+", asked["train"])
    assert any(name in asked["test"] for name in shop.values("test")["customers"])


@pytest.mark.parametrize(
    ("reply", "broken"),
    [
        ("We are sorry about order 12345. We will send it.", set()),
        ("We are sorry about order 12345.", {"two sentences", "next step"}),
        ("We are sorry about order 12345. Please wait. Bye.", {"two sentences"}),
        ("We are sorry about order 12345. We will send", {"two sentences"}),  # breaks off
        ("Your order 12345 is late. We will send it.", {"polite"}),
        ("We are sorry about order 123456. We will send it.", {"order number"}),
        ("We are sorry about your order. We will send 12345.", {"order number"}),
        ("We are sorry about order 12345. Goodbye.", {"next step"}),
        ("", set(replies.RULES)),
    ],
)
def test_each_rule_finds_what_breaks_it(reply, broken):
    assert {rule for rule, kept in replies.style(reply, "12345").items() if not kept} == broken


def test_a_reply_is_right_only_with_its_own_step():
    right = "Thank you for order 1. Please send us three photos."
    assert replies.is_right(right, "damaged") and not replies.is_right(right, "late")
    assert not replies.is_right(right + " It stays for 10 years.", "damaged")  # two steps
    assert not replies.is_right("Thank you.", "damaged")


def test_judge_counts_rules_and_right_steps():
    rows = replies.pairs("test")
    perfect = replies.judge([row["answer"] for row in rows], rows)
    assert perfect == dict.fromkeys((*replies.RULES, "all rules", "right step"), 72)
    other = replies.judge(["Thank you for order 1. We will ask the carrier."] * 72, rows)
    assert other["two sentences"] == 72 and other["order number"] == other["all rules"] == 0
    assert other["right step"] == 8  # the messages about late parcels
