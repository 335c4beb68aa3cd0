"""Reproduce the recorded runs of notebook 08: `make record NB=08`, about 40 minutes on two cores.

Each run finetunes the laptop's model with one recipe and judges it on the 140 held-out
phrasings. Interrupted, it goes on with the next run that is not in the CSV yet.
"""

import dataclasses
import sys
import tempfile

import recording


def runs():
    """Return (label, recipe, seed) of every recorded run."""
    from lecture_utils.finetuning import recipe

    ours, change = recipe("laptop"), dataclasses.replace
    every = change(ours, first_layer=0)
    return [  # ours with seed 0 is the notebook's live run
        ("ours, seed 1", ours, 1),
        ("ours, seed 2", ours, 2),
        ("all layers", every, 0),
        ("all layers, seed 1", every, 1),
        ("all layers, seed 2", every, 2),
        ("all layers, one epoch", change(every, epochs=1.0), 0),
        ("all layers, three epochs", change(every, epochs=3.0), 0),
        ("the lecture's settings", recipe("laptop-2023"), 0),
        ("ours, one epoch", change(ours, epochs=1.0), 0),
        ("ours, three epochs", change(ours, epochs=3.0), 0),
    ]


def main() -> None:
    from lecture_utils import data, evaluation, finetuning, runtime

    runtime.quiet()
    runtime.use_less_memory()
    qa = data.lecture_qa()
    done = {row["label"] for row in recording.done("08_recipes")}
    for label, chosen, seed in runs():
        if label in done:
            continue
        print(label, flush=True)
        runtime.seed_everything(seed)
        with tempfile.TemporaryDirectory() as folder:
            model, tokenizer, trainer = finetuning.finetune(
                chosen, qa["train"], folder, seed=seed, save_strategy="no", disable_tqdm=True
            )
        report = evaluation.evaluate(model, tokenizer, qa["test"])
        recording.add("08_recipes", {
            "label": label, "epochs": chosen.epochs, "seed": seed, "steps": trainer.state.global_step,
            "answer_loss": f"{report.loss:.3f}", "f1": f"{report.f1:.3f}", "rouge_l": f"{report.rouge_l:.3f}",
            "key_accuracy": f"{report.key_accuracy:.3f}",
        })  # fmt: skip
        print("  ", report, flush=True)
        del model, trainer
        runtime.trim_memory()


if __name__ == "__main__":
    sys.exit(main())
