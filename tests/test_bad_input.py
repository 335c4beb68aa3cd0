"""Helpers fed what a student may pass by mistake: the error is typed and names the argument. And strange but good
input, such as emoji, text from right to left and a megabyte in one word: nothing breaks, nothing is lost."""

import dataclasses
import json
import math
import random
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
    decoding,
    evaluation,
    exercises,
    family,
    feedback,
    finetuning,
    generation,
    lora,
    memory,
    models,
    multimodal,
    plotting,
    ppo,
    prompting,
    quantization,
    retrieval,
    runtime,
    safety,
    tokenization,
    training,
    transformer,
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
LAPTOP = finetuning.recipe("laptop")
CONFIG = transformer.LlamaConfig(16, 8, 16, 1, 2, 1, 4)
TOKENS = torch.arange(64) % 16
LABELLED = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(6)]
CHUNK = chunking.Chunk("06_lora_math", "rank", "Rank", "The rank is 16.")
SCENE = multimodal.Scene("ring", "red", "at the top")
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
    assert "".join(tokenization.pieces(text)) == text
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


@given(st.lists(TEXT, min_size=1, max_size=4), TEXT, st.integers(1, 6))
def test_an_index_finds_chunks_for_any_question(texts, question, k):
    index = retrieval.Index([dataclasses.replace(CHUNK, text=text) for text in texts], embed)
    assert len(set(index.search(question, k))) == min(k, len(texts))
    signs = index.signs([question])
    assert signs.shape == (1, 4) and signs.isfinite().all()


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
    shown = [plotting.visible(text) for row in [head, *values] for text in row]
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
    asked = retrieval.prompt("Why?", [dataclasses.replace(CHUNK, text=text)])
    assert not retrieval.TEMPLATE_MARKS.search(asked)
    ids, _ = data.token_ids(tokenizer, asked, "So.")
    plain, _ = data.token_ids(tokenizer, retrieval.prompt("Why?", [CHUNK]), "So.")
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
def test_rankings_come_back_from_their_file_as_they_were(tmp_path, prompt, answers, chance):
    file = tmp_path / "rankings.jsonl"
    file.unlink(missing_ok=True)
    order = chance.sample(range(1, len(answers) + 1), len(answers))
    feedback.save_ranking(file, prompt, answers, order)
    assert feedback.rankings(file) == [{"prompt": prompt, "ranking": [answers[i - 1] for i in order]}]


@given(ANY_TEXT)
def test_what_a_model_wrote_is_judged_whatever_it_is(text):
    assert feedback.judge(text) in range(4)
    assert prompting.fields_right(text, {}) == [False] * 5
    assert prompting.last_number(text) is None or re.search(r"\d", text)
    found = prompting.first_of(text, ["s", "ß", "(", "apple"])
    assert (found is None) == (re.search(r"s|ß|\(|apple", text, re.IGNORECASE) is None)


@given(st.one_of(ANY_TEXT, st.text("0123456789.+-*/() e_j", max_size=30)))
def test_the_calculator_gives_a_number_or_says_why_not(expression):
    try:
        assert type(prompting.calculate(expression)) in (int, float)
    except ValueError as error:
        assert str(error)


@given(st.integers(0, 40), st.integers(0, 5))
def test_made_problems_and_dates_are_as_many_as_asked_for(count, seed):
    assert len(dict(prompting.dates(count, seed))) == len({p.text for p in prompting.problems(count, seed)}) == count


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
    p = generation.filtered(torch.tensor(logits), temperature, top_k, top_p)
    assert p.sum().item() == pytest.approx(1, abs=1e-5) and (p >= 0).all() and p[np.argmax(logits)] == p.max()


@given(st.lists(FINITE, min_size=1, max_size=70), st.integers(1, 64))
def test_quantized_values_stay_within_their_block_s_greatest(values, block):
    x = torch.tensor(values)
    back, (codes, scale) = quantization.quantize_4bit(x, block=block).dequantize(), quantization.absmax_int8(x)
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
    assert scores[1] > 0 and retrieval.support(text, "why", text, {}) == float(bool(retrieval.terms(text)))
    assert "".join(tokenization.pieces(text)) == text and retrieval.defused(text) == text
    assert data.contains_key(f"{text} 42", "42") and prompting.last_number(f"{text} 42") == 42
    assert prompting.first_of(f"{text} Pear", ["apple", "pear"]) == "pear" and feedback.judge(text) in range(4)
    assert len(plotting.table([{"a": text}]).data) > len(text)


# A lone surrogate: no bytes, no tokens, no file -------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda text, tokenizer: BPE.encode(text), "text"),
        (lambda text, tokenizer: tokenization.BPE.train(text, 300), "text"),
        (lambda text, tokenizer: data.render(tokenizer, text), r"question\[0\]"),
        (
            lambda text, tokenizer: data.render(tokenizer, [*data.chat("a", "b"), {"role": "user", "content": text}]),
            r"question\[2\]",
        ),
        (lambda text, tokenizer: data.token_ids(tokenizer, "a", text), "answer"),
        (lambda text, tokenizer: corpus.encode(tokenizer, ["a", text]), r"documents\[1\]"),
        (lambda text, tokenizer: corpus.size([text]), r"documents\[0\]"),
        (lambda text, tokenizer: evaluation.complete(None, tokenizer, ["a", text]), r"texts\[1\]"),
        (lambda text, tokenizer: evaluation.generate_answers(None, tokenizer, [text]), r"question\[0\]"),
        (lambda text, tokenizer: safety.text_losses(None, tokenizer, [text]), r"texts\[0\]"),
        (lambda text, tokenizer: safety.confidence(None, tokenizer, ["a"], [text]), r"answers\[0\]"),
        (lambda text, tokenizer: prompting.choice_log_probabilities(None, tokenizer, ["a"], [text]), r"choices\[0\]"),
        (lambda text, tokenizer: retrieval.Embedder.__call__(None, [text]), r"texts\[0\]"),
        (lambda text, tokenizer: retrieval.Index([CHUNK], embed).search(text), "question"),
        (lambda text, tokenizer: retrieval.prompt(text, [CHUNK]), "question"),
        (lambda text, tokenizer: retrieval.query_log_likelihood(None, tokenizer, "a", [text]), r"texts\[0\]"),
        (lambda text, tokenizer: family.encode(tokenizer, ["a"], [text]), r"subjects\[0\]"),
    ],
)
@settings(max_examples=10)
@given(text=BROKEN)
def test_half_a_character_is_named(tokenizer, call, name, text):
    with pytest.raises(ValueError, match=rf"^{name} holds '\\ud.*half a character"):
        call(text, tokenizer)


def test_half_a_character_in_a_file_is_named_and_none_is_written(tmp_path):
    (tmp_path / "my.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "c", "answer": "\\ud83d"}')
    with pytest.raises(data.DataError, match=r"my\.jsonl, pair 2: 'answer' holds '\\ud83d' at position 0"):
        data.own_pairs(tmp_path / "my.jsonl")
    with pytest.raises(ValueError, match=r"answers\[1\] holds"):
        feedback.save_ranking(tmp_path / "rankings.jsonl", "Why?", ["a", HALF], [1, 2])
    assert not (tmp_path / "rankings.jsonl").exists()


# A NaN or an infinity --------------------------------------------------------------------------


@given(st.lists(FINITE, max_size=9), st.sampled_from([NAN, INF, -INF]), st.lists(FINITE, max_size=9))
def test_what_is_not_finite_is_refused_wherever_it_stands(before, bad, after):
    values = [*before, bad, *after]
    for quantize in (quantization.quantize_4bit, quantization.absmax_int8, quantization.double_quantize):
        with pytest.raises(ValueError, match="^x holds an infinity or NaN"):
            quantize(torch.tensor(values))
    with pytest.raises(ValueError, match="a and b hold a NaN"):
        evaluation.difference(values, [0.0] * len(values))
    with pytest.raises(ValueError, match="chosen and rejected"):
        ppo.fit_reward(torch.tensor([values]), torch.zeros(1, len(values)), layer=1)
    with pytest.raises(ValueError, match="confidence"):
        safety.reliability(values, [True] * len(values))


@given(st.lists(FINITE, max_size=9), st.lists(FINITE, max_size=9), st.sampled_from([0.0, 0.7]))
def test_nan_is_no_score(before, after, temperature):
    values = [*before, NAN, *after]
    with pytest.raises(ValueError, match="scores holds NaN"):
        retrieval.ranking(values)
    with pytest.raises(ValueError, match="scores holds NaN"):
        safety.auc([*values, 1.0], [True] * len(values) + [False])
    with pytest.raises(ValueError, match="logits hold NaN"):
        generation.filtered(torch.tensor([[0.0] * len(values), values]), temperature)


def test_a_model_gone_wrong_shows_no_memorization(tiny, tokenizer):
    for weight in tiny.parameters():
        weight.data.fill_(NAN)
    with pytest.raises(ValueError, match="model gives losses of NaN"):
        safety.exposures(tiny, tokenizer, safety.canaries()[:1], ["001", "002"])


# Zero rows, wrong types, numbers out of range, unknown names ------------------------------------------


@given(st.integers(-(10**9), 0), st.floats().filter(lambda x: not x.is_integer() or x >= 1) | st.text() | st.none())
def test_sizes_below_one_and_sizes_that_are_no_whole_numbers(small, wrong):
    sized = [
        (lambda n: lora.add_adapters(torch.nn.Sequential(torch.nn.Linear(2, 2)), ("0",), n, 8), "rank"),
        (lambda n: memory.lora_parameters(SHAPE, n), "rank"),
        (lambda n: finetuning.Recipe("mine", rank=n), "rank"),
        (lambda n: finetuning.Recipe("mine", batch_size=n), "batch_size"),
        (lambda n: memory.bits_per_parameter(n), "block"),
        (lambda n: quantization.quantize_4bit(ONES, block=n), "block"),
        (lambda n: quantization.uniform_levels(n), "bits"),
        (lambda n: training.Plan(4, rows=n), "rows"),
        (lambda n: training.Plan(4, time=n), "time"),
        (lambda n: training.mean_loss(None, TOKENS, rows=n), "rows"),
        (lambda n: ppo.Plan(new_tokens=n), "new_tokens"),
        (lambda n: baselines.KneserNey([1, 2, 3], n, 5), "order"),
        (lambda n: transformer.Attention(8, n), "heads"),
        (lambda n: retrieval.recall_at([1], {1}, n), "k"),
        (lambda n: retrieval.lookup(None, None, n), "k"),
        (lambda n: retrieval.Index([CHUNK], embed).search("why", n), "k"),
        (lambda n: safety.reliability([0.5], [True], n), "bins"),
        (lambda n: evaluation.difference([1], [0], draws=n), "draws"),
        (lambda n: evaluation.complete(None, None, ["a"], batch_size=n), "batch_size"),
        (lambda n: multimodal.draw([SCENE], size=n), "size"),
        (lambda n: chunking.chunk(CHUNK, size=n), "size"),
        (lambda n: family.add_bottlenecks(None, n), "bottleneck"),
    ]  # fmt: skip
    for call, name in sized:
        with pytest.raises(ValueError, match=rf"\b({name})="):
            call(small)
        with pytest.raises(TypeError, match=rf"^({name})=.*whole number"):
            call(wrong)


BAD = [
    # runtime, data, chunking, corpus
    (lambda: runtime.seed_everything("0"), TypeError, "seed"),
    (lambda: data.recorded("06_memry"), data.DataError, "06_memry.*06_memory"),
    (lambda: data.recorded("../recorded/06_memory"), data.DataError, "Choose one of"),
    (lambda: data.recorded("a" * 5000), data.DataError, "Choose one of"),
    (lambda: data.read_jsonl(data.ASSETS), data.DataError, "assets: it cannot be read"),
    (lambda: data.words(None), TypeError, "text is a NoneType"),
    (lambda: data.contains_key("15", 15), TypeError, "key is a int"),
    (lambda: data.contains_key("15", " "), ValueError, "key is empty"),
    (lambda: data.chat(5), TypeError, "question"),
    (lambda: data.chat(["a", "b"]), TypeError, "question"),
    (lambda: data.chat({"role": "user", "content": "a"}), TypeError, "question"),
    (lambda: data.chat([{"role": "user"}]), TypeError, r"question\[0\]"),
    (lambda: data.chat([]), ValueError, "question is empty"),
    (lambda: data.chat("a", 5), TypeError, "answer"),
    (lambda: data.token_ids(None, "a", None), TypeError, "answer"),
    (lambda: chunking.chunk("some text"), TypeError, "section"),
    (lambda: chunking.chunk(CHUNK, 5, 5), ValueError, "overlap"),
    (lambda: chunking.chunk(CHUNK, 5, 0.5), TypeError, "overlap"),
    (lambda: chunking.sections("none.ipynb"), data.DataError, "none.ipynb"),
    (lambda: chunking.corpus(without="09_rag"), TypeError, "without"),
    (lambda: chunking.corpus(without=("09",)), ValueError, "without names 09.*09_rag"),
    (lambda: corpus.encode(None, "one text"), TypeError, "documents"),
    (lambda: corpus.encode(None, []), ValueError, "documents"),
    (lambda: corpus.size("one text"), TypeError, "documents"),
    # tokenization, transformer, baselines, lora
    (lambda: tokenization.BPE.train(["a", "b"], 300), TypeError, "text is a list"),
    (lambda: tokenization.BPE.train("a", 255), ValueError, "size=255"),
    (lambda: BPE.encode(b"a"), TypeError, "text is a bytes"),
    (lambda: BPE.decode([-1]), ValueError, "ids=-1"),
    (lambda: BPE.decode([len(BPE.vocabulary)]), ValueError, "ids holds"),
    (lambda: BPE.decode([1.0]), TypeError, "ids=1.0"),
    (lambda: BPE.decode(5), TypeError, "ids"),
    (lambda: transformer.sinusoids(-1, 4), ValueError, "length=-1"),
    (lambda: transformer.rope(3, 5), ValueError, "head_width=5"),
    (lambda: transformer.rope(3, 4, theta=0.0), ValueError, "theta=0.0"),
    (lambda: transformer.causal_mask(3, 2), ValueError, "keys=2"),
    (lambda: transformer.causal_mask(-1), ValueError, "queries=-1"),
    (lambda: transformer.Attention(8, 2, 0), ValueError, "kv_heads=0"),
    (lambda: transformer.KVCache(1, 1, -1, 4, ONES), ValueError, "length=-1"),
    (lambda: llama()(torch.ones(1, 2)), TypeError, "ids is torch.float32"),
    (lambda: llama()([[1, 2]]), TypeError, "ids is list"),
    (lambda: llama()(torch.ones(2).long()), ValueError, "ids has the shape"),
    (lambda: llama()(torch.tensor([[1, 16]])), ValueError, "ids go from 1 to 16, the vocabulary from 0 to 15"),
    (lambda: transformer.Transformer(5)(torch.tensor([[7]]), torch.tensor([[1]])), ValueError, "ids go from 7"),
    (lambda: baselines.LSTM(5)(torch.tensor([[-1]])), ValueError, "ids go from -1"),
    (lambda: baselines.KneserNey([1.7, 2.2], 1, 5), TypeError, "tokens holds float64"),
    (lambda: baselines.KneserNey([[1, 2], [3, 4]], 1, 5), ValueError, "tokens has the shape"),
    (lambda: baselines.KneserNey([1, 2], 2, 5).log_probabilities([5]), ValueError, "tokens reach from 5"),
    (lambda: baselines.KneserNey([1, 2], 2, 5).distribution([-1]), ValueError, "context reach from -1"),
    (lambda: baselines.KneserNey([1, 2], 2, 5).distribution(1), TypeError, "context"),
    # quantization, memory
    (lambda: quantization.quantize_4bit([1.0]), TypeError, "x is a list"),
    (lambda: quantization.quantize_4bit(ONES, levels="nf4"), TypeError, "levels"),
    (lambda: quantization.quantize_4bit(ONES, levels=quantization.uniform_levels(5)), ValueError, "levels holds 32"),
    (lambda: quantization.pack(torch.tensor([-1, 3])), TypeError, "codes is torch.int64"),
    (lambda: quantization.unpack(torch.tensor([1.0]), 2), TypeError, "packed is torch.float32"),
    (lambda: quantization.unpack(torch.tensor([1], dtype=torch.uint8), 3), ValueError, "n=3"),
    (lambda: quantization.Linear4bit(torch.ones(2, 2))(torch.ones(1, 2).long()), TypeError, "x has dtype torch.int64"),
    (lambda: memory.lora_parameters("7B", 8), TypeError, "shape='7B'"),
    (lambda: memory.lora_parameters(SHAPE, 8, "q_proj"), TypeError, "targets='q_proj'"),
    (lambda: memory.weight_bytes(models.card("all-minilm-l6-v2").shape, None), TypeError, "shape=None"),
    (lambda: memory.weight_bytes(SHAPE, "int4"), ValueError, "quantization='int4'.*nf4"),
    (lambda: memory.activations(SHAPE, -5, False), ValueError, "tokens=-5"),
    (lambda: memory.finetuning_bytes(SHAPE, -5, 10), ValueError, "trained=-5"),
    (lambda: memory.budget("laptop"), TypeError, "recipe='laptop'"),
    (lambda: memory.budget(dataclasses.replace(LAPTOP, first_layer=30)), ValueError, "first_layer=30"),
    # generation, decoding, training, evaluation
    (lambda: generation.filtered(ONES, -1.0), ValueError, "temperature=-1.0"),
    (lambda: generation.filtered(ONES, NAN), ValueError, "temperature=nan"),
    (lambda: generation.filtered(ONES, 1e-45), ValueError, "logits.*temperature=1e-45"),
    (lambda: generation.filtered(torch.full((1, 2), -INF)), ValueError, "logits"),
    (lambda: generation.filtered(ONES, top_k=0), ValueError, "top_k=0"),
    (lambda: generation.filtered(ONES, top_k=1.5), TypeError, "top_k=1.5"),
    (lambda: generation.filtered(ONES, top_p=0), ValueError, "top_p=0"),
    (lambda: generation.filtered(ONES, top_p=NAN), ValueError, "top_p=nan"),
    (lambda: generation.generate(llama(), torch.tensor([1, 2]), 2), ValueError, "ids has the shape"),
    (lambda: generation.generate(llama(), [1, 2], 2), TypeError, "ids is list"),
    (lambda: generation.generate(llama(), torch.ones(1, 2), 2), TypeError, "ids is torch.float32"),
    (lambda: generation.generate(llama(), TOKENS[None], -1), ValueError, "max_new_tokens=-1"),
    (lambda: generation.generate(llama(), TOKENS[None], 2, top_k=0), ValueError, "top_k=0"),  # greedy, too
    (lambda: generation.generate(llama(), TOKENS[None], 2, stop=3), TypeError, r"stop=3.*\(3,\)"),
    (lambda: decoding.Decoder(llama(), dtype=torch.int8), TypeError, "dtype=torch.int8.*int8=True"),
    (lambda: decoding.Decoder(llama(), length=0), ValueError, "length=0"),
    (lambda: training.Plan(-1), ValueError, "steps=-1"),
    (lambda: training.batch(TOKENS.tolist(), training.Plan(1, time=4), 0), TypeError, "tokens is list"),
    (lambda: training.batch(TOKENS.float(), training.Plan(1, time=4), 0), TypeError, "tokens is torch.float32"),
    (lambda: training.batch(TOKENS[None], training.Plan(1, time=4), 0), ValueError, "tokens has the shape"),
    (lambda: training.mean_loss(llama(), TOKENS[:1], 4), ValueError, "1 tokens are too few"),
    (lambda: training.mean_loss(llama(), TOKENS, 0), ValueError, "time=0"),
    (lambda: training.bits_per_byte(1.0, 5, 0), ValueError, "text_bytes=0"),
    (lambda: evaluation.complete(None, None, "one text"), TypeError, "texts"),
    (lambda: evaluation.complete(None, None, ["a", ""]), ValueError, r"texts\[1\] is empty"),
    (lambda: evaluation.generate_answers(None, None, "one text"), TypeError, "questions"),
    (lambda: evaluation.answer_loss(None, None, []), ValueError, "pairs"),
    (lambda: evaluation.evaluate(None, None, []), ValueError, "pairs"),
    (lambda: evaluation.evaluate(None, None, [{"question": "a", "answer": "b"}]), ValueError, r"pairs\[0\] has no 'key'"),
    (lambda: evaluation.wilson(3, 2), ValueError, "right=3"),
    # plotting
    (lambda: plotting.table({"a": 1}), TypeError, "rows"),
    (lambda: plotting.table("abc"), TypeError, "rows"),
    (lambda: plotting.table([[1, 2]]), TypeError, "rows"),
    (lambda: plotting.show_figure(object(), "A line."), TypeError, "fig is a object"),
    (lambda: plotting.show_figure(plotting.figure()[0], None), ValueError, "alt"),
    (lambda: plotting.slider("x", {"1": [("a", 0.5)]}, start=1), ValueError, "start=1"),
    (lambda: plotting.slider("x", {"1": [("a", 0.5)]}, start=-1), ValueError, "start=-1"),
    (lambda: plotting.slider("x", {"1": [("a", NAN)]}), ValueError, "frames holds the share nan"),
    (lambda: plotting.slider("x", {"1": [("a", 50)]}), ValueError, "frames holds the share 50"),
    (lambda: plotting.show(3), TypeError, "thing=3"),
    (lambda: plotting.show(len), TypeError, "thing"),
    # models, family, finetuning
    (lambda: models.card("gpt-5"), models.ModelError, "gpt-5(?s:.*)smollm2"),
    (lambda: models.depth("all-minilm-l6-v2"), models.ModelError, "all-minilm-l6-v2 is no chat model"),
    (lambda: models.load_tokenizer("lecture-adapter"), models.ModelError, "lecture-adapter is an adapter"),
    (lambda: models.load_encoder("lecture-base"), models.ModelError, "lecture-base is no encoder"),
    (lambda: models.load_chat_model(dtype="bf16"), ValueError, "dtype='bf16'"),
    (lambda: models.load_chat_model(quantization="int4"), ValueError, "quantization='int4'.*nf4"),
    (lambda: family.run("lora"), ValueError, "'lora'.*prefix tuning"),
    (lambda: family.run("(IA)³", split="dev"), KeyError, "'dev'.*choose"),
    (lambda: family.questions("dev"), KeyError, "'dev'.*choose"),
    (lambda: family.encode(None, ["a"], ["b", "c"]), ValueError, "1 questions and 2 subjects"),
    (lambda: family.encode(None, [], []), ValueError, "questions"),
    (lambda: finetuning.recipe("laptp"), ValueError, "'laptp'.*laptop"),
    (lambda: dataclasses.replace(LAPTOP, learning_rate=-1e-3), ValueError, "learning_rate=-0.001"),
    (lambda: dataclasses.replace(LAPTOP, epochs=NAN), ValueError, "epochs=nan"),
    (lambda: dataclasses.replace(LAPTOP, dropout=1.0), ValueError, "dropout=1.0"),
    (lambda: dataclasses.replace(LAPTOP, quantization="int4"), ValueError, "quantization='int4'"),
    (lambda: finetuning.lora_config("laptop"), TypeError, "chosen='laptop'"),
    (lambda: finetuning.lora_config(dataclasses.replace(LAPTOP, first_layer=30)), ValueError, "first_layer=30.*30 layers"),
    (lambda: finetuning.template_options("laptop"), TypeError, "chosen='laptop'"),
    (lambda: finetuning.training_arguments("laptop", "runs"), TypeError, "chosen='laptop'"),
    (lambda: finetuning.conversations([{"question": "a", "answer": "b"}], LAPTOP), TypeError, "pairs.*own_pairs"),
    (lambda: finetuning.finetune(LAPTOP, [], "runs"), TypeError, "pairs"),
    (lambda: finetuning.saved_recipe("no/such/folder"), models.ModelError, "no/such/folder holds no recipe"),
    # alignment, ppo, feedback
    (lambda: alignment.bradley_terry_loss(torch.ones(2), torch.ones(2), torch.ones(2, 1)), ValueError, "margin"),
    (lambda: alignment.ranked_pairs(x for x in "aa"), ValueError, "equal"),
    (lambda: alignment.cohen_kappa(torch.tensor([1]), torch.tensor([1, 0])), ValueError, "1 and 2 judgements"),
    (lambda: alignment.whiten(torch.tensor([1, 2])), TypeError, "x has dtype torch.int64"),
    (lambda: alignment.whiten(ONES, YES.long()), TypeError, "mask has dtype torch.int64"),
    (lambda: alignment.whiten(ONES, ~YES), ValueError, "mask"),
    (lambda: alignment.llama2_reward(ONES[0] / 2, ONES[0] / 2, torch.tensor([1, 0])), TypeError, "safety_prompt"),
    (lambda: alignment.llama2_reward(ONES[0] / 2, ONES[0, :1] / 2, YES[0]), ValueError, "helpful, safe"),
    (lambda: alignment.advantages(ONES.long(), ONES, YES), TypeError, "rewards"),
    (lambda: alignment.advantages(ONES, ONES, YES, gamma=5.0), ValueError, "gamma=5.0"),
    (lambda: alignment.ppo_loss(ONES, ONES, ONES, YES.long()), TypeError, "mask"),
    (lambda: alignment.ppo_loss(ONES, ONES, ONES, YES, clip=-0.2), ValueError, "clip=-0.2"),
    (lambda: alignment.value_loss(ONES, ONES, ONES, YES.float()), TypeError, "mask"),
    (lambda: alignment.dpo_loss(ONES[0], ONES[0], ONES[0], ONES[0], beta=0), ValueError, "beta=0"),
    (lambda: alignment.dpo_loss(ONES[0], ONES[0], ONES[0][:, None], ONES[0][:, None]), ValueError, "references"),
    (lambda: alignment.token_log_probabilities(torch.ones(1, 2, 4), ONES), TypeError, "ids"),
    (lambda: alignment.token_log_probabilities(torch.ones(1, 2, 4), ONES[:, :1].long()), ValueError, "ids has the shape"),
    (lambda: alignment.token_log_probabilities(torch.ones(1, 2, 4), -100 * ONES.long()), ValueError, "ids: .*-100"),
    (lambda: ppo.Plan(temperature=0.0), ValueError, "temperature=0.0"),
    (lambda: ppo.fit_reward(torch.ones(2, 3).long(), torch.ones(2, 3).long(), 1), TypeError, "chosen"),
    (lambda: ppo.fit_reward(torch.ones(2, 3), torch.zeros(2, 3), 1, decay=-1.0), ValueError, "decay=-1.0"),
    (lambda: ppo.answer_features(None, None, [], 1), ValueError, "pairs"),
    (lambda: ppo.answer_features(None, None, [{"prompt": "a", "answer": "b"}], 1), TypeError, "pairs"),
    (lambda: ppo.answer_features(None, None, [("a", "b")], 0), ValueError, "layer=0"),
    (lambda: ppo.PPO.write(None, "one text", 0), TypeError, "prompts"),
    (lambda: feedback.rude(None), TypeError, "text"),
    (lambda: feedback.in_mixed_manners([], most=-1), ValueError, "most=-1"),
    (lambda: feedback.rank("Why?", "ab", "none.jsonl"), TypeError, "answers"),
    (lambda: feedback.save_ranking("none.jsonl", "Why?", ["a", "b"], ["1", 2]), ValueError, "order="),
    (lambda: feedback.save_ranking("none.jsonl", "Why?", ["a", "b"], None), ValueError, "order=None"),
    # retrieval
    (lambda: retrieval.terms(None), TypeError, "text"),
    (lambda: retrieval.BM25("one text"), TypeError, "texts"),
    (lambda: retrieval.BM25(["a"], k1=-1), ValueError, "k1=-1"),
    (lambda: retrieval.BM25(["a"], b=5), ValueError, "b=5"),
    (lambda: retrieval.BM25(["a"]).scores(["a"]), TypeError, "query"),
    (lambda: retrieval.Embedder.__call__(None, "one text"), TypeError, "texts"),
    (lambda: retrieval.ranking([1.0, 2.0], -1), ValueError, "k=-1"),
    (lambda: retrieval.fuse([1, 2]), TypeError, "rankings"),
    (lambda: retrieval.fuse([[1, 2]], k=-1), ValueError, "k=-1"),
    (lambda: retrieval.Index([], embed), ValueError, "chunks"),
    (lambda: retrieval.Index(["a text"], embed), TypeError, "chunks"),
    (lambda: retrieval.Index([CHUNK], embed).learn(["a"], [{0}, {0}]), ValueError, "gold"),
    (lambda: retrieval.Index([CHUNK], embed).learn(["a"], [{1}]), ValueError, "gold holds 1"),
    (lambda: retrieval.clumped_vectors(ONES[:0], 3), ValueError, "around"),
    (lambda: retrieval.clumped_vectors(ONES, -1), ValueError, "count=-1"),
    (lambda: retrieval.open_database(None), TypeError, "where=None"),
    (lambda: retrieval.store(None, [], ONES), ValueError, "chunks"),
    (lambda: retrieval.store(None, [CHUNK], [[1.0, 2.0]]), TypeError, "vectors"),
    (lambda: retrieval.lookup(retrieval.open_database(), ONES[0]), ValueError, "client holds no chunks"),
    (lambda: retrieval.lookup(retrieval.open_database(), ONES), TypeError, "vector"),
    (lambda: retrieval.prompt("Why?", "a text"), TypeError, "chunks"),
    (lambda: retrieval.prompt("Why?", CHUNK), TypeError, "chunks"),
    (lambda: retrieval.prompt(None, [CHUNK]), TypeError, "question"),
    (lambda: retrieval.quote(embed, ONES[0], [CHUNK], 0), ValueError, "k=0"),
    (lambda: retrieval.stand_in("a", ["a"], random.Random(0)), ValueError, "keys"),
    # prompting
    (lambda: prompting.balanced([], 2), ValueError, "rows"),
    (lambda: prompting.balanced(LABELLED, -2), ValueError, "count=-2"),
    (lambda: prompting.balanced(LABELLED, 8), ValueError, "count=8.*6 are the most"),
    (lambda: prompting.choice_log_probabilities(None, None, ["a"], []), ValueError, "choices"),
    (lambda: prompting.choice_log_probabilities(None, None, ["a"], ["b", ""]), ValueError, "choices"),
    (lambda: prompting.choice_log_probabilities(None, None, "one text", ["b"]), TypeError, "conversations"),
    (lambda: prompting.choice_log_probabilities(None, None, ["a"], ["b"], rows=-1), ValueError, "rows=-1"),
    (lambda: prompting.first_of("a", []), ValueError, "choices"),
    (lambda: prompting.first_of("a", "ab"), TypeError, "choices"),
    (lambda: prompting.first_of(None, ["a"]), TypeError, "answer"),
    (lambda: prompting.fields_right(None, {}), TypeError, "answer"),
    (lambda: prompting.dates(-1), ValueError, "count=-1"),
    (lambda: prompting.dates(1, forms=()), ValueError, "forms"),
    (lambda: prompting.dates(1, forms="{y}"), TypeError, "forms"),
    (lambda: prompting.dates(81, forms=("{y}",)), ValueError, "count=81: hardly more than 80"),
    (lambda: prompting.problems(1, stories=(3,)), ValueError, "stories holds 3"),
    (lambda: prompting.problems(10**4, stories=(1,)), ValueError, "count=10000"),
    (lambda: prompting.last_number(None), TypeError, "text"),
    # safety
    (lambda: safety.confidence(None, None, ["a"], []), ValueError, "1 questions and 0 answers"),
    (lambda: safety.confidence(None, None, ["a"], ["b"], rows=-1), ValueError, "rows=-1"),
    (lambda: safety.exposures(None, None, safety.canaries(), []), ValueError, "candidates"),
    (lambda: safety.learn_texts(None, None, []), ValueError, "texts"),
    (lambda: safety.learn_texts(None, None, ["a"], lot=0), ValueError, "lot=0"),
    (lambda: safety.learn_texts(None, None, ["a"], passes=-1), ValueError, "passes=-1"),
    (lambda: safety.private_gradient(torch.zeros(0, 3), 1.0, 1.0), ValueError, "lot=0"),
    (lambda: safety.private_gradient(ONES, 0.0, 1.0), ValueError, "clip=0.0"),
    (lambda: safety.private_gradient(ONES, 1.0, -1.0), ValueError, "noise=-1.0"),
    (lambda: safety.private_gradient(ONES.long(), 1.0, 1.0), TypeError, "gradients"),
    (lambda: safety.privacy_spent(NAN, 0.1, 10, 1e-5), ValueError, "noise nan"),
    (lambda: safety.privacy_spent(1.0, 0.1, 10, 2.0), ValueError, "delta=2.0"),
    (lambda: safety.privacy_spent(1.0, 0.1, -10, 1e-5), ValueError, "steps=-10"),
    (lambda: safety.watermark_z("some text", 10), TypeError, "ids"),
    (lambda: safety.watermark_z([1, 20, 30], 10), ValueError, "ids go from 1 to 30"),
    (lambda: safety.watermark_z([1, 2, 3], 10, share=1.0), ValueError, "share=1.0"),
    # multimodal
    (lambda: SCENE.caption(3), ValueError, "form=3"),
    (lambda: multimodal.scenes(2, pairs=[]), ValueError, "pairs"),  # not all forty
    (lambda: multimodal.scenes(2, pairs=[("star", "red")]), ValueError, "pairs holds.*star"),
    (lambda: multimodal.scenes(-1), ValueError, "count=-1"),
    (lambda: multimodal.draw([]), ValueError, "shown"),
    (lambda: multimodal.draw(SCENE), TypeError, "shown"),
    (lambda: multimodal.draw([dataclasses.replace(SCENE, colour="mauve")]), ValueError, "colour 'mauve'.*orange"),
    (lambda: multimodal.Words("a red ring"), TypeError, "captions"),
    (lambda: multimodal.Words(["a red ring"])([]), ValueError, "captions"),
    (lambda: multimodal.clip_loss(torch.ones(2, 3)), ValueError, "logits has the shape"),
    (lambda: multimodal.caption_loss(None, None, None, ONES, [SCENE, SCENE]), ValueError, "1 vectors and 2 scenes"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "name"), BAD, ids=[f"{i}-{name[:24]}" for i, (_, _, name) in enumerate(BAD)])
def test_bad_input_is_named(call, error, name):
    with pytest.raises(error, match=name) as caught:
        call()
    assert caught.traceback[-1].path.parent.name == "lecture_utils"  # said by us, not by a library below


def test_a_layer_is_counted_from_one_to_the_last(tiny):
    ids = torch.ones(1, 1).long()
    for layer in (0, -1, 3):
        with pytest.raises(ValueError, match=f"layer={layer}: the model has the layers 1 to 2"):
            ppo.hidden_states(tiny, ids, ids, layer)
    assert ppo.hidden_states(tiny, ids, ids, 2)[1].shape == (1, 1, 64)


def test_a_refused_adapter_leaves_the_model_trainable():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="rank=0"):
        lora.add_adapters(model, ("0",), rank=0, alpha=8)
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize(
    "content", ["hello", "[]", "{}", '{"cells": [{"cell_type": "markdown", "source": ["<a id=\\"x\\"></a>"]}]}']
)
def test_a_file_that_is_no_notebook_is_named(tmp_path, content):
    (tmp_path / "mine.ipynb").write_text(content)
    with pytest.raises(data.DataError, match="mine.ipynb: (it is no Jupyter notebook|there is no heading.*'x')"):
        chunking.sections(tmp_path / "mine.ipynb")


@pytest.mark.parametrize("line", ['{"a": ' + "[" * 100_000, '{"a": ' + "1" * 5000 + "}", '{"a": 1', "[1]"])
def test_a_line_beyond_json_is_named(tmp_path, line):
    (tmp_path / "my.jsonl").write_text(f'{{"a": 1}}\n\n{line}\n')
    with pytest.raises(data.DataError, match="my.jsonl, line 3"):
        data.read_jsonl(tmp_path / "my.jsonl")


def test_a_recipe_that_makes_no_sense_ends_the_command_in_a_sentence(tmp_path, capsys):
    (tmp_path / "my.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(SystemExit):
        finetuning.main(
            ["--recipe", "laptop", "--data", str(tmp_path / "my.jsonl"), "--output", str(tmp_path), "--epochs", "-1"]
        )
    assert "epochs=-1.0: it must be above 0" in capsys.readouterr().err
