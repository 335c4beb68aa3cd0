"""Reproduce the recorded runs of notebook 08: `make record NB=08`, about 40 minutes on two cores.

Each run finetunes the laptop's model with one recipe and judges it on the 140 held-out
phrasings. Interrupted, it goes on with the next run that is not in the CSV yet.
"""

import csv
import dataclasses
import datetime
import os
import sys
import tempfile
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "lecture_utils" / "recorded" / "08_recipes.csv"
FIELDS = ("label", "epochs", "seed", "steps", "answer_loss", "f1", "rouge_l", "key_accuracy")


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
    done = set()
    if TARGET.exists():
        done = {row["label"] for row in data.recorded(TARGET.stem)[0]}
    else:
        TARGET.parent.mkdir(exist_ok=True)
        day = datetime.date.today().isoformat()
        TARGET.write_text(
            f"# recorded {day} on {os.cpu_count()} cores, {runtime.compute_dtype()}; reproduce with: make record NB=08\n"
            + ",".join(FIELDS) + "\n"
        )  # fmt: skip
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
        with TARGET.open("a") as file:
            csv.writer(file, lineterminator="\n").writerow([
                label, chosen.epochs, seed, trainer.state.global_step, f"{report.loss:.3f}",
                f"{report.f1:.3f}", f"{report.rouge_l:.3f}", f"{report.key_accuracy:.3f}",
            ])  # fmt: skip
        print("  ", report, flush=True)
        del model, trainer
        runtime.trim_memory()


if __name__ == "__main__":
    sys.exit(main())
