"""Evaluating answers: key accuracy, token F1, ROUGE-L, and the loss of the reference answer."""

import math
import os
from collections import Counter
from dataclasses import dataclass, field

from lecture_utils import runtime
from lecture_utils.data import contains_key, render, token_ids, words


def token_f1(answer: str, reference: str) -> float:
    """Return the token F1 of answer and reference (SQuAD, 1606.05250, section 6.1)."""
    a, b = Counter(words(answer)), Counter(words(reference))
    shared = sum((a & b).values())
    return 2 * shared / (a.total() + b.total()) if shared else 0.0


def rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L: the F-measure of the longest common subsequence of words (Lin 2004, section 3)."""
    a, b = words(answer), words(reference)
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(a) + len(b)) if row[-1] else 0.0


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (95 % for z = 1.96)."""
    p, z2 = right / total, z * z
    middle, half = p + z2 / (2 * total), z * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return max(0.0, (middle - half) / (1 + z2 / total)), min(1.0, (middle + half) / (1 + z2 / total))


def paired_bootstrap(a, b, draws: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean of a - b over the items and its 95 % interval by a paired bootstrap, (mean, low, high)."""
    import torch

    gap = torch.tensor([float(x) - float(y) for x, y in zip(a, b, strict=True)])
    drawn = gap[torch.randint(len(gap), (draws, len(gap)), generator=torch.Generator().manual_seed(seed))].mean(1)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975])).tolist()
    return gap.mean().item(), low, high


def _batches(rows: list, batch_size: int):
    return (rows[i : i + batch_size] for i in range(0, len(rows), batch_size))


def answer_batches(model, rows: list[tuple[list[int], list[int]]], pad: int, batch_size: int):
    """Yield (positions in ``rows``, input ids, attention mask, labels) of batches with rows of similar length.

    rows: token ids of prompt and answer. Ids, mask and labels are (batch, time), padded on the right and on the model's
    device. Labels are -100 except on the tokens of the answers.
    """
    import torch

    def sheet(lists, fill):
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(x) for x in lists], True, fill).to(model.device)

    for places in _batches(sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + len(rows[i][1])), batch_size):
        batch = [rows[i] for i in places]
        ids, attention_mask = sheet([p + c for p, c in batch], pad), sheet([[1] * len(p + c) for p, c in batch], 0)
        yield places, ids, attention_mask, sheet([[-100] * len(p) + c for p, c in batch], -100)


def answer_log_probabilities(model, tokenizer, pairs, batch_size: int = 10, **template_options) -> list:
    """Return the log-probabilities in nats of each answer's tokens, including its end, as one tensor (tokens,) per pair.

    pairs: rows with ``question`` and ``answer``.
    """
    import torch

    pairs = list(pairs)
    rows = [token_ids(tokenizer, pair["question"], pair["answer"], **template_options) for pair in runtime.few(pairs)]
    found = [torch.empty(0)] * len(rows)
    for places, *batch in answer_batches(model, rows, tokenizer.pad_token_id, batch_size):
        with torch.inference_mode():
            losses, counted = completion_losses(model, *batch)
        for i, own, there in zip(places, losses, counted, strict=True):
            found[i] = -own[there].cpu()
    return runtime.spread(found, len(pairs))


def answer_loss(model, tokenizer, pairs, batch_size: int = 10, **template_options) -> float:
    """Return the mean loss in nats per answer token, including the end of the turn. Its exp is the perplexity."""
    import torch

    return -torch.cat(answer_log_probabilities(model, tokenizer, pairs, batch_size, **template_options)).mean().item()


def completion_losses(model, ids, attention_mask, labels):
    """Return the cross-entropy in nats of the labelled positions, and which of them count, both (batch, columns).

    ids, attention_mask, labels: (batch, time); labels of -100 do not count. The output head, a matrix of size vocabulary
    times width, runs only on the columns in which some row has a label. With short answers after longer prompts this
    more than halves the work.
    """
    import torch

    shifted = labels[:, 1:]  # position t predicts token t + 1
    columns = (shifted != -100).any(0).nonzero().squeeze(1)
    from_end = columns - labels.shape[1]  # a soft prompt makes the model's rows longer at the front
    logits = model(input_ids=ids, attention_mask=attention_mask, logits_to_keep=from_end, use_cache=False).logits
    target = shifted[:, columns]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), reduction="none")
    return losses.view(target.shape), target != -100


def completion_loss(model, ids, attention_mask, labels):
    """Return the summed cross-entropy of the labelled positions and their number (see ``completion_losses``)."""
    losses, counted = completion_losses(model, ids, attention_mask, labels)
    return losses.sum(), int(counted.sum())


def prefill_shared_prefix(model, rows: list[list[int]], pad: int, least: int = 64):
    """Return ``(ids, attention mask, cache)`` of a batch of prompts whose common prefix has been read once for all.

    rows: token ids of each prompt. A common prefix of at least ``least`` tokens is read here, and ``cache`` holds its keys
    and values (else None). ids, attention mask: (rows, longest). The prefix comes first and the rest is padded on its
    left, so that every prompt ends in the last column.
    """
    import torch

    shared = min(len(os.path.commonprefix(rows)), min(map(len, rows)) - 1)
    shared = shared if shared >= least else 0
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    attention_mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        for part, begin in ((row[:shared], 0), (row[shared:], longest - len(row) + shared)):
            ids[i, begin : begin + len(part)], attention_mask[i, begin : begin + len(part)] = (
                torch.tensor(part).long(),
                1,
            )
    ids, attention_mask, cache = ids.to(model.device), attention_mask.to(model.device), None
    if shared:
        with torch.inference_mode():
            cache = model(ids[:1, :shared], use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(len(rows))
    return ids, attention_mask, cache


def complete(
    model, tokenizer, texts: list[str], max_new_tokens: int = 32, batch_size: int = 35, temperature: float = 0.0,
    processor=None,
) -> list[str]:  # fmt: skip
    """Return the model's continuation of each text: greedy, or sampled if the temperature is above 0.

    processor: a function that makes a transformers ``LogitsProcessor`` for a batch, given the positions of its texts.
    """
    import torch

    count, texts = len(texts), runtime.few(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    written = [""] * len(texts)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    for batch in _batches(order, batch_size):
        rows = tokenizer([texts[i] for i in batch], add_special_tokens=False)["input_ids"]
        ids, attention_mask, cache = prefill_shared_prefix(model, rows, tokenizer.pad_token_id)
        if processor:
            how["logits_processor"] = [processor(batch)]
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=attention_mask, past_key_values=cache, max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id, **how,
            )  # fmt: skip
        for i, text in zip(
            batch, tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True), strict=True
        ):
            written[i] = text
    return runtime.spread(written, count)


def generate_answers(
    model, tokenizer, questions, max_new_tokens: int = 32, batch_size: int = 35, temperature: float = 0.0,
    processor=None, **template_options,
) -> list[str]:  # fmt: skip
    """Return the model's answers to ``questions`` (texts or conversations); see ``complete`` for the arguments."""
    assert not isinstance(questions, str), "give a list of questions"
    prompts = [render(tokenizer, question, **template_options)[0] for question in questions]
    written = complete(model, tokenizer, prompts, max_new_tokens, batch_size, temperature, processor)
    return [text.strip() for text in written]


@dataclass
class Report:
    """The result of an evaluation. ``str()`` gives one line."""

    loss: float  # nats per answer token
    f1: float
    rouge_l: float
    right: int  # answers that contain their key
    total: int
    answers: list[str] = field(repr=False, default_factory=list)

    @property
    def key_accuracy(self) -> float:
        return self.right / self.total

    def __str__(self) -> str:
        low, high = wilson(self.right, self.total)
        return (
            f"answer loss {self.loss:.2f} (perplexity {math.exp(self.loss):.1f})   token F1 {self.f1:.2f}   "
            f"ROUGE-L {self.rouge_l:.2f}   key {self.right}/{self.total} = {self.key_accuracy:.0%} "
            f"[{low:.0%}, {high:.0%}]"
        )


def evaluate(model, tokenizer, pairs, **template_options) -> Report:
    """Answer every question of ``pairs`` (question, answer, key) greedily and evaluate the answers. The model is put into
    eval mode, because dropout would disturb generation."""
    pairs = list(pairs)
    model.eval()
    answers = generate_answers(model, tokenizer, [p["question"] for p in pairs], **template_options)
    n = len(pairs)
    return Report(
        loss=answer_loss(model, tokenizer, pairs, **template_options),
        f1=sum(token_f1(a, p["answer"]) for a, p in zip(answers, pairs, strict=True)) / n,
        rouge_l=sum(rouge_l(a, p["answer"]) for a, p in zip(answers, pairs, strict=True)) / n,
        right=sum(contains_key(a, p["key"]) for a, p in zip(answers, pairs, strict=True)),
        total=n,
        answers=answers,
    )
