"""From logits to text: how the next token id is chosen, and the loop around it, for a ``transformer.Llama``."""

from collections.abc import Iterator

import torch

from lecture_utils import runtime


def next_token_probabilities(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> torch.Tensor:
    """Return next-token probabilities (..., vocabulary) after temperature, top-k and top-p.

    The logits are divided by the temperature; of the ``top_k`` most likely tokens, the fewest are kept whose
    probabilities reach ``top_p`` together (nucleus sampling, 1904.09751, section 3.1), and these are normalized again.
    A temperature of 0 is greedy: the most likely token gets probability 1.
    """
    assert temperature >= 0 and 0 < top_p <= 1
    assert not logits.isnan().any()  # argmax would take NaN for the maximum
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(torch.float32)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # the total probability of more likely tokens
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits.softmax(-1)


@torch.inference_mode()
def stream(
    model, ids: torch.Tensor, max_new_tokens: int, temperature: float = 0.0, top_k: int | None = None,
    top_p: float = 1.0, stop_ids: tuple[int, ...] = (), seed: int | None = None, use_cache: bool = True,
) -> Iterator[int]:  # fmt: skip
    """Yield the tokens that follow ``ids`` (1, T), one at a time, until one of ``stop_ids``, which is not yielded.
    With the cache, each position passes through the model only once; without it, the whole text does for each new
    token. The tokens are the same."""
    max_new_tokens = runtime.limited(max_new_tokens, 4)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    caches = model.new_caches(1, ids.shape[1] + max_new_tokens) if use_cache else None
    new = ids
    for _ in range(max_new_tokens):
        logits = model(new if use_cache else ids, caches=caches, last_only=True)[:, -1]
        if temperature == 0:
            token = logits.argmax(-1)
        else:  # sample on the CPU, so that a seed draws the same tokens on every device
            probabilities = next_token_probabilities(logits, temperature, top_k, top_p).cpu()
            token = torch.multinomial(probabilities, 1, generator=generator)[:, 0].to(ids.device)
        if int(token) in stop_ids:
            return
        yield int(token)
        new = token[:, None]
        ids = torch.cat((ids, new), dim=1)


def generate(model, ids: torch.Tensor, max_new_tokens: int, **how) -> list[int]:
    """Return the tokens that ``stream`` yields as a list."""
    return list(stream(model, ids, max_new_tokens, **how))
