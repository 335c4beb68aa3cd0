"""Reproduce the recorded runs of notebook 06: `make record NB=06`, about an hour on two cores.

memory   peak memory of full finetuning, LoRA and QLoRA at three batch sizes
family   each method of the PEFT family, three seeds (after three learning rates each)
rank     the lecture's questions learnt with rank 1 ... 64, two seeds

Each run is a process of its own, so that its peak is its own.
"""

import dataclasses

import psutil
import runner

from lecture_utils import recipes

TOKENS = 64  # a row in the memory runs
RATES = {  # tried for each method of the family; family.METHODS has the best
    "prompt tuning, 20 vectors": (1e-2, 1e-1, 1.0), "(IA)³": (1e-2, 3e-2, 1e-1),
    "prefix tuning, 20 vectors": (1e-2, 3e-2, 1e-1), "adapter layers, 16 wide": (3e-4, 1e-3, 3e-3),
    "LoRA r=16, q and v": (1e-3, 3e-3, 1e-2), "LoRA r=16, all linear": (1e-3, 3e-3, 1e-2),
}  # fmt: skip


def resident_gb() -> float:
    """Return this process's resident memory in GB, now."""
    return psutil.Process().memory_info().rss / 1e9


def memory_run(method: str, rows: int) -> dict:
    """Train three steps on rows of ``TOKENS`` random tokens; return the memory before and the peak."""
    import peft
    import torch
    import trl  # noqa: F401  what a finetuning process has loaded

    from lecture_utils import evaluation, finetuning, models, runtime

    runtime.seed_everything(0)
    torch.ones(64, 64) @ torch.ones(64, 64)
    before = resident_gb()
    dtype = torch.float32 if method == "full" else torch.bfloat16
    model, _ = models.load_chat_model(quantization="nf4" if method == "QLoRA" else None, dtype=dtype)
    runtime.use_eager_attention_on_cpu(model)
    if method != "full":
        model = peft.get_peft_model(model, recipes.lora_config(recipes.get_recipe("laptop-all")))
        finetuning.cast_inputs(model, False)
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.float()
    adam = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    for _ in range(3):
        ids = torch.randint(100, 40_000, (rows, TOKENS))
        with torch.autocast("cpu", torch.bfloat16, enabled=method != "full"):
            loss, count = evaluation.completion_loss(model.train(), ids, torch.ones_like(ids), ids)
        adam.zero_grad()
        (loss / count).backward()
        adam.step()
    return {
        "tokens": TOKENS, "trained": sum(p.numel() for p in trained),
        "before_gb": round(before, 3), "peak_gb": round(runtime.peak_memory_gb(), 3),
    }  # fmt: skip


def family_run(method: str, seed: int, learning_rate: float, judged_on: str) -> dict:
    from lecture_utils import family, runtime

    found = family.run(method, seed, learning_rate, judged_on)
    return {
        "trained": found.trained, "seconds": round(found.seconds, 1), "peak_gb": round(runtime.peak_memory_gb(), 2), "right": found.right,
        "total": found.total, "last_losses": round(sum(found.losses[-10:]) / 10, 3),
    }  # fmt: skip


def rank_run(rank: int, seed: int) -> dict:
    from lecture_utils import data, evaluation, models

    qa = data.lecture_qa()
    recipe = dataclasses.replace(recipes.get_recipe("laptop-facts"), rank=rank, alpha=32, epochs=1.0)
    model, tokenizer, _ = runner.finetune(recipe, qa["train"], seed)
    report = evaluation.evaluate(model, tokenizer, qa["test"])
    return {"trained": models.count_parameters(model)[0]} | runner.scores(report)


def planned(part: str) -> list[dict]:
    """Return the arguments of each run of a part, in the order of the CSV."""
    from lecture_utils import family

    if part == "memory":
        return [{"method": method, "rows": rows} for method in ("LoRA", "QLoRA", "full") for rows in (4, 8, 16)]
    if part == "rank":
        return [{"rank": rank, "seed": seed} for seed in range(2) for rank in (1, 2, 4, 8, 16, 32, 64)]
    tried = [(m, 0, rate, "choose") for m, rates in RATES.items() for rate in rates]
    tried += [(m, seed, rate, "test") for m, rate in family.METHODS.items() for seed in range(3)]
    return [dict(zip(("method", "seed", "learning_rate", "judged_on"), run, strict=True)) for run in tried]


RUNS = {"memory": memory_run, "family": family_run, "rank": rank_run}


if __name__ == "__main__":
    for part, once in RUNS.items():
        runner.run(f"06_{part}", planned(part), once, separately=True)
