"""Reproduce the recorded runs of notebook 05: `make record NB=05`, about an hour on two cores.

All start from the model with three manners, `lecture-manners`, which comes with the package (it is made
if it is not there; its checksum then belongs into lecture_utils/registry.py). The runs recorded on 25
November 2026 started from an earlier finetuning on the same pairs. Each run is
a process of its own, so that its peak memory is its own. Interrupted, it goes on with the next
run that is not in the CSVs yet.
"""

import dataclasses
import math
import random
import subprocess
import sys
import time
from pathlib import Path

import runner

from lecture_utils import downloads, recipes

LAYER = 20
FOLDER = Path(__file__).resolve().parent.parent / "build" / "record_05"
CONFIGS = {  # run -> what differs from the notebook's configuration
    "seed 0": {}, "seed 1": {"seed": 1}, "seed 2": {"seed": 2}, "no KL": {"kl_coef": 0.0},
    "longer": {"iterations": 25}, "longer, no KL": {"kl_coef": 0.0, "iterations": 25},
    "KL, in haste": {"learning_rate": 3e-3, "iterations": 25}, "no KL, in haste": {"kl_coef": 0.0, "learning_rate": 3e-3, "iterations": 25},
    "reward: words": {}, "second round": {},
}  # fmt: skip


def main() -> None:
    if len(sys.argv) == 3:
        kind, name = sys.argv[1:]
        return {"head": head, "adapter": adapter, "ppo": run_ppo, "method": method}[kind](name)
    heads = {row["method"] for row in runner.done("05_reward")}
    held = {row["run"] for row in runner.done("05_held_out")}
    methods = {row["method"] for row in runner.done("05_methods")}
    runs = [("head", name) for name in HEADS if name not in heads]
    if ADAPTER not in heads:
        runs.append(("adapter", ADAPTER))
    runs += [("ppo", name) for name in CONFIGS if name not in held]
    runs += [("method", name) for name in METHODS if name not in methods]
    for kind, name in runs:
        print(f"{kind}: {name}", flush=True)
        subprocess.run([sys.executable, __file__, kind, name], check=True)


# What all runs share ------------------------------------------------------------------------


def begin(seed: int = 0):
    """Return (model with three manners, tokenizer)."""
    from datasets import Dataset

    from lecture_utils import data, feedback, finetuning, runtime

    runtime.quiet()
    runtime.use_less_memory()
    if not runner.packaged_weights("lecture_manners").exists():
        helpful = [r for r in data.preferences("train") if r["kind"] == "helpfulness"]
        pairs = Dataset.from_list(feedback.in_mixed_manners(helpful))
        runner.package_adapter("lecture_manners", recipes.get_recipe("manners"), pairs, FOLDER / "manners")
    runtime.seed_everything(seed)
    model, tokenizer = finetuning.load_finetuned(downloads.fetch("lecture-manners"), merge=True)
    runtime.use_eager_attention_on_cpu(model)
    return model, tokenizer


def read(model, tokenizer, rows: list[dict], layer: int = LAYER, last: bool = False) -> dict:
    """Return features of the chosen and the rejected answers, (rows, width) each."""
    from lecture_utils import ppo

    def of(which):
        return ppo.answer_features(model, tokenizer, [(r["prompt"], r[which]) for r in rows], layer, last)

    return {"chosen": of("chosen"), "rejected": of("rejected")}


def reward_model(model, tokenizer):
    from lecture_utils import data, ppo

    return ppo.fit_reward_model(*read(model, tokenizer, data.preferences("train")).values(), LAYER)


def prompts() -> tuple[list[str], list[str]]:
    """Return the prompts to learn on, in the notebook's order, and the 64 held out."""
    from lecture_utils import data

    train, test = ([r["prompt"] for r in data.preferences(s) if r["kind"] == "helpfulness"] for s in ("train", "test"))
    random.Random(0).shuffle(train)
    return train, test[:64]


def with_adapter(model):
    from peft import get_peft_model

    return get_peft_model(model, recipes.lora_config(dataclasses.replace(recipes.get_recipe("manners"), rank=8)))


def peak_gb() -> str:
    from lecture_utils import runtime

    return f"{runtime.peak_memory_gb():.2f}"


class Judged:
    """A reward function that also notes what the first reward model says, so that all runs are comparable."""

    def __init__(self, first, reward=None):
        self.first, self.reward, self.noted = first, reward, []

    def __call__(self, features, texts):
        self.noted.append(self.first(features))
        return self.noted[-1] if self.reward is None else self.reward(features, texts)

    def sample_answers(self, run, prompts) -> dict:
        """Return what is written down of sampled answers to ``prompts``."""
        import torch

        self.noted.clear()
        found = run.sample_answers(prompts)
        return self.described(found.texts, torch.cat(self.noted), found.kl) | {"own": f"{found.score.mean():.2f}"}

    @staticmethod
    def described(texts, score, kl) -> dict:
        from lecture_utils import feedback

        share = {f.__name__: sum(map(f, texts)) / len(texts) for f in (feedback.rude, feedback.rambling)}
        return {
            "reward": f"{score.mean():.2f}", "spread": f"{score.std():.2f}", "KL": f"{kl.mean():.1f}",
            "rude": f"{share['rude']:.2f}", "rambling": f"{share['rambling']:.2f}",
            "points": f"{sum(map(feedback.judge, texts)) / len(texts):.2f}",
            "words": f"{sum(len(text.split()) for text in texts) / len(texts):.1f}",
        }  # fmt: skip


# Reward models ------------------------------------------------------------------------------

HEADS = {"head on the mean, block 20": ("mean", 20), "head on the mean, block 30": ("mean", 30),
         "head on the last token, block 20": ("last", 20)}  # fmt: skip
ADAPTER = "head and adapter (TRL)"


def decided(name: str, won: list[bool], seconds: float) -> None:
    from lecture_utils import data

    test = data.preferences("test")
    by = {flaw: [w for w, r in zip(won, test, strict=True) if r["flaw"] == flaw] for flaw in ("rude", "wrong")}
    row = {"method": name, "all": f"{sum(won) / len(won):.3f}"}
    row |= {flaw: f"{sum(found) / len(found):.3f}" for flaw, found in by.items()}
    runner.add("05_reward", row | {"seconds": f"{seconds:.0f}", "peak_gb": peak_gb()})


def head(name: str) -> None:
    from lecture_utils import data, ppo

    where, layer = HEADS[name]
    model, tokenizer = begin()
    started = time.monotonic()
    seen = read(model, tokenizer, data.preferences("train"), layer, where == "last")
    judge = ppo.fit_reward_model(seen["chosen"], seen["rejected"], layer)
    seconds = time.monotonic() - started
    held = read(model, tokenizer, data.preferences("test"), layer, where == "last")
    decided(name, (judge(held["chosen"]) > judge(held["rejected"])).tolist(), seconds)


def adapter(name: str) -> None:
    """All of the reward model but the frozen weights learns: an adapter in every block, and the head."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    from lecture_utils import data

    chat, tokenizer = begin()
    chat.save_pretrained(FOLDER / "manners" / "merged")
    del chat
    model = AutoModelForSequenceClassification.from_pretrained(
        FOLDER / "manners" / "merged", num_labels=1, dtype=torch.bfloat16
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    train, test = data.preferences("train"), data.preferences("test")

    def ids(row, which):
        return sum(data.token_ids(tokenizer, row["prompt"], row[which]), [])

    rows = [{"chosen_ids": ids(r, "chosen"), "rejected_ids": ids(r, "rejected")} for r in train]
    trainer = RewardTrainer(
        model,
        RewardConfig(
            output_dir=str(FOLDER / "trl"), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=5e-4,
            lr_scheduler_type="linear", bf16=True, use_cpu=True, gradient_checkpointing=False, save_strategy="no",
            report_to="none", logging_steps=20, max_length=None, seed=0,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="SEQ_CLS"),
    )  # fmt: skip
    started = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - started
    won = []
    with torch.inference_mode():
        for row in test:
            scores = [
                trainer.model(input_ids=torch.tensor([ids(row, which)])).logits.item()
                for which in ("chosen", "rejected")
            ]
            won.append(scores[0] > scores[1])
    decided(name, won, seconds)


# PPO ----------------------------------------------------------------------------------------


def words(features, texts):
    """The wrong reward: about 0 for 20 words, one more for 8 more."""
    import torch

    return torch.tensor([len(text.split()) / 8 - 2.5 for text in texts])


def run_ppo(name: str) -> None:
    from peft import PeftModel

    from lecture_utils import ppo

    plan = ppo.PPOConfig(**CONFIGS[name])
    model, tokenizer = begin(plan.seed)
    first = reward_model(model, tokenizer)
    train, held = prompts()
    reward = words if name == "reward: words" else None
    if name == "second round":
        policy = PeftModel.from_pretrained(model, FOLDER / "seed 0", is_trainable=True)
        reward, found = second_reward(policy, tokenizer, first, train)
    else:
        policy = with_adapter(model)
    judged = Judged(first, reward)
    run = ppo.PPOTrainer(policy, tokenizer, judged, LAYER, plan)
    before = judged.sample_answers(run, held)
    started = time.monotonic()
    run.train(train)
    seconds = f"{time.monotonic() - started:.0f}"
    after = judged.sample_answers(run, held)
    policy.save_pretrained(FOLDER / name)
    if name == "second round":
        runner.add("05_rounds", found)
    texts = run.sample_answers(held[:4]).texts
    for row in run.history:
        kept = {"run": name, "round": row["round"]}
        kept |= {key: f"{row[key]:.3f}" for key in ("reward", "KL", "clipped", "value loss", "tokens")}
        runner.add("05_ppo", kept)
    for prompt, text in zip(held, texts, strict=False):
        runner.add("05_answers", {"run": name, "prompt": prompt, "answer": " ".join(text.split())})
    for when, seen in (("before", before), ("after", after)):
        runner.add("05_held_out", {"run": name, "when": when} | seen | {"seconds": seconds, "peak_gb": peak_gb()})
    print(f"   before {before}\n   after  {after}", flush=True)


def second_reward(policy, tokenizer, first, train: list[str]):
    """New answers, ranked by the scripted annotator, and a reward model of the old pairs and the new."""
    import torch

    from lecture_utils import alignment, data, feedback, ppo

    asked = train[:96] * 4
    run = ppo.PPOTrainer(policy, tokenizer, Judged(first), LAYER, ppo.PPOConfig())
    texts = run.sample_answers(asked, seed=7).texts
    rows = []
    for prompt in train[:96]:
        answers = {text for p, text in zip(asked, texts, strict=True) if p == prompt and text}
        ranked = sorted(answers, key=lambda text: (-feedback.judge(text), text))
        for better, worse in alignment.ranked_pairs(ranked):
            if feedback.judge(better) > feedback.judge(worse):
                rows.append({"prompt": prompt, "chosen": better, "rejected": worse})
    with policy.disable_adapter():
        old, new = read(policy, tokenizer, data.preferences("train")), read(policy, tokenizer, rows)
    both = [torch.cat((old[which], new[which])) for which in ("chosen", "rejected")]
    second = ppo.fit_reward_model(*both, LAYER)
    decided = (first(new["chosen"]) > first(new["rejected"])).float().mean()
    found = {"asked": 96, "new_pairs": len(rows), "first_decides": f"{decided:.2f}"}
    return (lambda features, texts: second(features)), found


# The other methods --------------------------------------------------------------------------

METHODS = ("best of 4", "best of 16", "DPO (TRL)", "RLOO (TRL)", "GRPO (TRL), ten words")


def method(name: str) -> None:
    import torch

    from lecture_utils import ppo

    model, tokenizer = begin()
    first = reward_model(model, tokenizer)
    train, held = prompts()
    row, obeyed = None, ("", "")
    started = time.monotonic()
    if name.startswith("best of"):
        count = int(name.split()[-1])
        run = ppo.PPOTrainer(with_adapter(model), tokenizer, Judged(first), LAYER, ppo.PPOConfig())
        found = run.sample_answers(held * count)
        best = found.score.view(count, -1).argmax(0)
        picked = [int(best[i]) * len(held) + i for i in range(len(held))]
        bound = torch.full((len(held),), math.log(count) - (count - 1) / count)  # of the KL: exact, or above it
        row = Judged.described([found.texts[i] for i in picked], found.score[picked], bound)
        networks, samples = "policy, reward", count * len(held)
    else:
        policy = with_adapter(model)
        train_by = {"DPO": dpo, "RLOO": rloo, "GRPO": grpo}[name[:4].strip()]
        networks, samples, *obeyed = train_by(policy, tokenizer, first, train, held)
    seconds = time.monotonic() - started
    if row is None:
        judged = Judged(first)
        row = judged.sample_answers(ppo.PPOTrainer(policy, tokenizer, judged, LAYER, ppo.PPOConfig()), held)
        row.pop("own")
    row = {"method": name, "networks": networks, "samples": samples, "seconds": f"{seconds:.0f}"} | row
    row |= {"peak_gb": peak_gb(), "obeyed_before": obeyed[0], "obeyed_after": obeyed[1]}
    runner.add("05_methods", row)
    print(f"   {row}", flush=True)


def settings(**more) -> dict:
    return dict(
        output_dir=str(FOLDER / "trl"), bf16=True, use_cpu=True, gradient_checkpointing=False, save_strategy="no",
        report_to="none", logging_steps=5, seed=0,
    ) | more  # fmt: skip


def dpo(policy, tokenizer, first, train, held):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from lecture_utils import data

    rows = [
        {
            "prompt": data.chat(r["prompt"]),
            **{which: [data.chat("", r[which])[1]] for which in ("chosen", "rejected")},
        }
        for r in data.preferences("train")
        if r["kind"] == "helpfulness"
    ]
    arguments = DPOConfig(**settings(
        num_train_epochs=2, per_device_train_batch_size=4, learning_rate=5e-4, lr_scheduler_type="linear", beta=0.1,
    ))  # fmt: skip
    DPOTrainer(policy, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    return "policy, reference", 0, "", ""


def rloo(policy, tokenizer, first, train, held):
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    from lecture_utils import data, ppo

    def reward(prompts, completions, **_):
        pairs = [(p[0]["content"], c[0]["content"] or ".") for p, c in zip(prompts, completions, strict=True)]
        with policy.disable_adapter():
            return first(ppo.answer_features(policy, tokenizer, pairs, LAYER)).tolist()

    steps = 40
    arguments = RLOOConfig(**settings(
        max_steps=steps, per_device_train_batch_size=8, num_generations=4, learning_rate=1e-3, beta=0.02,
        max_completion_length=40, temperature=0.8, lr_scheduler_type="linear", logging_steps=1,
    ))  # fmt: skip
    rows = Dataset.from_list([{"prompt": data.chat(p)} for p in train])
    trainer = RLOOTrainer(policy, reward_funcs=reward, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    for entry in trainer.state.log_history:
        if "reward" in entry:
            runner.add("05_trl", {"method": "RLOO", "step": entry["step"], "reward": f"{entry['reward']:.3f}"})
    return "policy, reference, reward", 8 * steps, "", ""


def grpo(policy, tokenizer, first, train, held):
    """A reward that is no model: is the answer whole, and of at most ten words?"""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from lecture_utils import data, ppo

    def good(text):
        return float(2 <= len(text.split()) <= 10 and text.rstrip().endswith((".", "!", "?")))

    def reward(completions, **_):
        return [good(c[0]["content"]) for c in completions]

    def short(asked):
        return [f"{prompt} Use at most ten words." for prompt in asked]

    def share():
        texts = (
            ppo.PPOTrainer(policy, tokenizer, Judged(first), LAYER, ppo.PPOConfig()).sample_answers(short(held)).texts
        )
        return sum(map(good, texts)) / len(texts)

    steps, before = 40, share()
    arguments = GRPOConfig(**settings(
        max_steps=steps, per_device_train_batch_size=8, num_generations=8, learning_rate=1e-3, beta=0.02,
        max_completion_length=40, temperature=0.8, lr_scheduler_type="linear", logging_steps=1,
    ))  # fmt: skip
    rows = Dataset.from_list([{"prompt": data.chat(p)} for p in short(train)])
    trainer = GRPOTrainer(policy, reward_funcs=reward, args=arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.train()
    for entry in trainer.state.log_history:
        if "reward" in entry:
            runner.add("05_trl", {"method": "GRPO", "step": entry["step"], "reward": f"{entry['reward']:.3f}"})
    return "policy, reference", 8 * steps, f"{before:.2f}", f"{share():.2f}"


if __name__ == "__main__":
    main()
