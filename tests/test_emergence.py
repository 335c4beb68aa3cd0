import torch

from lecture_utils import emergence


def read(digits) -> int:
    """Return the number that is written with its lowest digit first."""
    return sum(int(digit) * 10**i for i, digit in enumerate(digits))


def test_a_row_is_a_sum_with_its_result():
    rows = emergence.sums(200, seed=3)
    assert rows.shape == (200, 14) and torch.equal(rows, emergence.sums(200, seed=3))
    assert not torch.equal(rows, emergence.sums(200, seed=4))
    for row in rows:
        assert row[8] == emergence.SEPARATOR and read(row[:4]) + read(row[4:8]) == read(row[9:])


def test_a_subscriber_has_one_number():
    book = emergence.phone_book(50)
    assert [read(row[:4]) for row in book] == list(range(50))
    assert (book[:, 4] == emergence.SEPARATOR).all() and len({read(row[5:]) for row in book}) > 45
    assert torch.equal(book, emergence.phone_book(50))


def test_scores_are_those_of_the_five_digits():
    book = emergence.phone_book(20)
    model = emergence.train(8, lambda step: book, steps=3)
    log_p, right = emergence.digit_scores(model, book)
    assert log_p.shape == right.shape == (20, 5)
    with torch.inference_mode():
        for row in range(3):
            for digit in range(5):  # one position at a time, from its own prefix
                p = model(book[row : row + 1, : 5 + digit])[0, -1].log_softmax(-1)
                torch.testing.assert_close(p[book[row, 5 + digit]], log_p[row, digit], atol=1e-5, rtol=1e-4)
                assert bool(right[row, digit]) == (int(p.argmax()) == int(book[row, 5 + digit]))


def test_a_small_book_is_learnt_by_heart():
    book = emergence.phone_book(5)
    model = emergence.train(32, lambda step: book, steps=150)
    assert emergence.digit_scores(model, book)[1].all()
