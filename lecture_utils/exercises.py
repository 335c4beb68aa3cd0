"""Exercises that say right or wrong, and why. An untouched one says so and passes.

An attempt starts as ``...`` (Ellipsis); every check below takes it as "not attempted yet".
``progress`` counts. A check without a hint belongs to a solution and is not counted.
"""

import math

_answers: dict[str, bool | None] = {}  # exercise -> how its last attempt went; None: not attempted


def _say(name: str, right: bool | None, why: str, hint) -> bool | None:
    if hint:
        _answers[name] = right
    if right is None:
        print(f"Exercise {name}: not attempted yet. Replace the ... and run this cell again.")
    else:
        print(f"Exercise {name}: {'right' if right else 'not yet'}. {why}")
    return right


def progress() -> tuple[int, int]:
    """Print how many of the exercises checked in this notebook are right; return (right, all)."""
    right = sum(result is True for result in _answers.values())
    print(f"{right} of {len(_answers)} right" if _answers else "No exercise was run yet.")
    for said, wanted in (("not yet right", False), ("not attempted", None)):
        if names := [name for name, result in _answers.items() if result is wanted]:
            print(f"{said}: {', '.join(names)}")
    return right, len(_answers)


def check_number(name: str, attempt, expected: float, why: str, hint: str, rel: float = 1e-3) -> bool | None:
    """Compare a number with the expected one (relative tolerance ``rel``).

    Returns True, False, or None when not attempted. Never raises for a wrong attempt.
    """
    if attempt is ...:
        return _say(name, None, "", hint)
    try:
        value = float(attempt)
    except Exception:  # an attempt may be anything: a tensor of two, a number beyond floats
        return _say(name, False, f"A number is expected, not {attempt!r}.", hint)
    right = math.isclose(value, expected, rel_tol=rel)
    return _say(name, right, why if right else hint, hint)


def _equal(got, expected) -> bool:
    """Are they equal, floats to 1e-6? What cannot be compared, such as an array with a word, is not."""
    try:
        if isinstance(expected, float) and not isinstance(got, str):
            return math.isclose(float(got), expected, abs_tol=1e-6)
        return bool(got == expected)
    except Exception:
        return False


def check_choice(name: str, attempt, expected, why: str, hints: dict) -> bool | None:
    """Compare a choice with the expected one; ``hints`` says for each wrong one why it is wrong. Never raises
    for a wrong attempt."""
    if attempt is ...:
        return _say(name, None, "", hints)
    right = _equal(attempt, expected)
    wrong = next((said for choice, said in hints.items() if _equal(attempt, choice)), None)
    return _say(name, right, why if right else wrong or f"{attempt!r} is not among the choices.", hints)


def check_function(name: str, attempt, cases, why: str, hint: str) -> bool | None:
    """Call ``attempt(*arguments)`` for each ``(arguments, expected)`` of ``cases`` and compare.

    Floats are compared to 1e-6. The first case that fails is shown. A function that returns
    ``...``, or ``...`` in its place, is not attempted yet.
    """
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
