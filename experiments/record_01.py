"""Reproduce the recorded runs of notebook 01 and `lecture-base`: `make record NB=01`, an hour on two cores.

An LSTM and a transformer read the same text, each on a core of its own, for four budgets of
processor time. Interrupted, each goes on from its last checkpoint under `build/record_01`.
The last transformer becomes `lecture-base`, the base model of notebooks 03 and 04.
"""

import ctypes
import math
import multiprocessing
import platform
import sys
import time
from pathlib import Path

import runner

WORK = Path(__file__).resolve().parent.parent / "build" / "record_01"
FOLDER = runner.FOLDER.parent / "assets" / "lecture_base"
BASE = "transformer, 40 minutes"
# name -> kind, its sizes, steps, peak of the learning rate
RUNS = {
    "LSTM, 45 seconds": ("lstm", (192, 512, 0.0), 320, 2e-2),
    "LSTM, 3 minutes": ("lstm", (192, 512, 0.0), 1_300, 2e-2),
    "LSTM, 12 minutes": ("lstm", (256, 768, 0.1), 2_700, 1e-2),
    "LSTM, 40 minutes": ("lstm", (256, 768, 0.2), 9_200, 6e-3),
    "transformer, 45 seconds": ("transformer", (128, 3, 128), 310, 2e-2),
    "transformer, 3 minutes": ("transformer", (192, 4, 128), 720, 1e-2),
    "transformer, 12 minutes": ("transformer", (256, 5, 256), 1_800, 1e-2),
    BASE: ("transformer", (256, 5, 256), 6_000, 6e-3),
}


def build(kind: str, sizes: tuple, vocabulary: int):
    """Return the model and its batch: rows and tokens in each."""
    from lecture_utils import baselines, transformer

    if kind == "lstm":
        return baselines.LSTM(vocabulary, *sizes), 32, 64
    width, layers, length = sizes
    config = transformer.LlamaConfig(vocabulary, width, 8 * width // 3 // 8 * 8, layers, 4, 4, width // 4)
    return transformer.Llama(config), 2048 // length, length


def add(run: str, parameters: int, tokens: int, seconds: int, loss: float, scored: int, docs) -> None:
    """Write a judged run down; ``scored``: tokens of the held-out text."""
    from lecture_utils import corpus, training

    bits = training.bits_per_byte(loss, scored, corpus.count_bytes(docs.held_out))
    row = {"run": run, "parameters": parameters, "tokens": tokens, "seconds": seconds}
    runner.add("01_history", row | {"loss": f"{loss:.3f}", "bits_per_byte": f"{bits:.3f}"})
    print(f"{run}: {loss:.3f}", flush=True)


def keep_memory() -> None:
    """Let glibc keep large freed blocks, which made a training step with a vocabulary of 4,096 faster by 22 %. Elsewhere
    it does nothing."""
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def record(kind: str) -> None:
    """Train and judge each run of a kind that is not in the CSV yet."""
    import torch

    from lecture_utils import corpus, models, training

    keep_memory()
    torch.set_num_threads(1)
    tokenizer = models.load_tokenizer(str(FOLDER))
    docs = corpus.load()
    tokens = torch.tensor(corpus.encode(tokenizer, docs.train))
    held_out = torch.tensor(corpus.encode(tokenizer, docs.held_out))
    done = {row["run"] for row in runner.done("01_history")}
    for name, (its_kind, sizes, steps, peak) in RUNS.items():
        if its_kind != kind or name in done:
            continue
        torch.manual_seed(0)
        model, rows, length = build(kind, sizes, len(tokenizer))
        plan = training.TrainingConfig(
            steps=steps, batch_size=rows, context_length=length, learning_rate=peak, muon=True
        )
        checkpoint = WORK / f"{name}.pt"

        def each(run, checkpoint=checkpoint, name=name):
            if run.step % 200 == 0:
                run.save(checkpoint)
                print(f"{name}: step {run.step}, loss {run.losses[-1]:.2f}, {run.seconds:.0f} s", flush=True)

        run = training.Trainer(model, plan).resume(checkpoint)
        run.train(tokens, callback=each, progress=False)
        run.save(checkpoint)
        loss = training.mean_loss(model, held_out, length if kind == "transformer" else 256)
        parameters = sum(p.numel() for p in model.parameters())
        add(name, parameters, steps * rows * length, round(run.seconds), loss, len(held_out), docs)
        if "40" in name:
            for part in range(50):  # the course of the long runs
                losses = run.losses[part * steps // 50 : (part + 1) * steps // 50]
                at = (part + 1) * steps // 50 * rows * length
                runner.add("01_course", {"run": name, "tokens": at, "loss": f"{sum(losses) / len(losses):.3f}"})


def count() -> None:
    """Judge the n-grams."""
    from lecture_utils import baselines, corpus, models

    tokenizer = models.load_tokenizer(str(FOLDER))
    docs = corpus.load()
    tokens, held_out = (corpus.encode(tokenizer, part) for part in (docs.train, docs.held_out))
    done = {row["run"] for row in runner.done("01_history")}
    for n in range(1, 7):
        if f"{n}-gram" in done:
            continue
        begun = time.process_time()
        model = baselines.KneserNey(tokens, n, len(tokenizer))
        seconds = time.process_time() - begun
        loss = -model.log_probabilities(held_out)[1:].mean()
        parameters = sum(len(keys) for keys in model.keys)
        add(f"{n}-gram", parameters, len(tokens), math.ceil(seconds), loss, len(held_out), docs)


def make_tokenizer() -> None:
    """Train the tokenizer of `lecture-base`: once, then its file stays."""
    from transformers import PreTrainedTokenizerFast

    from lecture_utils import corpus, tokenization

    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>", "<|mask|>")
    fast = tokenization.train_with_library(corpus.load().train, 2048, special)
    PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token=special[0], eos_token=special[2], pad_token=special[3], mask_token=special[4]
    ).save_pretrained(FOLDER)


def export() -> None:
    """Write the last transformer as `lecture-base`, in bf16, as transformers reads it."""
    import torch
    from transformers import LlamaForCausalLM

    from lecture_utils import models, transformer

    tokenizer = models.load_tokenizer(str(FOLDER))
    kind, sizes, *_ = RUNS[BASE]
    model, _, length = build(kind, sizes, len(tokenizer))
    model.load_state_dict(torch.load(WORK / f"{BASE}.pt", weights_only=True)["model"])
    config = models.card("lecture-base").shape.config()
    config.rms_norm_eps, config.max_position_embeddings = model.config.eps, length
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, token, getattr(tokenizer, token))
    theirs = LlamaForCausalLM(config)
    weights = {transformer.published_name(n): w for n, w in model.state_dict().items()}
    theirs.load_state_dict(weights)
    theirs.to(torch.bfloat16).save_pretrained(FOLDER)


def main() -> None:
    from lecture_utils import runtime

    runtime.quiet()
    if not (FOLDER / "tokenizer.json").exists():
        make_tokenizer()
    WORK.mkdir(parents=True, exist_ok=True)
    count()
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=record, args=(kind,)) for kind in ("lstm", "transformer")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit("A run failed; started again, the recording goes on where it was.")
    if not (WORK / f"{BASE}.pt").exists():
        return  # recorded before, and exported then
    export()
    print(f"lecture-base is in {FOLDER}; its sha256 goes into registry.py")


if __name__ == "__main__":
    main()
