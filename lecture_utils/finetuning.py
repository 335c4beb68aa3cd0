"""QLoRA finetuning: the recipes, the trainer, and the same from the command line.

    python -m lecture_utils.finetuning --recipe laptop --data my.jsonl --output runs/mine
    python -m lecture_utils.finetuning --chat runs/mine

``my.jsonl`` has one JSON object a line: {"question": "...", "answer": "..."}.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from lecture_utils import data, evaluation, models, plotting, runtime
from lecture_utils.recipes import RECIPES, Recipe, get_recipe, lora_config, template_options, training_arguments


def tokenize_pairs(pairs, tokenizer, recipe: Recipe):
    """Return pairs as TRL takes them when they are tokenized: ``input_ids``, and ``completion_mask``, 1 on the answer.

    ``data.token_ids`` makes them, as it does for the evaluation, so that training and evaluation see the same tokens.
    """
    options = template_options(recipe)

    def convert(pair):
        prompt, completion = data.token_ids(tokenizer, pair["question"], pair["answer"], **options)
        return {
            "input_ids": prompt + completion,
            "completion_mask": [0] * len(prompt) + [1] * len(completion),
        }

    return pairs.map(convert, remove_columns=pairs.column_names)


def completion_trainer(**settings):
    """Return TRL's SFTTrainer, changed in two places.

    Its loss runs the output head on the answers' positions alone, and its adapter stays in
    fp32: TRL casts a 4-bit model's adapter to bf16, which a T4 only emulates.
    """
    from trl import SFTTrainer

    class CompletionTrainer(SFTTrainer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if return_outputs or not self.completion_only_loss:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            loss, count = evaluation.completion_loss(
                model, inputs["input_ids"], inputs["attention_mask"], inputs["labels"]
            )
            if num_items_in_batch is None:
                return loss / max(count, 1)
            scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            return scale * loss / num_items_in_batch  # the items of all devices and accumulation steps

    return CompletionTrainer(**settings)


def fingerprint(recipe: Recipe, pairs) -> str:
    """Return a hash of a recipe and its data: only an equal run may be resumed."""
    what = json.dumps([dataclasses.asdict(recipe), list(zip(pairs["question"], pairs["answer"], strict=True))])
    return hashlib.sha256(what.encode()).hexdigest()


def train(trainer, fingerprint: str = "", resume: bool = True):
    """Train, or go on where an interrupted run of the same ``fingerprint`` stopped; say which.

    Checkpoints stand in the trainer's output folder and go once the run is complete; the
    adapter is saved in its subfolder ``adapter``. The model is left in eval mode, ready to
    generate. Returns the trainer's TrainOutput.
    """
    from transformers.trainer_utils import get_last_checkpoint

    folder = Path(trainer.args.output_dir)
    marked = folder / "run.txt"
    if trainer.is_world_process_zero():
        for cut in folder.glob("checkpoint-*"):  # the state is written last: without it the rest is not whole
            if not (cut / "trainer_state.json").exists():
                shutil.rmtree(cut)
    trainer.accelerator.wait_for_everyone()
    last = get_last_checkpoint(folder) if folder.exists() else None
    same = marked.exists() and marked.read_text(encoding="utf-8") == fingerprint
    trainer.accelerator.wait_for_everyone()  # all have looked before one changes the folder
    if last and resume and same:
        print(f"Resuming from step {last.rsplit('-', 1)[-1]}.")
    else:
        why = "other checkpoints are another recipe's or other data's" if last else "no checkpoint yet"
        print(f"Starting clean ({why if resume else 'as asked'}).")
        last = None
        _start_over(trainer)
        if trainer.is_world_process_zero():
            for old in folder.glob("checkpoint-*"):
                shutil.rmtree(old)
            folder.mkdir(parents=True, exist_ok=True)
            marked.write_text(fingerprint, encoding="utf-8")
    runtime.trim_memory()
    half = trainer.args.bf16 or trainer.args.fp16
    if runtime.smoke():
        trainer.args.max_steps = 1
    try:
        cast_inputs(trainer.model, not half)
        output = trainer.train(resume_from_checkpoint=last)
        trainer.save_model(str(folder / "adapter"))
    except Exception as error:  # safetensors and torch have errors of their own for a full disk
        if isinstance(error, RuntimeError) and "out of memory" in str(error).lower():
            raise models.ModelError(
                "The GPU's memory is full. Next to try, in this order: restart the kernel (another model may "
                "hold memory), halve batch_size and double gradient_accumulation_steps, gradient_checkpointing=True, a smaller rank."
            ) from error
        if "No space left" in str(error) or shutil.disk_usage(folder).free < 1e6:
            raise models.ModelError(
                f"The disk is full: {folder} could not be written. Free some space (an adapter and its optimizer take "
                "three times the adapter's size) and train again: it goes on from the last whole checkpoint."
            ) from error
        raise
    finally:
        cast_inputs(trainer.model, True)
    if trainer.is_world_process_zero():
        for old in folder.glob("checkpoint-*"):
            shutil.rmtree(old)
    trainer.model.zero_grad(set_to_none=True)
    runtime.trim_memory()
    trainer.model.eval()  # Trainer leaves dropout and checkpointing on: neither belongs in generation
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_disable()
    trainer.model.config.use_cache = True
    return output


def cast_inputs(model, wanted: bool) -> None:
    """Shall PEFT copy a layer's input to the adapter's fp32? Under autocast that is work and
    memory for nothing (a quarter of a GB in notebook 08); outside it is needed."""
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = wanted


def _start_over(trainer) -> None:
    """Give the adapter its first values again and forget the optimizer: the cell may run a
    second time."""
    trainer.optimizer = trainer.lr_scheduler = None
    runtime.seed_everything(trainer.args.seed)
    for module in trainer.model.modules():
        if hasattr(module, "reset_lora_parameters"):
            module.reset_lora_parameters("default", init_lora_weights=True)


def saved_recipe(folder: Path | str) -> Recipe:
    """Return the recipe that an output folder was made with. Raises ModelError where there is none."""
    if not (Path(folder) / "recipe.json").exists():
        raise models.ModelError(f"{folder} holds no recipe.json: finetune with --output {folder} first.")
    return Recipe(**json.loads((Path(folder) / "recipe.json").read_text(encoding="utf-8")))


def load_finetuned(folder: Path | str, quantization: str | None = None, merge: bool = True):
    """Return ``(model, tokenizer)`` of an output folder: its base model with its adapter.

    merge: fold the adapter into the weights (only without quantization).
    """
    from peft import PeftModel

    folder = Path(folder)
    if not (folder / "adapter" / "adapter_config.json").exists():
        raise models.ModelError(f"{folder} holds no adapter: finetune with --output {folder} first.")
    base, tokenizer = models.load_chat_model(saved_recipe(folder).model, quantization)
    model = PeftModel.from_pretrained(base, folder / "adapter")
    return (model.merge_and_unload() if merge and quantization is None else model).eval(), tokenizer


def finetune(recipe: Recipe, pairs, folder: Path | str, held_out=None, resume: bool = True, **overrides):
    """Finetune a recipe's model on ``pairs`` (question, answer); what the notebook does, in one call.

    Returns ``(model, tokenizer, trainer)``. ``held_out`` pairs are judged before and after.
    """
    folder, options = Path(folder), template_options(recipe)
    model, tokenizer = models.load_chat_model(recipe.model, recipe.quantization, double_quant=recipe.double_quant)
    runtime.use_eager_attention_on_cpu(model)

    def judge(label, judged):
        if held_out and int(os.environ.get("RANK", 0)) == 0:
            loss = evaluation.answer_loss(judged, tokenizer, held_out, **options)
            print(f"{label}: loss {loss:.3f} per answer token on {len(held_out)} held-out pairs")

    judge("before", model)
    trainer = completion_trainer(
        model=model,
        args=training_arguments(recipe, folder, **overrides),
        train_dataset=tokenize_pairs(pairs, tokenizer, recipe),
        processing_class=tokenizer,
        peft_config=lora_config(recipe),
    )
    train(trainer, fingerprint(recipe, pairs), resume)
    judge("after", trainer.model)
    if trainer.is_world_process_zero():
        (folder / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=1), encoding="utf-8")
    return trainer.model, tokenizer, trainer


def export(folder: Path | str, target: Path | str) -> None:
    """Write the merged model as plain safetensors with its tokenizer, for any other tool."""
    model, tokenizer = load_finetuned(folder)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _asked(read) -> str:
    try:
        return read("> ").strip()
    except EOFError:  # Ctrl-D, or the end of a file that is read from
        print()
        return ""


def chat_loop(folder: Path | str, read=input) -> None:
    """Talk with a finetuned model until an empty line or the end of the input; answers appear as they are made."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            super().on_finalized_text(
                plotting.escape_control_characters(text), stream_end
            )  # a terminal obeys what it is sent

    model, tokenizer = load_finetuned(folder)
    options = template_options(saved_recipe(folder))
    streamer = Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    print("Ask, or press Enter on an empty line to leave.")
    while question := _asked(read):
        prompt = data.render(tokenizer, question, **options)[0]
        inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").to(model.device)
        model.generate(**inputs, max_new_tokens=200, do_sample=False, streamer=streamer)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m lecture_utils.finetuning", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--recipe", choices=RECIPES, help="default: laptop, or llama2-7b on a GPU")
    parser.add_argument("--data", type=Path, help="your pairs, JSON lines with question and answer")
    parser.add_argument("--output", type=Path, help="folder for checkpoints and the adapter")
    parser.add_argument("--model", help="another registered model, or a folder with one")
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop early (for a trial)")
    parser.add_argument("--hold-out", type=float, default=0.1, help="share of the pairs kept for judging (0.1)")
    parser.add_argument("--fresh", action="store_true", help="start clean instead of resuming")
    parser.add_argument("--chat", type=Path, metavar="FOLDER", help="talk with what --output FOLDER made")
    parser.add_argument("--export", type=Path, nargs=2, metavar=("FOLDER", "TARGET"), help="write it merged to TARGET")
    given = parser.parse_args(arguments)
    runtime.quiet()
    if runtime.scale() != "gpu":
        runtime.use_less_memory()
    if given.chat:
        return chat_loop(given.chat)
    if given.export:
        return export(*given.export)
    if not given.data or not given.output:
        parser.error("--data and --output are needed to finetune (or --chat, or --export)")
    recipe = get_recipe(given.recipe or ("llama2-7b" if runtime.scale() == "gpu" else "laptop"))
    changes = {k: v for k, v in (("model", given.model), ("epochs", given.epochs)) if v is not None}
    if given.model:
        changes["first_layer"] = 0  # a recipe's choice of layers is for its own model
    try:
        recipe = dataclasses.replace(recipe, **changes)
    except ValueError as error:
        parser.error(str(error))
    pairs, held_out = data.own_pairs(given.data), None
    if not 0 <= given.hold_out < 1:
        parser.error("--hold-out is a share between 0 and 1")
    if int(len(pairs) * given.hold_out):
        split = pairs.train_test_split(given.hold_out, seed=0)
        pairs, held_out = split["train"], split["test"]
    runtime.seed_everything(0)
    finetune(recipe, pairs, given.output, held_out, resume=not given.fresh, max_steps=given.max_steps)
    print(f"The adapter is in {given.output / 'adapter'}. Talk with it: --chat {given.output}")


if __name__ == "__main__":
    try:
        main()
    except (models.ModelError, data.DataError) as error:
        sys.exit(str(error))
