"""What functions expect of their arguments: each check raises an error that names the argument and the remedy."""

import operator
import re


def text(name: str, value, whole: bool = True) -> None:
    """Raise TypeError unless an argument is one text, and where a tokenizer or file takes it (``whole``), ValueError
    for half a character in it: a lone surrogate, as "\\ud83d", which is no Unicode text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}: give one text.")
    if whole and (half := re.search("[\ud800-\udfff]", value)):
        raise ValueError(
            f"{name} holds {half[0]!r} at position {half.start()}, half a character that no tokenizer takes. "
            "Read its source with the right encoding, or text.encode('utf-8', 'replace').decode()."
        )


def rows(name: str, value, least: int = 1) -> None:
    """Raise TypeError for one text or mapping instead of several things in a row, ValueError for none of them
    (``least`` 0 allows that)."""
    if isinstance(value, str | bytes | dict) or not hasattr(value, "__len__"):
        raise TypeError(f"{name} is a {type(value).__name__}: give a list, even of one.")
    if len(value) < least:
        raise ValueError(f"{name} is empty: at least {least} is needed.")


def texts(name: str, value, least: int = 1, whole: bool = True) -> None:
    """Raise as ``rows`` and ``text`` do unless an argument is a list of texts."""
    rows(name, value, least)
    for i, one in enumerate(value):
        text(f"{name}[{i}]", one, whole)


def whole(name: str, value, least: int = 1) -> None:
    """Raise TypeError unless an argument is a whole number, ValueError where it is below ``least``."""
    try:
        right = operator.index(value) >= least
    except TypeError:
        raise TypeError(f"{name}={value!r}: give a whole number.") from None
    if not right:
        raise ValueError(f"{name}={value}: give a whole number of at least {least}.")


def ids(name: str, value, shape: str = "(B, T)") -> None:
    """Raise TypeError unless an argument is a tensor of whole numbers, ValueError unless it has as many dimensions
    as ``shape`` names."""
    import torch

    if not isinstance(value, torch.Tensor) or value.is_floating_point():
        kind = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"{name} is {kind}: give a tensor of token ids, {shape}.")
    if value.ndim != shape.count(",") + 1:
        raise ValueError(f"{name} has the shape {tuple(value.shape)}: token ids, {shape}, are needed.")
