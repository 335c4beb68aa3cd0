"""Parameter-efficient finetuning methods on one small task: which notebook of the lecture is a question about?

The chat model reads the question in its chat template, and its next token should name the subject. The six methods in
``METHODS`` train on the same questions, with the same number of steps and the same batches.
"""

import time
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from lecture_utils import data, models, runtime, training
from lecture_utils.registry import choose

SUBJECTS = {  # notebook -> the word that names its subject; the first tokens of these words differ
    "01_introduction": "history", "02_architecture": "attention", "03_pretraining": "pretraining",
    "04_supervised_finetuning": "instructions", "05_rlhf": "feedback", "06_lora_math": "adapters",
    "07_quantization": "bits", "08_qlora_llama2": "recipe", "09_rag": "search", "10_prompting": "prompts",
    "11_limitations_and_ethics": "ethics", "12_foundation_models": "foundation",
}  # fmt: skip
STEPS, BATCH = 100, 8


class Bottleneck(nn.Module):
    """Adapter layer x + up(gelu(down(x))), which keeps the shape (..., width) (Houlsby et al. 2019, 1902.00751,
    section 2.1). ``up`` is initialised to zero, so that the layer changes nothing before training."""

    def __init__(self, width: int, bottleneck: int):
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x):
        return x + self.up(nn.functional.gelu(self.down(x))).to(x.dtype)


def add_bottlenecks(model, bottleneck: int = 16):
    """Freeze a Llama in place and add an adapter layer after each attention and each feed-forward module."""
    model.requires_grad_(False)
    width = model.config.hidden_size
    for block in model.model.layers:
        block.self_attn.o_proj = nn.Sequential(block.self_attn.o_proj, Bottleneck(width, bottleneck))
        block.mlp.down_proj = nn.Sequential(block.mlp.down_proj, Bottleneck(width, bottleneck))
    return model


def configs() -> dict:
    """Return the PEFT configuration of each method, or None for the adapter layers, which this module implements."""
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig

    lm = {"task_type": "CAUSAL_LM"}
    return {
        "prompt tuning, 20 vectors": PromptTuningConfig(num_virtual_tokens=20, prompt_tuning_init="SAMPLE_VOCAB", **lm),
        "(IA)³": IA3Config(**lm),
        "prefix tuning, 20 vectors": PrefixTuningConfig(num_virtual_tokens=20, **lm),
        "adapter layers, 16 wide": None,
        "LoRA r=16, q and v": LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], **lm),
        "LoRA r=16, all linear": LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", **lm),
    }


# The learning rate of each method: the best of three on a phrasing of each fact that is not trained on (record_06.py)
METHODS = {
    "prompt tuning, 20 vectors": 1.0, "(IA)³": 3e-2, "prefix tuning, 20 vectors": 1e-2,
    "adapter layers, 16 wide": 1e-3, "LoRA r=16, q and v": 3e-3, "LoRA r=16, all linear": 3e-3,
}  # fmt: skip


def adapt(model, method: str):
    """Return ``model`` adapted by one of ``METHODS``, with the new parameters in fp32."""
    from peft import get_peft_model

    config = choose(configs(), method, "method")
    return add_bottlenecks(model) if config is None else get_peft_model(model, config)


def questions(split: str) -> tuple[list[str], list[str]]:
    """Return (questions, subjects) of a split: eight phrasings of each fact in ``"train"``, the ninth in ``"choose"``,
    on which the learning rates are chosen, and the held-out tenth in ``"test"``."""
    rows = data.lecture_qa()["test" if split == "test" else "train"]
    ninth = {fact: i for i, fact in enumerate(rows["fact"])}.values()  # the last row of each fact
    keep = {"test": range(len(rows)), "choose": ninth, "train": sorted(set(range(len(rows))) - set(ninth))}[split]
    rows = rows.select(keep)
    return list(rows["question"]), [SUBJECTS[name] for name in rows["notebook"]]


def encode(tokenizer, questions: list[str], subjects: list[str]):
    """Return (ids, attention mask), both (batch, time) and padded on the left, and the target token ids (batch,)."""
    prompts = [data.render(tokenizer, q)[0] for q in questions]
    x = tokenizer(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    targets = [tokenizer(s, add_special_tokens=False)["input_ids"][0] for s in subjects]
    return x["input_ids"], x["attention_mask"], torch.tensor(targets)


def next_token(model, ids, mask):
    """Return the logits (batch, vocabulary) of the token that follows each row of ``ids`` (batch, time)."""
    with training.autocast():
        return model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[:, -1].float()


@dataclass
class Outcome:
    """The results of one run. ``accuracy`` is the share of questions whose subject is the most probable next token."""

    method: str
    seed: int
    learning_rate: float
    trained: int  # number of trained parameters
    seconds: float  # of training
    right: int
    total: int
    losses: list[float]

    @property
    def accuracy(self) -> float:
        return self.right / self.total


def score(model, tokenizer, split: str) -> tuple[int, int]:
    """Return (number of correct answers, number of questions) of a split."""
    asked, subjects = (runtime.few(column, 8) for column in questions(split))
    model.eval()
    right = 0
    with torch.inference_mode():
        for i in range(0, len(asked), 20):
            ids, mask, targets = encode(tokenizer, asked[i : i + 20], subjects[i : i + 20])
            right += int((next_token(model, ids, mask).argmax(-1) == targets).sum())
    return right, len(asked)


def run(method: str, seed: int = 0, learning_rate: float | None = None, split: str = "test") -> Outcome:
    """Adapt the laptop's model by a method, train it for ``STEPS`` batches, and evaluate it on a split."""
    runtime.seed_everything(seed)
    rate = learning_rate or METHODS.get(method)
    model, tokenizer = models.load_chat_model()
    runtime.use_eager_attention_on_cpu(model)
    model = adapt(model, method).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=STEPS, pct_start=0.1)
    asked, subjects = questions("train")
    # A generator of its own gives every method the same batches, however many random numbers its initialisation drew.
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(asked), generator=generator)[: STEPS * BATCH].tolist()
    losses, start = [], time.perf_counter()
    for step in tqdm(range(runtime.limited(STEPS, 2)), desc=method, leave=False):
        batch = order[step * BATCH : (step + 1) * BATCH]
        ids, mask, targets = encode(tokenizer, [asked[i] for i in batch], [subjects[i] for i in batch])
        loss = nn.functional.cross_entropy(next_token(model, ids, mask), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - start
    right, total = score(model, tokenizer, split)
    outcome = Outcome(method, seed, rate, sum(p.numel() for p in trained), seconds, right, total, losses)
    del model, trained, optimizer, schedule, loss
    runtime.trim_memory()  # so that every method starts with the same free memory
    return outcome
