"""Agents: a model that calls tools in a loop. Notebook 15 builds the loop by hand; here it serves many tasks at once."""

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Literal, get_args, get_origin

from lecture_utils import data, downloads, evaluation, models
from lecture_utils.desk import Desk, ToolError
from lecture_utils.grammars import GrammarLogitsProcessor, regular
from lecture_utils.reading import escape_chat_markers

EXAMPLE = '{"name": "get_order", "arguments": {"number": 1432}}'
MAX_ROUNDS = 7
MAX_NEW_TOKENS = 80  # of a call or an answer


def parameters(tool: Callable) -> dict[str, str]:
    """Return the parameters of a tool with their types in the words of JSON Schema."""
    found = {}
    for name, kind in inspect.get_annotations(tool).items():
        if name != "return":
            choices = get_args(kind) if get_origin(kind) is Literal else ()
            found[name] = " | ".join(choices) or {int: "integer", str: "string"}[kind]
    return found


def system_prompt(tools: Sequence[Callable], short: bool = True) -> str:
    """Return the system message. ``short``: only names and parameters, as the finetuned assistant was trained; otherwise
    also types and descriptions."""
    if short:
        listed = ", ".join(f"{tool.__name__}({', '.join(parameters(tool))})" for tool in tools)
        return f"Tools: {listed}. Write one call as JSON, or the answer."
    lines = [
        f"{tool.__name__}({', '.join(f'{k}: {v}' for k, v in parameters(tool).items())}): {inspect.getdoc(tool)}"
        for tool in tools
    ]
    return (
        "You are the assistant at the desk of a shop. If you need a tool, write nothing but one call as a JSON object, for "
        f"example {EXAMPLE}. You will then get the result. When you know enough, write the answer in one short sentence.\n"
        "Tools:\n" + "\n".join(lines)
    )


def write_call(name: str, arguments: dict) -> str:
    """Return a call as the assistant writes it."""
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def read_call(text: str) -> tuple[str, dict] | None:
    """Return name and arguments of a call, or None if the text is an answer. A text that begins like a call and is none
    is a ToolError."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text)
        return found["name"], found["arguments"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ToolError("this is not a JSON object with name and arguments") from None


def is_valid(text: str, tools: Sequence[Callable]) -> bool:
    """Return whether a text is an answer, or a call of one of the tools with the parameters that it has."""
    known = {tool.__name__: parameters(tool) for tool in tools}
    try:
        call = read_call(text)
    except ToolError:
        return False
    return call is None or (call[0] in known and isinstance(call[1], dict) and set(call[1]) == set(known[call[0]]))


def grammar(tools: Sequence[Callable]) -> str:
    """Return a grammar of llguidance: a call of one of the tools, or an answer, which does not begin with a bracket."""
    values = {"string": r'"(?:[^"\\\\]|\\\\.){1,200}"', "integer": "[0-9]{1,6}"}
    forms = []
    for tool in tools:
        pairs = [
            f'"{k}": ' + (values.get(v) or "(" + "|".join(f'"{c}"' for c in v.split(" | ")) + ")")
            for k, v in parameters(tool).items()
        ]
        forms.append(r'\{"name": "' + tool.__name__ + r'", "arguments": \{' + ", ".join(pairs) + r"\}\}")
    return regular("(" + "|".join(forms) + r"|[^{][^\n]{0,300})")


def processor(tokenizer, tools: Sequence[Callable]) -> Callable:
    """Return what ``evaluation.generate_answers`` needs to allow only valid calls and answers."""
    from llguidance import hf

    engine, end = hf.from_tokenizer(tokenizer), tokenizer.eos_token_id
    return lambda batch: GrammarLogitsProcessor(engine, [grammar(tools)] * len(batch), end)


def execute(desk: Desk, text: str, escape: bool = True) -> str | None:
    """Execute the call in a text and return its result or its error, or None if the text is an answer. ``escape``: break up
    the markers of the chat template in results, which would let a stranger's text begin a turn of its own."""
    try:
        call = read_call(text)
        if call is None:
            return None
        result = desk.call(*call)
        return escape_chat_markers(result) if escape else result
    except ToolError as error:
        return f"Error: {error}"


def conversation(system: str, request: str, steps: Sequence[tuple[str, dict, str]] = (), answer: str | None = None):
    """Return the messages of a task so far: the request, then each call with its result, then the answer."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": request}]
    for name, arguments, result in steps:
        messages += [
            {"role": "assistant", "content": write_call(name, arguments)},
            {"role": "tool", "content": result},
        ]
    return messages + ([{"role": "assistant", "content": answer}] if answer is not None else [])


def run(
    write: Callable[[list[list[dict]]], list[str]], desks: Sequence[Desk], requests: Sequence[str], system: str,
    prepare: Callable[[list[str]], None] | None = None, max_rounds: int = MAX_ROUNDS, escape: bool = True,
) -> list[list[dict]]:  # fmt: skip
    """Let an assistant work on several tasks side by side, each at its own desk, and return their messages.

    write: returns the next text for each conversation. prepare: gets all questions for ``find_orders`` of a round before
    they are asked, so that they can be translated together. A task ends with an answer, or after ``max_rounds`` texts.
    escape: see ``execute``.
    """
    talks = [conversation(system, request) for request in requests]
    going = list(range(len(talks)))
    for _ in range(max_rounds):
        if not going:
            break
        texts = write([talks[i] for i in going])
        if prepare:
            prepare([question for text in texts if (question := _question(text))])
        for i, text in zip(going, texts, strict=True):
            talks[i].append({"role": "assistant", "content": text})
            result = execute(desks[i], text, escape)
            if result is not None:
                talks[i].append({"role": "tool", "content": result})
        going = [i for i in going if talks[i][-1]["role"] == "tool"]
    return talks


def answer(talk: list[dict]) -> str:
    """Return the final answer of a task, or an empty text if it did not come to one."""
    return talk[-1]["content"] if talk[-1]["role"] == "assistant" else ""


def _question(text: str) -> str | None:
    try:
        name, arguments = read_call(text) or ("", {})
    except ToolError:
        return None
    question = arguments.get("question") if name == "find_orders" and isinstance(arguments, dict) else None
    return question if isinstance(question, str) else None


class Assistant:
    """The chat model with two adapters: with ``shop-agent`` it writes calls and answers, with ``shop-sql`` it translates
    questions into SQL. Without ``trained``, the first is left out."""

    def __init__(self, trained: bool = True):
        from peft import PeftModel

        base, self.tokenizer = models.load_chat_model()
        folder = downloads.fetch("shop-sql") / "adapter"
        self.model = PeftModel.from_pretrained(base, folder, adapter_name="sql")
        if trained:
            self.model.load_adapter(downloads.fetch("shop-agent") / "adapter", "agent")
        self.trained, self.processor, self.known, self.tokens = trained, None, {}, 0
        self.model.eval()

    def write(self, talks: list[list[dict]]) -> list[str]:
        """Return the next text for each conversation."""
        if self.trained:
            self.model.set_adapter("agent")
            return self._generate(talks)
        with self.model.disable_adapter():
            return self._generate(talks)

    def _generate(self, talks):
        texts = evaluation.generate_answers(
            self.model, self.tokenizer, talks, MAX_NEW_TOKENS, batch_size=20, processor=self.processor
        )
        self.tokens += sum(len(ids) for ids in self.tokenizer(texts)["input_ids"]) if texts else 0
        return texts

    def translate_all(self, questions: list[str]) -> None:
        """Translate questions together and remember their SQL."""
        new = list(dict.fromkeys(q for q in questions if q not in self.known))
        if new:
            self.model.set_adapter("sql")
            written = evaluation.generate_answers(self.model, self.tokenizer, new, max_new_tokens=64)
            self.known |= dict(zip(new, written, strict=True))

    def translate(self, question: str) -> str:
        """Return the SQL of a question."""
        self.translate_all([question])
        return self.known[question]


def tokenize(talks: Sequence[list[dict]], tokenizer):
    """Return conversations in TRL's tokenized format: ``input_ids``, and ``completion_mask``, which is 1 on every text
    that the assistant has written."""
    from datasets import Dataset

    rows = []
    for talk in talks:
        ids, mask, done = [], [], ""
        for i, message in enumerate(talk):
            if message["role"] != "assistant":
                continue
            prompt, completion = data.render(tokenizer, talk[:i], message["content"])
            for text, learned in ((prompt[len(done) :], 0), (completion, 1)):
                new = tokenizer(text, add_special_tokens=False)["input_ids"]
                ids, mask = ids + new, mask + [learned] * len(new)
            done = prompt + completion
        rows.append({"input_ids": ids, "completion_mask": mask})
    return Dataset.from_list(rows)
