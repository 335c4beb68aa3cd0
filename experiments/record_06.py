"""Reproduce the recorded runs of notebook 06: `make record NB=06`, about an hour and a half on two cores with bf16.

peaks     peak memory of full finetuning, LoRA and QLoRA at three batch sizes
methods   each method of the PEFT family on the shop's simple questions: three learning rates judged on the
          development questions (by the training loss, where they are equal), then three seeds judged on the test
ranks     the same for LoRA with other ranks, with alpha = 2 r and two learning rates
baselines what a look-up among the training pairs answers
spectra   how many directions the update of a full finetuning has, in several matrices

Each run of the first three is a process of its own, so that its peak is its own.
"""

import psutil
import record_08
import runner

METHODS = {  # the learning rates that are tried; family.METHODS has the best
    "prompt tuning, 20 vectors": (3e-2, 1e-1, 3e-1), "(IA)³": (3e-2, 1e-1, 3e-1),
    "prefix tuning, 20 vectors": (3e-2, 1e-1, 3e-1), "adapter layers, 16 wide": (1e-3, 3e-3, 1e-2),
    "LoRA r=16, q and v": (1e-3, 3e-3, 1e-2), "LoRA r=16, all linear": (1e-3, 3e-3, 1e-2),
    "all parameters": (1e-4, 3e-4, 1e-3, 3e-3),
}  # fmt: skip
RANKS = {1: (3e-3, 1e-2), 4: (3e-3, 1e-2), 64: (1e-3, 3e-3)}


def peak(method: str, rows: int) -> dict:
    """Train three steps on rows of the shop's pairs; return the memory before anything is loaded, and the peak."""
    import peft
    import torch
    import trl  # noqa: F401  what a finetuning process has loaded

    from lecture_utils import data, evaluation, family, finetuning, models, runtime, shop

    runtime.seed_everything(0)
    torch.ones(64, 64) @ torch.ones(64, 64)
    before = psutil.Process().memory_info().rss / 1e9
    full = method == "full"
    dtype = torch.float32 if full else torch.bfloat16
    model, tokenizer = models.load_chat_model(quantization="nf4" if method == "QLoRA" else None, dtype=dtype)
    runtime.use_eager_attention_on_cpu(model)
    if not full:
        model = peft.get_peft_model(model, family.lora(16))
        finetuning.cast_inputs(model, False)
    if "checkpointing" in method:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.float()
    adam = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    pairs = [(row["question"], shop.for_the_model(row["answer"])) for row in shop.questions("train")[: 3 * rows]]
    encoded = [data.token_ids(tokenizer, *pair) for pair in pairs]
    longest = 0
    for step in range(3):
        batch = encoded[step * rows : (step + 1) * rows]
        _, ids, mask, labels = next(evaluation.answer_batches(model, batch, tokenizer.pad_token_id, rows))
        longest = max(longest, ids.numel())
        with torch.autocast("cpu", torch.bfloat16, enabled=not full):
            loss = model.train()(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
        adam.zero_grad()
        loss.backward()
        adam.step()
    return {
        "tokens": longest, "trained": sum(p.numel() for p in trained),
        "before_gb": round(before, 3), "peak_gb": round(runtime.peak_memory_gb(), 3),
    }  # fmt: skip


def method_run(method: str, seed: int, learning_rate: float, judged_on: str) -> dict:
    from lecture_utils import family, runtime

    found = family.run(method, seed, learning_rate, judged_on)
    return {
        "trained": found.trained, "seconds": round(found.seconds, 1), "peak_gb": round(runtime.peak_memory_gb(), 2),
        "right": found.right, "total": found.total, "last_losses": round(sum(found.losses[-10:]) / 10, 3),
    }  # fmt: skip


def baseline(method: str) -> dict:
    """Judge a look-up among the simple training pairs on the test questions."""
    from lecture_utils import family

    answer, rows = record_08.look_up("exchanged" in method, family.questions("train")), family.questions("test")
    return {"right": family.right([answer(row["question"]) for row in rows], rows, "test"), "total": len(rows)}


def planned(part: str) -> list[dict]:
    """Return the arguments of each run of a part, in the order of the CSV. The test follows the choice of the learning
    rate: run it again when the rates are chosen."""
    if part == "peaks":
        ways = ("LoRA", "QLoRA", "full", "LoRA, checkpointing")
        return [{"method": method, "rows": rows} for method in ways for rows in (8, 16, 32)]
    rates = METHODS if part == "methods" else {f"LoRA r={rank}, all linear": tried for rank, tried in RANKS.items()}
    keys = ("method", "seed", "learning_rate", "judged_on")
    tried = [(method, 0, rate, "dev") for method, all_rates in rates.items() for rate in all_rates]
    name = f"06_{part}"
    dev = [row for row in runner.done(name) if row["judged_on"] == "dev"]
    tested = []
    if len(dev) == len(tried):
        order = lambda row: (row["right"], -row["last_losses"])  # noqa: E731
        best = {method: max((r for r in dev if r["method"] == method), key=order) for method in rates}
        tested = [(m, seed, row["learning_rate"], "test") for m, row in best.items() for seed in range(3)]
    return [dict(zip(keys, run, strict=True)) for run in tried + tested]


def spectra() -> None:
    """Finetune all parameters on the simple questions; record the singular values of the update of some matrices."""
    import torch

    from lecture_utils import family, models, runtime

    runtime.seed_everything(0)
    model, tokenizer = models.load_chat_model(dtype=torch.float32)
    runtime.use_eager_attention_on_cpu(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters() if "_proj" in name}
    family.train(model, tokenizer, family.METHODS["all parameters"])
    rows = family.questions("test")
    found = family.right(family.answers(model, tokenizer, rows), rows, "test")
    generator = torch.Generator().manual_seed(0)
    for block in (2, 14, 27):
        for name in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
            before = start[f"model.layers.{block}.{name}.weight"]
            update = model.get_submodule(f"model.layers.{block}.{name}").weight.detach() - before
            row = {"right": found, "block": block, "matrix": name.split(".")[1], "directions": min(update.shape)}
            row["moved"] = f"{update.norm() / before.norm():.4f}"
            noise = torch.randn(update.shape, generator=generator)
            for kind, matrix in (("update", update), ("weight", before), ("noise", noise)):
                energy = torch.linalg.svdvals(matrix).square()
                share = energy.cumsum(0) / energy.sum()
                row[f"{kind}_half"] = int((share < 0.5).sum()) + 1  # directions that hold half of the energy
                row |= {f"{kind}_at_{n}": f"{share[n - 1]:.3f}" for n in (1, 4, 16, 64, 192)}
            runner.add("06_spectra", row)


if __name__ == "__main__":
    runner.run("06_peaks", planned("peaks"), peak, separately=True)
    runner.run("06_baselines", [{"method": name} for name in ("look-up", "look-up, names exchanged")], baseline)
    for part in ("methods", "ranks"):
        for _ in ("choose", "test"):
            runner.run(f"06_{part}", planned(part), method_run, separately=True)
    if not runner.done("06_spectra"):
        spectra()
