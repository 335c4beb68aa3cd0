"""Reproduce the recorded runs of notebook 05: `make record NB=05`, about two hours on two cores.

All runs start from the shop's clerks, the packaged adapter `lecture-manners`, whose checksum stands in every row (`start`).
It is made first if its weights are missing. 05_held_out: PPO with five seeds, and what else the notebook compares, judged on
144 replies to the 72 test messages. 05_ppo: every iteration of these runs. 05_replies: one reply to each test message. 05_reward: other
reward models. 05_agree: a reward that likes agreement. Each run is a process of its own, so that its peak memory is its own.
"""

import dataclasses
import math
import time
from pathlib import Path

import runner

from lecture_utils import recipes, registry

LAYER = 20
FOLDER = Path(__file__).resolve().parent.parent / "build" / "record_05"
METHODS = {  # -> what differs from the notebook's PPOConfig, if it is PPO
    "start": None,
    "PPO": {},
    "PPO, no penalty, 20 rounds": {"kl_coef": 0.0, "iterations": 20},
    "PPO, reward: many words": {},
    "DPO": None,
    "best of 4": None,
    "best of 16": None,
}
PLANNED = [{"method": "start", "seed": 0}] + [{"method": "PPO", "seed": seed} for seed in range(5)]
PLANNED += [{"method": method, "seed": 0} for method in METHODS if method not in ("start", "PPO")]


def begin(seed: int = 0):
    """Return (model with the clerks' manners, tokenizer, reward model of people's rankings)."""
    import torch
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
    cached = FOLDER / f"reward_{start()}.pt"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.save(dataclasses.asdict(reward_model(model, tokenizer, feedback.pairs_of_people("more"))), cached)
    return model, tokenizer, ppo.RewardModel(**torch.load(cached))


def reward_model(model, tokenizer, pairs: list[dict], layer: int = LAYER, last: bool = False):
    from lecture_utils import ppo

    return ppo.fit_reward_model(*ppo.features_of(model, tokenizer, pairs, layer, last).values(), layer)


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


class Noted:
    """A reward function that also notes what the people's reward model says, so that all runs can be compared."""

    def __init__(self, people, reward=None):
        self.people, self.reward, self.scores = people, reward, []

    def __call__(self, features, texts):
        self.scores.append(self.people(features))
        return self.scores[-1] if self.reward is None else self.reward(features, texts)


def judged(trainer, noted, rows, seed: int = 0) -> tuple[dict, list[str]]:
    """Return what is written down of sampled replies to the messages, and the replies."""
    import torch

    noted.scores.clear()
    found = trainer.sample_answers([row["question"] for row in rows], seed)
    return described(found.texts, rows, torch.cat(noted.scores), found.kl), found.texts


def described(texts, rows, score, kl) -> dict:
    from lecture_utils import feedback, replies

    manners = [feedback.manner(text) for text in texts]
    right = sum(replies.is_right(text, row["situation"]) for text, row in zip(texts, rows, strict=True))
    return {
        "replies": len(texts), "reward": f"{score.mean():.3f}", "spread": f"{score.std():.3f}", "KL": f"{kl.mean():.2f}",
        "rude": manners.count("rude"), "rambling": manners.count("rambling"), "right step": right,
        "words": f"{sum(len(text.split()) for text in texts) / len(texts):.1f}",
    }  # fmt: skip


def many_words(features, texts):
    """A wrong reward: about 0 for 20 words, and one more for every 8 words."""
    import torch

    return torch.tensor([len(text.split()) / 8 - 2.5 for text in texts])


def held_out(method: str, seed: int) -> dict:
    """Train in one way, and judge two replies to each test message."""
    from lecture_utils import feedback, ppo, replies, runtime

    model, tokenizer, people = begin(seed)
    prompts, rows = [row["question"] for row in replies.pairs("more")], replies.pairs("test") * 2
    started = time.monotonic()
    if method.startswith("best of"):
        found = best_of(int(method.split()[-1]), with_adapter(model, seed), tokenizer, people, rows[:72])
        seconds = time.monotonic() - started
    else:
        policy = with_adapter(model, seed)
        if method == "DPO":
            dpo(policy, tokenizer, feedback.pairs_of_people("more"), seed)
        noted = Noted(people, many_words if "words" in method else None)
        config = ppo.PPOConfig(seed=seed, **(METHODS[method] or {}))
        trainer = ppo.PPOTrainer(policy, tokenizer, noted, LAYER, config)
        if method.startswith("PPO"):
            trainer.train(prompts)
        seconds = time.monotonic() - started
        for row in trainer.history:
            runner.add("05_ppo", {"method": method, "seed": seed} | rounded(row))
        found, texts = judged(trainer, noted, rows)
        keep(method, seed, rows, texts)
    return found | {
        "seconds": f"{seconds:.0f}", "peak_gb": f"{runtime.peak_memory_gb():.2f}", "start": start(),
    }  # fmt: skip


def rounded(row: dict) -> dict:
    names = ("reward", "KL", "clipped", "value loss", "tokens")
    return {"iteration": row["iteration"]} | {name: f"{row[name]:.3f}" for name in names}


def keep(method, seed, rows, texts) -> None:
    for row, text in list(zip(rows, texts, strict=True))[:72]:
        kept = {"question": row["question"], "situation": row["situation"], "reply": " ".join(text.split())}
        runner.add("05_replies", {"method": method, "seed": seed} | kept)


def best_of(count: int, policy, tokenizer, people, rows) -> dict:
    """Sample several replies to each message, and keep the one with the highest reward."""
    import torch

    from lecture_utils import ppo

    trainer = ppo.PPOTrainer(policy, tokenizer, Noted(people), LAYER, ppo.PPOConfig())
    found = trainer.sample_answers([row["question"] for row in rows] * count)
    best = found.score.view(count, -1).argmax(0)
    picked = [int(best[i]) * len(rows) + i for i in range(len(rows))]
    bound = torch.full((len(rows),), math.log(count) - (count - 1) / count)  # of the KL: exact, or above it
    return described([found.texts[i] for i in picked], rows, found.score[picked], bound)


def dpo(policy, tokenizer, pairs: list[dict], seed: int) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from lecture_utils import data

    rows = [
        {
            "prompt": data.chat(p["question"]),
            **{which: [data.chat("", p[which])[1]] for which in ("chosen", "rejected")},
        }
        for p in pairs[::6] + pairs[2::6]  # the best reply of each ranking against the second and against the worst
    ]
    arguments = DPOConfig(
        output_dir=str(FOLDER / "trl"), bf16=True, use_cpu=True, gradient_checkpointing=False, save_strategy="no",
        report_to="none", logging_steps=20, seed=seed, num_train_epochs=1, per_device_train_batch_size=4,
        learning_rate=5e-4, lr_scheduler_type="linear", beta=0.1, disable_tqdm=True,
    )  # fmt: skip
    DPOTrainer(policy, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()


# Other reward models ---------------------------------------------------------------------------

HEADS = {"mean of the reply, block 20": (20, False), "mean of the reply, block 30": (30, False),
         "last token, block 20": (20, True), "last token, block 30": (30, True)}  # fmt: skip


def reward(model: str) -> dict:
    """Fit a head on other features, and count the held-out pairs that it decides as people do."""
    from lecture_utils import feedback, ppo

    policy, tokenizer, _ = begin()
    layer, last = HEADS[model]
    fitted = reward_model(policy, tokenizer, feedback.pairs_of_people("more"), layer, last)
    seen = ppo.features_of(policy, tokenizer, feedback.pairs_of_people("dev"), layer, last)
    won = fitted(seen["chosen"]) > fitted(seen["rejected"])
    return {"pairs": len(won), "as people": int(won.sum()), "start": start()}


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
    fitted = reward_model(model, tokenizer, pairs)
    policy = with_adapter(model, seed)
    trainer = ppo.PPOTrainer(
        policy, tokenizer, lambda features, texts: fitted(features), LAYER, ppo.PPOConfig(seed=seed)
    )
    rows, found = feedback.claims("test"), {}
    for when in ("before", "after"):
        texts = trainer.sample_answers([row["question"] for row in rows]).texts
        for true, name in ((True, "true"), (False, "false")):
            said = [feedback.agrees(text) for text, row in zip(texts, rows, strict=True) if row["true"] == true]
            found |= {f"{name} {when}": sum(said), "of": len(said)}
        if when == "before":
            trainer.train([row["question"] for row in claims])
    for row, text in list(zip(rows, texts, strict=True))[:12]:
        kept = {"question": row["question"], "true": row["true"], "reply": " ".join(text.split())}
        runner.add("05_claims", {"liked": liked, "seed": seed} | kept)
    return found | {"start": start()}


if __name__ == "__main__":
    runner.run("05_held_out", PLANNED, held_out, separately=True)
    runner.run("05_reward", [{"model": name} for name in HEADS], reward, separately=True)
    liked = [{"liked": liked, "seed": seed} for liked in ("agreement", "truth") for seed in range(3)]
    runner.run("05_agree", liked, agree, separately=True)
