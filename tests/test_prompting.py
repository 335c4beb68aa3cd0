import datetime
import re

import pytest
import torch

from lecture_utils import data, evaluation, prompting
from lecture_utils.prompting import Prompt


def test_messages_of_a_prompt():
    prompt = Prompt("Is it good? {text}", system="Be brief.", shots=(("Nice.", "yes"), ("Bad.", "no")))
    assert [(m["role"], m["content"]) for m in prompt.messages("Fine {here}.")] == [
        ("system", "Be brief."), ("user", "Is it good? Nice."), ("assistant", "yes"),
        ("user", "Is it good? Bad."), ("assistant", "no"), ("user", "Is it good? Fine {here}."),
    ]  # fmt: skip
    for ask in ("no place", "{text} and {text}"):
        with pytest.raises(ValueError, match="once"):
            Prompt(ask).messages("x")


@pytest.mark.parametrize("choices", [(" yes", " no"), ("Monday", "a day in the middle of the week", "no")])
def test_choice_log_probabilities_equal_the_library_loss(tiny, tokenizer, choices):
    asked = [data.chat("Is it?"), data.chat("A much longer question, so that rows are padded: is it or is it not?")]
    ours = prompting.choice_log_probabilities(tiny, tokenizer, asked, choices, rows=2)
    for i, conversation in enumerate(asked):
        prompt = tokenizer(data.render(tokenizer, conversation)[0], add_special_tokens=False)["input_ids"]
        for j, choice in enumerate(choices):
            answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
            labels = torch.tensor([[-100] * len(prompt) + answer])
            with torch.inference_mode():
                loss = tiny(input_ids=torch.tensor([prompt + answer]), labels=labels).loss
            assert ours[i, j].item() == pytest.approx(-loss.item() * len(answer), abs=1e-3)


def test_calibration_takes_off_the_liking_for_a_word():
    scores = torch.tensor([[-1.0, -2.0], [-1.0, -1.2]])
    assert prompting.calibrated(scores, torch.tensor([-0.5, -1.0])).argmax(1).tolist() == [0, 1]


PATTERN = r"(yes|no), (Monday|Tuesday) [0-9]{2}"


def test_a_grammar_is_kept_and_each_token_is_the_most_probable_one_allowed(tiny, tokenizer):
    regex = pytest.importorskip("regex")
    allowed = regex.compile(PATTERN)

    def may_begin(text):
        return allowed.fullmatch(text, partial=True) is not None

    def whole(text):
        return allowed.fullmatch(text) is not None

    asked = data.chat("Which day?")
    ours = prompting.write_within(tiny, tokenizer, asked, may_begin, whole)
    assert re.fullmatch(PATTERN, ours)
    # by brute force: all tokens that are not allowed get minus infinity
    ids = tokenizer(data.render(tokenizer, asked)[0], add_special_tokens=False)["input_ids"]
    pieces, text = [tokenizer.decode([i]) for i in range(len(tokenizer))], ""
    while True:
        with torch.inference_mode():
            logits = tiny(input_ids=torch.tensor([ids])).logits[0, -1]
        keep = [bool(p) and "\ufffd" not in p and may_begin(text + p) for p in pieces]
        keep[tokenizer.eos_token_id] = whole(text)
        token = int(logits.masked_fill(~torch.tensor(keep), -torch.inf).argmax())
        if token == tokenizer.eos_token_id:
            break
        ids, text = ids + [token], text + pieces[token]
    assert text == ours


def test_a_grammar_that_cannot_be_kept_is_an_error(tiny, tokenizer):
    with pytest.raises(ValueError, match="No token goes on"):
        prompting.write_within(tiny, tokenizer, "x", lambda text: False, lambda text: False)
    with pytest.raises(ValueError, match="not whole"):
        prompting.write_within(tiny, tokenizer, "x", lambda text: True, lambda text: False, most=3)


def test_dates_are_real_and_different():
    made = prompting.dates(200, seed=3)
    assert len({text for text, _ in made}) == 200 and made == prompting.dates(200, seed=3)
    for text, iso in made:
        day = datetime.date.fromisoformat(iso)
        assert str(day.year) in text and re.search(rf"\b{day.day}(st|nd|rd|th)?\b", text)
        assert prompting.MONTHS[day.month - 1][:3] in text
    said = " ".join(text for text, _ in made)
    assert not re.search(r"\b(1th|2th|3th|11st|12nd|13rd|21th)\b", said) and "1st" in said and "11th" in said


def test_problems_are_solved_by_their_steps():
    made = prompting.problems(120, seed=1)
    assert len({p.text for p in made}) == 120
    for problem in made:
        (left, middle), (right, end) = re.findall(r"([\dx+ -]+) = (\d+)\.", problem.steps)
        assert prompting.calculate(left.replace("x", "*")) == int(middle)
        assert right.split()[0] == middle and prompting.calculate(right) == int(end) == problem.answer > 0
        assert problem.steps.endswith(f"The answer is {problem.answer}.")
    assert all("shelf" in p.text for p in prompting.problems(10, stories=(3,)))


def test_last_number_and_majority():
    assert [prompting.last_number(t) for t in ("It is 12.", "1,200 or 13, no", "none", "-3", "5 apples, 7,")] == [
        12, 13, None, -3, 7,
    ]  # fmt: skip
    assert prompting.majority([3, None, 4, 4, None, None]) == 4 and prompting.majority([2, 5]) == 2
    assert prompting.majority([None]) is None and prompting.majority([]) is None


def test_calculate():
    assert prompting.calculate("2 + 3 * (4 - 1)") == 11 and prompting.calculate(" -7/2 ") == -3.5
    assert prompting.calculate("1e3 + .5") == 1000.5


@pytest.mark.parametrize(
    "bad", ["__import__('os')", "2 ** 9", "abs(-1)", "x + 1", "'a' * 9", "True + 1", "1 if 1 else 2", "1; 2", "", "(1",
            "9 // 2", "[1][0]", "1" * 101, "1 / 0", "1j + 1"]
)  # fmt: skip
def test_calculate_refuses_what_is_no_sum(bad):
    with pytest.raises(ValueError):
        prompting.calculate(bad)


def test_difference_is_paired():
    a, b = [1, 1, 0, 1] * 25, [0, 1, 0, 1] * 25
    mean, low, high = evaluation.difference(a, b)
    assert mean == pytest.approx(0.25) and 0.15 < low < 0.25 < high < 0.36
    assert evaluation.difference(a, a) == (0, 0, 0)
    with pytest.raises(ValueError, match="same items"):
        evaluation.difference([1], [1, 0])


def test_generation_takes_conversations_and_samples(tiny, tokenizer):
    questions = ["Hello?", Prompt("{text}", shots=(("Hi", "Ho"),)).messages("Hello?")]
    greedy = evaluation.generate_answers(tiny, tokenizer, questions, max_new_tokens=5)
    assert (
        greedy == evaluation.generate_answers(tiny, tokenizer, questions, max_new_tokens=5) and greedy[0] != greedy[1]
    )
    torch.manual_seed(0)
    sampled = evaluation.generate_answers(tiny, tokenizer, ["Hello?"] * 4, max_new_tokens=5, temperature=1.0)
    assert len(set(sampled)) > 1
