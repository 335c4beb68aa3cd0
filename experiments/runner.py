"""How a recorded run is made: resumed where it was interrupted, written down row by row, stamped with day and machine.

Each ``record_NN.py`` lists its runs and how one is made; ``runner.run`` does those that the CSV lacks.
"""

import csv
import datetime
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "lecture_utils" / "recorded"


def done(name: str) -> list[dict]:
    """Return the rows recorded so far."""
    from lecture_utils import data

    return data.recorded(name)[0] if (FOLDER / f"{name}.csv").exists() else []


def add(name: str, row: dict) -> None:
    """Append a row; the first brings the note and the head of the file."""
    target, text = FOLDER / f"{name}.csv", io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    if not target.exists():
        note = f"recorded {datetime.date.today().isoformat()} on {os.cpu_count()} cores"
        text.write(f"# {note}; reproduce with: make record NB={name[:2]}\n")
        rows.writerow(row)
        target.parent.mkdir(exist_ok=True)
    rows.writerow(row.values())
    with target.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())  # at once: what is killed leaves no head without a row


def run(name: str, planned: Iterable[dict], once: Callable[..., dict], separately: bool = False) -> None:
    """Do each planned run that the CSV lacks, and add its row: the run's own arguments, then what ``once`` returns.

    planned: the arguments of ``once``, which are also the first columns of the CSV. separately: each run is a process
    of its own, so that its peak memory is its own. It is the same script, in which only this one run is then done.
    """
    from lecture_utils import runtime

    runtime.quiet()
    runtime.use_less_memory()
    if sys.argv[1:2] == ["--run"]:
        if sys.argv[2] == name:
            arguments = json.loads(sys.argv[3])
            add(name, arguments | once(**arguments))
            sys.exit()
        return
    rows = done(name)
    for arguments in planned:
        if any(row.items() >= arguments.items() for row in rows):
            continue
        print(name, *arguments.values(), flush=True)
        if separately:
            subprocess.run([sys.executable, sys.argv[0], "--run", name, json.dumps(arguments)], check=True)
        else:
            add(name, arguments | once(**arguments))
        print("  ", done(name)[-1], flush=True)


def finetune(recipe, pairs, seed: int = 0, **overrides):
    """Finetune a recipe without keeping its files; return (model, tokenizer, trainer). ``overrides`` go to SFTConfig."""
    from lecture_utils import finetuning, runtime

    runtime.seed_everything(seed)
    with tempfile.TemporaryDirectory() as folder:
        return finetuning.finetune(recipe, pairs, folder, seed=seed, save_strategy="no", disable_tqdm=True, **overrides)


def scores(report) -> dict[str, str]:
    """Return the columns of an evaluation."""
    found = {
        "answer_loss": report.loss,
        "f1": report.f1,
        "rouge_l": report.rouge_l,
        "key_accuracy": report.key_accuracy,
    }
    return {name: f"{value:.3f}" for name, value in found.items()}


def packaged_weights(name: str) -> Path:
    """Return where the package has the weights of an adapter."""
    return FOLDER.parent / "assets" / name / "adapter" / "adapter_model.safetensors"


def package_adapter(name: str, recipe, pairs, work: Path, **overrides) -> tuple[float, Path]:
    """Finetune in ``work``, and keep the adapter in fp16 where the package has it; return (seconds, weights).
    ``overrides`` go to SFTConfig. The adapter's checksum then belongs into lecture_utils/registry.py."""
    from lecture_utils import finetuning, runtime

    runtime.quiet()
    runtime.use_less_memory()
    runtime.seed_everything(0)
    started = time.monotonic()
    finetuning.finetune(recipe, pairs, work, disable_tqdm=True, **overrides)
    seconds = time.monotonic() - started
    weights = keep_adapter(name, work / "adapter", recipe.model)
    shutil.copy(work / "recipe.json", weights.parent.parent)
    return seconds, weights


def keep_adapter(name: str, folder: Path, base: str) -> Path:
    """Keep an adapter of the model ``base``, saved in ``folder``, in fp16 where the package has it; return its weights."""
    import torch
    from safetensors.torch import load_file, save_file

    from lecture_utils import downloads

    weights = packaged_weights(name)
    weights.parent.mkdir(parents=True, exist_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    # What is not set is left out: older versions of PEFT do not know all of it.
    config = {key: value for key, value in config.items() if value not in (None, False, {})}
    config["base_model_name_or_path"] = base  # and not the folder of this machine's cache
    (weights.parent / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    half = {key: value.to(torch.float16) for key, value in load_file(folder / weights.name).items()}
    save_file(half, weights, metadata={"format": "pt"})
    print(f"{name}: sha256 {downloads.sha256(weights)}", flush=True)
    return weights
