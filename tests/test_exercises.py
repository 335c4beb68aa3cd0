import pytest

from lecture_utils import exercises


@pytest.mark.parametrize(
    ("attempt", "returned", "said"),
    [
        (..., None, "not attempted yet"),
        (4.0, True, "right. why"),
        (4.001, True, "right"),
        (4.1, False, "not yet. hint"),
        ("four", False, "A number is expected"),
        (None, False, "A number is expected"),
    ],
)
def test_check_number(attempt, returned, said, capsys):
    assert exercises.check_number("1", attempt, 4.0, "why", "hint") is returned
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attempt", "returned", "said"),
    [(..., None, "not attempted"), ("b", True, "why"), ("a", False, "no, a"), ("z", False, "not among the choices")],
)
def test_check_choice(attempt, returned, said, capsys):
    assert exercises.check_choice("1", attempt, "b", "why", {"a": "no, a"}) is returned
    assert said in capsys.readouterr().out


def test_check_function(capsys):
    cases = [((2,), 4.0), ((3,), 9.0)]
    assert exercises.check_function("1", lambda x: ..., cases, "why", "hint") is None
    assert exercises.check_function("1", lambda x: x * x, cases, "why", "hint") is True
    assert exercises.check_function("1", lambda x: 2 * x, cases, "why", "hint") is False
    assert "For (3) it gives 6, expected 9.0. hint" in capsys.readouterr().out
    assert exercises.check_function("1", lambda x: x / 0, cases, "why", "hint") is False
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_progress_counts_the_last_attempt_and_no_solution(monkeypatch, capsys):
    monkeypatch.setattr(exercises, "_answers", {})
    assert exercises.progress() == (0, 0)
    assert "No exercise was run yet." in capsys.readouterr().out
    exercises.check_number("1", ..., 4.0, "why", "hint")
    exercises.check_choice("2", "a", "b", "why", {"a": "no"})
    exercises.check_function("3", lambda: 1, [((), 1)], "why", "hint")
    capsys.readouterr()
    assert exercises.progress() == (1, 3)
    assert capsys.readouterr().out == "1 of 3 right\nnot yet right: 2\nnot attempted: 1\n"
    exercises.check_number("1", 4.0, 4.0, why="Done.", hint="")  # a solution: no hint
    exercises.check_choice("2", "b", "b", why="Done.", hints={})
    assert exercises.progress() == (1, 3)
    exercises.check_choice("2", "b", "b", "why", {"a": "no"})
    assert exercises.progress() == (2, 3)
