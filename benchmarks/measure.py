"""Our decoder beside others of the same size, as ratios measured side by side: `make bench`.

All have SmolLM2-135M's dimensions (30 layers, width 576, 9 heads of queries and 3 of keys,
vocabulary 49,152, tied head). The variants take turns, round by round, and the best round of
each counts, so that what else the machine does hits all alike. Writes results.md.
"""

import dataclasses
import datetime
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from lecture_utils import corpus, decoding, models, runtime, transformer
from lecture_utils.training import autocast

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
    dimensions = (getattr(shape, field.name) for field in dataclasses.fields(models.Dimensions))
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


def table(title: str, seconds: dict[str, float], tokens: int) -> list[dict]:
    first = seconds[next(iter(seconds))]
    return [
        {"what": title, "who": who, "tokens/s": f"{tokens / s:.0f}", "ours is faster by": f"{s / first:.2f}"}
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


def main() -> None:
    runtime.quiet()
    torch.manual_seed(0)
    model, tokenizer = models.load_chat_model(dtype=torch.float32)
    dtypes = [torch.float32] + ([torch.bfloat16] if runtime.compute_dtype() == torch.bfloat16 else [])
    quality = perplexity(model, tokenizer)
    speed = [row for dtype in dtypes for rows in (1, 8) for row in writing(model, rows, dtype)]
    del model
    speed += training(models.card(models.LAPTOP_MODEL).shape)
    head = (
        f"# Benchmarks\n\nMeasured {datetime.date.today().isoformat()} with `make bench` on {os.cpu_count()} cores "
        f"({platform.machine()}, {'with' if len(dtypes) > 1 else 'without'} fast bf16), torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads. Ratios hold on one machine only; tokens per second are for orientation.\n"
    )
    RESULTS.write_text(f"{head}\n{as_markdown(speed)}\n\n{as_markdown(quality)}\n", encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
