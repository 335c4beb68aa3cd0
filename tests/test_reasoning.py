"""The lock's moves, its writers and verifier, sampling with a cache, and pass@k."""

import itertools
import random

import pytest
import torch

from lecture_utils import reasoning
from lecture_utils.reasoning import Problem, solution


@pytest.mark.parametrize(("move", "after"), [("L", "1724"), ("S", "1472"), ("+", "7172"), ("-", "3172")])
def test_each_move(move, after):
    assert reasoning.turned("4172", move) == after


def test_dials_go_round():
    assert reasoning.turned("9000", "+") == "2000" and reasoning.turned("0123", "-") == "9123"


def test_writers_agree_on_the_answer_and_their_steps_are_right():
    for problem in itertools.islice(reasoning.problems(range(1, 9), seed=3), 50):
        for writer in reasoning.WIDTHS:
            text = solution(problem, writer)
            assert reasoning.is_right(problem, text)
            assert all(reasoning.steps_right(problem, text))
            assert len(text) <= reasoning.room([problem])


def test_a_writer_who_overlooks_every_swap_solves_the_problem_without_swaps():
    for problem in itertools.islice(reasoning.problems(8, seed=4), 20):
        without = Problem(problem.digits, problem.moves.replace("S", ""))
        for writer in ("careful", "hasty"):
            assert reasoning.read_answer(solution(problem, writer, 1.0)) == without.answer


def test_swaps_are_overlooked_as_often_as_said():
    problem, rng = Problem("1234", "S"), random.Random(0)
    missed = sum(not reasoning.is_right(problem, solution(problem, "careful", 0.3, rng)) for _ in range(2000))
    assert 0.26 < missed / 2000 < 0.34


def test_steps_are_judged_by_what_the_step_before_has_left():
    problem = Problem("4172", "LS+")
    assert reasoning.steps_right(problem, "L1724;S7124;+0124;#0124.") == [True, True, True]
    assert reasoning.steps_right(problem, "L1725;S7125;+0125;#0125.") == [False, True, True]
    assert reasoning.steps_right(problem, "LS7124;+0124;#0124.") == [True, True]
    assert reasoning.steps_right(problem, "S1472;#1472.") == [False]  # not the next move
    assert reasoning.steps_right(problem, "#0124.") == []
    for strange in (";;;", "L;S7124;#", "1724;", "+-;;+;#..", "LS+L-3;", "L17245;S1;"):
        assert not all(reasoning.steps_right(problem, strange))


@pytest.mark.parametrize(("text", "answer"), [
    ("L1724;#1724.", "1724"), ("#1724.", "1724"), ("#1724", None), ("1724.", None), ("", None), ("#.", ""), ("#1#2.", "1#2"),
])  # fmt: skip
def test_an_answer_stands_between_the_sign_and_the_full_stop(text, answer):
    assert reasoning.read_answer(text) == answer
    assert not reasoning.is_right(Problem("4172", "L"), text) or answer == "1724"


def test_the_way_a_solution_begins():
    assert [reasoning.writer_of(t) for t in ("L1724;", "LS7124;", "#1724.")] == ["careful", "hasty", "at once"]


def test_held_out_problems_are_distinct_and_left_out_of_the_training():
    test = reasoning.held_out(60, 2)
    assert len(set(test)) == 60 and test == reasoning.held_out(60, 2)
    shown = {question for question, _ in itertools.islice(reasoning.corpus((2,), 0, without=test), 5000)}
    assert not shown & {problem.question for problem in test}
    with pytest.raises(AssertionError):
        reasoning.held_out(50_000, 1)  # there are 40,000


def test_the_loss_counts_the_solution_and_nothing_else():
    ids, labels = reasoning.rows([("12?", "#3."), ("1?", "#23.")])
    assert [reasoning.decode(row) for row in ids.tolist()] == ["12?#3.", "1?#23."]
    assert (labels[0, :3] == -100).all() and (labels[1, :2] == -100).all()
    assert labels[0, 3:6].tolist() == reasoning.encode("#3.") and labels[1, 2:].tolist() == reasoning.encode("#23.")


def test_greedy_sampling_with_the_cache_is_the_argmax_without_it():
    model = reasoning.load_start()
    question = reasoning.held_out(1, 5)[0].question
    sampled = reasoning.sample(model, [question], temperature=0)
    ids = reasoning.encode(question)
    with torch.no_grad():
        while len(ids) < sampled.ids.shape[1]:
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert ids == sampled.ids[0].tolist() and ids[-1] == reasoning.END


def test_samples_follow_the_probabilities_and_end_with_padding():
    model = reasoning.load_start()
    question = reasoning.held_out(1, 8)[0].question
    torch.manual_seed(0)
    sampled = reasoning.sample(model, [question], 3000)
    with torch.no_grad():
        p = model(torch.tensor([reasoning.encode(question)]))[0, -1].softmax(-1)
    counts = torch.bincount(sampled.ids[:, sampled.start], minlength=len(p)) / 3000
    assert (counts - p).abs().max() < 0.04
    for row, text in zip(sampled.ids[:, sampled.start :].tolist(), sampled.texts, strict=True):
        if "." in text:
            end = row.index(reasoning.END)
            assert text.endswith(".") and set(row[end + 1 :]) <= {reasoning.PAD}


def test_texts_of_different_lengths_are_refused():
    with pytest.raises(AssertionError, match="equal|same length"):
        reasoning.sample(reasoning.new_model(), ["12?", "1?"])


def test_the_packaged_start_has_its_teachers_habits():
    start = reasoning.load_start()
    assert sum(p.numel() for p in start.parameters()) == 334_272
    torch.manual_seed(0)
    texts, right = reasoning.solve(start, reasoning.held_out(20), count=16)
    kinds = [reasoning.writer_of(text) for group in texts for text in group]
    for writer, share in reasoning.SHARES.items():
        assert abs(kinds.count(writer) / len(kinds) - share) < 0.15
    assert 0.2 < right.float().mean() < 0.55


def test_pass_at_k_equals_its_definition():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            marks = [i < c for i in range(n)]
            choices = list(itertools.combinations(marks, k))
            assert reasoning.pass_at_k(c, n, k) == pytest.approx(sum(map(any, choices)) / len(choices))
    with pytest.raises(AssertionError):
        reasoning.pass_at_k(3, 2, 1)
