"""Run twice on one machine, a notebook says the same: `make slow K=determinism`, twice a notebook's minutes each.

What is a time, or depends on one, is tagged `times-vary` and left out, and so are the times that trainers print
and whether `%%writefile` found its file there.
On another number of threads sums have another order: the same within tolerances, held here in seconds.
"""

import re
from pathlib import Path

import lecture
import pytest
import torch

from lecture_utils import data, evaluation, models, training, transformer

PATHS = lecture.found(None)
TIMES = re.compile(r"\b\d+:\d\d\b|'train_\w+': '?[\d.]+'?")


def said(path: Path) -> dict[str, str]:
    """Run a notebook; return each cell's text and tables, without times."""
    done = lecture.execute(path)
    assert done.problem is None, lecture.reason(done.problem)
    lecture.clean(done.notebook)
    texts = {}
    for cell in done.notebook.cells:
        if cell.cell_type == "code" and "times-vary" not in cell.metadata.get("tags", []):
            parts = [out.get("text", "") or out.data.get("text/html", "") for out in cell.outputs]
            texts[cell.id] = TIMES.sub("", "\n".join(parts)).replace("Overwriting", "Writing")  # %%writefile
    return texts


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_two_runs_say_the_same(path):
    first, second = said(path), said(path)
    assert sum(map(len, first.values())) > 500
    assert [(cell, first[cell], second[cell]) for cell in first if first[cell] != second[cell]] == []


@pytest.fixture
def on_threads():
    """Returns a function that calls another on a number of threads."""
    usual = torch.get_num_threads()

    def call(threads, what):
        torch.set_num_threads(threads)
        return what()

    yield call
    torch.set_num_threads(usual)


def test_one_and_two_threads_train_alike(on_threads, monkeypatch):
    """Twenty steps in fp32: the first losses equal to rounding, the last within a thousandth."""
    monkeypatch.setenv("LECTURE_BF16", "0")

    def losses():
        torch.manual_seed(0)
        model = transformer.Llama(transformer.LlamaConfig(97, 64, 128, 2, 4, 4, 16))
        run = training.Trainer(model, training.TrainingConfig(steps=20, batch_size=8, context_length=64))
        text = torch.randint(97, (5_000,), generator=torch.Generator().manual_seed(0))
        return torch.tensor(run.train(text, progress=False).losses)

    one, again, two = on_threads(1, losses), on_threads(1, losses), on_threads(2, losses)
    assert torch.equal(one, again) and one[-1] < one[0]
    assert (one - two)[:3].abs().max() < 1e-5 and (one - two).abs().max() < 1e-3


def test_one_and_two_threads_judge_alike(on_threads):
    """The chat model's log-probabilities of answers, in fp32."""
    model, tokenizer = models.load_chat_model(dtype=torch.float32)
    pairs = data.lecture_qa()["test"].select(range(6))

    def judged():
        return torch.cat(evaluation.answer_log_probabilities(model, tokenizer, pairs, batch_size=3))

    one, two = on_threads(1, judged), on_threads(2, judged)
    assert len(one) > 60 and (one - two).abs().max() < 1e-3
