"""Prompts as data, and the log-probabilities of choices: notebook 10 measures with them what a prompt is worth."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lecture_utils import data, runtime


@dataclass(frozen=True)
class Prompt:
    """A prompt as data: the question with a placeholder ``{text}``, the system message, and the examples."""

    ask: str  # contains {text} exactly once
    system: str = ""
    shots: tuple[tuple[str, str], ...] = ()  # examples (text, answer), shown as earlier turns of the conversation

    def messages(self, text: str) -> list[dict]:
        """Return the conversation that ends with the question about ``text``."""
        assert self.ask.count("{text}") == 1
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for example, answer in self.shots:
            messages += data.chat(self.ask.replace("{text}", example), answer)
        return messages + data.chat(self.ask.replace("{text}", text))


def balanced_examples(rows: Sequence[dict], count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return ``count`` examples (text, label) drawn from rows, equally many of each label, in random order."""
    rng, labels = random.Random(seed), sorted({row["label"] for row in rows})
    assert count % len(labels) == 0, "count must be a multiple of the number of labels"
    drawn = []
    for label in labels:
        drawn += rng.sample([(row["text"], label) for row in rows if row["label"] == label], count // len(labels))
    rng.shuffle(drawn)
    return drawn


def choice_log_probabilities(model, tokenizer, conversations, choices: Sequence[str], batch_size: int = 16):
    """Return the log-probability in nats of each choice as the whole answer (conversations, choices), without the
    end-of-turn token. If every choice is one token, a prompt is read once for all choices, otherwise once for each."""
    import torch

    from lecture_utils.alignment import token_log_probabilities
    from lecture_utils.evaluation import prefill_shared_prefix

    choice_ids = [tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in choices]
    prompts = [data.render(tokenizer, conversation)[0] for conversation in runtime.few(conversations)]
    prompts = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    single_tokens = max(map(len, choice_ids)) == 1
    out = torch.zeros(len(prompts), len(choices))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for column in (0,) if single_tokens else range(len(choices)):
            beginning = choice_ids[column][:-1]  # the last token of a choice is predicted, but never an input
            ids, attention_mask, cache = prefill_shared_prefix(
                model, [prompts[i] + beginning for i in batch], tokenizer.pad_token_id
            )
            cached = cache.get_seq_length() if cache else 0
            with torch.inference_mode():
                logits = model(
                    input_ids=ids[:, cached:], attention_mask=attention_mask, past_key_values=cache,
                    position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0)[:, cached:],
                    logits_to_keep=len(beginning) + 1,
                ).logits.cpu()  # fmt: skip
            if single_tokens:
                out[batch] = logits[:, -1].float().log_softmax(-1)[:, [token for (token,) in choice_ids]]
            else:
                targets = torch.tensor(choice_ids[column]).expand(len(batch), -1)
                out[batch, column] = token_log_probabilities(logits, targets).sum(1)
    return runtime.spread(out, len(conversations))


def calibrated(scores, liking):
    """Return the scores of the choices (n, choices) minus the model's ``liking`` (choices,) for each choice whatever
    the input is. That is the scores for a text without content (contextual calibration, Zhao et al. 2021), or the mean
    scores over unlabelled texts (batch calibration, Zhou et al. 2023)."""
    return scores - liking
