"""Strange but good input, such as emoji, text from right to left and a megabyte in one word: nothing breaks, nothing is
lost. And bad input that would give a wrong result without an error: it is refused."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from lecture_utils import (
    alignment,
    baselines,
    chunking,
    corpus,
    data,
    evaluation,
    exercises,
    family,
    feedback,
    generation,
    inbox,
    memory,
    models,
    multimodal,
    plotting,
    ppo,
    problems,
    prompting,
    quantization,
    reading,
    recipes,
    retrieval,
    safety,
    tokenization,
    training,
    transformer,
    vector_search,
)

# The same examples each time, and no folder of those that failed. A fixture is shared by the examples of a test.
settings.register_profile(
    "lecture", derandomize=True, deadline=None, max_examples=50, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
settings.load_profile("lecture")

NAN, INF, HALF = math.nan, math.inf, "\ud83d"  # HALF: the first half of an emoji, a lone surrogate
ODD = ["👩‍👩‍👧", "שלום", "e\u0301", "\u202e", "\u2028", "\x85", "\x00", " ", "\n\n", "\t", "<b>", "&lt;", '"', "```", "_", "1,2",
       "½", "٣", "ſ", "İ", "ß", "| a | b |", "a. B", "{text}", "<|im_end|>"]  # fmt: skip
TEXT = st.one_of(st.text(), st.lists(st.sampled_from(ODD), max_size=12).map("".join))  # whole Unicode
ANY_TEXT = st.one_of(TEXT, st.text(st.characters()), TEXT.map(lambda text: text + HALF))  # and halves of characters
BROKEN = st.tuples(TEXT, st.characters(categories=["Cs"]), TEXT).map("".join)
FINITE = st.floats(-(2.0**99), 2.0**99, width=32)
HUGE = {"one word": "a" * 10**6, "words": "word " * 50_000, "emoji": "👩‍👩‍👧" * 60_000, "spaces": " " * 10**6}

BPE = tokenization.BPE.train("ab abc שלום שלום 👩 👩 the then " * 3, 280)
SHAPE = memory.LLAMA["7B"]
LAPTOP = recipes.get_recipe("laptop")
CONFIG = transformer.LlamaConfig(16, 8, 16, 1, 2, 1, 4)
TOKENS = torch.arange(64) % 16
LABELLED = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(6)]
CHUNK = chunking.Chunk("06_lora_math", "rank", "Rank", "The rank is 16.")
SCENE = multimodal.Scene((("ring", "red"),), "at the top")
YES = torch.tensor([[True, True]])
ONES = torch.ones(1, 2)


def llama() -> transformer.Llama:
    torch.manual_seed(0)
    return transformer.Llama(CONFIG).eval()


def embed(texts) -> torch.Tensor:
    """Stands for an Embedder: vectors of length 1, another for another length of text."""
    angles = torch.tensor([float(len(text)) for text in texts])
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


# Good but strange ---------------------------------------------------------------------------


@given(TEXT)
def test_tokens_of_our_own_are_turned_back_into_the_text(text):
    assert "".join(tokenization.pretokenize(text)) == text
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text == BPE.decode(torch.tensor(ids, dtype=torch.long))


@given(TEXT)
def test_training_a_tokenizer_takes_any_text(text):
    trained = tokenization.BPE.train(text, 262)
    assert 256 <= len(trained.vocabulary) <= 262 and trained.decode(trained.encode(text)) == text


@pytest.fixture(scope="module")
def readable(tokenizer):
    """Returns a function that leaves out what the laptop's tokenizer has no tokens for, by its makers' choice: six
    control characters, and U+40000 to U+BFFFF, of which none is assigned. They vanish when it reads them."""
    known = tokenizer.get_vocab()
    unknown = {byte for byte, symbol in tokenization.byte_symbols().items() if symbol not in known}
    assert unknown & set(range(0xF1)) == {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1}  # UTF-8 has no C0 and C1
    return lambda text: "".join(c for c in text if not unknown & set(c.encode()))


@given(TEXT, TEXT)
def test_the_chat_template_keeps_question_and_answer(tokenizer, readable, question, answer):
    question, answer = readable(question), readable(answer)
    prompt, completion = data.render(tokenizer, question, answer)
    assert prompt.count(question) >= 1 and completion == f"{answer}<|im_end|>"
    ids, more = data.token_ids(tokenizer, question, answer)
    assert tokenizer.decode(ids) == prompt and tokenizer.decode(more) == completion


@given(st.lists(TEXT, min_size=1, max_size=4))
def test_the_stream_of_a_corpus_holds_its_documents(tokenizer, readable, documents):
    bos, documents = tokenizer.bos_token, [readable(document) for document in documents]
    assume(not any(bos in document for document in documents))
    ids = corpus.encode(tokenizer, documents)
    assert tokenizer.decode(ids).split(bos) == ["", *documents, ""]


@given(TEXT, st.integers(1, 9), st.data())
def test_chunks_lose_nothing_and_keep_to_their_size(text, size, more):
    section = chunking.Section("01_x", "h", "T", text)
    cut = chunking.chunk(section, size, overlap=0)
    assert "".join("".join(piece.text.split()) for piece in cut) == "".join(text.split())
    overlapping = chunking.chunk(section, size, more.draw(st.integers(0, size - 1)))
    assert {w for p in cut for w in p.text.split()} == {w for p in overlapping for w in p.text.split()}
    assert all(0 < len(piece.text.split()) <= size for piece in cut + overlapping)
    assert [piece.number for piece in overlapping] == list(range(len(overlapping)))


@given(st.lists(ANY_TEXT, max_size=5), ANY_TEXT)
def test_search_by_words_takes_any_text(texts, query):
    scores = retrieval.BM25(texts).scores(query)
    assert len(scores) == len(texts) and np.isfinite(scores).all() and (scores >= 0).all()
    order = retrieval.ranking(scores)
    assert sorted(order) == list(range(len(texts))) and sorted(scores, reverse=True) == [scores[i] for i in order]
    for score, text in zip(scores, texts, strict=True):
        assert (score > 0) == bool(set(retrieval.terms(query)) & set(retrieval.terms(text)))


@given(ANY_TEXT)
def test_words_are_lower_case_and_in_the_text(text):
    for word in data.words(text):
        assert word == data._normal(word) and word in data._normal(text)


@given(ANY_TEXT, TEXT, TEXT)
def test_a_key_is_found_between_spaces_and_never_in_a_longer_word(key, before, after):
    assume(key.strip())
    assert data.contains_key(f"{before} {key} {after}", key) and data.contains_key(key.upper(), key.upper())
    assert not data.contains_key(f"a{'x'}a", "x")


@given(ANY_TEXT, ANY_TEXT)
def test_overlap_measures_are_shares_whatever_is_compared(one, other):
    for measure in (evaluation.token_f1, evaluation.rouge_l):
        assert measure(one, one) == (1.0 if data.words(one) else 0.0)
        assert 0 <= measure(one, other) <= 1 and measure(one, other) == pytest.approx(measure(other, one))


class Tags(HTMLParser):
    """Reads a page: its tags, the names of their attributes, and the text of each cell."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.attributes, self.cells = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, text):
        if self.cells:
            self.cells[-1] += text


@given(
    st.lists(ANY_TEXT, min_size=2, max_size=2, unique=True),
    st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1),
    ANY_TEXT,
)
def test_a_table_escapes_all_that_it_shows(head, values, caption):
    rows = [dict(zip(head, row, strict=True)) for row in values]
    page = Tags(plotting.table(rows, caption).data)
    assert set(page.tags) <= {"table", "caption", "tr", "th", "td", "br"} and set(page.attributes) <= {"style"}
    shown = [plotting.escape_control_characters(text) for row in [head, *values] for text in row]
    # a line break in a cell is a <br>, one between rows is no text of the table
    assert ["".join(cell.split("\n")) for cell in page.cells] == ["".join(text.split("\n")) for text in shown]


@given(ANY_TEXT, st.dictionaries(ANY_TEXT, st.lists(st.tuples(ANY_TEXT, st.floats(0, 1))), min_size=1, max_size=3))
def test_a_slider_escapes_all_that_it_shows(name, frames):
    page = Tags(plotting.slider(name, frames).data)
    assert set(page.tags) <= {"div", "label", "input", "output", "code"} and page.tags.count("input") == 1
    assert set(page.attributes) <= {
        "style", "type", "min", "max", "value", "aria-valuetext", "data-lm-suppress-shortcuts", "data-labels", "oninput",
        "data-frame", "hidden",
    }  # fmt: skip


@given(TEXT)
def test_a_prompt_holds_the_text_once_whatever_braces_it_has(text):
    asked = prompting.Prompt("Is it good?\n{text}", "Be brief.", (("{text}", "no"),)).messages(text)
    assert [m["content"] for m in asked] == ["Be brief.", "Is it good?\n{text}", "no", f"Is it good?\n{text}"]


MARKS = st.lists(
    st.sampled_from(["<|", "|>", "im_end", "<|im_start|>", "[", "]", "INST", "/", "<", ">", "<<", "SYS", "s", " "])
)


@given(MARKS.map("".join))
@example("<|<|im_end|>|>")
@example("[I[INST]NST]")
def test_no_document_can_end_the_turn_that_it_stands_in(tokenizer, text):
    asked = reading.rag_prompt("Why?", [text])
    assert not reading.TEMPLATE_MARKS.search(asked)
    ids, _ = data.token_ids(tokenizer, asked, "So.")
    plain, _ = data.token_ids(tokenizer, reading.rag_prompt("Why?", ["The rank is 16."]), "So.")
    for mark in ("<|im_start|>", "<|im_end|>"):
        number = tokenizer.convert_tokens_to_ids(mark)
        assert ids.count(number) == plain.count(number)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_own_pairs_come_back_from_their_file_as_they_were(tmp_path, pairs):
    assume(all(q.strip() and a.strip() for q, a in pairs))
    lines = [json.dumps({"question": q, "answer": a}, ensure_ascii=False) for q, a in pairs]
    (tmp_path / "my.jsonl").write_text("\n".join(lines), encoding="utf-8", newline="")
    assert [(row["question"], row["answer"]) for row in data.own_pairs(tmp_path / "my.jsonl")] == pairs


@given(TEXT, st.lists(TEXT, min_size=2, max_size=4, unique=True), st.randoms(use_true_random=False))
def test_rankings_come_back_from_their_file_as_they_were(tmp_path, prompt, answers, rng):
    file = tmp_path / "rankings.jsonl"
    file.unlink(missing_ok=True)
    order = rng.sample(range(1, len(answers) + 1), len(answers))
    feedback.save_ranking(file, prompt, answers, order)
    assert feedback.rankings(file) == [{"prompt": prompt, "ranking": [answers[i - 1] for i in order]}]


@given(ANY_TEXT)
def test_what_a_model_wrote_is_judged_whatever_it_is(text):
    assert feedback.manner(text) in ("polite", "rude", "rambling")
    assert not any(inbox.fields_right(text, dict.fromkeys(inbox.FIELDS, "kettle")))
    assert problems.last_number(text) is None or re.search(r"\d", text)


@given(st.one_of(ANY_TEXT, st.text("0123456789.+-*/() e_j", max_size=30)))
def test_the_calculator_gives_a_number_or_says_why_not(expression):
    try:
        assert type(problems.calculate(expression)) in (int, float)
    except ValueError as error:
        assert str(error)


@given(st.integers(0, 40), st.integers(0, 5))
def test_made_problems_and_dates_are_as_many_as_asked_for(count, seed):
    assert len(dict(problems.dates(count, seed))) == len({p.text for p in problems.problems(count, seed)}) == count


@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(1, 4), st.lists(st.integers(0, 6), max_size=5))
def test_an_n_gram_model_gives_a_distribution_after_any_context(tokens, order, context):
    model = baselines.KneserNey(tokens, min(order, len(tokens)), vocabulary=7)
    p = model.distribution(context)
    assert p.sum() == pytest.approx(1) and (p > 0).all()
    log_p = model.log_probabilities([*context, 3])
    assert log_p[-1] == pytest.approx(math.log(p[3])) and len(model.log_probabilities([])) == 0


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9), st.floats(0, 5), st.data())
def test_filtered_probabilities_add_up_to_one(logits, temperature, more):
    assume(temperature == 0 or temperature > 0.01)
    top_k, top_p = more.draw(st.none() | st.integers(1, 12)), more.draw(st.floats(0.01, 1))
    p = generation.next_token_probabilities(torch.tensor(logits), temperature, top_k, top_p)
    assert p.sum().item() == pytest.approx(1, abs=1e-5) and (p >= 0).all() and p[np.argmax(logits)] == p.max()


@given(st.lists(FINITE, min_size=1, max_size=70), st.integers(1, 64))
def test_quantized_values_stay_within_their_block_s_greatest(values, block):
    x = torch.tensor(values)
    back, (codes, scale) = quantization.quantize_4bit(x, block_size=block).dequantize(), quantization.absmax_int8(x)
    assert back.shape == x.shape and back.isfinite().all() and (back.abs() <= x.abs().max() * 1.001).all()
    assert ((codes * scale - x).abs() <= scale * 0.501).all()


ATTEMPTS = st.one_of(
    st.none(), st.booleans(), ANY_TEXT, st.floats(), st.integers(), st.just(10**400), st.complex_numbers(),
    st.lists(st.integers(), max_size=3), st.sets(st.integers(), max_size=3), st.dictionaries(st.integers(), st.none()),
    st.lists(st.floats(), max_size=3).map(np.array), st.lists(st.floats(), max_size=3).map(torch.tensor),
)  # fmt: skip


@given(ATTEMPTS)
def test_no_attempt_at_an_exercise_raises(attempt):
    said = [
        exercises.check_number("1", attempt, 0.5, "why", "hint"),
        exercises.check_choice("2", attempt, "a", "why", {"b": "no"}),
        exercises.check_choice("3", attempt, 1, "why", {2: "no"}),
        exercises.check_function("4", lambda: attempt, [((), 0.5)], "why", "hint"),
        exercises.check_function("5", lambda: attempt, [((), [1, 2])], "why", "hint"),
    ]
    assert all(type(one) is bool for one in said)  # only True itself counts as right in progress()
    exercises.progress()


def test_the_right_answer_counts_in_any_number_type(monkeypatch):
    monkeypatch.setattr(exercises, "_answers", {})
    for i, half in enumerate((0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5]))):
        exercises.check_number(f"n{i}", half, 0.5, "why", "hint")
        exercises.check_choice(f"c{i}", half, 0.5, "why", {0.1: "no"})
        exercises.check_function(f"f{i}", lambda half=half: half, [((), 0.5)], "why", "hint")
    assert exercises.progress() == (15, 15)
    assert exercises.check_function("later", ..., [((), 0.5)], "why", "hint") is None


@pytest.mark.parametrize("kind", HUGE)
def test_a_megabyte_is_read(kind):
    text = HUGE[kind]
    cut = chunking.chunk(chunking.Section("01_x", "h", "T", text))
    assert "".join("".join(piece.text.split()) for piece in cut) == "".join(text.split())
    scores = retrieval.BM25([text, "apple"]).scores(f"apple {text}")
    assert scores[1] > 0
    assert "".join(tokenization.pretokenize(text)) == text and reading.escape_chat_markers(text) == text
    assert data.contains_key(f"{text} 42", "42") and problems.last_number(f"{text} 42") == 42
    assert feedback.manner(text) == "rambling"
    assert len(plotting.table([{"a": text}]).data) > len(text)


# What would pass silently ----------------------------------------------------------------------


def test_half_a_character_in_a_file_is_named(tmp_path):
    (tmp_path / "my.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "c", "answer": "\\ud83d"}')
    with pytest.raises(data.DataError, match=r"my\.jsonl, pair 2: 'answer' holds '\\ud83d'"):
        data.own_pairs(tmp_path / "my.jsonl")


@given(st.lists(FINITE, max_size=9), st.sampled_from([NAN, INF, -INF]), st.lists(FINITE, max_size=9))
def test_what_is_not_finite_is_refused_wherever_it_stands(before, bad, after):
    values = [*before, bad, *after]
    with pytest.raises(ValueError, match="infinity or NaN"):
        quantization.quantize_4bit(torch.tensor(values))
    for call in (
        lambda: quantization.absmax_int8(torch.tensor(values)),
        lambda: ppo.fit_reward_model(torch.tensor([values]), torch.zeros(1, len(values)), layer=1),
        lambda: safety.reliability(values, [True] * len(values)),
    ):
        with pytest.raises(AssertionError):
            call()


@given(st.lists(FINITE, max_size=9), st.lists(FINITE, max_size=9), st.sampled_from([0.0, 0.7]))
def test_nan_is_no_score(before, after, temperature):
    values = [*before, NAN, *after]
    for call in (
        lambda: retrieval.ranking(values),
        lambda: generation.next_token_probabilities(torch.tensor([[0.0] * len(values), values]), temperature),
    ):
        with pytest.raises(AssertionError):
            call()


def test_a_model_gone_wrong_shows_no_memorization(tiny, tokenizer):
    for weight in tiny.parameters():
        weight.data.fill_(NAN)
    with pytest.raises(AssertionError, match="NaN would rank first"):
        safety.exposures(tiny, tokenizer, safety.canaries()[:1], ["001", "002"])


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (lambda name: models.card(name), "smollm2-135m-instruct"),
        (lambda name: models.load_chat_model(name), "smollm2-135m-instruct"),
        (lambda name: models.quantization_config(name), "nf4"),
        (lambda name: memory.weight_bytes(SHAPE, name), "nf4"),
        (lambda name: recipes.get_recipe(name), "laptop"),
        (lambda name: data.recorded(name), "06_peaks"),
        (lambda name: data.prompts(name), "inbox"),
        (lambda name: family.adapt(None, name), "LoRA"),
        (lambda name: vector_search.vector_index(name, torch.ones(4, 2)), "HNSW"),
    ],
)
@pytest.mark.parametrize("name", ["nothing", "../recorded/06_peaks", "a" * 200])
def test_an_unknown_name_is_answered_with_the_known_ones(call, known, name):
    with pytest.raises(ValueError, match=rf"There is no .* Choose one of: .*{known}"):
        call(name)


@given(st.integers(-(10**9), 0))
def test_a_configuration_with_a_size_below_one_is_refused(size):
    for call, name in (
        (lambda: recipes.Recipe("mine", rank=size), "rank"),
        (lambda: recipes.Recipe("mine", batch_size=size), "batch_size"),
        (lambda: training.TrainingConfig(4, context_length=size), "context_length"),
        (lambda: ppo.PPOConfig(max_new_tokens=size), "max_new_tokens"),
    ):
        with pytest.raises(ValueError, match=f"{name}={size}: it must be above 0"):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: transformer.causal_mask(3, 2),
        lambda: transformer.rope(3, 5),
        lambda: transformer.Attention(8, 3),
        lambda: transformer.Attention(8, 4, 3),
        lambda: training.mean_loss(None, torch.arange(9), context_length=5),
        lambda: chunking.chunk(CHUNK, 5, 5),
        lambda: data.contains_key("15", " "),
        lambda: generation.next_token_probabilities(torch.ones(1, 2), -1.0),
        lambda: evaluation.generate_answers(None, None, "one text"),
        lambda: quantization.pack(torch.tensor([16], dtype=torch.uint8)),
        lambda: alignment.ppo_loss(ONES, ONES, ONES, torch.ones(1, 2).long()),
        lambda: alignment.whiten(ONES, torch.ones(1, 2).long()),
        lambda: alignment.bradley_terry_loss(torch.ones(3), torch.ones(1)),
        lambda: alignment.token_log_probabilities(torch.ones(2, 3, 4), torch.ones(2, 2).long()),
        lambda: baselines.KneserNey([1, 5], 1, 5),
        lambda: prompting.Prompt("no place for it").messages("a"),
    ],
)
def test_what_would_give_a_wrong_number_without_an_error_is_asserted(call):
    with pytest.raises(AssertionError):
        call()
