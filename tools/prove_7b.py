"""The 7B path without its weights: `make prove-7b`, about 10 minutes on two cores.

The real architecture of Llama 2 7B gets random weights, written as sharded safetensors, and
goes through notebook 08's very code: loaded in NF4, adapter attached, two optimizer steps on
real pairs, generation, the adapter saved and loaded again, one layer merged. It needs 14 GB
of disk and 6 GB of memory; nothing is left behind. The answers are noise, of course.
"""

import dataclasses
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from lecture_utils import data, evaluation, finetuning, models, recipes, registry, runtime, shapes


def write_tokenizer(folder: Path, vocabulary: int, texts: list[str]) -> None:
    """Train a tokenizer like Llama 2's on ``texts``: its special tokens, its spaces ("▁"), and its chat template."""
    from tokenizers import Tokenizer, decoders, models as parts, normalizers, pre_tokenizers, trainers  # isort: skip
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(parts.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=[chr(code) for code in range(33, 127)],
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        chat_template=registry.LLAMA2_CHAT,
    )  # fmt: skip
    whole.save_pretrained(folder)


def write_weights(shape: shapes.Shape, folder: Path) -> None:
    """Write random fp16 weights of an architecture, one shard a block, with their index."""
    import torch
    from safetensors.torch import save_file
    from tqdm import tqdm

    shards: dict[str, list] = {}
    for name, tensor in shape.build_empty().state_dict().items():
        block = name.split(".layers.")[1].split(".")[0] if ".layers." in name else "rest"
        shards.setdefault(f"model-{block}.safetensors", []).append((name, tensor.shape))
    generator, where, total = torch.Generator().manual_seed(0), {}, 0
    for file, tensors in tqdm(shards.items(), desc="write shards", file=sys.stdout):
        drawn = {
            name: torch.ones(size, dtype=torch.float16)
            if "norm" in name
            else (0.02 * torch.randn(size, generator=generator)).half()
            for name, size in tensors
        }
        save_file(drawn, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(drawn, file)
        total += sum(2 * t.numel() for t in drawn.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = shape.config()
    config.architectures, config.dtype = ["LlamaForCausalLM"], "float16"
    config.save_pretrained(folder)


class Stages:
    """Time and peak private memory of each stage, as rows of a table."""

    def __init__(self):
        self.rows, self.peak, self.running = [], 0.0, True
        self.started = time.perf_counter()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        while self.running:
            self.peak = max(self.peak, private_gb())
            time.sleep(0.1)

    def done(self, name: str, note: str = ""):
        now = time.perf_counter()
        self.rows.append((name, now - self.started, max(self.peak, private_gb()), note))
        print(f"{name:<36}{now - self.started:7.0f} s {self.rows[-1][2]:6.1f} GB  {note}", flush=True)
        self.started, self.peak = now, 0.0


def private_gb() -> float:
    """Return this process's private memory in GB (the mapped weights come on top); Linux."""
    used = psutil.Process().memory_info()
    return (used.rss - used.shared) / 1e9


def prove(shape: shapes.Shape, folder: Path, steps: int = 2) -> dict:
    """Take an architecture through 08's path in ``folder`` with the lecture's recipe. Returns what was
    found: counts as the lecture counted them, losses, answers before and after reloading."""
    import torch
    from peft import PeftModel

    weights, out, stages = folder / "weights", folder / "run", Stages()
    weights.mkdir(parents=True)
    recipe = dataclasses.replace(recipes.get_recipe("lecture-2023"), model=str(weights))
    qa = data.lecture_qa()
    write_weights(shape, weights)
    write_tokenizer(weights, min(shape.vocabulary, 32_000), [*qa["train"]["question"], *qa["train"]["answer"]])
    stages.done("random weights, sharded safetensors", f"{shape.parameters():,} parameters")

    pairs = qa["train"].select(range(recipe.batch_size * steps))
    model, tokenizer = models.load_chat_model(recipe.model, "nf4", double_quant=recipe.double_quant)
    stages.done("loaded in NF4", f"{model.get_memory_footprint() / 1e9:.2f} GB of weights")
    trainer = finetuning.completion_trainer(
        model=model,
        args=recipes.training_arguments(recipe, out, save_strategy="no", logging_steps=1, disable_tqdm=True),
        train_dataset=finetuning.tokenize_pairs(pairs, tokenizer, recipe),
        processing_class=tokenizer,
        peft_config=recipes.lora_config(recipe),
    )
    model = trainer.model
    seen = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = {"total_2023": 2 * seen, "trainable_2023": 2 * trained, "trainable": trained}
    stages.done("adapter attached", f"as counted in 2023: {2 * trained:,} of {2 * seen:,} = {trained / seen:.2%}")
    finetuning.train(trainer)
    found["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    stages.done(f"{steps} steps of {recipe.batch_size} rows", f"loss {found['losses']}")
    question = [qa["test"]["question"][0]]
    found["answer"] = evaluation.generate_answers(model, tokenizer, question, max_new_tokens=8)[0]
    stages.done("8 tokens generated", repr(found["answer"]))

    base = model.unload()
    del trainer, model
    reloaded = PeftModel.from_pretrained(base, out / "adapter").eval()
    found["reloaded"] = evaluation.generate_answers(reloaded, tokenizer, question, max_new_tokens=8)[0]
    stages.done("adapter loaded again, 8 tokens", repr(found["reloaded"]))
    layer = reloaded.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, shape.width, dtype=runtime.compute_dtype())
    with torch.inference_mode():
        before = layer(x)
        layer.merge()
        after = layer(x)
    found["merge_error"] = ((after - before).norm() / before.norm()).item()
    stages.done("one layer merged (and rounded again)", f"its output moved by {found['merge_error']:.1%}")
    stages.running = False
    found["peak_gb"] = max(row[2] for row in stages.rows)
    found["seconds"] = sum(row[1] for row in stages.rows)
    print(f"{'all':<36}{found['seconds']:7.0f} s {found['peak_gb']:6.1f} GB")
    return found


def main() -> None:
    runtime.setup("torch", "transformers", "peft", "trl", "bitsandbytes")
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".prove-7b-") as folder:
        prove(models.card("llama-2-7b-chat").shape, Path(folder))


if __name__ == "__main__":
    main()
