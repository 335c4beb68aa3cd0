"""Checks of the exercises, which print whether an attempt is right, and why or why not.

An attempt starts as ``...`` (Ellipsis), which every check reports as "not attempted yet". No check raises an exception
for a wrong attempt. ``progress`` counts the right attempts. A check without a hint belongs to a solution and is not
counted.
"""

import math

_answers: dict[str, bool | None] = {}  # exercise -> result of the last attempt, None if not attempted


def _say(name: str, right: bool | None, why: str, hint) -> bool | None:
    if hint:
        _answers[name] = right
    if right is None:
        print(f"Exercise {name}: not attempted yet. Replace the ... above, and run both cells.")
    else:
        print(f"Exercise {name}: {'right' if right else 'not yet'}. {why}")
    return right


def progress() -> tuple[int, int]:
    """Print how many of the exercises checked in this notebook are right, and return (right, all)."""
    right = sum(result is True for result in _answers.values())
    print(f"{right} of {len(_answers)} right" if _answers else "No exercise was run yet.")
    for label, wanted in (("not yet right", False), ("not attempted", None)):
        if names := [name for name, result in _answers.items() if result is wanted]:
            print(f"{label}: {', '.join(names)}")
    return right, len(_answers)


def check_number(name: str, attempt, expected: float, why: str, hint: str, rel: float = 1e-3) -> bool | None:
    """Compare a number with the expected one up to the relative tolerance ``rel``, and return True, False, or None if
    not attempted."""
    if attempt is ...:
        return _say(name, None, "", hint)
    try:
        value = float(attempt)
    except Exception:  # an attempt may be anything: a tensor of two numbers, or a number too large for a float
        return _say(name, False, f"A number is expected, not {attempt!r}.", hint)
    right = math.isclose(value, expected, rel_tol=rel)
    return _say(name, right, why if right else hint, hint)


def _equal(got, expected) -> bool:
    """Return whether both are equal, floats up to 1e-6. What cannot be compared (an array with a word) is not equal."""
    try:
        if isinstance(expected, float) and not isinstance(got, str):
            return math.isclose(float(got), expected, abs_tol=1e-6)
        return bool(got == expected)
    except Exception:
        return False


def check_choice(name: str, attempt, expected, why: str, hints: dict) -> bool | None:
    """Compare a choice with the expected one. ``hints`` maps each wrong choice to the reason why it is wrong."""
    if attempt is ...:
        return _say(name, None, "", hints)
    right = _equal(attempt, expected)
    hint = next((text for choice, text in hints.items() if _equal(attempt, choice)), None)
    return _say(name, right, why if right else hint or f"{attempt!r} is not among the choices.", hints)


def check_function(name: str, attempt, cases, why: str, hint: str) -> bool | None:
    """Compare ``attempt(*arguments)`` with ``expected`` for each ``(arguments, expected)`` of ``cases``, floats up to
    1e-6, and print the first case that fails. A function that returns ``...`` counts as not attempted."""
    if attempt is ...:
        return _say(name, None, "", hint)
    for arguments, expected in cases:
        try:
            got = attempt(*arguments)
        except Exception as error:  # a student's code may raise anything
            return _say(name, False, f"It raised {type(error).__name__}: {error}. {hint}", hint)
        if got is ...:
            return _say(name, None, "", hint)
        if not _equal(got, expected):
            shown = ", ".join(map(repr, arguments))
            return _say(name, False, f"For ({shown}) it gives {got!r}, expected {expected!r}. {hint}", hint)
    return _say(name, True, why, hint)
