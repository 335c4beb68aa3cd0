"""From logits to text: how the next token is chosen, and the loop around it.

``Llama`` of ``transformer`` is what writes; everything works on token ids.
"""

from collections.abc import Iterator

import torch

from lecture_utils import runtime


def next_token_probabilities(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> torch.Tensor:
    """Return next-token probabilities (..., vocabulary) after temperature, top-k and top-p.

    Divide the logits by the temperature; keep the ``top_k`` greatest; of these the fewest whose probabilities reach
    ``top_p`` together (nucleus sampling, 1904.09751, section 3.1); normalize again. Temperature 0 is greedy: all on
    the greatest logit.
    """
    assert temperature >= 0 and 0 < top_p <= 1
    assert not logits.isnan().any()  # argmax would take NaN for the greatest
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(torch.float32)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # mass of the more likely ones
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits.softmax(-1)


@torch.inference_mode()
def stream(
    model, ids: torch.Tensor, max_new_tokens: int, temperature: float = 0.0, top_k: int | None = None,
    top_p: float = 1.0, stop_ids: tuple[int, ...] = (), seed: int | None = None, use_cache: bool = True,
) -> Iterator[int]:  # fmt: skip
    """Yield new tokens after ``ids`` (1, T), one at a time, until one of ``stop_ids`` (not yielded).

    With the cache each position passes through the model once; without, all of the text does for each new token. Same
    tokens either way.
    """
    max_new_tokens = runtime.limited(max_new_tokens, 4)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    caches = model.new_caches(1, ids.shape[1] + max_new_tokens) if use_cache else None
    new = ids
    for _ in range(max_new_tokens):
        logits = model(new if use_cache else ids, caches=caches, last_only=True)[:, -1]
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            likely = next_token_probabilities(logits, temperature, top_k, top_p).cpu()  # the same draw on every device
            token = torch.multinomial(likely, 1, generator=generator)[:, 0].to(ids.device)
        if int(token) in stop_ids:
            return
        yield int(token)
        new = token[:, None]
        ids = torch.cat((ids, new), dim=1)


def generate(model, ids: torch.Tensor, max_new_tokens: int, **how) -> list[int]:
    """Return what ``stream`` yields, as a list."""
    return list(stream(model, ids, max_new_tokens, **how))
