"""Reproduce the recorded runs of notebook 04: `make record NB=04`, about an hour on two cores.

04_replies: the shop's replies, written by the chat model without and with its house style in the prompt, and after
finetuning. Learning rates are compared on the development messages, and the notebook's way is judged on the test messages
with three seeds. 04_passes: the losses after each of four passes. 04_ends: whether answers end when the labels of the end
tokens are kept or lost. 04_data_size: the chat model is finetuned on more and more of the lecture's facts (recipe
laptop-facts), and once in full, in fp32.
"""

import dataclasses
import random
import tempfile

import runner

PLANNED = [{"method": "adapter", "pairs": n} for n in (50, 100, 200, 400, 800, 1_260)]
PLANNED += [{"method": "all parameters", "pairs": 1_260}]
LEARNING_RATE = {"all parameters": 2e-4}

RULES = (
    "You answer the customers of a web shop. Reply in exactly two sentences. In the first, be polite and name the number of "
    "the order. In the second, say what happens next."
)
ENDS = {  # the arguments of ``example_rows``
    "untouched": {},
    "answers with their ends": {},
    "answers without ends": {"end": False},
    "everything without ends": {"end": False, "everything": True},
}
NAMES = ("method", "rate", "seed", "split")
REPLIES = [(how, 0, 0, split) for how in ("untouched", "rules", "rules and examples") for split in ("dev", "test")]
REPLIES += [("ten layers", rate, 0, "dev") for rate in (3e-4, 1e-3, 3e-3)]
REPLIES += [("LoRA", rate, 0, "dev") for rate in (1e-3, 3e-3, 1e-2)]
REPLIES += [("ten layers", 1e-3, seed, "test") for seed in range(3)]


def example_rows(tokenizer, pairs, end: bool = True, everything: bool = False) -> list:
    """Return token ids and labels of each pair. end: whether end tokens have a label. everything: whether the message
    has labels, too, as in the 2023 lecture's code."""
    from lecture_utils import data

    rows = []
    for pair in pairs:
        prompt, answer = data.token_ids(tokenizer, pair["question"], pair["answer"])
        labels = (prompt if everything else [-100] * len(prompt)) + answer
        stop = tokenizer.eos_token_id
        rows.append((prompt + answer, labels if end else [-100 if x == stop else x for x in labels]))
    return rows


def load(method: str):
    """Return the model whose upper ten layers, or whose LoRA matrices, can be trained (in fp32), and its tokenizer."""
    from peft import LoraConfig, get_peft_model

    from lecture_utils import models, runtime

    model, tokenizer = models.load_chat_model(dtype=runtime.compute_dtype())
    runtime.use_eager_attention_on_cpu(model)
    model.requires_grad_(False)
    if method == "LoRA":
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    else:
        for layer in model.model.layers[-10:]:
            layer.float().requires_grad_(True)
    return model, tokenizer


def train(model, tokenizer, rows, rate: float, seed: int, batch: int = 4, passes: int = 1, each=None) -> None:
    """Train for some passes over the rows, as the notebook does (which also rounds the lengths up), with rows of similar length
    in a batch. ``each`` is called after every pass."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from lecture_utils import evaluation, training

    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    rows = sorted(rows, key=lambda row: len(row[0]))
    once, parts = [rows[i : i + batch] for i in range(0, len(rows), batch)], []
    for number in range(passes):
        random.Random(seed + number).shuffle(once)
        parts += once
    model.train()
    for step, part in enumerate(parts):
        ids = pad_sequence([torch.tensor(ids) for ids, _ in part], True, tokenizer.pad_token_id)
        labels = pad_sequence([torch.tensor(labels) for _, labels in part], True, -100)
        mask = pad_sequence([torch.ones(len(ids)) for ids, _ in part], True, 0)
        with training.autocast():
            loss, count = evaluation.completion_loss(model, ids, mask, labels)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.param_groups[0]["lr"] = rate * min(1, (step + 1) / 10) * (1 - step / len(parts))
        adam.step()
        adam.zero_grad()
        if each and (step + 1) % len(once) == 0:
            each(model.eval())
            model.train()
    model.eval()


def documentation_loss(model, tokenizer, tokens: int = 16_384) -> float:
    """Return the model's loss in nats per token on held-out documentation, in windows of 128 tokens."""
    import torch

    from lecture_utils import corpus, training

    text = "\n\n".join(corpus.load().held_out)[: 5 * tokens]
    rows = torch.tensor(tokenizer(text)["input_ids"][:tokens]).view(-1, 128)
    with torch.inference_mode(), training.autocast():
        losses = [model(part, labels=part).loss.item() for part in rows.split(8)]
    return sum(losses) / len(losses)


def judged(model, tokenizer, split: str, start=()) -> dict:
    """Return how many replies to a split obey each rule, all rules, and name the right next step."""
    from lecture_utils import data, evaluation, replies, training

    pairs = replies.pairs(split)
    prompts = [[*start, *data.chat(pair["question"])] for pair in pairs]
    with training.autocast():
        answers = evaluation.generate_answers(model, tokenizer, prompts, max_new_tokens=64, batch_size=12)
    return {"messages": len(pairs)} | replies.judge(answers, pairs)


def reply(method: str, rate: float, seed: int, split: str) -> dict:
    import torch

    from lecture_utils import data, models, replies, runtime

    torch.manual_seed(seed)
    if rate:
        model, tokenizer = load(method)
        train(model, tokenizer, example_rows(tokenizer, replies.pairs("train", seed=seed)), rate, seed)
        start = []
    else:
        model, tokenizer = models.load_chat_model(dtype=runtime.compute_dtype())
        shots = [data.chat(pair["question"], pair["answer"]) for pair in replies.pairs("train")[:4]]
        start = [] if method == "untouched" else [{"role": "system", "content": RULES}]
        start += sum(shots, []) if method == "rules and examples" else []
    found = judged(model, tokenizer, split, start)
    return found | {"documentation": f"{documentation_loss(model, tokenizer):.2f}"}


def passes(count: int) -> None:
    """Train for several passes and add a row after each: the losses on examples and on development messages."""
    import torch

    from lecture_utils import evaluation, replies, training

    torch.manual_seed(0)
    model, tokenizer = load("ten layers")
    pairs, dev, rows = replies.pairs("train"), replies.pairs("dev"), []

    def each(model) -> None:
        with training.autocast():
            losses = [evaluation.answer_loss(model, tokenizer, part, batch_size=6) for part in (pairs[:72], dev)]
        row = {"passes": len(rows), "trained on": f"{losses[0]:.3f}", "held out": f"{losses[1]:.3f}"}
        rows.append(row)
        runner.add("04_passes", row | {"right step": judged(model, tokenizer, "dev")["right step"]})

    each(model.eval())
    train(model, tokenizer, example_rows(tokenizer, pairs), 1e-3, 0, passes=count, each=each)


def ends(labels: str) -> dict:
    """Train the chat model with other labels, and count the replies to the development messages that end by themselves."""
    import torch

    from lecture_utils import data, replies, training

    torch.manual_seed(0)
    model, tokenizer = load("ten layers")
    if labels != "untouched":
        train(model, tokenizer, example_rows(tokenizer, replies.pairs("train"), **ENDS[labels]), 1e-3, 0)
    pairs, ended = replies.pairs("dev"), 0
    for pair in pairs:
        prompt = tokenizer(data.render(tokenizer, pair["question"])[0], return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode(), training.autocast():
            out = model.generate(**prompt, max_new_tokens=96, do_sample=False)
        ended += tokenizer.eos_token_id in out[0, prompt["input_ids"].shape[1] :].tolist()
    return {"messages": len(pairs), "ended": ended}


def finetune(method: str, pairs: int) -> dict:
    import torch

    from lecture_utils import data, evaluation, finetuning, models, recipes, runtime

    qa = data.lecture_qa()
    recipe = recipes.get_recipe("laptop-facts")
    train = qa["train"].shuffle(seed=0).select(range(pairs))
    if method == "adapter":
        model, tokenizer, trainer = runner.finetune(recipe, train)
    else:
        runtime.seed_everything(0)
        model, tokenizer = models.load_chat_model(recipe.model, dtype=torch.float32)
        recipe = dataclasses.replace(recipe, learning_rate=LEARNING_RATE[method])
        with tempfile.TemporaryDirectory() as folder:
            trainer = finetuning.completion_trainer(
                model=model,
                args=recipes.training_arguments(recipe, folder, save_strategy="no", disable_tqdm=True),
                train_dataset=finetuning.tokenize_pairs(train, tokenizer, recipe),
                processing_class=tokenizer,
            )
            trainer.train()
    found = {"steps": trainer.state.global_step, "trained": models.count_parameters(model)[0]}
    found |= runner.scores(evaluation.evaluate(model, tokenizer, qa["test"]))
    return found | {"peak_gb": f"{runtime.peak_memory_gb():.2f}"}


if __name__ == "__main__":
    runner.run("04_replies", [dict(zip(NAMES, row, strict=True)) for row in REPLIES], reply, separately=True)
    runner.run("04_ends", [{"labels": labels} for labels in ENDS], ends, separately=True)
    if not runner.done("04_passes"):
        passes(4)
    runner.run("04_data_size", PLANNED, finetune, separately=True)
