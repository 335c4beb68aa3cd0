"""Reproduce the recorded runs of notebook 08: `make record NB=08`, about five hours on two cores without bf16.

08_baselines: what answers without finetuning. 08_trials: how the settings were chosen, on the development set. 08_runs: the
laptop's model finetuned on the shop's questions, with other data, seeds or settings. 08_forms: the merged and exported
forms of an adapter that was trained as in the notebook. 08_coverage: the forms of the queries in the training sets.
08_long: other rates, alphas and numbers of pairs, judged on the development questions. The last is packaged as shop-sql,
and 08_packaged judges it.
"""

import dataclasses
import random
import re
import tempfile
from pathlib import Path

import make_shop
import runner

PAIRS = 1_200  # of the notebook's live run
ADAPTER = Path("runs/08_adapter")  # of the run "as in the notebook", which is then judged in several forms


def training_set(patterns: int, values: int, pairs: int, space: bool = True):
    """Return training pairs from some of the patterns and some of the values; with all of both, the packaged ones."""
    from datasets import Dataset

    from lecture_utils import data, shop

    rows = shop.questions("train")[:pairs]
    old = [p for p in data.read_jsonl(shop.FOLDER / "patterns.jsonl") if not make_shop.is_new(p)]
    if patterns < len(old) or values < 300:
        rng = random.Random(0)
        known = {kind: rng.sample(names, min(values, len(names))) for kind, names in shop.values("train").items()}
        rows = make_shop.make(rng.sample(old, patterns), known, pairs, seed=0)
    change = shop.for_the_model if space else str
    return Dataset.from_list([row | {"answer": change(row["answer"])} for row in rows])


def planned() -> list[dict]:
    """Return the arguments of each run, each differing in one thing from the notebook's own: its series and label, then
    what its training set and its training are like."""
    usual = {"recipe": "laptop", "pairs": PAIRS, "patterns": 749, "values": 300, "seed": 0}
    return [
        {"series": "usual", "label": "as in the notebook"} | usual,
        {"series": "patterns", "label": "100 patterns"} | usual | {"patterns": 100},
        {"series": "patterns", "label": "25 patterns"} | usual | {"patterns": 25},
        {"series": "values", "label": "20 names per column"} | usual | {"values": 20},
        {"series": "settings", "label": "settings of 2023"} | usual | {"recipe": "laptop-2023"},
        {"series": "seeds", "label": "another seed"} | usual | {"seed": 1},
        {"series": "seeds", "label": "a third seed"} | usual | {"seed": 2},
        {"series": "seeds", "label": "the notebook's seed"} | usual | {"seed": 42},
    ]


def merged(folder: Path | str, dequantized: bool = True):
    """Return the laptop's model with an adapter merged into its dequantized 4-bit weights, or into the 16-bit ones."""
    from peft import PeftModel

    from lecture_utils import models

    base, tokenizer = models.load_chat_model(quantization="nf4" if dequantized else None)
    base = base.dequantize() if dequantized else base
    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload().eval(), tokenizer


def answers(model, tokenizer, split: str, start: tuple | list = (), batch_size: int = 35) -> list[str]:
    """Return the queries that a model writes for the questions of a split, each after the messages of ``start``."""
    from lecture_utils import data, evaluation, shop

    prompts = [[*start, *data.chat(row["question"])] for row in shop.questions(split)]
    written = evaluation.generate_answers(model, tokenizer, prompts, max_new_tokens=64, batch_size=batch_size)
    return [shop.for_the_database(text) for text in written]


def right(split: str, found: list[str]) -> list[bool]:
    """Return which queries give the right result."""
    from lecture_utils import shop

    among, rows = shop.databases("dev" if split.startswith("dev") else "test"), shop.questions(split)
    return [shop.is_right(among, sql, row["answer"]) for sql, row in zip(found, rows, strict=True)]


def counts(model, tokenizer) -> dict:
    """Return how many questions of each set are answered, and how many of the test set's new combinations."""
    from lecture_utils import shop

    found = {name: right(name, answers(model, tokenizer, name)) for name in ("test", "free")}
    new = [ok for ok, row in zip(found["test"], shop.questions("test"), strict=True) if row["new"]]
    return {name: sum(ok) for name, ok in found.items()} | {"new": sum(new)}


def finetune(series, label, recipe: str, pairs: int, patterns: int, values: int, seed: int) -> dict:
    from lecture_utils import recipes

    rows = training_set(patterns, values, pairs)
    model, tokenizer, trainer = runner.finetune(recipes.get_recipe(recipe), rows, seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = ADAPTER if series == "usual" else Path(temporary)
        model.save_pretrained(folder)
        steps = trainer.state.global_step
        del model, trainer
        return {"steps": steps} | counts(*merged(folder))


def coverage(patterns: int) -> dict:
    """Count the forms of the queries (without names and numbers) in a training set, and the questions of both test sets
    whose form is among them."""
    from lecture_utils import shop

    known = {shop.form(row["answer"]) for row in training_set(patterns, 300, PAIRS, space=False)}
    found = {name: sum(shop.form(row["answer"]) in known for row in shop.questions(name)) for name in ("test", "free")}
    return {"forms": len(known)} | found


TRIALS = (
    ("upper half", "no", 8, 4e-3, 1_720, "group_by_length"),
    ("all", "no", 8, 4e-3, 1_720, "group_by_length"),
    ("all", "yes", 8, 4e-3, 1_600, "group_by_length"),
    ("all", "yes", 4, 3e-3, 1_600, "group_by_length"),
    ("all", "yes", 4, 3e-3, 1_600, "random"),
)


def trial(layers: str, space: str, batch_size: int, learning_rate: float, pairs: int, order: str) -> dict:
    """Train with other settings and judge on the development set: this is how the settings were chosen."""
    from lecture_utils import recipes

    recipe = dataclasses.replace(
        recipes.get_recipe("laptop"),
        first_layer=15 * (layers != "all"),
        alpha=32,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )
    rows = training_set(749, 300, pairs, space == "yes")
    model, tokenizer, _ = runner.finetune(recipe, rows, train_sampling_strategy=order)
    return {"dev": sum(right("dev", answers(model, tokenizer, "dev")))}


LONG = (  # pairs, learning rate, alpha, batch size
    (1_200, 2e-3, 32, 4), (1_200, 1e-3, 128, 4),
    (1_600, 3e-3, 32, 4), (1_600, 2e-3, 32, 4), (1_600, 1e-3, 128, 4),
    (5_040, 3e-3, 32, 4), (5_040, 1.5e-3, 32, 8), (5_040, 1e-3, 32, 4),
)  # fmt: skip


def long(pairs: int, learning_rate: float, alpha: int, batch_size: int) -> dict:
    """Train on some pairs, or on all, and judge on the development questions."""
    from lecture_utils import recipes

    recipe = recipes.get_recipe("shop-sql")
    recipe = dataclasses.replace(recipe, learning_rate=learning_rate, alpha=alpha, batch_size=batch_size)
    model, _, trainer = runner.finetune(recipe, training_set(749, 300, pairs))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        steps = trainer.state.global_step
        del model, trainer
        model, tokenizer = merged(folder)
        found = {split: sum(right(split, answers(model, tokenizer, split))) for split in ("dev", "dev_free")}
    return {"steps": steps} | found


def packaged(adapter: str) -> dict:
    """Judge the packaged adapter ``shop-sql`` on the test and free questions. If its weights were deleted, train it."""
    from lecture_utils import recipes

    weights = runner.packaged_weights("shop_sql")
    if not weights.exists():
        with tempfile.TemporaryDirectory() as work:
            rows = training_set(749, 300, 5_040)
            runner.package_adapter("shop_sql", recipes.get_recipe(adapter), rows, Path(work), seed=0)
    return counts(*merged(weights.parent))


def slots(known: dict[str, list[str]]) -> re.Pattern:
    """Return a pattern that finds names, months and numbers, each in a group with the name of its kind."""
    from lecture_utils import shop

    products = [*map(make_shop.plural, known["products"]), *known["products"]]
    values = {"customer": known["customers"], "city": known["cities"], "product": products, "month": shop.MONTHS}
    parts = [f"(?P<{kind}>{'|'.join(map(re.escape, names))})" for kind, names in values.items()]
    return re.compile(rf"(?i)\b(?:{'|'.join(parts)}|(?P<number>\d+))\b")


def found_values(question: str, pattern: re.Pattern) -> tuple[str, dict[str, list[str]]]:
    """Return a question with placeholders for what ``slots`` finds in it, and the replaced texts by kind."""
    found = {}
    for match in pattern.finditer(question):
        found.setdefault(match.lastgroup, []).append(match[0])
    return pattern.sub(lambda match: f" {match.lastgroup}slot ", question), found


def look_up(exchange: bool, pairs: list[dict]):
    """Return a function that answers a question with the query of the pair whose question shares the most words; with
    ``exchange``, the names of both are ignored in the comparison and exchanged in the query."""
    from lecture_utils import data, shop

    pattern = slots(shop.values("train"))
    split, pattern = [found_values(pair["question"], pattern) for pair in pairs], slots(shop.values("test"))
    singular = {make_shop.plural(name): name for split in ("train", "test") for name in shop.values(split)["products"]}
    known = [
        set(data.words(text if exchange else pair["question"])) for (text, _), pair in zip(split, pairs, strict=True)
    ]

    def answer(question: str) -> str:
        text, values = found_values(question, pattern)
        asked = set(data.words(text if exchange else question))
        best = max(range(len(known)), key=lambda i: len(asked & known[i]) / len(asked | known[i]))
        sql = pairs[best]["answer"]
        if exchange:
            for kind, old in split[best][1].items():
                for before, after in zip(old, values.get(kind, []), strict=False):
                    before, after = singular.get(before.lower(), before), singular.get(after.lower(), after)
                    sql = re.sub(rf"\b{re.escape(before)}\b", after, sql, count=1)
        return sql

    return answer


def baseline(method: str) -> dict:
    """Judge a method that trains nothing on the test set and the free questions."""
    from lecture_utils import data, models, shop

    if method.startswith("look-up"):
        answer = look_up("exchanged" in method, shop.questions("train"))
        found = {split: [answer(row["question"]) for row in shop.questions(split)] for split in ("test", "free")}
    else:
        model, tokenizer = models.load_chat_model(quantization="nf4")
        model = model.dequantize()
        task = {"role": "system", "content": f"Translate the question into one SQL query. The table is {shop.SCHEMA}."}
        shots = [pair for pair in shop.questions("train") if "WHERE" in pair["answer"]][:8]
        turns = [turn for pair in shots for turn in data.chat(pair["question"], shop.for_the_model(pair["answer"]))]
        start = {"untouched": [], "columns in the prompt": [task], "columns and eight examples": [task, *turns]}[method]
        found = {split: answers(model, tokenizer, split, start, batch_size=20) for split in ("test", "free")}
    test, free = right("test", found["test"]), right("free", found["free"])
    new = sum(ok for ok, row in zip(test, shop.questions("test"), strict=True) if row["new"])
    return {"test right": sum(test), "new right": new, "free right": sum(free)}


def distance(weights: dict, trained: dict, untouched: dict) -> str:
    """Return how far weights are from the trained ones (those of NF4, plus the update), in lengths of the update."""
    off = sum((weights[name].float() - trained[name]).square().sum() for name in trained)
    update = sum((trained[name] - untouched[name]).square().sum() for name in trained)
    return f"{(off / update).sqrt():.3f}"


def matrices(model) -> dict:
    """Return the matrices of a model's layers in fp32."""
    return {name: weight.float() for name, weight in model.state_dict().items() if "_proj" in name}


def forms(folder: Path) -> None:
    """Judge an adapter on the test and free questions, in the forms that it can be used in."""
    import gguf
    import torch
    from peft import PeftModel

    from lecture_utils import gguf_export, models, quantization, shop

    splits, databases = ("test", "free"), shop.databases()
    base, tokenizer = models.load_chat_model(quantization="nf4")
    in_use = PeftModel.from_pretrained(base, str(folder)).eval()
    first = {split: answers(in_use, tokenizer, split) for split in splits}
    untouched = matrices(models.load_chat_model(quantization="nf4")[0].dequantize())
    model, _ = merged(folder)
    trained = matrices(model)

    def add(form: str, found: dict, weights: dict) -> None:
        pairs = [pair for split in splits for pair in zip(first[split], found[split], strict=True)]
        same = sum(a == b or shop.is_right(databases, b, a) for a, b in pairs if works(a))
        row = {"form": form} | {split: sum(right(split, found[split])) for split in splits}
        row |= {"same": same, "distance": distance(weights, trained, untouched)}
        runner.add("08_forms", row)
        print(row, flush=True)

    def works(sql: str) -> bool:
        try:
            return bool(shop.run_sql(databases[0], sql))
        except shop.QueryError:
            return False

    add("adapter beside 4 bits", first, trained)
    add("merged into dequantized", {split: answers(model, tokenizer, split) for split in splits}, trained)
    other, _ = merged(folder, dequantized=False)
    add("merged into 16 bits", {split: answers(other, tokenizer, split) for split in splits}, matrices(other))
    again, _ = merged(folder)
    for name, module in again.named_modules():
        if name.endswith("_proj"):
            module.weight.data = quantization.quantize_4bit(module.weight).dequantize(module.weight.dtype)
    add("merged, in 4 bits again", {split: answers(again, tokenizer, split) for split in splits}, matrices(again))
    for kind in gguf_export.TYPES:
        with tempfile.TemporaryDirectory() as work:
            gguf_export.write_gguf(model, tokenizer, Path(work) / "model.gguf", kind)
            server = gguf_export.serve_gguf(Path(work) / "model.gguf")
            asked = {split: [row["question"] for row in shop.questions(split)] for split in splits}
            found = {
                split: [shop.for_the_database(text) for text in gguf_export.ask_server(server, questions)]
                for split, questions in asked.items()
            }
            del server
        q = gguf.GGMLQuantizationType[kind]
        rounded = {
            name: torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), q), q)).float()
            for name, weight in trained.items()
        }
        add(f"GGUF {kind}, llama.cpp", found, rounded)


if __name__ == "__main__":
    methods = (
        "untouched", "columns in the prompt", "columns and eight examples", "look-up", "look-up, names exchanged",
    )  # fmt: skip
    runner.run("08_baselines", [{"method": method} for method in methods], baseline)
    runner.run("08_coverage", [{"patterns": count} for count in (25, 100, 749)], coverage)
    names = ("layers", "space", "batch_size", "learning_rate", "pairs", "order")
    runner.run("08_trials", [dict(zip(names, row, strict=True)) for row in TRIALS], trial, separately=True)
    runner.run("08_runs", planned(), finetune, separately=True)
    names = ("pairs", "learning_rate", "alpha", "batch_size")
    runner.run("08_long", [dict(zip(names, row, strict=True)) for row in LONG], long, separately=True)
    runner.run("08_packaged", [{"adapter": "shop-sql"}], packaged)
    if not runner.done("08_forms"):
        forms(ADAPTER)
