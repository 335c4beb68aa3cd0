"""Structured output: decoding within a grammar, by hand and with llguidance, and the JSON of a notice."""

import json
from collections.abc import Callable

from lecture_utils import data


def constrained_decode(
    model, tokenizer, asked, may_begin: Callable[[str], bool], whole: Callable[[str], bool], max_new_tokens: int = 80
):
    """Return the greedy answer among the texts that a grammar allows, by hand: at each step the most
    probable token after which the text can still become one of them.

    may_begin(text): is it the beginning of an allowed text?  whole(text): is it one?
    Raises ValueError if no token goes on, or none has ended it after ``max_new_tokens`` tokens.
    """
    import torch

    ids = tokenizer(data.render(tokenizer, asked)[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    new, text, cache = ids.to(model.device), "", None
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            out = model(input_ids=new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        for token in out.logits[0, -1].float().argsort(descending=True, stable=True).tolist():
            if token == tokenizer.eos_token_id:
                if whole(text):
                    return text
                continue
            piece = tokenizer.decode([token], skip_special_tokens=True)
            if piece and "\ufffd" not in piece and may_begin(text + piece):
                break
        else:
            raise ValueError(f"No token goes on after {text!r}: the grammar and the vocabulary do not meet.")
        text += piece
        new = torch.tensor([[token]], device=model.device)
    raise ValueError(f"After {max_new_tokens} tokens the text is not whole: {text!r}. Allow more tokens.")


class GrammarLogitsProcessor:
    """A logits processor for ``generate``: only tokens after which the text can still match a regular
    expression, as the compiled grammar of llguidance says. Make a new one for each batch.

    engine: llguidance.hf.from_tokenizer(tokenizer).  end: the id of the end-of-turn token.
    """

    def __init__(self, engine, pattern: str, end: int):
        import llguidance

        # no_forcing: any tokens that spell the text, as in write_within, and not one spelling alone
        grammar = llguidance.LLMatcher.grammar_from_lark(
            '%llguidance {"no_forcing": true}\nstart: /' + pattern.replace("/", r"\/") + "/"
        )
        self.new_matcher, self.end = lambda: llguidance.LLMatcher(engine, grammar), end
        self.matchers, self.read = [], 0

    def __call__(self, ids, scores):
        """ids: (rows, time so far). scores: (rows, vocabulary). Returns them with -inf where a token may not follow."""
        import torch

        if not self.matchers:
            self.matchers, self.read = [self.new_matcher() for _ in ids], ids.shape[1]
        held = torch.full_like(scores, -torch.inf)
        for row, matcher in enumerate(self.matchers):
            if not matcher.is_stopped():
                matcher.consume_tokens(ids[row, self.read :].tolist())
            if matcher.is_stopped():  # nothing can follow the whole text but its end
                may_follow = torch.tensor([self.end])
            else:
                bits = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
                may_follow = bits.nonzero().flatten()
            held[row, may_follow] = scores[row, may_follow]
        self.read = ids.shape[1]
        return held


EVENT_FIELDS = ("event", "place", "day", "time", "price")


_TEXT = r'"[ !#-\[\]-~]{1,50}"'  # printable ASCII but the quotation mark and the backslash


EVENT = (  # a notice as JSON, as a regular expression
    rf'\{{"event": {_TEXT}, "place": {_TEXT}, "day": "(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day", '
    r'"time": "([01][0-9]|2[0-3]):[0-5][0-9]", "price": (0|[1-9][0-9]{0,2})\}'
)


def as_json(notice: dict) -> str:
    """Return a notice's fields as the JSON that ``EVENT`` matches."""
    return json.dumps({field: notice[field] for field in EVENT_FIELDS})


def fields_right(answer: str, notice: dict) -> list[bool]:
    """Return for each field of ``EVENT_FIELDS`` whether a JSON answer gives it as the notice does; no JSON object,
    none."""
    try:
        given = json.loads(answer)
    except (ValueError, RecursionError):
        given = None
    given = given if isinstance(given, dict) else {}
    return [field in given and given[field] == notice[field] for field in EVENT_FIELDS]
