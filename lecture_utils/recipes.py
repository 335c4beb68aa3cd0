"""Finetuning recipes: what is trained and how, and the configurations of PEFT and TRL that they stand for."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lecture_utils import models, registry, runtime
from lecture_utils.shapes import Shape


@dataclass(frozen=True)
class Recipe:
    """One way to finetune: the model, its adapter, and the hyperparameters of the training."""

    name: str
    model: str = models.LAPTOP_MODEL
    quantization: str | None = "nf4"
    double_quant: bool = True
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    first_layer: int = 0  # lower layers get no adapter, and the backward pass ends at this one
    learning_rate: float = 2e-3
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.05  # share of the steps
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    epochs: float = 1.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: str = "adamw_torch_fused"
    completion_only_loss: bool = True  # compute the loss on the answer alone
    gradient_checkpointing: bool = False  # recompute the activations in the backward pass
    max_length: int = 512  # tokens; longer rows are truncated

    def __post_init__(self):
        runtime.require_positive(
            self, "rank", "alpha", "learning_rate", "batch_size", "gradient_accumulation_steps", "epochs", "max_length"
        )


_LECTURE = Recipe(
    name="lecture-2023", model="llama-2-7b-chat", double_quant=False, completion_only_loss=False,
    rank=64, alpha=16, dropout=0.1, target_modules=("q_proj", "v_proj"),
    learning_rate=2e-4, lr_scheduler_type="constant", warmup_ratio=0.0, weight_decay=0.001, max_grad_norm=0.3,
    batch_size=4, optimizer="paged_adamw_32bit", gradient_checkpointing=True,
)  # fmt: skip
_GPU = Recipe(
    name="llama2-7b", model="llama-2-7b-chat", learning_rate=2e-4, epochs=2.0,
    optimizer="paged_adamw_32bit", gradient_checkpointing=True,
)  # fmt: skip
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="laptop", learning_rate=1e-3, alpha=128, batch_size=4),  # chosen in experiments/record_08.py
        Recipe(name="shop-sql", learning_rate=1e-3, batch_size=4),  # for all pairs of the shop, half an hour
        Recipe(name="laptop-facts", learning_rate=4e-3, epochs=2.0, first_layer=15),
        Recipe(name="laptop-all", learning_rate=4e-3, epochs=3.0),
        # The ill-mannered model with which notebook 05 starts
        Recipe(name="manners", quantization=None, batch_size=4),
        _LECTURE,
        dataclasses.replace(_LECTURE, name="laptop-2023", model=models.LAPTOP_MODEL, gradient_checkpointing=False),
        _GPU,
        dataclasses.replace(_GPU, name="qwen3-1.7b", model="qwen3-1.7b", learning_rate=5e-4),
    )
}


def get_recipe(name: str) -> Recipe:
    """Return the recipe of this name."""
    return registry.choose(RECIPES, name, "recipe")


def template_options(recipe: Recipe) -> dict:
    """Return the keyword arguments of the model's chat template (none for a model in a plain folder)."""
    return dict(registry.REGISTRY[recipe.model].template_options) if recipe.model in registry.REGISTRY else {}


def lora_config(recipe: Recipe):
    """Return the PEFT configuration of the recipe's adapter."""
    from peft import LoraConfig

    layers, targets = None, recipe.target_modules
    if recipe.first_layer:  # PEFT then requires the matrices by name
        layers = list(range(recipe.first_layer, models.num_layers(recipe.model)))
        targets = Shape.MATRICES if targets == "all-linear" else targets
    return LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, bias="none", task_type="CAUSAL_LM",
        target_modules=targets if isinstance(targets, str) else list(targets), layers_to_transform=layers,
    )  # fmt: skip


def hardware_arguments(recipe: Recipe) -> dict:
    """Return those arguments of SFTConfig that depend on the machine: the precision, the device, the optimizer, and the
    padding to a multiple of 8. On a CPU, the matrix products keep some memory for every new length of the rows. Fewer
    lengths save 0.3 GB in notebook 08, and the padding makes its training a few percent slower. The progress bar is
    always shown (by default, this depends on the logging level)."""
    import torch

    cuda, dtype = runtime.device() == "cuda", runtime.compute_dtype()
    return dict(
        optim=recipe.optimizer if cuda else "adamw_torch_fused", use_cpu=not cuda, dataloader_pin_memory=cuda,
        fp16=dtype == torch.float16, bf16=dtype == torch.bfloat16,
        gradient_checkpointing=recipe.gradient_checkpointing, pad_to_multiple_of=8, report_to="none", disable_tqdm=False,
    )  # fmt: skip


def training_arguments(recipe: Recipe, folder: Path | str, **overrides):
    """Return the recipe's SFTConfig of TRL; ``overrides`` are further arguments of SFTConfig and take precedence."""
    from trl import SFTConfig

    arguments = hardware_arguments(recipe) | dict(
        output_dir=str(folder), seed=0, num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size, train_sampling_strategy="group_by_length",
        gradient_accumulation_steps=recipe.gradient_accumulation_steps, max_length=recipe.max_length,
        learning_rate=recipe.learning_rate, lr_scheduler_type=recipe.lr_scheduler_type,
        warmup_steps=recipe.warmup_ratio, weight_decay=recipe.weight_decay, max_grad_norm=recipe.max_grad_norm,
        completion_only_loss=recipe.completion_only_loss, logging_steps=25,
        save_strategy="steps", save_steps=50, save_total_limit=1,
    )  # fmt: skip
    return SFTConfig(**(arguments | overrides))
