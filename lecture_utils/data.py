"""The data sets of the course, which come with the package, and how a question and its answer become tokens.

``lecture_qa`` has 1,400 pairs of questions and answers about the lecture (1,260 for training, 140 held-out phrasings),
20 facts that are never trained on, and 60 questions that the lecture does not answer. ``preferences`` has 500 pairs of
answers, one better than the other. ``language_models`` is the lecture's list of models.
"""

import csv
import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from lecture_utils.registry import choose

ASSETS = Path(__file__).parent / "assets"
QA_SPLITS = ("train", "test", "untrained", "unanswerable", "unanswerable_dev")


class DataError(ValueError):
    """A data file does not have the expected format. The message names the line and says what to change."""


def outline() -> dict[str, dict]:
    """Return the outline of the course: for each notebook its title, lecture sections, headings and so on."""
    with open(Path(__file__).parent / "outline.toml", "rb") as file:
        return tomllib.load(file)


def read_jsonl(path: Path | str) -> list[dict]:
    """Return the rows of a JSON-lines file, or raise a DataError that names the first invalid line."""
    rows = []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.") from None
    except OSError as error:  # a folder, or no permission
        raise DataError(f"{path}: it cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    for number, line in enumerate(text.split("\n"), 1):  # splitlines also cuts at U+2028, which JSON allows in a text
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}).") from None
        except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
            raise DataError(f"{path}, line {number}: cannot be read as JSON ({error}).") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: a {type(row).__name__}, but each line must be a JSON object.")
        rows.append(row)
    return rows


def recorded(name: str) -> tuple[list[dict], str]:
    """Return the rows of a recorded experiment, ``recorded/<name>.csv``, and its note (date, machine, command)."""
    files = {path.stem: path for path in sorted((Path(__file__).parent / "recorded").glob("*.csv"))}
    note, *lines = choose(files, name, "recorded run").read_text(encoding="utf-8").splitlines()
    return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(lines)], note.strip("# ")


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


@dataclass(frozen=True)
class LanguageModel:
    """A row of the lecture's list of models. Unknown numbers are None."""

    name: str
    maker: str
    date: str  # of the announcement, YYYY-MM
    parameters: int | None
    active: int | None  # parameters that are used for one token, in a mixture of experts
    tokens: int | None  # in the pretraining data
    licence: str
    weights: str  # closed, open, or fully open (with training data and code)
    status: str  # published by the maker, rumour, or undisclosed
    source: str
    note: str


def language_models() -> list[LanguageModel]:
    """Return the lecture's list of models in chronological order, each with its source."""
    with open(ASSETS / "language_models.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    counts = ("parameters", "active", "tokens")
    return [LanguageModel(**row | {k: int(row[k]) if row[k] else None for k in counts}) for row in rows]


def preferences(split: str) -> list[dict]:
    """Return the preference pairs of ``train`` (372) or ``test`` (128): id, kind, flaw, strength, prompt, chosen,
    rejected."""
    return read_jsonl(ASSETS / "preferences" / f"{split}.jsonl")


def occupations() -> list[dict]:
    """Return 60 occupations with the percentage of women in text and at work, as published with Winogender (Rudinger
    et al. 2018; text: Bergsma and Lin 2006; work: US labour statistics of 2015 and 2016)."""
    with open(ASSETS / "occupations.tsv", encoding="utf-8") as file:
        return [{k: _number(v) for k, v in row.items()} for row in csv.DictReader(file, delimiter="\t")]


def languages() -> list[dict[str, str]]:
    """Return twelve sentences as dictionaries from language to sentence, in twelve languages. They were written for this
    course with the help of a language model, and native speakers have not checked them."""
    return json.loads((ASSETS / "languages.json").read_text(encoding="utf-8"))


def lecture_qa():
    """Return the question/answer data as a ``datasets.DatasetDict`` with the splits ``train`` (1,260), ``test`` (140),
    ``untrained`` (20), ``unanswerable`` (60) and ``unanswerable_dev`` (120, for choosing a threshold)."""
    from datasets import Dataset, DatasetDict

    folder = ASSETS / "lecture_qa"
    return DatasetDict({split: Dataset.from_list(read_jsonl(folder / f"{split}.jsonl")) for split in QA_SPLITS})


def reviews(split: str) -> list[dict]:
    """Return the reviews of ``pool`` (60), ``dev`` (80) or ``test`` (160): id, text, label, about, hard."""
    return [row for row in read_jsonl(ASSETS / "prompting" / "reviews.jsonl") if row["split"] == split]


def large_model(task: str) -> list[dict]:
    """Return the answers of a large language model to one task, as ``assets/large_model/README.md`` describes them:
    ``forms`` (80), ``judge`` (160), ``sql`` or ``sql with examples`` (260 each)."""
    return [row for row in read_jsonl(ASSETS / "large_model" / "answers.jsonl") if row["task"] == task]


def prompts(bed: str) -> dict[str, str]:
    """Return the prompts for one task (``assets/prompting/prompts.toml``), by name."""
    beds = tomllib.loads((ASSETS / "prompting" / "prompts.toml").read_text(encoding="utf-8"))
    return choose(beds, bed, "test bed")


def own_pairs(path: Path | str):
    """Return your own question/answer pairs as a ``datasets.Dataset``.

    Each line of the file is a JSON object with the strings ``question`` and ``answer``, and optionally ``key`` (what a
    correct answer must contain). Other fields are dropped. A DataError names the invalid pair and says what to change.
    """
    from datasets import Dataset

    pairs = []
    for number, row in enumerate(read_jsonl(path), 1):
        for field in ("question", "answer"):
            value = row.get(field)
            if not isinstance(value, str) or not value.strip():
                raise DataError(
                    f"{path}, pair {number}: {field!r} is {'missing' if value is None else 'not a filled string'}. "
                    'Each line looks like {"question": "...", "answer": "..."}.'
                )
        if not isinstance(row.get("key", ""), str):
            raise DataError(f"{path}, pair {number}: 'key' must be a string.")
        for field in ("question", "answer", "key"):
            if half := re.search("[\ud800-\udfff]", row.get(field, "")):
                raise DataError(
                    f"{path}, pair {number}: {field!r} holds {half[0]!r}, half of a surrogate pair, which is not valid "
                    "Unicode. Save the file again with the right encoding."
                )
        pairs.append({"question": row["question"], "answer": row["answer"], "key": row.get("key", "")})
    if not pairs:
        raise DataError(f"{path}: no pairs in it.")
    return Dataset.from_list(pairs)


def _normal(text: str) -> str:
    """Return a text in lower case, with one kind of hyphen and single spaces, so that texts can be compared."""
    return re.sub(r"\s+", " ", re.sub("[\u2010-\u2015\u2212]", "-", text)).casefold().strip()


def words(text: str) -> list[str]:
    """Return the words and numbers of a text in lower case (``6,738`` and ``q_proj`` are one word each)."""
    return re.findall(r"\w(?:[\w.,'+/^-]*\w)?", _normal(text))


def contains_key(text: str, key: str) -> bool:
    """Return whether ``text`` contains ``key`` as a whole word or number (``"15"`` is not in ``"150"`` or ``"0.15"``)."""
    assert key.strip(), "every text contains an empty key"
    return re.search(whole_word(_normal(key)), _normal(text)) is not None


def whole_word(key: str) -> str:
    """Return a regular expression that matches ``key`` as a whole word or number, but not inside a longer one."""
    return rf"(?<!\w)(?<!\d[.,]){re.escape(key)}(?!\w)(?![.,]\d)"


def chat(question: str | list[dict], answer: str | None = None) -> list[dict]:
    """Return a question, and its answer if there is one, as chat messages. ``question`` may also be a list of messages
    that ends with the user's."""
    if isinstance(question, str):
        question = [{"role": "user", "content": question}]
    messages = list(question)
    return messages + ([{"role": "assistant", "content": answer}] if answer is not None else [])


def render(tokenizer, question: str | list[dict], answer: str | None = None, **template_options) -> tuple[str, str]:
    """Return ``(prompt, completion)`` as the model's chat template writes them.

    The completion ends with the end-of-turn token, and is empty without an answer. Tokenize both with
    ``add_special_tokens=False``, because the template has already written the special tokens. If the template changes the
    prompt when an answer follows, this is a DataError.
    """
    prompt = tokenizer.apply_chat_template(
        chat(question), tokenize=False, add_generation_prompt=True, **template_options
    )
    if answer is None:
        return prompt, ""
    whole = tokenizer.apply_chat_template(chat(question, answer), tokenize=False, **template_options)
    if not whole.startswith(prompt):
        raise DataError("This chat template does not continue its own prompt; prompt and answer cannot be told apart.")
    return prompt, whole[len(prompt) :].rstrip()


def token_ids(tokenizer, question: str, answer: str, **template_options) -> tuple[list[int], list[int]]:
    """Return prompt and completion (``render``) as token ids. Training and evaluation both see their concatenation.

    Both are tokenized together, because some tokenizers (Llama 2's, for example) put a space in front of a text that is
    tokenized alone. If the text of the answer changes the tokens of the prompt, which the model sees without an answer
    when it generates, they are tokenized apart.
    """
    prompt, completion = render(tokenizer, question, answer, **template_options)
    alone, together = tokenizer([prompt, prompt + completion], add_special_tokens=False)["input_ids"]
    if together[: len(alone)] == alone:
        return alone, together[len(alone) :]
    return alone, tokenizer(completion, add_special_tokens=False)["input_ids"]
