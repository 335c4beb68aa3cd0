"""From logits to text: how the next token is chosen, and the loop around it.

``Llama`` of ``transformer`` is what writes; everything works on token ids.
"""

from collections.abc import Iterator

import torch

from lecture_utils import expect, runtime


def _check(temperature: float, top_k: int | None, top_p: float) -> None:
    if not temperature >= 0:  # NaN is refused, too
        raise ValueError(f"temperature={temperature}: it divides the logits, so it must not be negative.")
    if top_k is not None:
        expect.whole("top_k", top_k)
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: a share of the probability, above 0 and at most 1.")


def _one_row(ids: torch.Tensor, max_new_tokens: int) -> None:
    expect.ids("ids", ids, "(1, T)")
    if ids.shape[0] != 1 or ids.shape[1] == 0:
        raise ValueError(f"ids has the shape {tuple(ids.shape)}: one row with at least one token is needed, (1, T).")
    expect.whole("max_new_tokens", max_new_tokens, least=0)


def filtered(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
) -> torch.Tensor:
    """Return next-token probabilities (..., vocabulary) after temperature, top-k and top-p.

    Divide the logits by the temperature; keep the ``top_k`` greatest; of these the fewest
    whose probabilities reach ``top_p`` together (nucleus sampling, 1904.09751, section 3.1);
    normalize again. Temperature 0 is greedy: all on the greatest logit. Raises ValueError for
    a negative temperature, a top_k below 1, a top_p outside (0, 1], or logits that give no
    probabilities (NaN, an infinity, all -infinity, or divided by next to nothing).
    """
    _check(temperature, top_k, top_p)
    if temperature == 0:
        greatest = logits.argmax(-1)
        if logits.gather(-1, greatest[..., None]).isnan().any():  # NaN counts as the greatest
            raise ValueError("logits hold NaN: has the model's training gone wrong?")
        return torch.nn.functional.one_hot(greatest, logits.shape[-1]).to(torch.float32)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # mass of the more likely ones
        drop = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    likely = logits.softmax(-1)
    if likely[..., 0].isnan().any():  # one NaN makes the whole row NaN
        raise ValueError(f"logits hold NaN or infinities once divided by temperature={temperature}.")
    return likely


@torch.inference_mode()
def stream(
    model, ids: torch.Tensor, max_new_tokens: int, temperature: float = 0.0, top_k: int | None = None,
    top_p: float = 1.0, stop: tuple[int, ...] = (), seed: int | None = None, use_cache: bool = True,
) -> Iterator[int]:  # fmt: skip
    """Yield new tokens after ``ids`` (1, T), one at a time, until one of ``stop`` (not yielded).

    With the cache each position passes through the model once; without, all of the text does
    for each new token. Same tokens either way. Raises ValueError for no prompt, for more than one,
    and for what ``filtered`` refuses; TypeError for ids that are no tensor of whole numbers.
    """
    _one_row(ids, max_new_tokens)
    _check(temperature, top_k, top_p)
    if isinstance(stop, int):
        raise TypeError(f"stop={stop}: give a tuple of ids, ({stop},).")
    max_new_tokens = runtime.limited(max_new_tokens, 4)
    chance = None if seed is None else torch.Generator().manual_seed(seed)
    caches = model.new_caches(1, ids.shape[1] + max_new_tokens) if use_cache else None
    new = ids
    for _ in range(max_new_tokens):
        logits = model(new if use_cache else ids, caches=caches, last_only=True)[:, -1]
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            likely = filtered(logits, temperature, top_k, top_p).cpu()  # the same draw on every device
            token = torch.multinomial(likely, 1, generator=chance)[:, 0].to(ids.device)
        if int(token) in stop:
            return
        yield int(token)
        new = token[:, None]
        ids = torch.cat((ids, new), dim=1)


def generate(model, ids: torch.Tensor, max_new_tokens: int, **how) -> list[int]:
    """Return what ``stream`` yields, as a list."""
    return list(stream(model, ids, max_new_tokens, **how))
