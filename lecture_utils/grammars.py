"""Structured output: decoding constrained by a grammar, by hand and with llguidance."""

from collections.abc import Callable, Sequence

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
    """A logits processor for ``generate`` that allows only tokens after which the text can still become one that the
    grammar allows. Each batch needs a new processor.

    engine: ``llguidance.hf.from_tokenizer(tokenizer)``. grammars: a grammar of llguidance for each row of the batch. end:
    the id of the end-of-turn token.
    """

    def __init__(self, engine, grammars: Sequence[str], end: int):
        import llguidance

        self.matchers, self.end, self.read = [llguidance.LLMatcher(engine, g) for g in grammars], end, None

    def __call__(self, ids, scores):
        """Return scores (rows, vocabulary) with -inf for every token that may not follow ids (rows, time)."""
        import torch

        if self.read is None:
            self.read = ids.shape[1]
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


def regular(pattern: str) -> str:
    """Return the grammar of llguidance for a regular expression, with every tokenization of a text allowed, as in
    ``constrained_decode``, and not only the usual one."""
    import llguidance

    lark = '%llguidance {"no_forcing": true}\nstart: /' + pattern.replace("/", r"\/") + "/"
    return llguidance.LLMatcher.grammar_from_lark(lark)
