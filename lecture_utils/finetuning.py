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
from dataclasses import dataclass
from pathlib import Path

from lecture_utils import data, evaluation, expect, models, plotting, registry, runtime


@dataclass(frozen=True)
class Recipe:
    """One way to finetune: a model, an adapter, and how it is trained. Raises ValueError for a size below 1 or
    another number that makes no sense, TypeError for a size that is not whole; the message names it."""

    name: str
    model: str = models.LAPTOP_MODEL
    quantization: str | None = "nf4"
    double_quant: bool = True
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    first_layer: int = 0  # no adapter below: the backward pass ends there
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    warmup: float = 0.05  # share of the steps
    batch_size: int = 8
    accumulation: int = 1
    epochs: float = 1.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch_fused"
    completion_only: bool = True  # is the loss on the answer alone?
    checkpointing: bool = False  # recompute activations in the backward pass?
    max_length: int = 512  # tokens; longer rows are cut

    def __post_init__(self):
        for name in ("rank", "batch_size", "accumulation", "max_length"):
            expect.whole(name, getattr(self, name))
        expect.whole("first_layer", self.first_layer, least=0)
        for name in ("alpha", "learning_rate", "epochs"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: it must be above 0.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: a share, 0 or more and below 1.")
        if self.quantization not in (None, "nf4", "fp4", "int8"):
            raise ValueError(f"quantization={self.quantization!r}: choose None, 'nf4', 'fp4' or 'int8'.")


def _check(chosen, pairs=None) -> None:
    """Raise TypeError unless ``chosen`` is a recipe and ``pairs``, if given, a dataset; ValueError if that is empty."""
    if not isinstance(chosen, Recipe):
        raise TypeError(f"chosen={chosen!r}: give a Recipe, such as recipe('laptop').")
    if pairs is not None and not {"question", "answer"} <= set(getattr(pairs, "column_names", ())):
        raise TypeError("pairs must be a datasets.Dataset with the columns question and answer: see data.own_pairs.")
    if pairs is not None and not len(pairs):
        raise ValueError("pairs is empty: there is nothing to learn from.")


_LECTURE = Recipe(
    name="lecture-2023",
    model="llama-2-7b-chat",
    double_quant=False,
    rank=64,
    dropout=0.1,
    alpha=16,
    targets=("q_proj", "v_proj"),
    learning_rate=2e-4,
    schedule="constant",
    warmup=0.0,
    batch_size=4,
    weight_decay=0.001,
    max_grad_norm=0.3,
    optimizer="paged_adamw_32bit",
    completion_only=False,
    checkpointing=True,
)
_GPU = Recipe(
    name="llama2-7b",
    model="llama-2-7b-chat",
    learning_rate=2e-4,
    optimizer="paged_adamw_32bit",
    checkpointing=True,
    epochs=2.0,
)
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="laptop", batch_size=8, learning_rate=4e-3, epochs=2.0, first_layer=15),
        Recipe(name="laptop-all", batch_size=8, learning_rate=4e-3, epochs=3.0),
        Recipe(
            name="manners", quantization=None, batch_size=4, accumulation=2, first_layer=15
        ),  # 05's badly brought-up start
        _LECTURE,
        dataclasses.replace(_LECTURE, name="laptop-2023", model=models.LAPTOP_MODEL, checkpointing=False),
        _GPU,
        dataclasses.replace(_GPU, name="qwen3-1.7b", model="qwen3-1.7b", learning_rate=5e-4),
    )
}


def recipe(name: str) -> Recipe:
    """Return a named recipe. Raises ValueError listing the names."""
    if name not in RECIPES:
        raise ValueError(f"There is no recipe {name!r}. Choose one of: {', '.join(RECIPES)}.")
    return RECIPES[name]


def template_options(chosen: Recipe) -> dict:
    """Return what the model's chat template needs to be told (nothing for a plain folder). Raises TypeError for
    a recipe's name instead of the recipe."""
    _check(chosen)
    return dict(registry.REGISTRY[chosen.model].template_options) if chosen.model in registry.REGISTRY else {}


def lora_config(chosen: Recipe):
    """Return PEFT's configuration of the recipe's adapter. Raises ValueError where it begins above the last layer,
    TypeError for a recipe's name instead of the recipe."""
    _check(chosen)
    from peft import LoraConfig

    layers, targets = None, chosen.targets
    if chosen.first_layer:  # PEFT then wants the matrices by name
        depth = models.depth(chosen.model)
        if chosen.first_layer >= depth:
            raise ValueError(f"first_layer={chosen.first_layer}: {chosen.model} has {depth} layers.")
        layers = list(range(chosen.first_layer, depth))
        targets = registry.Shape.MATRICES if targets == "all-linear" else targets
    return LoraConfig(
        r=chosen.rank,
        lora_alpha=chosen.alpha,
        lora_dropout=chosen.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        layers_to_transform=layers,
        bias="none",
        task_type="CAUSAL_LM",
    )


def training_arguments(chosen: Recipe, folder: Path | str, **overrides):
    """Return TRL's SFTConfig of a recipe; ``overrides`` are SFTConfig's own arguments. Raises TypeError for a
    recipe's name instead of the recipe."""
    _check(chosen)
    import torch
    from trl import SFTConfig

    cuda, dtype = runtime.device() == "cuda", runtime.compute_dtype()
    arguments = dict(
        output_dir=str(folder),
        num_train_epochs=chosen.epochs,
        per_device_train_batch_size=chosen.batch_size,
        gradient_accumulation_steps=chosen.accumulation,
        learning_rate=chosen.learning_rate,
        lr_scheduler_type=chosen.schedule,
        warmup_steps=chosen.warmup,
        optim=chosen.optimizer if cuda else "adamw_torch_fused",
        weight_decay=chosen.weight_decay,
        max_grad_norm=chosen.max_grad_norm,
        completion_only_loss=chosen.completion_only,
        train_sampling_strategy="group_by_length",
        max_length=chosen.max_length,
        gradient_checkpointing=chosen.checkpointing,
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        logging_steps=25,
        save_strategy="steps",
        save_steps=50,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=False,  # the default follows the logging level
        seed=0,
    )
    return SFTConfig(**(arguments | overrides))


def conversations(pairs, chosen: Recipe):
    """Return pairs as TRL wants them: ``prompt`` and ``completion``, each a list of messages. Raises TypeError for
    pairs that are no dataset, ValueError for none."""
    _check(chosen, pairs)
    options = template_options(chosen)

    def convert(pair):
        user, assistant = data.chat(pair["question"], pair["answer"])
        row = {"prompt": [user], "completion": [assistant]}
        return row | ({"chat_template_kwargs": options} if options else {})

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


def fingerprint(chosen: Recipe, pairs) -> str:
    """Return a hash of a recipe and its data: only an equal run may be resumed. Raises as ``conversations`` does."""
    _check(chosen, pairs)
    what = json.dumps([dataclasses.asdict(chosen), list(zip(pairs["question"], pairs["answer"], strict=True))])
    return hashlib.sha256(what.encode()).hexdigest()


def train(trainer, mark: str = "", resume: bool = True):
    """Train, or go on where an interrupted run of the same ``mark`` stopped; say which.

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
    same = marked.exists() and marked.read_text(encoding="utf-8") == mark
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
            marked.write_text(mark, encoding="utf-8")
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
                "hold memory), halve batch_size and double accumulation, checkpointing=True, a smaller rank."
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


def finetune(chosen: Recipe, pairs, folder: Path | str, held_out=None, resume: bool = True, **overrides):
    """Finetune a recipe's model on ``pairs`` (question, answer); what the notebook does, in one call.

    Returns ``(model, tokenizer, trainer)``. ``held_out`` pairs are judged before and after. Raises as
    ``conversations`` does, before anything is loaded.
    """
    _check(chosen, pairs)
    folder, options = Path(folder), template_options(chosen)
    model, tokenizer = models.load_chat_model(chosen.model, chosen.quantization, double_quant=chosen.double_quant)
    runtime.faster_short_sequences(model)

    def judge(label, judged):
        if held_out and int(os.environ.get("RANK", 0)) == 0:
            loss = evaluation.answer_loss(judged, tokenizer, held_out, **options)
            print(f"{label}: loss {loss:.3f} per answer token on {len(held_out)} held-out pairs")

    judge("before", model)
    trainer = completion_trainer(
        model=model,
        args=training_arguments(chosen, folder, **overrides),
        train_dataset=conversations(pairs, chosen),
        processing_class=tokenizer,
        peft_config=lora_config(chosen),
    )
    train(trainer, fingerprint(chosen, pairs), resume)
    judge("after", trainer.model)
    if trainer.is_world_process_zero():
        (folder / "recipe.json").write_text(json.dumps(dataclasses.asdict(chosen), indent=1), encoding="utf-8")
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
            super().on_finalized_text(plotting.visible(text), stream_end)  # a terminal obeys what it is sent

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
    chosen = recipe(given.recipe or ("llama2-7b" if runtime.scale() == "gpu" else "laptop"))
    changes = {k: v for k, v in (("model", given.model), ("epochs", given.epochs)) if v is not None}
    if given.model:
        changes["first_layer"] = 0  # a recipe's choice of layers is for its own model
    try:
        chosen = dataclasses.replace(chosen, **changes)
    except ValueError as error:
        parser.error(str(error))
    pairs, held_out = data.own_pairs(given.data), None
    if not 0 <= given.hold_out < 1:
        parser.error("--hold-out is a share between 0 and 1")
    if int(len(pairs) * given.hold_out):
        split = pairs.train_test_split(given.hold_out, seed=0)
        pairs, held_out = split["train"], split["test"]
    runtime.seed_everything(0)
    finetune(chosen, pairs, given.output, held_out, resume=not given.fresh, max_steps=given.max_steps)
    print(f"The adapter is in {given.output / 'adapter'}. Talk with it: --chat {given.output}")


if __name__ == "__main__":
    try:
        main()
    except (models.ModelError, data.DataError) as error:
        sys.exit(str(error))
