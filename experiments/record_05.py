"""Reproduce the recorded runs of notebook 05: `make record NB=05`, about an hour on two cores.

All runs start from the shop's clerks, the packaged adapter `lecture-manners`, which is made first if its weights are missing.
05_held_out: PPO with five seeds and once without its penalty, judged on 144 replies to the 72 test messages. Its column
`start` has the checksum of the adapter. 05_ppo: every iteration of these runs. 05_replies: one reply of each run to every test
message. Each run is a process of its own, so that its peak memory is its own.
"""

import dataclasses
import time
from pathlib import Path

import runner

from lecture_utils import recipes, registry

LAYER = 20
FOLDER = Path(__file__).resolve().parent.parent / "build" / "record_05"
FREE = "PPO, no penalty, 20 rounds"
# What differs from the defaults of PPOConfig:
METHODS = {"start": {}, "PPO": {}, FREE: {"kl_coef": 0.0, "iterations": 20}}
PLANNED = [{"method": "start", "seed": 0}] + [{"method": "PPO", "seed": seed} for seed in range(5)]
PLANNED += [{"method": FREE, "seed": 0}]


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
    pairs = feedback.pairs_of_people("more")
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
    """Train, and judge two replies to each test message."""
    from lecture_utils import ppo, replies, runtime

    model, tokenizer, people = begin(seed)
    started = time.monotonic()
    config = ppo.PPOConfig(seed=seed, **METHODS[method])
    trainer = ppo.PPOTrainer(
        with_adapter(model, seed), tokenizer, lambda features, texts: people(features), LAYER, config
    )
    if method != "start":
        trainer.train([row["question"] for row in replies.pairs("more")])
    seconds = time.monotonic() - started
    for row in trainer.history:
        runner.add("05_ppo", {"method": method, "seed": seed} | rounded(row))
    rows = replies.pairs("test") * 2
    found = trainer.sample_answers([row["question"] for row in rows])
    keep(method, seed, rows, found.texts)
    return described(found.texts, rows, found.score, found.kl) | {
        "seconds": f"{seconds:.0f}", "peak_gb": f"{runtime.peak_memory_gb():.2f}", "start": start(),
    }  # fmt: skip


def rounded(row: dict) -> dict:
    names = ("reward", "KL", "clipped", "value loss", "tokens")
    return {"iteration": row["iteration"]} | {name: f"{row[name]:.3f}" for name in names}


def keep(method, seed, rows, texts) -> None:
    for row, text in list(zip(rows, texts, strict=True))[:72]:
        kept = {"question": row["question"], "situation": row["situation"], "reply": " ".join(text.split())}
        runner.add("05_replies", {"method": method, "seed": seed} | kept)


if __name__ == "__main__":
    runner.run("05_held_out", PLANNED, held_out, separately=True)
