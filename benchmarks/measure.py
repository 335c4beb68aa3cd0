"""The course's parts beside others on the same work, as ratios measured side by side: `make bench`.

The decoders all have SmolLM2-135M's dimensions (30 layers, width 576, 9 heads of queries and 3 of
keys, vocabulary 49,152, tied head). The variants take turns, round by round, and the best round of
each counts, so that what else the machine does hits all alike. Writes results.md.
"""

import dataclasses
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lecture_utils  # isort: skip  # noqa: F401 (before torch: it sets how threads wait, as in the notebooks)
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from lecture_utils import (
    chunking,
    corpus,
    data,
    decoding,
    finetuning,
    models,
    recipes,
    retrieval,
    runtime,
    shapes,
    transformer,
    vector_search,
)
from lecture_utils.training import autocast

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results.md")
PROMPT, NEW, ROUNDS = 32, 64, 3


def best(title: str, variants: dict[str, Callable], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the least seconds of each, after one round that does not count."""
    seconds = {name: [] for name in variants}
    for i in tqdm(range(rounds + 1), desc=title, leave=False):
        for name, work in variants.items():
            start = time.perf_counter()
            work()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: min(values) for name, values in seconds.items()}


def x_transformers(shape):
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape.width, depth=shape.layers, heads=shape.heads, attn_kv_heads=shape.kv_heads,
        attn_dim_head=shape.head_width, attn_flash=True, rotary_pos_emb=True, rotary_emb_dim=shape.head_width,
        use_rmsnorm=True, ff_glu=True, ff_swish=True, ff_no_bias=True, ff_mult=shape.feed_forward / shape.width,
    )  # fmt: skip
    return TransformerWrapper(
        num_tokens=shape.vocabulary, max_seq_len=2048, attn_layers=layers, tie_embedding=True, use_abs_pos_emb=False
    )


def llms_from_scratch(shape, dtype, cached: bool):
    from llms_from_scratch import llama3
    from llms_from_scratch.kv_cache import llama3 as with_cache

    module = with_cache if cached else llama3
    settings = {
        "vocab_size": shape.vocabulary, "context_length": 2048, "emb_dim": shape.width, "n_heads": shape.heads,
        "n_layers": shape.layers, "hidden_dim": shape.feed_forward, "n_kv_groups": shape.kv_heads,
        "rope_base": 10_000.0, "dtype": dtype, "rope_freq": None,
    }  # fmt: skip
    model = module.Llama3Model(settings)
    model.out_head.weight = model.tok_emb.weight
    return model


def training(shape, rows: int = 4, length: int = 256) -> list[dict]:
    """Return forward and backward, in mixed precision where this machine has it: tokens per second."""
    ids = torch.randint(shape.vocabulary, (rows, length))
    dimensions = (getattr(shape, field.name) for field in dataclasses.fields(shapes.Dimensions))
    nets = {
        "ours": transformer.Llama(transformer.LlamaConfig(*dimensions)),
        "transformers Llama": AutoModelForCausalLM.from_config(shape.config(), dtype=torch.float32),
        "x-transformers": x_transformers(shape),
        "llms-from-scratch": llms_from_scratch(shape, torch.float32, cached=False),
    }

    def step(net):
        def work():
            with autocast():
                out = net(ids)
                logits = getattr(out, "logits", out)
                loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
            loss.backward()
            net.zero_grad(set_to_none=True)

        return work

    title = "forward and backward"
    return table(title, best(title, {name: step(net) for name, net in nets.items()}, rounds=3), rows * length)


def writing(model, rows: int, dtype: torch.dtype) -> list[dict]:
    """Return greedy decoding with a cache, ``rows`` texts at once: tokens per second."""
    shape = models.card(models.LAPTOP_MODEL).shape
    ids = torch.randint(shape.vocabulary, (rows, PROMPT))
    theirs = model.to(dtype)
    ours = transformer.Llama.of(theirs)

    def library():
        theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
        )

    @torch.inference_mode()
    def loop(net):
        caches, new = net.new_caches(rows, PROMPT + NEW), ids
        for _ in range(NEW):
            new = net(new, caches=caches, last_only=True)[:, -1].argmax(-1, keepdim=True)

    fused, small = decoding.Decoder(ours, dtype), decoding.Decoder(ours, dtype, int8=True)
    variants = {
        "ours, fused": lambda: loop(fused), "ours, plain": lambda: loop(ours), "ours, int8": lambda: loop(small),
        "transformers generate": library,
    }  # fmt: skip
    from x_transformers import AutoregressiveWrapper

    x = AutoregressiveWrapper(x_transformers(shape).to(dtype).eval())
    variants["x-transformers"] = lambda: x.generate(ids, NEW, temperature=0.0, cache_kv=True)
    from llms_from_scratch.kv_cache.generate import generate_text_simple

    rasbt = llms_from_scratch(shape, dtype, cached=True).eval()
    variants["llms-from-scratch"] = lambda: generate_text_simple(rasbt, ids, NEW, context_size=2048)
    title = f"writing, {str(dtype).removeprefix('torch.')}, {rows} text{'s' * (rows > 1)}"
    return table(title, best(title, variants), rows * NEW)


def qlora(steps: int = 6) -> list[dict]:
    """Return a step of finetuning with QLoRA on the same rows: answers' tokens per second.

    Theirs is what the 2023 lecture's settings come to with TRL's plain trainer: loss over the whole row and
    so over all logits, rows as they come, gradient checkpointing. Model, adapter and batch are ours in all.
    """
    from transformers import PrinterCallback
    from trl import SFTTrainer

    ours = recipes.get_recipe("laptop")
    lecture = dataclasses.replace(ours, completion_only_loss=False, gradient_checkpointing=True)
    pairs = data.lecture_qa()["train"].shuffle(seed=0).select(range(steps * ours.batch_size))
    rows = [data.token_ids(models.load_tokenizer(ours.model), row["question"], row["answer"])[1] for row in pairs]

    def trainer(make, recipe, **settings):
        model, tokenizer = models.load_chat_model(recipe.model, recipe.quantization, double_quant=recipe.double_quant)
        quiet = {"save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "num_train_epochs": 1}
        made = make(
            model=model,
            args=recipes.training_arguments(recipe, tempfile.mkdtemp(), **(quiet | settings)),
            train_dataset=finetuning.tokenize_pairs(pairs, tokenizer, recipe),
            processing_class=tokenizer,
            peft_config=recipes.lora_config(recipe),
        )
        made.remove_callback(PrinterCallback)

        def work():
            made.optimizer = made.lr_scheduler = None
            made.train()

        return work

    title = "finetuning with QLoRA"
    plain = {"train_sampling_strategy": "random"}
    variants = {
        "ours": trainer(finetuning.completion_trainer, ours),
        "TRL, our settings": trainer(SFTTrainer, ours),
        "TRL, the lecture's settings": trainer(SFTTrainer, lecture, **plain),
    }
    return table(title, best(title, variants, rounds=2), sum(map(len, rows)))


def searching() -> list[dict]:
    """Return a hundred questions searched for in the lecture by words and among 100,000 vectors by meaning:
    questions per second."""
    import bm25s
    import numpy

    texts = [chunk.titled for chunk in chunking.corpus()]
    questions = [row["question"] for row in data.lecture_qa()["test"]][:100]
    ours, theirs = retrieval.BM25(texts), bm25s.BM25()
    theirs.index([retrieval.terms(text) for text in texts], show_progress=False)

    def library():
        for question in questions:
            theirs.retrieve([retrieval.terms(question)], k=5, show_progress=False)

    def by_hand():
        for question in questions:
            retrieval.ranking(ours.scores(question), 5)

    title = f"searching {len(texts)} texts by words"
    rows = table(title, best(title, {"ours": by_hand, "bm25s": library}), len(questions))
    embed = retrieval.Embedder()
    vectors = vector_search.clustered_vectors(embed(texts), 100_000)
    asked = embed(questions)
    flat, matrix = vector_search.vector_index("flat", vectors), torch.from_numpy(vectors)

    def product():
        for vector in asked:
            (matrix @ vector).topk(5)

    def faiss():
        for vector in numpy.asarray(asked):
            flat.search(vector[None], 5)

    title = "searching 100,000 vectors, all of them"
    return rows + table(title, best(title, {"ours, a product": product, "FAISS, flat": faiss}), len(questions))


def importing() -> list[dict]:
    """Return imports in a new process: imports per second."""

    def process(name):
        return lambda: subprocess.run([sys.executable, "-c", f"import {name}"], check=True, capture_output=True)

    names = ("lecture_utils", "torch", "transformers")
    title = "importing"
    return table(title, best(title, {name: process(name) for name in names}), 1)


EXPLAINED = """
## What is compared

- **writing**: greedy decoding of 64 tokens after a prompt of 32, with a cache, by decoders with the same dimensions. *Fused*
  has fewer and larger products, *plain* is the Llama of notebook 02, and *int8* stores its weights in 8 bits.
- **forward and backward**: one step of training from random weights on 4 texts of 256 tokens.
- **finetuning with QLoRA**: the same pairs, adapter and batch size in all rows, counted in tokens of the answers. *TRL, our
  settings* is TRL's own trainer, with the loss on the answers and without gradient checkpointing. *The lecture's
  settings* are those of 2023, with the loss on all tokens, rows in random order and gradient checkpointing.
  Packing with FlashAttention, Liger kernels and unsloth need a GPU.
- **searching**: a hundred questions, by words in the course's text, and by meaning among 100,000 vectors.
- **importing**: in a new process, so the ratio says how many times longer another import takes.
"""


def table(title: str, seconds: dict[str, float], units: int) -> list[dict]:
    first = seconds[next(iter(seconds))]
    return [
        {
            "what": title,
            "who": who,
            "per second": f"{units / s:.3g}",
            "speed of ours, as a multiple": f"{s / first:.2f}",
        }
        for who, s in seconds.items()
    ]


@torch.inference_mode()
def perplexity(model, tokenizer) -> list[dict]:
    """Return the perplexity of held-out text in full precision and in 8 bits."""
    text = "\n\n".join(corpus.load().held_out)
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : 16 * 512].view(16, 512)
    ours = transformer.Llama.of(model.float())
    rows = []
    for name, net in {
        "float32": ours,
        "int8, float32 between": decoding.Decoder(ours, torch.float32, int8=True),
        "int8, bfloat16 between": decoding.Decoder(ours, torch.bfloat16, int8=True),
    }.items():
        loss = 0.0
        for row in ids:
            logits = net(row[None], caches=net.new_caches(1, 512), last_only=False)[0].float()
            loss += torch.nn.functional.cross_entropy(logits[:-1], row[1:]).item() / len(ids)
        rows.append({"weights": name, "perplexity": f"{torch.tensor(loss).exp():.3f}"})
    return rows


def as_markdown(rows: list[dict]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
    return "\n".join(lines)


def sections() -> dict[str, Callable[[], list[dict]]]:
    """Return the parts of the benchmark by name; each returns rows."""

    def all_writing():
        model, _ = models.load_chat_model(dtype=torch.float32)
        return [row for dtype in fast_dtypes() for rows in (1, 8) for row in writing(model, rows, dtype)]

    return {
        "quality": lambda: perplexity(*models.load_chat_model(dtype=torch.float32)), "writing": all_writing,
        "training": lambda: training(models.card(models.LAPTOP_MODEL).shape), "qlora": qlora, "searching": searching,
        "importing": importing,
    }  # fmt: skip


def fast_dtypes() -> list[torch.dtype]:
    return [torch.float32] + ([torch.bfloat16] if runtime.compute_dtype() == torch.bfloat16 else [])


def main(wanted: list[str]) -> None:
    """Measure all sections and write results.md, or measure and print only those that are wanted."""
    runtime.quiet()
    found = {}
    for name, measure in sections().items():
        if not wanted or name in wanted:
            torch.manual_seed(0)
            found[name] = measure()
            print(as_markdown(found[name]), flush=True)  # at once: a later section may fail
    if wanted:
        return
    quality, speed = found.pop("quality"), sum(found.values(), [])
    head = (
        f"# Benchmarks\n\nMeasured {datetime.date.today().isoformat()} with `make bench` on {os.cpu_count()} cores "
        f"({platform.machine()}, {'with' if len(fast_dtypes()) > 1 else 'without'} fast bf16), torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads. The ratios hold for one machine. The tokens (or questions) per second are for orientation.\n"
    )
    RESULTS.write_text(f"{head}\n{as_markdown(speed)}\n\n{as_markdown(quality)}\n{EXPLAINED}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
