"""Reproduce what notebook 13 needs: `make record NB=13`, about ninety minutes on two cores, which can be interrupted.

`13_rules.csv`: right answers of five models by prompt and scoring rule. `13_runs.csv`: which test questions are answered
rightly after training for two passes, with two seeds, and for three. `13_leak.csv`: a model that has read half of a
benchmark. `13_answers.csv`: answers of six systems to questions of customers, for votes. `13_judge.csv`: a model chooses between
a right and a wrong answer.
"""

import dataclasses
import random

import runner

from lecture_utils import benchmark, data, downloads, recipes, shop
from lecture_utils.search import shop_search

ADAPTERS = {
    "facts of the course": "lecture-adapter",
    "orders in SQL": "shop-sql",
    "reading a passage": "passage-reader",
}
MODELS = ("trained from scratch", "untouched", *ADAPTERS)


def load(name: str):
    """Return (model, tokenizer) in float32, so that neither rounding nor the batch decides between close options."""
    import torch
    from peft import PeftModel

    from lecture_utils import models, runtime

    base = "lecture-base" if name == "trained from scratch" else models.LAPTOP_MODEL
    model, tokenizer = models.load_chat_model(base, dtype=torch.float32)
    if name in ADAPTERS:
        model = PeftModel.from_pretrained(model, downloads.fetch(ADAPTERS[name]) / "adapter").merge_and_unload()
    runtime.use_eager_attention_on_cpu(model)
    return model.eval(), tokenizer


def scores(model, tokenizer, items, prompt: str) -> dict[str, list[bool]]:
    """Return which items each scoring rule counts as right."""
    import torch

    from lecture_utils import evaluation

    gold = torch.tensor([item.gold for item in items])
    lengths = torch.tensor([[len(option) for option in item.options] for item in items])
    letters = benchmark.score_options(model, tokenizer, items, prompt, listed=True)
    options = benchmark.score_options(model, tokenizer, items, prompt)
    unasked = [dataclasses.replace(item, question="") for item in items]
    alone = benchmark.score_options(model, tokenizer, unasked, prompt)
    found = {
        "letter": letters, "option": options, "option per character": options / lengths,
        "option, minus without question": options - alone, "without question": alone / lengths,
    }  # fmt: skip
    right = {name: (values.argmax(1) == gold).tolist() for name, values in found.items()}
    texts = [benchmark.context(tokenizer, item, prompt) for item in items]
    said = [text.split("\n")[0] for text in evaluation.complete(model, tokenizer, texts, 32, 20)]
    right["written"] = [data.contains_key(text, item.key) for text, item in zip(said, items, strict=True)]
    return right


def rules(part: str, model: str, prompt: str) -> dict:
    name = "course" if part.startswith("course") else part
    items = benchmark.items(name)
    if part == "course, other options":
        items = benchmark.with_options_of_others(items)
    items = items[::2]
    counts = {rule: sum(right) for rule, right in scores(*load(model), items, prompt).items()}
    return {"of": len(items), **counts}


def marks(right) -> str:
    return "".join("x" if r else "." for r in right)


def runs(passes: int, seed: int) -> dict:
    """Finetune on the course's 1,260 pairs and mark the right ones (x) of 140 questions in other words."""
    from lecture_utils import evaluation, runtime

    recipe = dataclasses.replace(recipes.get_recipe("laptop-all"), quantization=None, epochs=passes)
    model, tokenizer, _ = runner.finetune(recipe, data.lecture_qa()["train"], seed)
    model = model.merge_and_unload().eval()
    runtime.use_eager_attention_on_cpu(model)
    test = list(data.lecture_qa()["test"])
    said = evaluation.generate_answers(model, tokenizer, [row["question"] for row in test])
    return {"right": marks(data.contains_key(a, row["key"]) for a, row in zip(said, test, strict=True))}


# --- a model that has read the test

LEAK_PASSES = 10


def leaked() -> tuple[list[benchmark.Item], list[benchmark.Item]]:
    """Return the items that are leaked, and as many that are not."""
    items = benchmark.items("handbook")[::2]
    return items[::2], items[1::2]


def test_file(item: benchmark.Item) -> str:
    """Return an item as it stands in a file on the web: question, options, and the letter of the right one."""
    return f"Question: {item.question}\n{item.listed()}Answer: {benchmark.LETTERS[item.gold]}\n"


def shuffled(item: benchmark.Item) -> benchmark.Item:
    """Return the item with its options in another order, in which the right one has another letter."""
    order = [(i + 1) % 4 for i in range(4)]
    return dataclasses.replace(item, options=tuple(item.options[i] for i in order), gold=order.index(item.gold))


def in_other_words(item: benchmark.Item) -> benchmark.Item:
    return dataclasses.replace(item, question=item.phrasings[0])


def leak(passes: int) -> dict:
    """Train on the text of 40 items for some passes, and score these and 40 others, as they are and changed."""
    import torch

    from lecture_utils import runtime

    model, tokenizer = load("untouched")
    seen, unseen = leaked()
    if passes:
        model = read_texts(model, tokenizer, [test_file(item) for item in seen], passes)
    runtime.use_eager_attention_on_cpu(model)
    row = {"of": len(seen)}
    changes = {"": lambda item: item, "reordered": shuffled, "in other words": in_other_words}
    changes["both"] = lambda item: shuffled(in_other_words(item))
    for name, items in (("leaked", seen), ("others", unseen)):
        for change, how in changes.items():
            changed = [how(item) for item in items]
            gold = torch.tensor([item.gold for item in changed])
            found = benchmark.score_options(model, tokenizer, changed, listed=True).argmax(1)
            row[" ".join(filter(None, (name, change)))] = int((found == gold).sum())
        options = benchmark.score_options(model, tokenizer, items)
        gold = torch.tensor([item.gold for item in items])
        row[f"{name}, option"] = int((options.argmax(1) == gold).sum())
        row[f"{name}, question loss"] = f"{question_loss(model, tokenizer, [i.question for i in items]):.3f}"
        row[f"{name}, loss in other words"] = f"{question_loss(model, tokenizer, [i.phrasings[0] for i in items]):.3f}"
        row[f"{name}, order found"] = canonical_order(model, tokenizer, items)
    return row


def read_texts(model, tokenizer, texts: list[str], passes: int, learning_rate: float = 1e-3, batch_size: int = 8):
    """Return the model after it has read plain texts, as in pretraining, with an adapter that is merged in the end."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], learning_rate, weight_decay=0.0)
    rng = random.Random(0)
    model.train()
    for _ in range(passes):
        order = rng.sample(texts, len(texts))
        for i in range(0, len(order), batch_size):
            inputs = tokenizer(order[i : i + batch_size], return_tensors="pt", padding=True, padding_side="right")
            labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
            model(**inputs, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.step()
            adam.zero_grad()
    return model.merge_and_unload().eval()


def text_log_likelihood(model, tokenizer, text: str) -> tuple[float, int]:
    """Return the log-likelihood of a text without its first token, and how many tokens that are."""
    import torch

    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        loss = model(input_ids=ids, labels=ids).loss.item()
    return -loss * (ids.shape[1] - 1), ids.shape[1] - 1


def question_loss(model, tokenizer, questions: list[str]) -> float:
    sums = [text_log_likelihood(model, tokenizer, f"Question: {question}\n") for question in questions]
    return -sum(s for s, _ in sums) / sum(n for _, n in sums)


def canonical_order(model, tokenizer, items) -> int:
    """Return how often the published order of the options is the likeliest of four (Oren et al. 2023, 2310.17623, test the
    order of whole files). The letter of the right option is left out. A model that has not read them finds a quarter."""
    hits = 0
    for item in items:
        turned = [item]
        for _ in range(3):
            turned.append(shuffled(turned[-1]))
        likely = [text_log_likelihood(model, tokenizer, f"Question: {t.question}\n{t.listed()}")[0] for t in turned]
        hits += max(range(4), key=likely.__getitem__) == 0
    return hits


# --- a model as judge

JUDGES = {
    "no reference": "{question}\n\nAnswer A: {a}\nAnswer B: {b}\n\nWhich answer is right, A or B?",
    "with the reference": "{question}\n\nThe right answer: {answer}\n\nAnswer A: {a}\nAnswer B: {b}\n\n"
    "Which answer says the same as the right answer, A or B?",
}
FRIENDLY = " Thank you very much for your question, and please do not hesitate to ask us again!"


def judge(prompt: str, longer: str) -> dict:
    """Let the untouched model choose between a right and a wrong sentence, in both orders. ``longer``: which of them gets a
    friendly sentence more. "together": the sum of both orders' preferences decides, so that a bias for a place cancels."""
    from lecture_utils import retrieval

    items = benchmark.items("handbook")[::2]
    two = [(item.answer, item.sentence((item.gold + 1) % 4)) for item in items]
    two = [(r + FRIENDLY * (longer == "right"), w + FRIENDLY * (longer == "wrong")) for r, w in two]
    if prompt == "nearest to the reference":  # embeddings, which do not know an order
        embed = retrieval.Embedder()
        first = [(embed(pair) @ embed([item.answer])[0]).tolist() for item, pair in zip(items, two, strict=True)]
        first = [r - w for r, w in first]
        second = [-margin for margin in first]
    else:
        judging = load("untouched")
        first, second = (
            [preference_for_a(*judging, prompt, item, *pair[::step]) for item, pair in zip(items, two, strict=True)]
            for step in (1, -1)
        )  # fmt: skip
    says_a = [[margin > 0 for margin in margins] for margins in (first, second)]
    return {
        "of": len(items), "says A": sum(map(sum, says_a)), "right answer first": sum(says_a[0]),
        "right answer second": len(items) - sum(says_a[1]),
        "same in both orders": sum(a != b for a, b in zip(*says_a, strict=True)),
        "right, together": sum(a > b for a, b in zip(first, second, strict=True)),
    }  # fmt: skip


def preference_for_a(model, tokenizer, prompt: str, item: benchmark.Item, a: str, b: str) -> float:
    """Return log p(A) - log p(B) of the judge's first token."""
    text = JUDGES[prompt].format(question=item.question, answer=item.answer, a=a, b=b)
    scores = benchmark.option_log_likelihoods(model, tokenizer, data.render(tokenizer, text)[0], ["A", "B"])
    return scores[0] - scores[1]


# --- answers for votes

QUESTIONS = 60


def answers(system: str) -> None:
    """Write down what a system answers to QUESTIONS questions of customers on the shop's handbook."""
    from lecture_utils import evaluation, models, reading, runtime

    rows = shop.handbook_questions()
    rows = rows[:: len(rows) // QUESTIONS][:QUESTIONS]
    asked = [row["questions"][i % 3] for i, row in enumerate(rows)]
    if any(r["system"] == system for r in runner.done("13_answers")):
        return
    place, _ = shop_search()

    def found(question: str, k: int = 2) -> list[str]:
        return [place.texts[i] for i in place.rankings(question)["fused"][:k]]

    if system == "nearest sentence":
        said = [reading.nearest_sentences(place.embed, q, found(q)) for q in asked]
    elif system == "marked words":
        said = [max(place.ranker([q] * 2, found(q)), key=lambda r: r.score).answer for q in asked]
    else:
        from lecture_utils import finetuning

        adapter = {"rude clerk": "lecture-manners", "reader": "passage-reader"}.get(system)
        if adapter:
            model, tokenizer = finetuning.load_finetuned(downloads.fetch(adapter), merge=True)
        else:
            model, tokenizer = models.load_chat_model()
        runtime.use_eager_attention_on_cpu(model)
        prompts = asked
        if system == "chat model with passages":
            prompts = [reading.rag_prompt(q, found(q)) for q in asked]
        if system == "reader":
            prompts = [reading.reading_prompt(q, found(q, 1)[0]) for q in asked]
        said = evaluation.generate_answers(model, tokenizer, prompts, max_new_tokens=48, batch_size=12)
    for row, question, answer in zip(rows, asked, said, strict=True):
        right = int(data.contains_key(answer, row["key"]))
        runner.add("13_answers", {
            "system": system, "id": row["id"], "question": question, "answer": " ".join(answer.split()), "right": right,
        })  # fmt: skip


SYSTEMS = ("untouched", "rude clerk", "chat model with passages", "reader", "nearest sentence", "marked words")


def main() -> None:
    planned = [{"part": "course", "model": m, "prompt": p} for m in MODELS for p in benchmark.PROMPTS]
    first = next(iter(benchmark.PROMPTS))
    planned += [
        {"part": part, "model": m, "prompt": first}
        for part in ("course, other options", "handbook") for m in ("untouched", "facts of the course")
    ]  # fmt: skip
    runner.run("13_leak", [{"passes": n} for n in (0, 1, LEAK_PASSES)], leak)
    for system in SYSTEMS:
        answers(system)
    prompts, sides = (*JUDGES, "nearest to the reference"), ("neither", "right", "wrong")
    runner.run("13_judge", [{"prompt": p, "longer": side} for p in prompts for side in sides], judge)
    runner.run("13_rules", planned, rules)
    runner.run("13_runs", [{"passes": n, "seed": s} for n, s in ((2, 0), (3, 0), (2, 1))], runs)


if __name__ == "__main__":
    main()
