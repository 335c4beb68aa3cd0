"""From retrieved passages to an answer: prompts, and readers that mark the answer in a passage or say that it is not there."""

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lecture_utils import data, downloads, models, runtime
from lecture_utils.retrieval import Embedder, ranking

TEMPLATE_MARKS = re.compile(r"<\|([^|<>]*)\|>|\[(/?INST)\]|<<(/?SYS)>>|<(/?s)>", re.IGNORECASE)
NOT_STATED = "Not stated."  # what a reader answers if the passage does not contain the answer
LONGEST = 256  # tokens of a question and its passage
LONGEST_ANSWER = 15  # tokens


@functools.cache
def _handbooks() -> list[dict]:
    return data.read_jsonl(data.ASSETS / "handbooks" / "handbooks.jsonl")


def handbooks(part: str) -> list[dict]:
    """Return short handbooks of invented institutions to practise reading on: ``train`` (204) or ``dev`` (12). Each has an
    id, its kind, five passages, 14 to 18 facts with their questions, and four questions that it does not answer."""
    first, last = {"dev": (0, 12), "train": (12, 216)}[part]
    return _handbooks()[first:last]


def titled(passage: dict) -> str:
    """Return the title and the text of a passage. Both are searched and read, because a text often does not name its own
    subject."""
    return f"{passage['title']}. {passage['text']}"


def escape_chat_markers(text: str) -> str:
    """Return a text in which the markers of chat templates are broken up (``<|im_end|>`` becomes ``< im_end >``). As
    special tokens, they would let a document end the user's turn and begin another one."""
    return TEMPLATE_MARKS.sub(lambda match: f"< {next(g for g in match.groups() if g is not None)} >", text)


def rag_prompt(question: str, texts: Sequence[str]) -> str:
    """Return the prompt for a chat model: the passages, numbered and with chat markers escaped, and then the question."""
    passages = "\n\n".join(f"[{i}] {escape_chat_markers(text)}" for i, text in enumerate(texts, 1))
    return f"{passages}\n\nUsing only the text above, answer in one short sentence: {question}"


def reading_prompt(question: str, text: str) -> str:
    """Return the prompt that ``passage-reader`` was finetuned on: one passage between the question and its repetition. The
    model reads from left to right, so it knows at each word of the passage what it is looking for."""
    return f"{question}\n\n{escape_chat_markers(text)}\n\n{question}"


def sentences(text: str) -> list[str]:
    """Return the sentences and lines of a text."""
    return [part for part in re.split(r"(?<=[.!?:;])\s+|\n+", text) if part.strip()]


def nearest_sentences(embed: Embedder, question: str, texts: Sequence[str], k: int = 1) -> str:
    """Return the ``k`` sentences of the texts that are nearest to the question, in their original order. This is the
    simplest reader, which is not trained at all."""
    pieces = [sentence for text in texts for sentence in sentences(text)]
    best = ranking(embed(pieces) @ embed([question])[0], k)
    return " … ".join(pieces[i] for i in sorted(best))


def swap_values(book: dict, rng: random.Random, share: float = 0.7) -> tuple[dict[str, str], list[dict]]:
    """Return the passages of a handbook, as texts by id, and its facts, with about ``share`` of the values replaced by
    alternatives in both. What a passage says can then only be read, not remembered (Longpre et al. 2021, 2109.05052)."""
    texts, facts = {passage["id"]: titled(passage) for passage in book["passages"]}, []
    for fact in book["facts"]:
        value, text = fact["value"], texts[fact["passage"]]
        other = rng.choice(fact["alternatives"])
        if rng.random() < share and len(re.findall(data.whole_word(value), text)) == 1 and other not in text:
            texts[fact["passage"]] = re.sub(data.whole_word(value), lambda _, new=other: new, text)
            value = other
        facts.append(fact | {"value": value})
    return texts, facts


def similar_passages(books: Sequence[dict], embed: Embedder) -> dict[tuple[str, str], list[str]]:
    """Return for each (handbook, question) the ids of its passages, those nearest to the question first."""
    found = {}
    for book in books:
        asked = [q for fact in book["facts"] for q in fact["questions"]] + book["unanswerable"]
        cosines = embed(asked) @ embed([titled(p) for p in book["passages"]]).T
        for question, row in zip(asked, cosines, strict=True):
            found[book["id"], question] = [book["passages"][i]["id"] for i in ranking(row)]
    return found


def practice(
    books: Sequence[dict], similar: dict, seed: int = 0, share: float = 0.7
) -> list[tuple[str, str, str | None]]:
    """Return rows (question, passage, value) to learn to read from, in random order. ``value`` is None if the passage
    does not answer the question. Such passages are similar to the question (``similar_passages``), because a search
    would have found them."""
    rng, rows = random.Random(seed), []
    for book in books:
        phrasings = len(book["facts"][0]["questions"])
        for phrasing in range(phrasings):
            texts, facts = swap_values(book, rng, share)
            for fact in facts:
                question = fact["questions"][phrasing]
                rows.append((question, texts[fact["passage"]], fact["value"]))
                if rng.random() < 0.6:
                    others = [name for name in similar[book["id"], question] if name != fact["passage"]]
                    rows.append((question, texts[others[rng.random() > 0.7]], None))
            for question in book["unanswerable"][phrasing::phrasings]:
                rows += [(question, texts[name], None) for name in similar[book["id"], question][:2]]
    rng.shuffle(rows)
    return rows


@dataclass(frozen=True)
class Reading:
    """What a reader found in one passage: the marked ``answer``, where it starts, and the score of this answer (a
    difference of log-probabilities, in nats): positive if it is more likely than "not here"."""

    answer: str
    start: int
    score: float


class Ranker:
    """An encoder that reads question and passage together and gives each token two logits: does the answer start here,
    does it end here? The first token, ``[CLS]``, stands for "the answer is not here" (BERT, 1810.04805, 4.3)."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model.eval(), tokenizer

    @classmethod
    def packaged(cls) -> "Ranker":
        """Return the course's ranker: MiniLM with the adapter ``passage-ranker``."""
        from peft import PeftModel

        model, tokenizer = untrained_ranker()
        folder = downloads.fetch("passage-ranker") / "adapter"
        return cls(PeftModel.from_pretrained(model, folder).merge_and_unload(), tokenizer)

    def encode(self, questions: Sequence[str], texts: Sequence[str]):
        """Return the inputs of the model, the texts' token offsets, and where an answer may stand, (rows, tokens): in the
        text, or at ``[CLS]``."""
        import torch

        inputs = self.tokenizer(
            list(questions), list(texts), padding=True, truncation="only_second", max_length=LONGEST,
            return_tensors="pt", return_offsets_mapping=True,
        )  # fmt: skip
        allowed = torch.tensor([[part == 1 for part in inputs.sequence_ids(i)] for i in range(len(texts))])
        allowed[:, 0] = True
        return inputs, inputs.pop("offset_mapping"), allowed

    def log_probabilities(self, inputs, allowed):
        """Return log p(the answer starts here) and log p(it ends here), each (rows, tokens)."""
        import torch

        device = self.model.device
        with torch.autocast(device.type, runtime.compute_dtype(), enabled=runtime.compute_dtype() != torch.float32):
            out = self.model(**inputs.to(device))
        logits = (out.start_logits.float().cpu(), out.end_logits.float().cpu())
        return [row.masked_fill(~allowed, -1e9).log_softmax(-1) for row in logits]

    def __call__(self, questions: Sequence[str], texts: Sequence[str], batch_size: int = 16) -> list[Reading]:
        """Read each text for the question at the same place, and return the most likely answers."""
        import torch
        from tqdm.auto import tqdm

        order = runtime.few(sorted(range(len(texts)), key=lambda i: len(texts[i])))
        found: list[Reading] = [Reading("", 0, -1.0)] * len(texts)
        starts = range(0, len(order), batch_size)
        for at in tqdm(starts, desc="reading", leave=False, disable=len(starts) < 20):
            batch = order[at : at + batch_size]
            inputs, offsets, allowed = self.encode([questions[i] for i in batch], [texts[i] for i in batch])
            with torch.inference_mode():
                start, end = self.log_probabilities(inputs, allowed)
            for row, i in enumerate(batch):
                s, e, score = best_span(start[row], end[row])
                first, last = int(offsets[row, s, 0]), int(offsets[row, e, 1])
                found[i] = Reading(texts[i][first:last], first, score)
        return found


def rank_signs(ranker: Ranker, embed: Embedder, books: Sequence[dict]) -> tuple[list[tuple[float, float]], list[bool]]:
    """Return two signs (score, cosine) of each passage for every second fact of each handbook, and whether the passage
    states the fact. A logistic regression learns from them how much each sign should count."""
    signs, answers = [], []
    for book in books:
        texts = [titled(passage) for passage in book["passages"]]
        for i, fact in enumerate(book["facts"][::2]):
            question = fact["questions"][i % 2]
            cosines = (embed(texts) @ embed([question])[0]).tolist()
            scores = [found.score for found in ranker([question] * len(texts), texts)]
            signs += zip(scores, cosines, strict=True)
            answers += [passage["id"] == fact["passage"] for passage in book["passages"]]
    return signs, answers


def best_span(start, end) -> tuple[int, int, float]:
    """Return first and last token of the most likely answer, and how much likelier it is than "not here".

    start, end: (tokens,) log-probabilities, with "not here" at position 0. An answer has at most LONGEST_ANSWER tokens.
    """
    sums = start[1:, None] + end[None, 1:]  # (first token, last token)
    sums = sums.masked_fill(sums.new_ones(sums.shape).triu().tril(LONGEST_ANSWER - 1) == 0, -1e9)
    place = int(sums.argmax())
    first, last = divmod(place, sums.shape[1])
    return first + 1, last + 1, float(sums[first, last] - start[0] - end[0])


def untrained_ranker():
    """Return MiniLM with a new layer of two outputs for each token, and its tokenizer."""
    import torch
    from transformers import AutoModelForQuestionAnswering

    folder = downloads.fetch(models.EMBEDDING_MODEL)
    torch.manual_seed(0)  # the new layer is random
    return AutoModelForQuestionAnswering.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True
    ), models.load_encoder()[1]


def span_targets(offsets, allowed, texts: Sequence[str], values: Sequence[str | None]):
    """Return first and last token of each value in its text, (rows, 2), or 0 and 0 where there is no value."""
    import torch

    rows = []
    for row, (text, value) in enumerate(zip(texts, values, strict=True)):
        span = value and re.search(data.whole_word(value), text)
        inside = [
            i for i, (a, b) in enumerate(offsets[row].tolist())
            if i and allowed[row, i] and span and a < span.end() and b > span.start()
        ]  # fmt: skip
        rows.append((inside[0], inside[-1]) if inside else (0, 0))
    return torch.tensor(rows)


def train_ranker(
    books: Sequence[dict], epochs: int = 2, learning_rate: float = 1e-3, rank: int = 64, batch_size: int = 16
):
    """Return a ranker, MiniLM with an adapter (LoRA), that has learnt to read from handbooks. The loss is the mean
    cross-entropy of first and last token; every epoch has other values in the passages (``practice``)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn import functional as F
    from tqdm.auto import tqdm

    model, tokenizer = untrained_ranker()
    config = LoraConfig(
        task_type="QUESTION_ANS", r=rank, lora_alpha=2 * rank, target_modules=["query", "key", "value", "dense"],
        modules_to_save=["qa_outputs"],
    )  # fmt: skip
    ranker = Ranker(get_peft_model(model, config), tokenizer)
    similar = similar_passages(books, Embedder())
    rows = [practice(books, similar, seed=epoch) for epoch in range(epochs)]
    batches = [batch for epoch, its in enumerate(rows) for batch in _of_similar_length(its, batch_size, epoch)]
    adam = torch.optim.AdamW([p for p in ranker.model.parameters() if p.requires_grad], learning_rate, weight_decay=0.0)
    warm = 0.06 * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda s: min(1, (s + 1) / warm, 1 - s / len(batches)))
    ranker.model.train()
    for batch in tqdm(batches, desc="learning to read", mininterval=10):
        questions, texts, values = zip(*batch, strict=True)
        inputs, offsets, allowed = ranker.encode(questions, texts)
        first, last = span_targets(offsets, allowed, texts, values).T
        start, end = ranker.log_probabilities(inputs, allowed)
        loss = (F.nll_loss(start, first) + F.nll_loss(end, last)) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ranker.model.parameters(), 1.0)
        adam.step()
        schedule.step()
        adam.zero_grad()
    ranker.model.eval()
    return ranker


def _of_similar_length(rows: list, size: int, seed: int) -> list[list]:
    """Return the rows in batches of passages of similar length, so that there is little padding; in random order."""
    rows = sorted(rows, key=lambda row: len(row[1]) // 40)  # stable: still random among those of a length
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    random.Random(seed).shuffle(batches)
    return batches
