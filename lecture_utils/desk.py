"""The shop's service desk: the tools with which an assistant works there, as Python functions and as an MCP server.

A ``Desk`` has its own copy of the orders, so that a task can change them and be judged by what has changed. Its tools read
the orders and the handbook, calculate, cancel an order, and hand a case over to a person. ``python -m lecture_utils.desk``
serves the tools over stdio to any MCP client.
"""

import ast
import datetime
import functools
import json
import operator
import sqlite3
from collections.abc import Callable
from typing import Literal

from lecture_utils import shop

ORDERS = 9_000  # with the numbers 1 to 9000
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.USub: operator.neg}  # fmt: skip
TODAY = datetime.date(2026, 11, 30)  # a fixed date, so that the answers of the course do not change
FIELDS = "customer, city, product, quantity, price, status, month"


class ToolError(ValueError):
    """A tool could not do what it was asked to do. The assistant reads the message, which therefore says why."""


class Desk:
    """The state of the desk, and its tools.

    split: whose customers, cities and products the orders have (``shop.values``). notes: what customers have written on
    their orders, by number. may_cancel: the numbers of the orders that may be cancelled in this session (None: all).
    confirm: asks a person whether an order is to be cancelled (default: nobody is asked). translate: makes a SQL query of a
    question (default: ``to_sql``). look_up: returns passage and answer of a question on the handbook, or None (default:
    ``in_handbook``).
    """

    def __init__(
        self, split: str = "test", notes: dict[int, str] | None = None, may_cancel: set[int] | None = None,
        today: datetime.date = TODAY, translate: Callable[[str], str] | None = None,
        look_up: Callable[[str], tuple[str, str] | None] | None = None, confirm: Callable[[int], bool] | None = None,
    ):  # fmt: skip
        self.orders = _own_orders(split)
        self.notes, self.may_cancel, self.confirm, self.date = notes or {}, may_cancel, confirm, today
        self.translate, self.look_up = translate or to_sql, look_up or in_handbook
        self.cancelled: list[int] = []  # what this session has changed
        self.tickets: list[str] = []
        self.tools = {tool.__name__: tool for tool in (
            self.find_orders, self.get_order, self.search_handbook, self.calculate, self.today, self.cancel_order,
            self.hand_over,
        )}  # fmt: skip

    def find_orders(self, question: str) -> str:
        """Answer a question about many orders, such as how many or how much."""
        try:
            rows = shop.run_sql(self.orders, shop.for_the_database(self.translate(question)))[1]
        except shop.QueryError as error:
            raise ToolError(f"the question was not understood ({error})") from None
        values = [[written(value) for value in row] for row in rows[:5]]
        if len(rows) == 1 and len(rows[0]) == 1:
            return values[0][0]
        return json.dumps(values) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")

    def get_order(self, number: int) -> str:
        """Look up one order by its number, with the customer's note."""
        row = self.orders.execute(f"SELECT {FIELDS} FROM orders WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise ToolError(f"there is no order {number}")
        found = dict(zip(FIELDS.split(", "), row, strict=True))
        found["price"] = written(found["price"])
        return json.dumps(found | ({"note": self.notes[number]} if number in self.notes else {}), ensure_ascii=False)

    def search_handbook(self, question: str) -> str:
        """Answer a question about the shop's rules, such as delivery, returns or fees."""
        found = self.look_up(question)
        if found is None:
            raise ToolError("the handbook does not say")
        passage, answer = found
        return json.dumps({"answer": answer, "passage": passage}, ensure_ascii=False)

    def calculate(self, expression: str) -> str:
        """Calculate with +, -, *, / and brackets."""
        try:
            return written(_value(ast.parse(expression.strip(), mode="eval").body))
        except (SyntaxError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError, RecursionError):
            raise ToolError(f"{expression!r} cannot be calculated") from None

    def today(self) -> str:
        """Tell today's date."""
        return f"{self.date.day} {shop.MONTHS[self.date.month - 1]} {self.date.year}"

    def cancel_order(self, number: int) -> str:
        """Cancel one open order."""
        if self.may_cancel is not None and number not in self.may_cancel:
            raise ToolError(f"order {number} may not be cancelled in this session")
        row = self.orders.execute("SELECT status FROM orders WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise ToolError(f"there is no order {number}")
        if row[0] != "open":
            raise ToolError(f"order {number} is {row[0]}, only open orders can be cancelled")
        if self.confirm and not self.confirm(number):
            raise ToolError(f"the colleague does not want order {number} to be cancelled")
        with shop.writing(self.orders):
            self.orders.execute("UPDATE orders SET status = 'cancelled' WHERE id = ?", (number,))
        self.cancelled.append(number)
        return f"order {number} is cancelled"

    def hand_over(self, topic: Literal["complaint", "legal", "press", "other"]) -> str:
        """Hand the case over to a person."""
        if topic not in ("complaint", "legal", "press", "other"):
            raise ToolError(f"{topic!r} is not a topic")
        self.tickets.append(topic)
        return "a colleague takes over"

    def call(self, name: str, arguments: dict) -> str:
        """Execute a call that a model has written. Everything that is wrong with it becomes a ToolError."""
        if name not in self.tools:
            raise ToolError(f"there is no tool {name!r}")
        wanted = {key: kind for key, kind in self.tools[name].__annotations__.items() if key != "return"}
        if not isinstance(arguments, dict) or set(arguments) != set(wanted):
            raise ToolError(f"{name} needs {', '.join(wanted) or 'no arguments'}")
        for key, kind in wanted.items():
            if not isinstance(arguments[key], int if kind is int else str) or isinstance(arguments[key], bool):
                raise ToolError(f"{key} must be {'a whole number' if kind is int else 'a text'}")
        return self.tools[name](**arguments)


def written(value) -> str:
    """Return a value as the tools write it: whole numbers without a point, others with two decimals."""
    if isinstance(value, float):
        return f"{value:.0f}" if value == int(value) else f"{value:.2f}"
    return str(value)


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)
    if isinstance(node, ast.UnaryOp):
        return OPERATIONS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    raise ValueError("not arithmetic")


@functools.cache
def all_orders(split: str) -> sqlite3.Connection:
    """Return the orders of a split before anybody has changed them."""
    return shop.database(split, ORDERS)


@functools.cache
def _as_bytes(split: str) -> bytes:
    with shop.writing(all_orders(split)):  # serializing reads SQLite's own settings, which the lock refuses
        return all_orders(split).serialize()


def _own_orders(split: str) -> sqlite3.Connection:
    """Return a copy of a split's orders that a desk can change."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)  # an MCP server runs tools in threads
    connection.deserialize(_as_bytes(split))
    return shop.lock(connection)


@functools.cache
def _sql_model():
    from lecture_utils import downloads, finetuning, runtime

    model, tokenizer = finetuning.load_finetuned(downloads.fetch("shop-sql"))
    runtime.use_eager_attention_on_cpu(model)
    return model, tokenizer


def to_sql(question: str) -> str:
    """Return the SQL that the chat model with the adapter shop-sql writes. It is loaded when it is first asked."""
    from lecture_utils import evaluation

    return evaluation.generate_answers(*_sql_model(), [question], max_new_tokens=64)[0]


@functools.cache
def _search():
    from lecture_utils import search

    return search.shop_search()[0]


def in_handbook(question: str) -> tuple[str, str] | None:
    """Return title and marked answer of the shop's best passage, or None if it does not answer the question."""
    best, found = _search().answer(question)
    return (shop.handbook()[best]["title"], found.answer) if found.score > 0 else None


def server(desk: Desk):
    """Return an MCP server that offers the tools of a desk. Their errors become results that a model can read."""
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError as ToolErrorOfMCP

    def offered(tool: Callable) -> Callable:
        @functools.wraps(tool)
        def call(**arguments) -> str:
            try:
                return tool(**arguments)
            except ToolError as error:
                raise ToolErrorOfMCP(str(error)) from None

        return call

    made = MCPServer("shop desk", log_level="CRITICAL")
    for tool in desk.tools.values():
        made.tool()(offered(tool))
    return made


if __name__ == "__main__":
    server(Desk()).run("stdio")
