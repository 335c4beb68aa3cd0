import json
import random
import re
import time

import make_shop
import pytest

from lecture_utils import data, shop


@pytest.fixture(scope="module")
def orders():
    return shop.database()


def test_the_database_is_the_same_each_time(orders):
    again = shop.database()
    for query in (
        "SELECT COUNT(*), SUM(price), AVG(quantity) FROM orders",
        "SELECT * FROM orders ORDER BY id LIMIT 50",
    ):
        assert shop.run_sql(orders, query) == shop.run_sql(again, query)
    columns, rows = shop.run_sql(orders, "SELECT * FROM orders LIMIT 1")
    assert tuple(columns) == shop.COLUMNS and len(rows) == 1


@pytest.mark.parametrize("kind", ["customers", "cities", "products"])
def test_the_splits_share_no_values(kind):
    splits = [set(shop.values(split)[kind]) for split in ("train", "dev", "test")]
    assert len(splits[0]) > 300 and len(splits[1]) == len(splits[2]) == 20
    assert not splits[0] & splits[1] and not splits[0] & splits[2] and not splits[1] & splits[2]


@pytest.mark.parametrize("split", ["train", "dev", "dev_free", "test", "free"])
def test_every_query_runs_and_the_judged_ones_find_something(split, orders):
    known = orders if split in ("test", "free") else shop.database(split.removesuffix("_free"))
    for row in shop.questions(split):
        found = shop.run_sql(known, row["answer"])[1]
        if split != "train":  # else two wrong answers could agree
            assert found and found[0] not in ((0,), (None,)), row


def test_questions_and_values_of_the_test_sets_are_unseen():
    rows = {split: shop.questions(split) for split in ("train", "test", "free")}
    known = {value for values in shop.values("train").values() for value in values}
    seen = {row["question"].lower() for row in rows["train"]}
    for row in rows["test"] + rows["free"]:
        quoted = set(re.findall(r"'([^']*)'", row["answer"]))
        assert not quoted & known and row["question"].lower() not in seen
    assert len(rows["test"]) == 140 and sum(row["new"] for row in rows["test"]) == 70 and len(rows["free"]) >= 70


def test_the_packaged_questions_are_what_the_patterns_make():
    patterns = data.read_jsonl(shop.FOLDER / "patterns.jsonl")
    old = [pattern for pattern in patterns if not make_shop.is_new(pattern)]
    made = make_shop.make(old, shop.values("train"), make_shop.COUNTS["train"], seed=0)
    assert made == shop.questions("train")
    trained = {make_shop.combination(pattern) for pattern in old}
    assert not trained & {make_shop.combination(pattern) for pattern in patterns if make_shop.is_new(pattern)}


@pytest.mark.parametrize(
    ("singular", "plural"),
    [("lamp", "lamps"), ("brush", "brushes"), ("knife", "knives"), ("shelf", "shelves"), ("scarf", "scarves"),
     ("dictionary", "dictionaries"), ("tray", "trays"), ("wine glass", "wine glasses"), ("box", "boxes")],
)  # fmt: skip
def test_plurals(singular, plural):
    assert make_shop.plural(singular) == plural


ATTACKS = (
    "DROP TABLE orders", "DELETE FROM orders", "UPDATE orders SET price = 0", "INSERT INTO orders (id) VALUES (0)",
    "CREATE TABLE x (y)", "PRAGMA query_only = OFF", "PRAGMA table_info(orders)", "ATTACH 'x.db' AS x",
    "SELECT load_extension('x')", "SELECT readfile('/etc/passwd')", "SELECT * FROM sqlite_master", "VACUUM INTO 'x.db'",
    "SELECT 1; DROP TABLE orders", "SELECT zeroblob(1000000000)", "SELECT printf('%.*c', 1000000000, 'x')", "BEGIN",
    "SELECT randomblob(10)", "", "nonsense", "SELECT nothing FROM orders", "\0", "SELECT '\ud800'",
)  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
def test_a_query_may_read_the_orders_and_nothing_else(attack, orders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = shop.run_sql(orders, "SELECT COUNT(*), SUM(price) FROM orders")
    with pytest.raises(shop.QueryError):
        shop.run_sql(orders, attack)
    assert shop.run_sql(orders, "SELECT COUNT(*), SUM(price) FROM orders") == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "endless",
    [
        "SELECT COUNT(*) FROM orders a, orders b, orders c",
        "SELECT a.price FROM orders a, orders b",
        "SELECT * FROM orders WHERE id IN (SELECT a.id * b.id * c.id FROM orders a, orders b, orders c)",
    ],
)
def test_a_query_without_end_is_stopped(endless, orders):
    start = time.monotonic()
    with pytest.raises(shop.QueryError, match="interrupted|rows"):
        shop.run_sql(orders, endless)
    assert time.monotonic() - start < 20
    assert shop.run_sql(orders, "SELECT COUNT(*) FROM orders")[1] == [(40_000,)]  # and the next one runs


@pytest.mark.parametrize(
    ("sql", "reference", "same"),
    [
        ("SELECT COUNT(*) FROM orders WHERE city = 'Riga'", "SELECT COUNT(id) FROM orders WHERE city = 'Riga'", True),
        ("SELECT city FROM orders GROUP BY city", "SELECT DISTINCT city FROM orders", True),
        ("SELECT DISTINCT city FROM orders ORDER BY city DESC", "SELECT DISTINCT city FROM orders", True),
        ("SELECT * FROM orders ORDER BY id LIMIT 3", "SELECT * FROM orders ORDER BY id DESC LIMIT 3", False),
        ("SELECT COUNT(*) FROM orders WHERE city = 'Rigas'", "SELECT COUNT(*) FROM orders WHERE city = 'Riga'", False),
        ("SELECT city, COUNT(*) FROM orders GROUP BY city", "SELECT COUNT(*), city FROM orders GROUP BY city", False),
        ("SELECT city FROM orders", "SELECT DISTINCT city FROM orders", False),
        ("DROP TABLE orders", "SELECT COUNT(*) FROM orders", False),
    ],
)
def test_results_are_compared_and_not_the_queries(sql, reference, same, orders):
    assert shop.same_result(orders, sql, reference) is same


def test_the_handbook_answers_its_questions():
    passages = {row["id"]: row["text"] for row in shop.handbook()}
    asked = shop.handbook_questions()
    assert len(passages) == 60 and len(asked) == len({row["id"] for row in asked}) == 160
    assert all(50 <= len(text.split()) <= 110 for text in passages.values())
    for row in asked:
        assert data.contains_key(passages[row["passage"]], row["key"]), row
        assert data.contains_key(row["answer"], row["key"]) and len(row["questions"]) == 3
        assert not any(data.contains_key(question, row["key"]) for question in row["questions"]), row
    assert {row["passage"] for row in asked} == set(passages)
    assert len({row["question"] for row in shop.handbook_questions(answerable=False)}) == 40


def test_the_card_says_how_many_there_are():
    card = (shop.FOLDER / "README.md").read_text(encoding="utf-8")
    for split in ("train", "dev", "test", "free"):
        assert f"{len(shop.questions(split)):,}" in card
    assert f"{len(data.read_jsonl(shop.FOLDER / 'patterns.jsonl')):,} patterns" in card
    assert all(json.dumps(row) for row in shop.questions("free"))


def test_show_result_shows_rows_or_the_reason(orders):
    shown = shop.show_result(orders, "SELECT id, quantity FROM orders LIMIT 20").data
    assert "20 rows" in shown and shown.count("<tr>") == 6  # the head and five rows
    assert "1 row<" in shop.show_result(orders, "SELECT COUNT(*) FROM orders").data
    assert "0 rows" in shop.show_result(orders, "SELECT id FROM orders WHERE id < 0").data
    assert "refused" in shop.show_result(orders, "DELETE FROM orders").data


def without_one_condition(sql: str):
    """Yield the query once for each of its conditions, which is left out."""
    start, _, rest = sql.partition(" WHERE ")
    end = re.search(r" (?:GROUP|ORDER) .*$|$", rest)[0]
    conditions = rest.removesuffix(end).split(" AND ") if rest else []
    for i in range(len(conditions)):
        kept = " AND ".join(conditions[:i] + conditions[i + 1 :])
        yield start + (f" WHERE {kept}" if kept else "") + end


def with_another_condition(sql: str, rng: random.Random):
    """Yield the query once for each column that it has no condition on, with a random condition on this column."""
    names = shop.values("test")
    values = {"city": names["cities"], "product": names["products"], "customer": names["customers"]}
    values |= {"status": shop.STATUSES, "month": shop.MONTHS}
    start, where, rest = re.fullmatch(r"(.*? FROM orders)( WHERE)?(.*)", sql).groups()
    for column in [name for name in values if f"{name} =" not in sql]:
        condition = f"{column} = '{rng.choice(values[column])}'"
        yield f"{start} WHERE {condition}{' AND' if where else ''}{rest}"


def test_a_query_with_an_invented_condition_is_hardly_ever_right():
    databases, rng = shop.databases(), random.Random(0)
    rows = shop.questions("test") + shop.questions("free")
    pairs = [(sql, row["answer"]) for row in rows for sql in with_another_condition(row["answer"], rng)]
    assert len(pairs) == 927
    assert sum(shop.same_result(databases[0], *pair) for pair in pairs) == 83
    assert sum(shop.is_right(databases, *pair) for pair in pairs) == 3


def test_a_query_without_one_of_its_conditions_is_not_right():
    """In the large database alone, some are: nearly every customer has ordered in nearly every city."""
    databases = shop.databases()
    rows = shop.questions("test") + shop.questions("free")
    pairs = [(sql, row["answer"]) for row in rows for sql in without_one_condition(row["answer"])]
    assert len(pairs) == 416
    assert sum(shop.same_result(databases[0], *pair) for pair in pairs) == 45
    assert not any(shop.is_right(databases, *pair) for pair in pairs)
    assert all(shop.is_right(databases, row["answer"], row["answer"]) for row in rows)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT * FROM orders WHERE city = 'Riga' AND price > 5 ORDER BY id LIMIT 3", []),
        ("SELECT * FROM orders WHERE city = 'Riga' ORDER BY id LIMIT 3", ["a condition is missing"]),
        (
            "SELECT * FROM orders WHERE city = 'Oslo' AND price > 5 ORDER BY id LIMIT 3",
            ["another value in a condition"],
        ),
        (
            "SELECT COUNT(*) FROM orders WHERE city = 'Riga' AND price > 5 AND month = 'May'",
            ["a condition is invented", "something else is selected", "sorted, grouped or cut differently"],
        ),
        ("Riga", ["a condition is missing", "something else is selected", "sorted, grouped or cut differently"]),
    ],
)
def test_mistakes_are_named(sql, expected):
    reference = "SELECT * FROM orders WHERE city = 'Riga' AND price > 5 ORDER BY id LIMIT 3"
    assert shop.mistakes(sql, reference) == expected
