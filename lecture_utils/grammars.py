"""Structured output: decoding constrained by a grammar, by hand and with llguidance, and event notices as JSON."""

import json
from collections.abc import Callable

from lecture_utils import data


def constrained_decode(
    model, tokenizer, asked, may_begin: Callable[[str], bool], whole: Callable[[str], bool], max_new_tokens: int = 80
):
    """Return the greedy answer among the texts that a grammar allows: each step takes the most probable token after
    which the text can still become one of them. ``may_begin`` returns whether an allowed text can begin with its
    argument, and ``whole`` whether its argument is an allowed text."""
    import torch

    new_ids = tokenizer(data.render(tokenizer, asked)[0], add_special_tokens=False, return_tensors="pt")["input_ids"]
    new_ids, text, cache = new_ids.to(model.device), "", None
    for _ in range(max_new_tokens):
        with torch.inference_mode():
            out = model(input_ids=new_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        for token in out.logits[0, -1].float().argsort(descending=True, stable=True).tolist():
            if token == tokenizer.eos_token_id:
                if whole(text):
                    return text
                continue
            piece = tokenizer.decode([token], skip_special_tokens=True)
            if piece and "\ufffd" not in piece and may_begin(text + piece):  # \ufffd: only a part of a character
                break
        else:
            raise ValueError(f"No token goes on after {text!r}: the vocabulary cannot spell what the grammar allows.")
        text += piece
        new_ids = torch.tensor([[token]], device=model.device)
    raise ValueError(f"After {max_new_tokens} tokens the text is not whole: {text!r}. Increase max_new_tokens.")


class GrammarLogitsProcessor:
    """A logits processor for ``generate`` that allows only tokens after which the text can still match a regular
    expression, according to the compiled grammar of llguidance. Each batch needs a new processor. ``engine`` is
    ``llguidance.hf.from_tokenizer(tokenizer)``, and ``end`` the id of the end-of-turn token."""

    def __init__(self, engine, pattern: str, end: int):
        import llguidance

        # no_forcing allows every tokenization of a text, as constrained_decode does, and not only the canonical one.
        lark = '%llguidance {"no_forcing": true}\nstart: /' + pattern.replace("/", r"\/") + "/"
        grammar = llguidance.LLMatcher.grammar_from_lark(lark)
        self.new_matcher, self.end = lambda: llguidance.LLMatcher(engine, grammar), end
        self.matchers, self.read = [], 0

    def __call__(self, ids, scores):
        """Return scores (rows, vocabulary) with -inf for every token that may not follow ids (rows, time)."""
        import torch

        if not self.matchers:
            self.matchers, self.read = [self.new_matcher() for _ in ids], ids.shape[1]
        constrained = torch.full_like(scores, -torch.inf)
        for row, matcher in enumerate(self.matchers):
            if not matcher.is_stopped():
                matcher.consume_tokens(ids[row, self.read :].tolist())
            if matcher.is_stopped():  # the text is complete, so only the end of the turn may follow
                allowed = torch.tensor([self.end])
            else:
                bits = torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8)
                allowed = bits.nonzero().flatten()
            constrained[row, allowed] = scores[row, allowed]
        self.read = ids.shape[1]
        return constrained


EVENT_FIELDS = ("event", "place", "day", "time", "price")
_TEXT = r'"[ !#-\[\]-~]{1,50}"'  # printable ASCII without the quotation mark and the backslash
EVENT = (  # a regular expression for the JSON of a notice
    rf'\{{"event": {_TEXT}, "place": {_TEXT}, "day": "(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day", '
    r'"time": "([01][0-9]|2[0-3]):[0-5][0-9]", "price": (0|[1-9][0-9]{0,2})\}'
)


def as_json(notice: dict) -> str:
    """Return the fields of a notice as JSON that matches ``EVENT``."""
    return json.dumps({field: notice[field] for field in EVENT_FIELDS})


def fields_right(answer: str, notice: dict) -> list[bool]:
    """Return for each of ``EVENT_FIELDS`` whether a JSON answer agrees with the notice (all False if the answer is not
    a JSON object)."""
    try:
        given = json.loads(answer)
    except (ValueError, RecursionError):
        given = None
    return [isinstance(given, dict) and field in given and given[field] == notice[field] for field in EVENT_FIELDS]
