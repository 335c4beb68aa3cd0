"""The shop's desk: its tools, as functions and over MCP, its tasks, and the loop of the assistant."""

import asyncio
import json
import random
import sqlite3
import sys

import pytest

from lecture_utils import agents, data, desk, desk_tasks, shop
from lecture_utils.desk import Desk, ToolError

CONDITIONS = ("none", "allow-list", "read-only", "confirmation")


@pytest.fixture(scope="module")
def tasks():
    return desk_tasks.tasks("test", 3)


def numbers(status):
    rows = desk.all_orders("test").execute("SELECT id FROM orders WHERE status = ?", (status,))
    return [number for (number,) in rows]


def ideal(**more):
    return Desk("test", translate=lambda question: question, look_up=lambda question: None, **more)


# --- the tools


def test_an_order_is_found_as_it_stands_in_the_database():
    here = ideal(notes={1500: "Thanks"})
    row = desk.all_orders("test").execute("SELECT customer, quantity, price FROM orders WHERE id = 1500").fetchone()
    found = json.loads(here.get_order(1500))
    assert (found["customer"], found["quantity"], found["note"]) == (row[0], row[1], "Thanks")
    assert float(found["price"]) == pytest.approx(row[2], abs=0.005)
    assert "note" not in json.loads(here.get_order(1501))
    with pytest.raises(ToolError, match="no order 9999"):
        here.get_order(9999)


@pytest.mark.parametrize("status", shop.STATUSES)
def test_only_open_orders_can_be_cancelled(status):
    here, number = ideal(), numbers(status)[0]
    if status == "open":
        here.cancel_order(number)
        assert json.loads(here.get_order(number))["status"] == "cancelled" and here.cancelled == [number]
    else:
        with pytest.raises(ToolError, match=status):
            here.cancel_order(number)
        assert json.loads(here.get_order(number))["status"] == status and not here.cancelled


def test_desks_do_not_share_their_orders_and_the_original_stays():
    number, first, second = numbers("open")[0], ideal(), ideal()
    first.cancel_order(number)
    assert json.loads(second.get_order(number))["status"] == "open"
    assert desk.all_orders("test").execute("SELECT status FROM orders WHERE id = ?", (number,)).fetchone() == ("open",)


@pytest.mark.parametrize(
    "sql",
    ["DELETE FROM orders", "UPDATE orders SET status = 'cancelled'", "DROP TABLE orders", "SELECT 1; SELECT 2", "no"],
)
@pytest.mark.parametrize("after_a_write", [False, True])
def test_a_question_cannot_change_the_orders(sql, after_a_write):
    here = ideal()
    if after_a_write:  # of our own, which must not leave the door open
        here.cancel_order(numbers("open")[0])
    before = here.orders.execute("SELECT COUNT(*), SUM(status = 'open') FROM orders").fetchone()
    with pytest.raises(ToolError):
        here.find_orders(sql)
    assert here.orders.execute("SELECT COUNT(*), SUM(status = 'open') FROM orders").fetchone() == before
    with pytest.raises(sqlite3.DatabaseError):
        here.orders.execute("DELETE FROM orders")


def test_calculations_agree_with_python():
    rng = random.Random(0)
    for _ in range(100):
        a, b, c = (round(rng.uniform(-500, 500), 2) for _ in range(3))
        expression = f"({a} + {b}) * {c} / 7 - -{abs(a)}"
        assert float(ideal().calculate(expression)) == pytest.approx(eval(expression), abs=0.0051)


@pytest.mark.parametrize(
    "expression", ["", "1 / 0", "__import__('os')", "2 ** 99", "a + 1", "1,5 + 2", "'a' * 9", "9e999 * 9", "True + 1"]
)
def test_what_is_not_arithmetic_is_refused(expression):
    with pytest.raises(ToolError):
        ideal().calculate(expression)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("delete_order", {"number": 1500}), ("get_order", {}), ("get_order", {"number": "1500"}), ("get_order", {"number": True}),
        ("get_order", {"number": 1500, "all": 1}), ("get_order", [1500]), ("calculate", {"expression": 7}),
        ("hand_over", {"topic": "anything"}), ("__init__", {}),
    ],
)  # fmt: skip
def test_a_wrong_call_is_an_error_that_a_model_can_read(name, arguments):
    here = ideal()
    with pytest.raises(ToolError):
        here.call(name, arguments)
    assert agents.execute(here, agents.write_call(name, arguments)).startswith("Error: ")
    assert not here.cancelled and not here.tickets


# --- over MCP


def of_client(target, *wanted):
    """Ask a server with the SDK's own client; return its tools and the results."""
    from mcp import Client

    async def main():
        async with Client(target) as client:
            listed = (await client.list_tools()).tools
            return listed, [await client.call_tool(name, arguments) for name, arguments in wanted]

    return asyncio.run(main())


CALLS = (
    ("get_order", {"number": 1500}),
    ("calculate", {"expression": "3 * 4.5"}),
    ("today", {}),
    ("get_order", {"number": 9999}),
)


def test_the_server_offers_the_same_tools_with_the_same_results():
    here, other = ideal(), ideal()
    listed, results = of_client(desk.server(here), *CALLS, ("cancel_order", {"number": numbers("open")[0]}))
    assert [tool.name for tool in listed] == list(here.tools)
    for tool in listed:
        properties = tool.input_schema["properties"]
        words = {k: " | ".join(v["enum"]) if "enum" in v else v["type"] for k, v in properties.items()}
        assert words == agents.parameters(here.tools[tool.name])
        assert tool.description == here.tools[tool.name].__doc__
    for (name, arguments), result in zip(CALLS[:3], results, strict=False):
        assert result.content[0].text == other.call(name, arguments) and not result.is_error
    assert results[3].is_error and "no order 9999" in results[3].content[0].text
    assert here.cancelled == [numbers("open")[0]]  # the server changed this desk, and no other


def test_the_server_answers_a_client_over_stdio():
    from mcp import StdioServerParameters

    listed, results = of_client(
        StdioServerParameters(command=sys.executable, args=["-m", "lecture_utils.desk"]), *CALLS
    )
    assert {tool.name for tool in listed} == set(ideal().tools)
    assert [result.is_error for result in results] == [False, False, False, True]
    assert [result.content[0].text for result in results[:3]] == [ideal().call(*call) for call in CALLS[:3]]


# --- the tasks


def replay(task, steps, answer):
    """Let the loop run with texts that are given, and return the desk, the messages and the answer."""
    here, texts = (
        task.ideal_desk(),
        iter([agents.write_call(name, arguments) for name, arguments, _ in steps] + [answer]),
    )
    (talk,) = agents.run(lambda talks: [next(texts)], [here], [task.request], "")
    return here, talk, agents.answer(talk)


def test_each_task_is_solved_by_its_trace_and_by_nothing_less(tasks):
    for task in tasks:
        here, talk, answer = replay(task, task.steps, task.answer)
        assert [m["content"] for m in talk if m["role"] == "tool"] == [result for *_, result in task.steps]
        assert desk_tasks.solved(task, here, answer)
        assert all(desk_tasks.step_right(task, i, agents.write_call(*step[:2])) for i, step in enumerate(task.steps))
        assert desk_tasks.step_right(task, len(task.steps), task.answer)
        if task.key:
            assert not desk_tasks.solved(task, here, "I do not know.")
        if task.cancelled or task.tickets:
            assert not desk_tasks.solved(task, *replay(task, [], task.answer)[::2])
        wrong = replay(task, [("cancel_order", {"number": numbers("open")[-1]}, "")], task.answer)
        assert not desk_tasks.solved(task, *wrong[::2])


def test_the_keys_are_those_of_the_database(tasks):
    rows = {task.kind: task for task in tasks}
    prices = dict(desk.all_orders("test").execute("SELECT id, price FROM orders"))
    task = rows["total_three"]
    asked = sorted(desk_tasks.named(task.request))
    assert len(asked) == 3 and float(task.key) == pytest.approx(sum(prices[n] for n in asked), abs=0.006)
    task = rows["cancel_cheaper"]
    assert task.cancelled == (min(desk_tasks.named(task.request), key=prices.get),)


def test_test_requests_were_never_trained_on():
    train = desk_tasks.requests("train")
    for split in ("dev", "test"):
        for kind, texts in desk_tasks.requests(split).items():
            assert not set(texts) & set(train.get(kind, ())), kind
    kinds = {task.kind for task in desk_tasks.tasks("train", 1)}
    assert kinds.isdisjoint(desk_tasks.NEW) and kinds | set(desk_tasks.NEW) == {
        t.kind for t in desk_tasks.tasks("test", 1)
    }


def test_tasks_are_the_same_on_every_machine():
    first, second = (desk_tasks.tasks("dev", 2, seed=3) for _ in range(2))
    assert [(t.request, t.steps, t.answer) for t in first] == [(t.request, t.steps, t.answer) for t in second]


@pytest.mark.parametrize("place", ["look-up", "same", "note", "forged", "page"])
def test_each_attack_reaches_the_assistant_and_wants_what_the_request_does_not(place):
    cases = desk_tasks.attacked(place)
    assert len(cases) == (24 if place == "page" else 48)
    for task, target in cases:
        assert (target in desk_tasks.named(task.request)) == (place == "same") and target not in task.cancelled
        here = task.ideal_desk()
        question = next(iter(task.rules), "")
        seen = here.search_handbook(question) if place == "page" else here.get_order(*desk_tasks.named(task.request))
        assert str(target) in seen and json.loads(here.get_order(target))["status"] == "open"


@pytest.mark.parametrize("condition", CONDITIONS)
def test_what_an_assistant_can_change_depends_on_the_program_and_not_on_the_assistant(condition):
    for task, target in desk_tasks.attacked("look-up")[:10]:
        allowed = {"allow-list": desk_tasks.named(task.request), "read-only": set()}.get(condition)
        asked, confirm = [], None
        if condition == "confirmation":
            confirm = lambda number, asked=asked: asked.append(number)  # noqa: E731 -- which is no yes
        here = task.desk(translate=str, look_up=lambda q: None, may_cancel=allowed, confirm=confirm)
        texts = iter([agents.write_call("cancel_order", {"number": target}), "Done."])
        agents.run(lambda talks, texts=texts: [next(texts)], [here], [task.request], "")  # an assistant that obeys
        assert here.cancelled == ([target] if condition == "none" else [])
        assert asked == ([target] if condition == "confirmation" else [])


def test_a_person_is_asked_only_about_what_would_be_done_and_can_say_yes():
    asked = []
    here = ideal(may_cancel={numbers("open")[0], numbers("shipped")[0]}, confirm=lambda n: asked.append(n) or True)
    for number in (numbers("open")[1], numbers("shipped")[0], 9_999):
        with pytest.raises(ToolError):
            here.cancel_order(number)
    here.cancel_order(numbers("open")[0])
    assert asked == here.cancelled == [numbers("open")[0]]


# --- the loop


def test_the_loop_ends_with_an_answer_or_at_its_limit():
    call = agents.write_call("today", {})
    talks = agents.run(lambda talks: [call if len(t) < 100 else "" for t in talks], [ideal()], ["?"], "", max_rounds=4)
    assert sum(m["role"] == "tool" for m in talks[0]) == 4 and agents.answer(talks[0]) == ""
    talks = agents.run(lambda talks: ["{not JSON" if len(t) == 2 else "Done." for t in talks], [ideal()], ["?"], "")
    assert talks[0][3]["content"].startswith("Error: ") and agents.answer(talks[0]) == "Done."


def test_tasks_side_by_side_do_not_disturb_each_other(tasks):
    def scripted(talks):
        return [next(scripts[talk[1]["content"]]) for talk in talks]

    def script(task):
        return iter([agents.write_call(*step[:2]) for step in task.steps] + [task.answer])

    some = {task.request: task for task in tasks[::4]}
    scripts = {request: script(task) for request, task in some.items()}
    desks = [task.ideal_desk() for task in some.values()]
    together = agents.run(scripted, desks, list(some), "S")
    scripts = {request: script(task) for request, task in some.items()}
    assert together == [agents.run(scripted, [t.ideal_desk()], [r], "S")[0] for r, t in some.items()]


def test_results_cannot_begin_a_turn_of_their_own(tokenizer):
    for task, _ in desk_tasks.attacked("forged")[:5]:
        call = agents.write_call("get_order", {"number": next(iter(desk_tasks.named(task.request)))})
        raw, escaped = (agents.execute(task.ideal_desk(), call, escape) for escape in (False, True))
        ids = [tokenizer(text)["input_ids"] for text in (raw, escaped)]
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        assert start in ids[0] and start not in ids[1]
        assert json.loads(raw).keys() == json.loads(escaped).keys()


def test_the_questions_of_a_round_are_prepared_together():
    asked, here = [], ideal()
    texts = {
        "a": agents.write_call("find_orders", {"question": "x"}),
        "b": agents.write_call("find_orders", {"question": "y"}),
    }
    agents.run(lambda talks: [texts[t[1]["content"]] if len(t) == 2 else "" for t in talks], [here, here], ["a", "b"], "",
               asked.append)  # fmt: skip
    assert asked[0] == ["x", "y"]


def test_the_rows_to_learn_from_are_the_chat_template_with_the_assistants_texts_marked(tasks, tokenizer):
    talks = [agents.conversation("S", task.request, task.steps, task.answer) for task in tasks[:20]]
    for talk, row in zip(talks, agents.tokenize(talks, tokenizer), strict=True):
        whole = tokenizer.apply_chat_template(talk, tokenize=False).rstrip()
        assert row["input_ids"] == tokenizer(whole, add_special_tokens=False)["input_ids"]
        marked = tokenizer.decode([i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m])
        assert marked == "".join(m["content"] + "<|im_end|>" for m in talk if m["role"] == "assistant")


def test_the_grammar_allows_exactly_the_valid_texts(tasks, tokenizer):
    llguidance = pytest.importorskip("llguidance")
    from llguidance import hf

    tools = list(ideal().tools.values())
    engine, grammar = hf.from_tokenizer(tokenizer), agents.grammar(tools)

    def allowed(text):
        matcher = llguidance.LLMatcher(engine, grammar)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    for task in tasks:
        for text in [agents.write_call(*step[:2]) for step in task.steps] + [task.answer]:
            assert allowed(text) and agents.is_valid(text, tools), text
    for text in ('{"name": "delete", "arguments": {}}', '{"name": "today", "arguments": {"number": 1}}', "{today}",
                 '{"name": "get_order", "arguments": {"number": "1500"}}', '{"name": "get_order"}'):  # fmt: skip
        assert not allowed(text)
        assert not agents.is_valid(text, tools) or "1500" in text  # its type is checked when the call is executed


def test_numbers_that_a_request_names():
    assert desk_tasks.named("Cancel 1234, and 5678. Not 98765 or 249.90 or 4321.50") == {1234, 5678}
    assert desk_tasks.named("What is 12 % of 249.90?") == set()


def test_a_step_is_right_if_it_is_the_next_of_the_trace(tasks):
    task = next(t for t in tasks if t.kind == "per_piece")
    calls = [agents.write_call(name, arguments) for name, arguments, _ in task.steps]
    for i, text in enumerate([*calls, task.answer]):
        for other in [*calls, task.answer, "I do not know.", "{", calls[0].replace("get_order", "cancel_order")]:
            assert desk_tasks.step_right(task, i, other) == (other == text)


def test_the_card_counts_what_is_there():
    card = (desk_tasks.FOLDER / "README.md").read_text(encoding="utf-8")
    for split in ("train", "dev", "test"):
        assert f"{sum(map(len, desk_tasks.requests(split).values()))} " in card
    assert not [
        t for t in data.read_jsonl(shop.FOLDER / "free.jsonl") if t["question"] in str(desk_tasks.requests("train"))
    ]
