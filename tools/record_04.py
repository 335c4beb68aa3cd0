"""Reproduce the recorded runs of notebook 04: `make record NB=04`, about 25 minutes on two cores.

The chat model is finetuned on more and more of the pairs (notebook 08's recipe), and once in
full, in fp32; each is judged on the 140 held-out phrasings. Interrupted, it goes on with the
next run that is not in the CSV yet.
"""

import dataclasses
import subprocess
import sys
import tempfile

import recording

RUNS = [("adapter", n) for n in (50, 100, 200, 400, 800, 1_260)] + [("all parameters", 1_260)]
RATE = {"all parameters": 2e-4}


def record(method: str, pairs: int) -> None:
    """Finetune and judge one run, in a process of its own, so that its peak memory is its own."""
    import torch

    from lecture_utils import data, evaluation, finetuning, models, runtime

    runtime.quiet()
    runtime.use_less_memory()
    runtime.seed_everything(0)
    qa = data.lecture_qa()
    chosen = finetuning.recipe("laptop")
    train = qa["train"].shuffle(seed=0).select(range(pairs))
    with tempfile.TemporaryDirectory() as folder:
        if method == "adapter":
            model, tokenizer, trainer = finetuning.finetune(
                chosen, train, folder, seed=0, save_strategy="no", disable_tqdm=True
            )
        else:
            model, tokenizer = models.load_chat_model(chosen.model, dtype=torch.float32)
            chosen = dataclasses.replace(chosen, learning_rate=RATE[method])
            trainer = finetuning.completion_trainer(
                model=model,
                args=finetuning.training_arguments(chosen, folder, save_strategy="no", disable_tqdm=True),
                train_dataset=finetuning.conversations(train, chosen),
                processing_class=tokenizer,
            )
            trainer.train()
    report = evaluation.evaluate(model, tokenizer, qa["test"])
    recording.add("04_data_size", {
        "method": method, "pairs": pairs, "steps": trainer.state.global_step,
        "trained": models.count_parameters(model)[0], "answer_loss": f"{report.loss:.3f}",
        "f1": f"{report.f1:.3f}", "key_accuracy": f"{report.key_accuracy:.3f}",
        "peak_gb": f"{runtime.peak_memory_gb():.2f}",
    })  # fmt: skip
    print(f"{method}, {pairs} pairs: {report}", flush=True)


def main() -> None:
    if len(sys.argv) == 3:
        return record(sys.argv[1], int(sys.argv[2]))
    done = {(row["method"], row["pairs"]) for row in recording.done("04_data_size")}
    for method, pairs in RUNS:
        if (method, pairs) not in done:
            subprocess.run([sys.executable, __file__, method, str(pairs)], check=True)


if __name__ == "__main__":
    main()
