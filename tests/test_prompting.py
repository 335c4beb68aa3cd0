import datetime
import json
import re
from types import SimpleNamespace

import pytest
import torch

from lecture_utils import data, evaluation, grammars, inbox, problems, prompting
from lecture_utils.prompting import Prompt


def test_messages_of_a_prompt():
    prompt = Prompt("Is it good? {text}", system="Be brief.", shots=(("Nice.", "yes"), ("Bad.", "no")))
    assert [(m["role"], m["content"]) for m in prompt.messages("Fine {here}.")] == [
        ("system", "Be brief."), ("user", "Is it good? Nice."), ("assistant", "yes"),
        ("user", "Is it good? Bad."), ("assistant", "no"), ("user", "Is it good? Fine {here}."),
    ]  # fmt: skip
    for ask in ("no place", "{text} and {text}"):
        with pytest.raises(AssertionError):
            Prompt(ask).messages("x")


@pytest.mark.parametrize("choices", [(" yes", " no"), ("Monday", "a day in the middle of the week", "no")])
def test_choice_log_probabilities_equal_the_library_loss(tiny, tokenizer, choices):
    asked = [data.chat("Is it?"), data.chat("A much longer question, so that rows are padded: is it or is it not?")]
    shots = (("How is it, in a few words?", "It is as it was."),) * 4  # a beginning long enough to be shared
    asked += [Prompt("{text}", shots=shots).messages(text) for text in ("Is it?", "Is it so, or is it not so?")]
    ours = prompting.choice_log_probabilities(tiny, tokenizer, asked, choices, batch_size=2)
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
    ours = grammars.constrained_decode(tiny, tokenizer, asked, may_begin, whole)
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


def test_special_tokens_are_no_text(tiny, tokenizer):
    """A grammar that allows the characters of <|im_start|> still does not get that token."""

    class Eager(torch.nn.Module):  # wants <|im_start|> first, then a plain "<", then the end
        device, config, step = tiny.device, tiny.config, 0

        def __call__(self, input_ids, **_):
            logits = torch.zeros(1, 1, len(tokenizer))
            wanted = [tokenizer.convert_tokens_to_ids("<|im_start|>"), tokenizer.convert_tokens_to_ids("<")]
            logits[0, 0, wanted if not self.step else [tokenizer.eos_token_id]] = torch.tensor([9.0, 5.0])[
                : 2 - self.step
            ]
            self.step = 1
            return SimpleNamespace(logits=logits, past_key_values=None)

    def allowed(text):
        return set(text) <= set("<|>_abcdefghijklmnopqrstuvwxyz")

    assert grammars.constrained_decode(Eager(), tokenizer, "x", allowed, allowed) == "<"


def test_a_grammar_that_cannot_be_kept_is_an_error(tiny, tokenizer):
    with pytest.raises(ValueError, match="No token goes on"):
        grammars.constrained_decode(tiny, tokenizer, "x", lambda text: False, lambda text: False)
    with pytest.raises(ValueError, match="not whole"):
        grammars.constrained_decode(tiny, tokenizer, "x", lambda text: True, lambda text: False, max_new_tokens=3)


def test_dates_are_real_and_different():
    made = problems.dates(200, seed=3)
    assert len({text for text, _ in made}) == 200 and made == problems.dates(200, seed=3)
    for text, iso in made:
        day = datetime.date.fromisoformat(iso)
        assert str(day.year) in text and re.search(rf"\b{day.day}(st|nd|rd|th)?\b", text)
        assert problems.MONTHS[day.month - 1][:3] in text
    said = " ".join(text for text, _ in made)
    assert all(text.startswith("the ") for text, _ in problems.dates(5, forms=problems.DATE_FORMS[2:3]))
    assert not re.search(r"\b(1th|2th|3th|11st|12nd|13rd|21th)\b", said) and "1st" in said and "11th" in said


def test_problems_are_solved_by_their_steps():
    made = problems.problems(120, seed=1)
    assert len({p.text for p in made}) == 120
    for problem in made:
        (left, middle), (right, end) = re.findall(r"(\d+ [+-] \d+) = (\d+)", problem.steps)
        assert problems.calculate(left) == int(middle) and right.split()[0] == middle
        assert problems.calculate(right) == int(end) == problem.answer > 0
        assert problem.steps.endswith(f"The answer is {problem.answer}.")
        assert set(map(str, problem.numbers)) <= set(re.findall(r"\d+", problem.text))
        assert problem.steps.startswith(problem.first_step()) and problem.first_step().endswith(f" = {middle}")
        assert problem.first_step(1).endswith(f" = {int(middle) + 1}")
    assert all("shelf" in p.text for p in problems.problems(10, stories=(2,)))


def test_ways_to_solve_show_answers_steps_or_calls():
    examples = problems.problems(2, seed=3, stories=(0,))
    ways = problems.ways_to_solve(examples)
    assert list(ways) == ["no example", "step by step", "answers shown", "steps shown", "calculator"]
    assert ways["no example"].shots == ways["step by step"].shots == ()
    assert ways["answers shown"].shots[0] == (examples[0].text, f"The answer is {examples[0].answer}.")
    assert ways["steps shown"].shots[1] == (examples[1].text, examples[1].steps)
    called = ways["calculator"].shots[0][1]
    assert called.count("CALC(") == 2 and re.sub(r"CALC\(([^)]*)\)", r"\1", called) == examples[0].steps


def test_with_calculator_answers_each_call_and_refuses_what_is_none():
    script = {  # what is written after a text's end
        "A:": "I take CALC(2 + 3) = 7, which is nonsense", "= 5": " and CALC(5 * 2) = 1", "= 10": ". It is 10.",
        "B:": "No call.", "C:": "CALC(open('x')) = 1", "[refused]": " sorry",
    }  # fmt: skip
    asked = []

    def complete(texts):
        asked.append(len(texts))
        return [next(v for k, v in script.items() if text.endswith(k)) for text in texts]

    assert problems.with_calculator(complete, ["A:", "B:"]) == [
        "I take CALC(2 + 3) = 5 and CALC(5 * 2) = 10. It is 10.", "No call.",
    ]  # fmt: skip
    assert asked == [2, 1, 1]
    assert problems.with_calculator(complete, ["C:"]) == ["CALC(open('x')) = [refused] sorry"]
    endless = problems.with_calculator(lambda texts: [" CALC(1) ="] * len(texts), ["x"], rounds=2)
    assert endless == [" CALC(1) = 1 CALC(1) = 1 CALC(1) ="]
    assert problems.with_calculator(complete, []) == []


def test_balanced_examples_have_as_many_of_each_label():
    pool = data.reviews("pool")
    for count in (2, 8):
        drawn = prompting.balanced_examples(pool, count, seed=1)
        assert len(set(drawn)) == count and sum(label == "positive" for _, label in drawn) == count // 2
        assert set(drawn) <= {(r["text"], r["label"]) for r in pool} and drawn == prompting.balanced_examples(
            pool, count, 1
        )
    assert prompting.balanced_examples(pool, 8, 1) != prompting.balanced_examples(pool, 8, 2)
    with pytest.raises(AssertionError):
        prompting.balanced_examples(pool, 3)


def test_prompts_have_one_place_for_the_text():
    for ask in (*data.prompts("inbox").values(), *data.prompts("dates").values()):
        assert Prompt(ask).messages("<here>")[0]["content"].count("<here>") == 1


def test_messages_of_the_inbox_state_what_the_form_says():
    rows = {split: inbox.messages(split) for split in ("pool", "dev", "test")}
    assert {split: len(its) for split, its in rows.items()} == {"pool": 60, "dev": 60, "test": 160}
    values = {s: {(f, r["form"][f]) for r in its for f in ("product", "city")} for s, its in rows.items()}
    assert not (values["pool"] & values["test"] or values["dev"] & values["test"] or values["pool"] & values["dev"])
    for its in rows.values():
        assert sum(row["form"]["mood"] == "happy" for row in its) * 2 == len(its)
        for row in its:
            assert all(len(re.findall(data.whole_word(row["form"][f]), row["text"])) == 1 for f in inbox.FIELDS[:2])
            assert row["form"]["city"] in row["text"] and "happy" not in row["text"].lower().replace(
                row["form"]["product"], ""
            )
            assert 15 <= len(row["text"].split()) <= 70


WHOLE = json.dumps({"order": "48213", "product": "oak table", "city": "Ghent", "mood": "happy"})


def test_forms_as_json():
    form = json.loads(WHOLE)
    assert re.fullmatch(inbox.FORM, WHOLE) and inbox.fields_right(WHOLE, form) == [True] * 4
    for row in inbox.messages("dev"):
        assert re.fullmatch(inbox.FORM, json.dumps(row["form"]))
    for old, new in (("48213", "4821"), ("happy", "glad"), ("Ghent", 'Gh"ent'), ("oak table", ""), ('"}', '"')):
        assert not re.fullmatch(inbox.FORM, WHOLE.replace(old, new))
    assert inbox.fields_right(WHOLE.replace("Ghent", "GHENT").replace("48213", "48214"), form) == [False] + [True] * 3
    for no_form in ("", "[1]", "{", "null", '{"order": "48213"}', WHOLE[:-1] + ', "more": 1}'):
        assert not any(inbox.fields_right(no_form, form))


@pytest.mark.parametrize("copied", [False, True])
def test_the_schema_and_the_copying_grammar_allow_the_right_form_and_no_other_text(tokenizer, copied):
    llguidance = pytest.importorskip("llguidance")
    text = 'The "oak table" of order 48213 came to Ghent.'
    (matcher,) = inbox.processor(tokenizer, [text] if copied else None)([0]).matchers
    allowed = {
        WHOLE: True,
        WHOLE.replace("oak table", "elm table"): not copied,
        WHOLE.replace("48213", "482"): False,
        WHOLE.replace("happy", "glad"): False,
        WHOLE.replace(', "mood": "happy"', ""): False,
        "Here is the form": False,
    }
    for answer, may in allowed.items():
        matcher.reset()
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert (matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()) == may, answer
    assert llguidance


def test_whatever_the_model_prefers_constrained_decoding_is_valid_json(tiny, tokenizer):
    """By hand and by llguidance alike, also where the model's preferences are noise."""
    hf = pytest.importorskip("llguidance.hf")
    regex = pytest.importorskip("regex")
    allowed, engine = regex.compile(inbox.FORM), hf.from_tokenizer(tokenizer)
    torch.manual_seed(0)

    class Noisy(torch.nn.Module):  # another taste at each position, the same for both
        device, config, taste = tiny.device, tiny.config, torch.randn(400, len(tokenizer)) * 5

        def __call__(self, input_ids, past_key_values=0, **_):
            length = (past_key_values or 0) + input_ids.shape[1]
            return SimpleNamespace(logits=self.taste[length % 400].view(1, 1, -1), past_key_values=length)

    noisy, asked = Noisy(), data.chat("Which order?")
    ours = grammars.constrained_decode(
        noisy, tokenizer, asked, lambda t: allowed.fullmatch(t, partial=True) is not None,
        lambda t: allowed.fullmatch(t) is not None, max_new_tokens=200,
    )  # fmt: skip
    json.loads(ours)
    held = grammars.GrammarLogitsProcessor(engine, [grammars.regular(inbox.FORM)], tokenizer.eos_token_id)
    ids = tokenizer(data.render(tokenizer, asked)[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    while ids[0, -1] != tokenizer.eos_token_id or ids.shape[1] == start:
        token = held(ids, noisy(ids).logits[:, -1]).argmax(-1, keepdim=True)
        ids = torch.cat((ids, token), 1)
    theirs = tokenizer.decode(ids[0, start:-1])
    assert re.fullmatch(inbox.FORM, theirs) and json.loads(theirs)
    assert theirs == ours


PATTERN = "(no|yes, [a-z]{3,9}) [0-9]{2}"


def test_held_rows_end_apart_and_generate_goes_on(tiny, tokenizer):
    hf = pytest.importorskip("llguidance.hf")
    engine = hf.from_tokenizer(tokenizer)
    asked = ["Short?", "A longer question, which is padded less than the other one?"]
    said = evaluation.generate_answers(
        tiny,
        tokenizer,
        asked,
        40,
        2,
        processor=lambda batch: grammars.GrammarLogitsProcessor(
            engine, [grammars.regular(PATTERN)] * len(batch), tokenizer.eos_token_id
        ),
    )
    assert all(re.fullmatch(PATTERN, text) for text in said)
    alone = [
        evaluation.generate_answers(
            tiny,
            tokenizer,
            [q],
            40,
            processor=lambda batch: grammars.GrammarLogitsProcessor(
                engine, [grammars.regular(PATTERN)], tokenizer.eos_token_id
            ),
        )[0]
        for q in asked
    ]
    assert said == alone


def test_last_number_and_majority():
    assert [problems.last_number(t) for t in ("It is 12.", "1,200 or 13, no", "none", "-3", "5 apples, 7,")] == [
        12, 13, None, -3, 7,
    ]  # fmt: skip
    assert problems.majority([3, None, 4, 4, None, None]) == 4 and problems.majority([2, 5]) == 2
    assert problems.majority([None]) is None and problems.majority([]) is None


def test_calculate():
    assert problems.calculate("2 + 3 * (4 - 1)") == 11 and problems.calculate(" -7/2 ") == -3.5
    assert problems.calculate("1e3 + .5") == 1000.5


@pytest.mark.parametrize(
    "bad", ["__import__('os')", "2 ** 9", "abs(-1)", "x + 1", "'a' * 9", "True + 1", "1 if 1 else 2", "1; 2", "", "(1",
            "9 // 2", "[1][0]", "1" * 101, "1 / 0", "1j + 1"]
)  # fmt: skip
def test_calculate_refuses_what_is_no_sum(bad):
    with pytest.raises(ValueError):
        problems.calculate(bad)


def test_difference_is_paired():
    a, b = [1, 1, 0, 1] * 25, [0, 1, 0, 1] * 25
    mean, low, high = evaluation.paired_bootstrap(a, b)
    assert mean == pytest.approx(0.25) and 0.15 < low < 0.25 < high < 0.36
    assert evaluation.paired_bootstrap(a, a) == (0, 0, 0)


def test_generation_takes_conversations_and_samples(tiny, tokenizer):
    questions = ["Hello?", Prompt("{text}", shots=(("Hi", "Ho"),)).messages("Hello?")]
    greedy = evaluation.generate_answers(tiny, tokenizer, questions, max_new_tokens=5)
    assert (
        greedy == evaluation.generate_answers(tiny, tokenizer, questions, max_new_tokens=5) and greedy[0] != greedy[1]
    )
    torch.manual_seed(0)
    sampled = evaluation.generate_answers(tiny, tokenizer, ["Hello?"] * 4, max_new_tokens=5, temperature=1.0)
    assert len(set(sampled)) > 1
