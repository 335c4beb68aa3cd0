"""Prompting: prompts as data, choices scored, text held to a grammar, problems made by code, a safe calculator.

Notebook 10 measures with it what a prompt is worth.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lecture_utils import data, runtime


@dataclass(frozen=True)
class Prompt:
    """A prompt as data: what is said to the system, the examples, and the question's ``{text}``."""

    ask: str  # holds {text} once
    system: str = ""
    shots: tuple[tuple[str, str], ...] = ()  # (text, answer): earlier turns of the conversation

    def messages(self, text: str) -> list[dict]:
        """Return the conversation that ends with the question on ``text``."""
        assert self.ask.count("{text}") == 1
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for shown, answer in self.shots:
            messages += data.chat(self.ask.replace("{text}", shown), answer)
        return messages + data.chat(self.ask.replace("{text}", text))


def balanced_examples(rows: Sequence[dict], count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return ``count`` (text, label) examples drawn from rows, as many of each label, in random order."""
    rng, labels = random.Random(seed), sorted({row["label"] for row in rows})
    assert count % len(labels) == 0, "as many examples of each label"
    drawn = [
        (row["text"], label)
        for label in labels
        for row in rng.sample([r for r in rows if r["label"] == label], count // len(labels))
    ]
    rng.shuffle(drawn)
    return drawn


# Choices ------------------------------------------------------------------------------------


def choice_log_probabilities(model, tokenizer, conversations, choices: Sequence[str], batch_size: int = 16):
    """Return log p of each whole choice as the answer (conversations, choices), nats, end of turn not counted.

    The prompt is read once for all choices of one token; longer ones are read behind it.
    """
    import torch

    from lecture_utils.alignment import token_log_probabilities
    from lecture_utils.evaluation import prefill_shared_prefix

    ids = [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in choices]
    prompts = [
        tokenizer(data.render(tokenizer, asked)[0], add_special_tokens=False)["input_ids"]
        for asked in runtime.few(conversations)
    ]
    out = torch.zeros(len(prompts), len(choices))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    longest = max(map(len, ids))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for column in range(len(choices)) if longest > 1 else (0,):
            tail = ids[column][:-1] if longest > 1 else []
            given, attention_mask, cache = prefill_shared_prefix(
                model, [prompts[i] + tail for i in batch], tokenizer.pad_token_id
            )
            read = cache.get_seq_length() if cache else 0
            with torch.inference_mode():
                logits = model(
                    input_ids=given[:, read:], attention_mask=attention_mask, past_key_values=cache,
                    position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0)[:, read:], logits_to_keep=len(tail) + 1,
                ).logits.cpu()  # fmt: skip
            if longest == 1:
                log_p = logits[:, -1].float().log_softmax(-1)
                out[batch] = log_p[:, [i[0] for i in ids]]
            else:
                wanted = torch.tensor(ids[column]).expand(len(batch), -1)
                out[batch, column] = token_log_probabilities(logits, wanted).sum(1)
    return runtime.spread(out, len(conversations))


def first_of(answer: str, choices: Sequence[str]) -> str | None:
    """Return the choice that an answer says first, in whatever case; None if it says none."""
    found = re.search("|".join(f"({re.escape(choice)})" for choice in choices), answer, re.IGNORECASE)
    return found and choices[found.lastindex - 1]


def calibrated(scores, liking):
    """Return choice scores (n, choices) less the model's ``liking`` for each word as such (choices,): its scores
    for a text without content (contextual calibration, Zhao et al. 2021), or the mean over texts without labels
    (batch calibration, Zhou et al. 2023)."""
    return scores - liking


# Grammars -----------------------------------------------------------------------------------


# Problems made by code ----------------------------------------------------------------------


# A tool -------------------------------------------------------------------------------------
