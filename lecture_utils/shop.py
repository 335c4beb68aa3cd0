"""The shop: an invented web shop for household goods, the running example of the second half of the course.

Its orders are a table in a SQLite database, which ``database`` makes in memory. ``questions`` returns questions about the
orders with their SQL. ``run_sql`` executes a query that a model has written, and allows it nothing but to read. The shop
also has a handbook for its customers, with questions about it.
"""

import contextlib
import random
import re
import sqlite3
import tomllib

from lecture_utils import data, plotting

FOLDER = data.ASSETS / "shop"
COLUMNS = ("id", "customer", "city", "product", "quantity", "price", "status", "month")
SCHEMA = "orders(id, customer, city, product, quantity, price, status, month)"
STATUSES = ("open", "shipped", "delivered", "returned", "cancelled")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
FUNCTIONS = {"count", "sum", "avg", "min", "max", "round", "total", "upper", "lower", "like"}
MAX_STEPS, MAX_ROWS = 20_000_000, 50_000  # of SQLite's virtual machine; of a result


class QueryError(ValueError):
    """A query was refused or failed; the message says why."""


def values(split: str) -> dict[str, list[str]]:
    """Return the customers, cities and products of ``train``, ``dev`` or ``test``. The three splits share none."""
    return tomllib.loads((FOLDER / "values.toml").read_text(encoding="utf-8"))[split]


def questions(split: str) -> list[dict]:
    """Return the questions of a split, each with the SQL query that is its answer.

    split: ``train``, ``dev``, ``dev_free``, ``test`` or ``free``. The questions of ``test`` are made from patterns like
    those of ``train``, with values that never occur there, and half of them with combinations of conditions that never
    occur there (``new``). Those of ``free`` were written individually, without knowledge of the patterns. ``dev`` and
    ``dev_free`` are such questions with other values, for choices.
    """
    return data.read_jsonl(FOLDER / f"{split}.jsonl")


def for_the_model(sql: str) -> str:
    """Return a query as the model learns to write it: with a space in front of each value, ``city = ' Dijon'``, so that
    its tokens are the same as in the question."""
    return sql.replace("= '", "= ' ")


def for_the_database(text: str) -> str:
    """Return a query that the model has written without the spaces in front of its values."""
    return text.replace("= ' ", "= '")


def handbook() -> list[dict]:
    """Return the 60 passages of the shop's handbook: id, title, text."""
    return data.read_jsonl(FOLDER / "handbook.jsonl")


def handbook_questions(answerable: bool = True) -> list[dict]:
    """Return 160 questions that the handbook answers, or 40 that sound like these and that it does not answer.

    Each of the 160 has its ``passage``, a ``key`` that a correct answer must contain, an ``answer``, and two or three
    ``questions``: a direct phrasing, a customer's story, and a short one.
    """
    return data.read_jsonl(FOLDER / ("handbook_questions.jsonl" if answerable else "handbook_unanswerable.jsonl"))


def cold_questions() -> list[dict]:
    """Return 40 questions by somebody who had seen only the handbook: question, passage, key. Of ten, passage and key are
    None, because the handbook does not answer them. Nothing was chosen with their help."""
    return data.read_jsonl(FOLDER / "handbook_cold.jsonl")


def database(split: str = "test", orders: int = 40_000, seed: int = 0) -> sqlite3.Connection:
    """Return a database in memory with one table, ``orders``, that can only be read.

    Its customers, cities and products are the ``values`` of a split. There are so many orders that each combination of
    three conditions is met by some of them, because two queries that both find nothing would count as equal.
    """
    rng, known = random.Random(seed), values(split)
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, city TEXT, product TEXT, "
        "quantity INTEGER, price REAL, status TEXT, month TEXT)"
    )
    worth = {product: 4 * 10 ** rng.random() for product in known["products"]}  # 4 to 40 euros a piece
    for number in range(1, orders + 1):
        product, quantity = rng.choice(known["products"]), rng.choice((1, 1, 1, 2, 2, 3, 4, 5, 6, 8))
        row = (
            number, rng.choice(known["customers"]), rng.choice(known["cities"]), product, quantity,
            round(quantity * worth[product] * 10 ** rng.uniform(-0.5, 0.8), 2),  # in many qualities
            rng.choices(STATUSES, (2, 2, 6, 1, 1))[0], MONTHS[(number - 1) * 12 // orders],
        )  # fmt: skip
        connection.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    connection.commit()
    return lock(connection)


def lock(connection: sqlite3.Connection) -> sqlite3.Connection:
    """Return a connection through which nothing but reading is possible from now on."""
    connection.execute("PRAGMA query_only = ON")
    connection.set_authorizer(_only_reading)
    return connection


@contextlib.contextmanager
def writing(connection: sqlite3.Connection):
    """Lift the ``lock`` for a statement of our own program."""
    connection.set_authorizer(None)
    connection.execute("PRAGMA query_only = OFF")
    try:
        yield
        connection.commit()
    finally:
        lock(connection)


def databases(split: str = "test") -> list[sqlite3.Connection]:
    """Return the shop's database and two small ones, in which a query must give the right result as well.

    In the large one, nearly every customer has ordered in nearly every city, so that a query which forgets a condition
    can find the same names by chance: of 416 queries of the test and the free questions with one condition left out, it
    takes 45 to be right. Of these, none is right in all three databases. In a small one alone, many find nothing.
    """
    return [database(split), database(split, 1_000, 1), database(split, 200, 2)]


def _only_reading(action, first, second, *_) -> int:
    """Tell SQLite what a query may do: select, read the table of orders, and call a few harmless functions."""
    allowed = (
        action == sqlite3.SQLITE_SELECT
        or (action == sqlite3.SQLITE_READ and first == "orders")
        or (action == sqlite3.SQLITE_FUNCTION and second in FUNCTIONS)
    )
    return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY


def run_sql(connection: sqlite3.Connection, sql: str) -> tuple[list[str], list[tuple]]:
    """Execute one query that a model or a stranger wrote; return its columns and rows, or raise a QueryError.

    The database refuses everything but reading, and a query that takes too long or returns too much is stopped.
    """
    steps = 0

    def watch() -> int:
        nonlocal steps
        steps += 1
        return steps > 100  # not 0: stop

    connection.set_progress_handler(watch, MAX_STEPS // 100)
    try:
        cursor = connection.execute(sql)
        rows = cursor.fetchmany(MAX_ROWS + 1)
    except (sqlite3.Error, sqlite3.Warning, UnicodeError) as error:
        raise QueryError(str(error)) from None
    finally:
        connection.set_progress_handler(None, 0)
    if cursor.description is None:
        raise QueryError("this is not a query")
    if len(rows) > MAX_ROWS:
        raise QueryError(f"more than {MAX_ROWS:,} rows")
    return [name for name, *_ in cursor.description], rows


def show_result(connection: sqlite3.Connection, sql: str, most: int = 5):
    """Execute a query as ``run_sql`` does and return its first rows as an HTML table, or the error as a one-line table."""
    try:
        columns, rows = run_sql(connection, sql)
    except QueryError as error:
        return plotting.table([{"refused": str(error)}])
    shown = [dict(zip(columns, row, strict=True)) for row in rows[:most]] or [dict.fromkeys(columns, "")]
    return plotting.table(shown, f"{len(rows):,} row{'' if len(rows) == 1 else 's'}")


def same_result(connection: sqlite3.Connection, sql: str, reference: str) -> bool:
    """Return whether a query gives the rows of the reference query: in the same order if the reference sorts them."""
    expected = run_sql(connection, reference)[1]
    try:
        found = run_sql(connection, sql)[1]
    except QueryError:
        return False
    in_order = "ORDER BY" in reference
    return _rounded(found, in_order) == _rounded(expected, in_order)


def is_right(among: list[sqlite3.Connection], sql: str, reference: str) -> bool:
    """Return whether a query gives the rows of the reference query in each of several ``databases``."""
    return all(same_result(connection, sql, reference) for connection in among)


def form(sql: str) -> str:
    """Return a query with ? in place of its names and numbers."""
    return re.sub(r"'[^']*'|\d+(\.\d+)?", "?", sql)


MISTAKES = (
    "a condition is missing", "a condition is invented", "another value in a condition", "something else is selected",
    "sorted, grouped or cut differently",
)  # fmt: skip


def mistakes(sql: str, reference: str) -> list[str]:
    """Return those ``MISTAKES`` that a query makes: how its text differs from that of the reference."""
    (start, have, end), (wanted_start, wanted, wanted_end) = _parts(sql), _parts(reference)
    both = have.keys() & wanted.keys()
    flags = (
        wanted.keys() - have.keys(), have.keys() - wanted.keys(), any(have[k] != wanted[k] for k in both),
        start != wanted_start, end != wanted_end,
    )  # fmt: skip
    return [kind for kind, flag in zip(MISTAKES, flags, strict=True) if flag]


def _parts(sql: str) -> tuple[str, dict[str, str], str]:
    """Split a query into what it selects, its conditions by column, and what follows them."""
    head = re.split(r" (?=GROUP|ORDER|LIMIT)", sql, maxsplit=1)
    start, _, conditions = head[0].partition(" WHERE ")
    by_column = {c.split()[0]: c for c in conditions.split(" AND ") if c.strip()}
    return start, by_column, head[1] if len(head) > 1 else ""


def _rounded(rows: list[tuple], in_order: bool) -> list[tuple]:
    rounded = [tuple(round(value, 6) if isinstance(value, float) else value for value in row) for row in rows]
    return rounded if in_order else sorted(rounded, key=repr)
