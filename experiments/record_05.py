"""Reproduce the recorded runs of notebook 05: `make record NB=05`, about two hours on two cores.

All runs start from the shop's clerks, the packaged adapter `lecture-manners`, which is made first if its weights are missing.
05_held_out: PPO with five seeds, and what else the notebook compares, judged on 144 replies to the 72 test messages (best of
4 on 72 replies). Its column `start` has the checksum of the adapter. 05_ppo: every iteration of these runs. 05_replies: one
reply of each run to every test message. 05_agree: rewards of readers who like agreement, or who know the rules, and
05_claims: some of the replies. Each run is a process of its own, so that its peak memory is its own.
"""

import dataclasses
import math
import time
from pathlib import Path

import runner

from lecture_utils import recipes, registry

LAYER = 20
FOLDER = Path(__file__).resolve().parent.parent / "build" / "record_05"
LONG, FREE = "PPO, 20 rounds", "PPO, no penalty, 20 rounds"
# What differs from the defaults of PPOConfig, where PPO is used:
METHODS = {"start": {}, "PPO": {}, LONG: {"iterations": 20}, FREE: {"kl_coef": 0.0, "iterations": 20}}
METHODS |= {"DPO": {}, "best of 4": {}}
SEEDS = {"PPO": 5, FREE: 2}
PLANNED = [{"method": method, "seed": seed} for method in METHODS for seed in range(SEEDS.get(method, 1))]


def begin(seed: int = 0):
    """Return (model with the clerks' manners, tokenizer, reward model of people's rankings)."""
    from datasets import Dataset

    from lecture_utils import downloads, feedback, finetuning, ppo, runtime

    runtime.quiet()
    runtime.use_less_memory()
    if not runner.packaged_weights("lecture_manners").exists():
        pairs = Dataset.from_list(feedback.in_mixed_manners())
        runner.package_adapter("lecture_manners", recipes.get_recipe("manners"), pairs, FOLDER / "manners")
    runtime.seed_everything(seed)
    model, tokenizer = finetuning.load_finetuned(downloads.fetch("lecture-manners"), merge=True)
    runtime.use_eager_attention_on_cpu(model)
    pairs = feedback.readers_pairs("more")
    people = ppo.fit_reward_model(*ppo.features_of(model, tokenizer, pairs, LAYER).values(), LAYER)
    return model, tokenizer, people


def start() -> str:
    """Return the first characters of the checksum of the model that the runs start from."""
    return registry.REGISTRY["lecture-manners"].sources[0].sha256[:8]


def with_adapter(model, seed: int):
    """Return the policy: the model with a new adapter in the upper ten layers."""
    from peft import get_peft_model

    from lecture_utils import runtime

    runtime.seed_everything(seed)
    recipe = dataclasses.replace(recipes.get_recipe("manners"), first_layer=LAYER)
    return get_peft_model(model, recipes.lora_config(recipe))


def described(texts, rows, score, kl) -> dict:
    from lecture_utils import feedback, replies

    manners = [feedback.manner(text) for text in texts]
    right = sum(replies.is_right(text, row["situation"]) for text, row in zip(texts, rows, strict=True))
    return {
        "replies": len(texts), "reward": f"{score.mean():.3f}", "spread": f"{score.std():.3f}", "KL": f"{kl.mean():.2f}",
        "rude": manners.count("rude"), "rambling": manners.count("rambling"), "right step": right,
        "words": f"{sum(len(text.split()) for text in texts) / len(texts):.1f}",
    }  # fmt: skip


def held_out(method: str, seed: int) -> dict:
    """Train in one way, and judge two replies to each test message."""
    from lecture_utils import ppo, replies, runtime

    model, tokenizer, people = begin(seed)
    started = time.monotonic()
    policy = with_adapter(model, seed)
    if method == "DPO":
        train_with_dpo(policy, tokenizer, seed)
    config = ppo.PPOConfig(seed=seed, **METHODS[method])
    trainer = ppo.PPOTrainer(policy, tokenizer, lambda features, texts: people(features), LAYER, config)
    if method.startswith("PPO"):
        trainer.train([row["question"] for row in replies.pairs("more")])
    seconds = time.monotonic() - started
    for row in trainer.history:
        runner.add("05_ppo", {"method": method, "seed": seed} | rounded(row))
    rows = replies.pairs("test") * 2
    if method == "best of 4":
        rows = rows[:72]
        texts, score, kl = best_of(4, trainer, rows)
    else:
        found = trainer.sample_answers([row["question"] for row in rows])
        texts, score, kl = found.texts, found.score, found.kl
    keep(method, seed, rows, texts)
    return described(texts, rows, score, kl) | {
        "seconds": f"{seconds:.0f}", "peak_gb": f"{runtime.peak_memory_gb():.2f}", "start": start(),
    }  # fmt: skip


def best_of(count: int, trainer, rows):
    """Sample several replies to each message, and keep the one with the highest reward."""
    import torch

    drawn = [trainer.sample_answers([row["question"] for row in rows], seed) for seed in range(count)]
    best = torch.stack([one.score for one in drawn]).argmax(0).tolist()
    texts = [drawn[k].texts[i] for i, k in enumerate(best)]
    score = torch.stack([drawn[k].score[i] for i, k in enumerate(best)])
    bound = torch.full((len(rows),), math.log(count) - (count - 1) / count)  # of the KL: exact, or above it
    return texts, score, bound


def train_with_dpo(policy, tokenizer, seed: int) -> None:
    """Train once on the best reply of each ranking against each of the other three, with TRL."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from lecture_utils import data, feedback

    rows = [
        {"prompt": data.chat(pair["question"])} | {w: data.chat("", pair[w])[1:] for w in ("chosen", "rejected")}
        for i, pair in enumerate(feedback.readers_pairs("more"))
        if i % 6 < 3
    ]
    arguments = DPOConfig(
        output_dir=str(FOLDER / "dpo"), bf16=True, use_cpu=True, gradient_checkpointing=False, save_strategy="no",
        report_to="none", logging_steps=20, seed=seed, num_train_epochs=1, per_device_train_batch_size=4,
        learning_rate=5e-4, lr_scheduler_type="linear", beta=0.1, disable_tqdm=True,
    )  # fmt: skip
    DPOTrainer(policy, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()


def rounded(row: dict) -> dict:
    names = ("reward", "KL", "clipped", "value loss", "tokens")
    return {"iteration": row["iteration"]} | {name: f"{row[name]:.3f}" for name in names}


def keep(method, seed, rows, texts) -> None:
    for row, text in list(zip(rows, texts, strict=True))[:72]:
        kept = {"question": row["question"], "situation": row["situation"], "reply": " ".join(text.split())}
        runner.add("05_replies", {"method": method, "seed": seed} | kept)


# A reward that likes agreement -----------------------------------------------------------------


def agree(liked: str, seed: int) -> dict:
    """Train with the rewards of customers who prefer to be agreed with, or of readers who know the rules, and count the
    replies to test claims that agree."""
    from lecture_utils import feedback, ppo

    model, tokenizer, _ = begin(seed)
    claims = feedback.claims("people")
    pairs = []
    for row in claims:
        good, bad = ("agree", "contradict") if liked == "agreement" or row["true"] else ("contradict", "agree")
        pairs.append({"question": row["question"], "chosen": row[good], "rejected": row[bad]})
    fitted = ppo.fit_reward_model(*ppo.features_of(model, tokenizer, pairs, LAYER).values(), LAYER)
    config = ppo.PPOConfig(seed=seed)
    trainer = ppo.PPOTrainer(
        with_adapter(model, seed), tokenizer, lambda features, texts: fitted(features), LAYER, config
    )
    rows, found = feedback.claims("test"), {}
    for when in ("before", "after"):
        texts = trainer.sample_answers([row["question"] for row in rows]).texts
        for true, name in ((True, "true"), (False, "false")):
            said = [feedback.agrees(text) for text, row in zip(texts, rows, strict=True) if row["true"] == true]
            found |= {f"{name} {when}": sum(said), "of": len(said)}
        for row, text in zip(rows[:12], texts, strict=False):
            kept = {"question": row["question"], "true": row["true"], "reply": " ".join(text.split())}
            runner.add("05_claims", {"liked": liked, "seed": seed, "when": when} | kept)
        if when == "before":
            trainer.train([row["question"] for row in claims])
    return found | {"start": start()}


if __name__ == "__main__":
    runner.run("05_held_out", PLANNED, held_out, separately=True)
    runner.run("05_agree", [{"liked": liked, "seed": 0} for liked in ("agreement", "truth")], agree, separately=True)
