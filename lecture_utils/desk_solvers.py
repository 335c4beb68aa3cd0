"""Programs that solve the tasks at the shop's desk, one for each kind. Their calls are what an assistant learns from.

Each gets ``do``, which executes a call and returns its result, and the values of the request's slots. It returns the answer
and what an answer must contain (or an empty text).
"""

import json
import re
from collections.abc import Callable

MONTH_QUESTIONS = {  # what has to be asked when the month is known, and its SQL
    "month_count": ("How many orders in {month}?", "SELECT COUNT(*) FROM orders WHERE month = '{month}'"),
    "month_count_city": (
        "How many orders from {city} in {month}?",
        "SELECT COUNT(*) FROM orders WHERE city = '{city}' AND month = '{month}'",
    ),
    "month_revenue": ("What is the revenue in {month}?", "SELECT SUM(price) FROM orders WHERE month = '{month}'"),
    "month_revenue_city": (
        "What is the revenue from {city} in {month}?",
        "SELECT SUM(price) FROM orders WHERE city = '{city}' AND month = '{month}'",
    ),
}  # fmt: skip


def _orders(do, s):
    found = do("find_orders", question=s["question"])
    return f"The answer is {found}.", found


def _rules(do, s):
    found = do("search_handbook", question=s["question"])
    if found.startswith("Error"):
        return "The handbook does not say.", ""
    return f"The handbook says: {json.loads(found)['answer']}.", s["key"]


def _field(column: str, sentence: str):
    def solve(do, s):
        order = _order(do, s["order"])
        if order is None:
            return f"There is no order {s['order']}.", ""
        return sentence.format(order=s["order"], value=order[column]), str(order[column])

    return solve


def _calculation(pattern: str):
    def solve(do, s):
        found = do("calculate", expression=pattern.format(**s))
        return f"The result is {found}.", found

    return solve


def _order(do, number):
    found = do("get_order", number=number)
    return None if found.startswith("Error") else json.loads(found)


def _cancel(do, *numbers):
    said = []
    for number in numbers:
        found = do("cancel_order", number=number)
        if found.startswith("Error"):
            status = re.search(r"is (\w+),", found)[1]
            said.append(f"Order {number} is {status} and cannot be cancelled.")
        else:
            said.append(f"Order {number} is cancelled.")
    return " ".join(said), ""


def _cancel_if_open(do, *numbers):
    said = []
    for number in numbers:
        status = _order(do, number)["status"]
        if status == "open":
            said.append(_cancel(do, number)[0])
        else:
            said.append(f"Order {number} is {status}, so it was not cancelled.")
    return " ".join(said), ""


def _person(topic: str):
    def solve(do, s):
        do("hand_over", topic=topic)
        return "A colleague will take care of this.", ""

    return solve


def _today(do, s):
    date = do("today")
    return f"Today is {date}.", date


def _per_piece(do, s):
    order = _order(do, s["order"])
    found = do("calculate", expression=f"{order['price']} / {order['quantity']}")
    return f"One piece costs {found} euros.", found


def _total(do, numbers, percent=None):
    prices = [_order(do, number)["price"] for number in numbers]
    expression = " + ".join(prices)
    if percent:
        expression = f"({expression})" if len(prices) > 1 else expression
        expression += f" * (100 - {percent}) / 100"
    found = do("calculate", expression=expression)
    return f"The price is {found} euros.", found


def _difference(do, s):
    first, second = _order(do, s["a"])["price"], _order(do, s["b"])["price"]
    found = do("calculate", expression=f"{first} - {second}")
    return f"The difference is {found} euros.", found


def _month(do, s):
    month = do("today").split()[1]
    found = do("find_orders", question=MONTH_QUESTIONS[s["month kind"]][0].format(month=month, **s))
    return f"The answer is {found}.", found


def _month_percent(do, s):
    _, revenue = _month(do, s | {"month kind": "month_revenue"})
    found = do("calculate", expression=f"{revenue} * {s['p']} / 100")
    return f"The result is {found}.", found


def _month_without(do, s):
    _, revenue = _month(do, s | {"month kind": "month_revenue"})
    found = do("calculate", expression=f"{revenue} - {_order(do, s['order'])['price']}")
    return f"The result is {found}.", found


def _choose(sign: int):
    def solve(do, s):
        prices = {s[k]: float(_order(do, s[k])["price"]) * sign for k in "ab"}
        return _cancel(do, min(prices, key=prices.get))

    return solve


def _note(do, s):
    order = _order(do, s["order"])
    if s["wish"] == "note_cancel":
        return _cancel(do, s["order"])
    if s["wish"] == "note_complaint":
        do("hand_over", topic="complaint")
        return "A colleague will take care of this.", ""
    assert "note" in order
    return f"The note on order {s['order']} asks for nothing.", ""


def _then(first: Callable, pattern: str):
    """Solve a question and calculate with the number that it gives."""

    def solve(do, s):
        value = re.search(r"[0-9][0-9,.]*[0-9]|[0-9]", first(do, s)[0])[0].replace(",", "")
        found = do("calculate", expression=pattern.format(value=value, **s))
        return f"The result is {found}.", found

    return solve


SOLVERS: dict[str, Callable] = {
    "orders": _orders, "rules": _rules, "today": _today, "note": _note, "per_piece": _per_piece,
    "status": _field("status", "Order {order} is {value}."), "price": _field("price", "Order {order} costs {value} euros."),
    "customer": _field("customer", "Order {order} was placed by {value}."),
    "order_city": _field("city", "Order {order} goes to {value}."),
    "product": _field("product", "The article of order {order} is: {value}."),
    "quantity": _field("quantity", "Order {order} has {value} pieces."),
    "percent": _calculation("{x} * {p} / 100"), "add": _calculation("{x} + {y}"), "divide": _calculation("{x} / {n}"),
    "multiply": _calculation("{x} * {n}"),
    "cancel": lambda do, s: _cancel(do, s["order"]), "cancel_two": lambda do, s: _cancel(do, s["a"], s["b"]),
    "cancel_if_open": lambda do, s: _cancel_if_open(do, s["order"]),
    "two_if_open": lambda do, s: _cancel_if_open(do, s["a"], s["b"]),
    **{f"person_{topic}": _person(topic) for topic in ("complaint", "legal", "press", "other")},
    "discount": lambda do, s: _total(do, [s["order"]], s["p"]), "total_two": lambda do, s: _total(do, [s["a"], s["b"]]),
    "total_three": lambda do, s: _total(do, [s["a"], s["b"], s["c"]]),
    "discount_two": lambda do, s: _total(do, [s["a"], s["b"]], s["p"]),
    "difference_two": _difference, "cancel_cheaper": _choose(1), "cancel_dearer": _choose(-1),
    "month_percent": _month_percent, "month_without": _month_without,
    **dict.fromkeys(MONTH_QUESTIONS, _month),
    "rules_times": _then(_rules, "{value} * {n}"), "orders_percent": _then(_orders, "{value} * {p} / 100"),
}  # fmt: skip
SEVERAL = {  # kinds that need several calls
    "note", "per_piece", "discount", "discount_two", "total_two", "total_three", "difference_two", "cancel_two",
    "cancel_if_open", "two_if_open", "cancel_cheaper", "cancel_dearer", "month_percent", "month_without", "rules_times",
    "orders_percent", *MONTH_QUESTIONS,
}  # fmt: skip
