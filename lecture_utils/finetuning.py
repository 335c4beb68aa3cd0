"""QLoRA finetuning with the recipes, from Python or from the command line.

    python -m lecture_utils.finetuning --recipe laptop --data my.jsonl --output runs/mine
    python -m lecture_utils.finetuning --chat runs/mine

Each line of ``my.jsonl`` is one JSON object: {"question": "...", "answer": "..."}.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import threading
from pathlib import Path

from lecture_utils import data, evaluation, gguf_export, models, plotting, runtime
from lecture_utils.recipes import RECIPES, Recipe, get_recipe, lora_config, template_options, training_arguments


def tokenize_pairs(pairs, tokenizer, recipe: Recipe):
    """Return the pairs in TRL's tokenized format: ``input_ids``, and ``completion_mask``, which is 1 on the answer. As
    ``data.token_ids`` tokenizes them, training and evaluation see the same tokens."""
    options = template_options(recipe)

    def convert(pair):
        prompt, completion = data.token_ids(tokenizer, pair["question"], pair["answer"], **options)
        return {"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}

    return pairs.map(convert, remove_columns=pairs.column_names)


def completion_trainer(**settings):
    """Return TRL's SFTTrainer with changes for small machines. Its loss runs the output head only on the positions of
    the answers. Its adapter stays in fp32, because TRL casts a 4-bit model's adapter to bf16, which a T4 only emulates.
    With mixed precision, the inputs of adapted layers are not cast to fp32 first (a quarter of a GB in notebook 08)."""
    from trl import SFTTrainer

    class CompletionTrainer(SFTTrainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()

        def train(self, *args, **kwargs):
            cast_inputs(self.model, not (self.args.bf16 or self.args.fp16))
            try:
                return super().train(*args, **kwargs)
            finally:
                cast_inputs(self.model, True)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if return_outputs or not self.completion_only_loss:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss, count = evaluation.completion_loss(
                model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
            )
            if num_items_in_batch is None:
                return loss / max(count, 1)
            # num_items_in_batch counts the tokens of all devices and accumulation steps.
            scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            return scale * loss / num_items_in_batch

    return CompletionTrainer(**settings)


def fingerprint(recipe: Recipe, pairs) -> str:
    """Return a hash of a recipe and its data. A run is resumed only if its fingerprint is the same."""
    run = json.dumps([dataclasses.asdict(recipe), list(zip(pairs["question"], pairs["answer"], strict=True))])
    return hashlib.sha256(run.encode()).hexdigest()


def train(trainer, fingerprint: str = "", resume: bool = True):
    """Train and return the TrainOutput, resuming an interrupted run of the same ``fingerprint`` if there is one.

    The trainer's output folder contains checkpoints until the run is complete, and then the adapter in the subfolder
    ``adapter``. The model is left in eval mode. Raises ModelError if the disk or the GPU's memory is full.
    """
    from transformers.trainer_utils import get_last_checkpoint

    folder = Path(trainer.args.output_dir)
    marker = folder / "run.txt"  # contains the fingerprint
    if trainer.is_world_process_zero():
        for checkpoint in folder.glob("checkpoint-*"):
            if not (checkpoint / "trainer_state.json").exists():  # written last, so the checkpoint is incomplete
                shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    last = get_last_checkpoint(folder) if folder.exists() else None
    same = marker.exists() and marker.read_text(encoding="utf-8") == fingerprint
    trainer.accelerator.wait_for_everyone()  # every process must have looked before one of them changes the folder
    if last and resume and same:
        print(f"Resuming from step {last.rsplit('-', 1)[-1]}.")
    else:
        why = "the checkpoints are from another recipe's or other data's run" if last else "no checkpoint yet"
        print(f"Starting clean ({why if resume else 'as asked'}).")
        last = trainer.optimizer = trainer.lr_scheduler = None
        runtime.seed_everything(trainer.args.seed)
        for module in trainer.model.modules():  # the cell may run a second time: initialise the adapter again
            if hasattr(module, "reset_lora_parameters"):
                module.reset_lora_parameters("default", init_lora_weights=True)
        if trainer.is_world_process_zero():
            for checkpoint in folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            folder.mkdir(parents=True, exist_ok=True)
            marker.write_text(fingerprint, encoding="utf-8")
    runtime.trim_memory()
    if runtime.smoke():
        trainer.args.max_steps = 1
    try:
        output = trainer.train(resume_from_checkpoint=last)
        trainer.save_model(str(folder / "adapter"))
    except Exception as error:  # safetensors and torch raise exceptions of their own for a full disk
        if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
            raise models.ModelError(
                "The GPU's memory is full. Try these steps in order: restart the kernel (another model may occupy "
                "memory), halve batch_size and double gradient_accumulation_steps, set gradient_checkpointing=True, "
                "choose a smaller rank."
            ) from error
        if "No space left" in str(error) or shutil.disk_usage(folder).free < 1e6:
            raise models.ModelError(
                f"The disk is full: {folder} could not be written. Free some space (an adapter and its optimizer take "
                "three times the adapter's size) and train again. Training resumes from the last whole checkpoint."
            ) from error
        raise
    if trainer.is_world_process_zero():
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    trainer.model.zero_grad(set_to_none=True)
    runtime.trim_memory()
    trainer.model.eval()  # Trainer leaves dropout and gradient checkpointing on, which generation must not use
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_disable()
    trainer.model.config.use_cache = True
    return output


def cast_inputs(model, wanted: bool) -> None:
    """Set whether PEFT casts the input of each adapted layer to the adapter's fp32. Under autocast the cast is not
    needed and costs time and memory; without autocast it is needed."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = wanted


def saved_recipe(folder: Path | str) -> Recipe:
    """Return the recipe that an output folder was made with. Raises ModelError if the folder has none."""
    file = Path(folder) / "recipe.json"
    if not file.exists():
        raise models.ModelError(f"There is no recipe.json in {folder}. Finetune with --output {folder} first.")
    return Recipe(**json.loads(file.read_text(encoding="utf-8")))


def load_finetuned(folder: Path | str, quantization: str | None = None, merge: bool = True):
    """Return ``(model, tokenizer)`` of an output folder: its base model with its adapter, which ``merge`` merges into
    the weights (only without quantization). Raises ModelError if the folder has no adapter."""
    from peft import PeftModel

    adapter = Path(folder) / "adapter"
    if not (adapter / "adapter_config.json").exists():
        raise models.ModelError(f"There is no adapter in {folder}. Finetune with --output {folder} first.")
    base, tokenizer = models.load_chat_model(saved_recipe(folder).model, quantization)
    model = PeftModel.from_pretrained(base, adapter)
    return (model.merge_and_unload() if merge and quantization is None else model).eval(), tokenizer


def finetune(recipe: Recipe, pairs, folder: Path | str, held_out=None, resume: bool = True, **overrides):
    """Finetune a recipe's model on ``pairs`` (question, answer), as notebook 08 does step by step, and return ``(model,
    tokenizer, trainer)``. The loss on ``held_out`` pairs is printed before and after. ``overrides`` go to SFTConfig."""
    folder, options = Path(folder), template_options(recipe)
    model, tokenizer = models.load_chat_model(recipe.model, recipe.quantization, double_quant=recipe.double_quant)
    runtime.use_eager_attention_on_cpu(model)

    def report_loss(label, current):
        if held_out and int(os.environ.get("RANK", 0)) == 0:
            loss = evaluation.answer_loss(current, tokenizer, held_out, **options)
            print(f"{label}: loss {loss:.3f} per answer token on {len(held_out)} held-out pairs")

    report_loss("before", model)
    trainer = completion_trainer(
        model=model, args=training_arguments(recipe, folder, **overrides), processing_class=tokenizer,
        train_dataset=tokenize_pairs(pairs, tokenizer, recipe), peft_config=lora_config(recipe),
    )  # fmt: skip
    train(trainer, fingerprint(recipe, pairs), resume)
    report_loss("after", trainer.model)
    if trainer.is_world_process_zero():
        (folder / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=1), encoding="utf-8")
    return trainer.model, tokenizer, trainer


def export(folder: Path | str, target: Path | str) -> None:
    """Write the merged model to ``target``: as safetensors with its tokenizer, and as a GGUF file in 16 and in 8 bits."""
    model, tokenizer = load_finetuned(folder)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for kind in gguf_export.TYPES:
        try:
            gguf_export.write_gguf(model, tokenizer, Path(target) / f"model-{kind}.gguf", kind)
        except ValueError as error:
            print(f"No GGUF file was written. {error}")
            return


def serve(folder: Path | str, port: int = 8080):
    """Offer the finetuned model at an OpenAI-compatible address of this machine, with llama.cpp. Return the server."""
    path = Path(folder) / "model-Q8_0.gguf"
    if not path.exists():
        gguf_export.write_gguf(*load_finetuned(folder), path, "Q8_0")
    server = gguf_export.serve_gguf(path, port)
    print(f"Serving {path} at {server.listening_address}/v1 (OpenAI-compatible). Press Ctrl-C to stop.", flush=True)
    return server


def chat_loop(folder: Path | str, read=input) -> None:
    """Chat with a finetuned model until an empty line or the end of the input; its answers are streamed."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):  # a terminal would execute control characters
            super().on_finalized_text(plotting.escape_control_characters(text), stream_end)

    model, tokenizer = load_finetuned(folder)
    options = template_options(saved_recipe(folder))
    streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    print("Ask a question, or press Enter on an empty line to leave.")
    try:
        while question := read("> ").strip():
            prompt = data.render(tokenizer, question, **options)[0]
            inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
            model.generate(**inputs, max_new_tokens=200, do_sample=False, streamer=streamer)
    except EOFError:  # Ctrl-D, or the end of a file that is piped in
        print()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lecture_utils.finetuning", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", choices=RECIPES, help="default: laptop, or llama2-7b on a GPU")
    parser.add_argument("--data", type=Path, help="your pairs: a JSON Lines file with question and answer")
    parser.add_argument("--output", type=Path, help="folder for checkpoints and the adapter")
    parser.add_argument("--model", help="another registered model, or a folder that contains one")
    parser.add_argument("--epochs", type=float, help="overrides the recipe's epochs")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop after this many steps (for a trial)")
    parser.add_argument("--hold-out", type=float, default=0.1, help="share of the pairs held out to evaluate (0.1)")
    parser.add_argument("--fresh", action="store_true", help="start clean instead of resuming")
    parser.add_argument("--chat", type=Path, metavar="FOLDER", help="chat with the model of --output FOLDER")
    parser.add_argument("--export", type=Path, nargs=2, metavar=("FOLDER", "TARGET"), help="merge and save to TARGET")
    parser.add_argument("--serve", type=Path, metavar="FOLDER", help="serve it at an OpenAI-compatible local address")
    parser.add_argument("--port", type=int, default=8080, help="of --serve (8080)")
    given = parser.parse_args(arguments)
    runtime.quiet()
    if runtime.scale() != "gpu":
        runtime.use_less_memory()
    if given.chat:
        return chat_loop(given.chat)
    if given.export:
        return export(*given.export)
    if given.serve:
        server = serve(given.serve, given.port)  # it runs in threads of its own, as long as it is referenced
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        del server
        return None
    if not given.data or not given.output:
        parser.error("--data and --output are required to finetune (or use --chat, --export or --serve)")
    recipe = get_recipe(given.recipe or ("llama2-7b" if runtime.scale() == "gpu" else "laptop"))
    # A recipe's choice of layers is for its own model.
    changes = {"model": given.model, "epochs": given.epochs, "first_layer": 0 if given.model else None}
    try:
        recipe = dataclasses.replace(recipe, **{name: value for name, value in changes.items() if value is not None})
    except ValueError as error:
        parser.error(str(error))
    pairs, held_out = data.own_pairs(given.data), None
    if not 0 <= given.hold_out < 1:
        parser.error("--hold-out must be at least 0 and below 1")
    if int(len(pairs) * given.hold_out):
        split = pairs.train_test_split(given.hold_out, seed=0)
        pairs, held_out = split["train"], split["test"]
    runtime.seed_everything(0)
    finetune(recipe, pairs, given.output, held_out, resume=not given.fresh, max_steps=given.max_steps)
    print(f"The adapter is in {given.output / 'adapter'}. To chat with it, use --chat {given.output}")


if __name__ == "__main__":
    try:
        main()
    except (models.ModelError, data.DataError) as error:
        sys.exit(str(error))
