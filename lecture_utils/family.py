"""Parameter-efficient finetuning methods on one small task: simple questions about the shop's orders become SQL.

The task is a part of notebook 08's. All methods train on the same pairs, with the same number of steps and the same
batches, and every answer is judged by executing it.
"""

import time
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from lecture_utils import data, evaluation, models, runtime, shop, training
from lecture_utils.registry import choose

PAIRS, BATCH = 320, 8  # 40 steps


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


def lora(rank: int, targets="all-linear"):
    """Return PEFT's configuration of LoRA with alpha = 2 r, so that the factor alpha / r is 2 for every rank."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")


def configs() -> dict:
    """Return the PEFT configuration of each method that PEFT has."""
    from peft import IA3Config, PrefixTuningConfig, PromptTuningConfig

    lm = {"task_type": "CAUSAL_LM"}
    return {
        "prompt tuning, 20 vectors": PromptTuningConfig(num_virtual_tokens=20, prompt_tuning_init="SAMPLE_VOCAB", **lm),
        "(IA)³": IA3Config(**lm),
        "prefix tuning, 20 vectors": PrefixTuningConfig(num_virtual_tokens=20, **lm),
        "LoRA r=16, q and v": lora(16, ["q_proj", "v_proj"]),
    } | {f"LoRA r={rank}, all linear": lora(rank) for rank in (1, 4, 16, 64)}


# The learning rate of each method (record_06.py compares three of each on the development questions)
METHODS = {
    "prompt tuning, 20 vectors": 3e-1, "(IA)³": 1e-1, "prefix tuning, 20 vectors": 1e-1,
    "adapter layers, 16 wide": 3e-3, "LoRA r=16, q and v": 3e-3, "LoRA r=16, all linear": 3e-3, "all parameters": 1e-3,
}  # fmt: skip


def diagram():
    """Return a drawing of a transformer block with the places where the methods add trained parts."""
    from lecture_utils.diagrams import Diagram

    d = Diagram(8.6, 3.5)
    boxes = {}
    for name, x, y, width, kind in (
        ("20 free vectors", 0.1, 2.2, 1.35, "trained"), ("prompt", 0.1, 1.55, 1.35, "frozen"),
        ("attention", 2.3, 1.5, 1.3, "frozen"), ("adapter", 4.0, 1.5, 0.85, "trained"),
        ("feed-forward", 5.25, 1.5, 1.3, "frozen"), ("adapter ", 6.95, 1.5, 0.85, "trained"),
        ("keys and values", 2.3, 2.6, 1.3, "trained"), ("B A", 2.3, 0.55, 0.6, "trained"),
        ("factors", 3.0, 0.55, 0.7, "trained"), ("B A ", 5.25, 0.55, 0.6, "trained"),
        ("factors ", 5.95, 0.55, 0.7, "trained"),
    ):  # fmt: skip
        boxes[name] = d.box(x, y, name, width, 0.5, kind)
    into = {"attention": ("prompt", "20 free vectors", "keys and values", "B A", "factors"),
            "feed-forward": ("adapter", "B A ", "factors ")}  # fmt: skip
    for end, starts in (*into.items(), ("adapter", ["attention"]), ("adapter ", ["feed-forward"])):
        for start in starts:
            d.arrow(boxes[start], boxes[end])
    for x, y, name in (
        (0.78, 2.88, "prompt tuning"), (2.95, 3.28, "prefix tuning"), (2.6, 0.37, "LoRA"), (3.4, 0.37, "(IA)³"),
        (5.55, 0.37, "LoRA"), (6.35, 0.37, "(IA)³"), (4.43, 2.18, "adapter layers"), (7.38, 2.18, "adapter layers"),
    ):  # fmt: skip
        d.text(x, y, name, size=8.5)
    d.legend(0.1, 0.08, frozen="frozen", trained="trained, one kind in each method")
    return d


def block_diagram():
    """Return a drawing of a Llama block whose seven linear layers have LoRA beside them."""
    from lecture_utils.diagrams import Diagram

    d, boxes = Diagram(9.85, 2.9), {}
    for name, x, row in (
        ("x", 0.1, 1), ("norm", 0.9, 1), ("Q", 2.0, 2), ("K", 2.0, 1), ("V", 2.0, 0), ("attention", 3.1, 1),
        ("O", 4.4, 1), ("+", 5.3, 1), ("norm ", 6.0, 1), ("gate", 6.95, 1.6), ("up", 6.95, 0.4), ("×", 7.9, 1),
        ("down", 8.45, 1), ("+ ", 9.4, 1),
    ):  # fmt: skip
        adapted, y = name in ("Q", "K", "V", "O", "gate", "up", "down"), 0.55 + 0.75 * row
        width = 0.9 if name == "attention" else 0.6 if adapted or "norm" in name else 0.34
        kind = "frozen" if adapted else "data" if name == "x" else "plain"
        boxes[name] = d.box(x, y, name.strip(), width, 0.34, kind)
        if adapted:
            d.box(x, y - 0.24, "A, B", width, 0.24, "trained", size=7.5)
    for start, ends in {
        "x": ["norm"], "norm": ["Q", "K", "V"], "Q": ["attention"], "K": ["attention"], "V": ["attention"],
        "attention": ["O"], "O": ["+"], "+": ["norm "], "norm ": ["gate", "up"], "gate": ["×"], "up": ["×"],
        "×": ["down"], "down": ["+ "],
    }.items():  # fmt: skip
        for end in ends:
            d.arrow(boxes[start], boxes[end])
    (_, y), top = boxes["x"].center, 2.72
    for a, end in ((0.66, "+"), (5.82, "+ ")):  # the residual stream
        b = boxes[end].center[0]
        d.axes.plot((a, a, b), (y, top, top), color="#333333", lw=1.2)
        d.arrow((b, top), (b, y + 0.17))
    d.legend(0.1, 0.1, frozen="frozen linear layer", trained="LoRA beside it", plain="no linear layer")
    return d


def qlora_diagram():
    """Return a drawing of QLoRA's layer: what is stored, how it is used, and where gradients flow."""
    from lecture_utils import plotting
    from lecture_utils.diagrams import Diagram

    d = Diagram(8.8, 3.4)
    x, h = d.box(0.1, 1.1, "x", 0.6, 0.6, "data"), d.box(8.0, 1.1, "h", 0.6, 0.6, "data")
    codes = d.box(1.3, 2.85, "codes, 4 bits each", 1.7, 0.45, "frozen")
    scales = d.box(1.3, 2.2, "scales", 1.7, 0.45, "frozen")
    weight = d.box(4.6, 2.5, "W, 16 or 32 bits\nonly for a moment", 1.8, 0.6)
    product, plus = d.box(4.9, 1.6, "x Wᵀ", 1.2, 0.55), d.box(6.9, 1.1, "+", 0.45, 0.55)
    A, B = d.box(2.2, 0.35, "A", 0.9, 0.5, "trained"), d.box(4.2, 0.35, "B", 0.9, 0.5, "trained")
    d.arrow(codes, weight, "dequantize")
    for start, end in (
        (scales, weight), (weight, product), (x, product), (x, A), (A, B), (B, plus), (product, plus), (plus, h),
    ):  # fmt: skip
        d.arrow(start, end)
    for start, end, bend in ((plus, B, 0.45), (B, A, 0.45), (A, x, 0.3), (plus, product, -0.3), (product, x, 0.12)):
        d.arrow(start, end, bend=bend, dashed=True, color=plotting.RED)
    d.text(2.6, 1.92, "through W to earlier layers", size=8.5, color=plotting.RED)
    d.text(4.9, 0.14, "dashed red: gradients. They change only A and B", size=8.5, color=plotting.RED)
    d.legend(0.1, 0.14, frozen="stored, frozen", trained="trained")
    return d


def adapt(model, method: str):
    """Return ``model`` adapted by one of ``METHODS``, or by LoRA of another rank in ``configs``. PEFT has no adapter
    layers, so these are ours."""
    from peft import get_peft_model

    if method == "all parameters":
        return model
    if method == "adapter layers, 16 wide":
        return add_bottlenecks(model)
    return get_peft_model(model, choose(configs(), method, "method"))


def questions(split: str) -> list[dict]:
    """Return the questions of a split that have one condition and neither sort nor group: 320 pairs of ``"train"``; all
    such questions of ``"dev"``, for choices, and of ``"test"``, each from the patterns and worded freely."""
    names = {"train": ["train"], "dev": ["dev", "dev_free"], "test": ["test", "free"]}[split]
    rows = [row for name in names for row in shop.questions(name)]
    simple = [
        row for row in rows
        if "WHERE" in row["answer"] and not any(word in row["answer"] for word in (" AND ", "ORDER", "GROUP"))
    ]  # fmt: skip
    return simple[:PAIRS] if split == "train" else simple


@dataclass
class Outcome:
    """The results of one run: losses in nats per answer token, and how many answers gave the right rows."""

    trained: int  # number of trained parameters
    seconds: float  # of training
    right: int
    total: int
    losses: list[float]


def batches(model, tokenizer, seed: int = 0) -> list[dict]:
    """Return the training pairs in random order as batches of ``input_ids``, ``attention_mask`` and ``labels``, each
    (8, time). A label is -100 where the loss ignores the position: in the question and in the padding."""
    pairs = [(row["question"], shop.for_the_model(row["answer"])) for row in questions("train")]
    rows = [data.token_ids(tokenizer, *pair) for pair in pairs]
    # A generator of its own gives every method the same batches, however many random numbers its initialisation drew.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    found = []
    for step in range(runtime.limited(len(rows) // BATCH, 2)):
        batch = [rows[i] for i in order[step * BATCH : (step + 1) * BATCH]]
        _, *sheets = next(evaluation.answer_batches(model, batch, tokenizer.pad_token_id, BATCH))
        found.append(dict(zip(("input_ids", "attention_mask", "labels"), sheets, strict=True)))
    return found


def train(model, tokenizer, learning_rate: float, seed: int = 0) -> list[float]:
    """Train an adapted model on the training pairs, once. Return the loss of each step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.float()
    rows, losses = batches(model, tokenizer, seed), []
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=len(rows), pct_start=0.1)
    model.train()
    for batch in tqdm(rows, leave=False):
        with training.autocast():
            loss, count = evaluation.completion_loss(model, *batch.values())
        optimizer.zero_grad()
        (loss / count).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item() / count)
    model.eval()
    return losses


@torch.inference_mode()
def continue_after_soft_prompt(model, tokenizer, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Return the greedy continuation of each prompt after a soft prompt or prefix.

    PEFT's own ``generate`` does not write here what its ``forward`` predicts (PEFT 0.21 with transformers 5.24). So the
    base model continues the keys and values of the soft prompt or prefix, with as many padding tokens in ``input_ids``
    as it has positions.
    """
    base, soft = model.get_base_model(), model.get_prompt(len(prompts))
    if model.active_peft_config.peft_type != "PREFIX_TUNING":  # these are vectors, and not yet keys and values
        soft = base(inputs_embeds=soft, use_cache=True, logits_to_keep=1).past_key_values
    virtual = model.active_peft_config.num_virtual_tokens
    batch = tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    ids = torch.nn.functional.pad(batch["input_ids"], (virtual, 0), value=tokenizer.pad_token_id)
    mask = torch.nn.functional.pad(batch["attention_mask"], (virtual, 0), value=1)
    out = base.generate(
        input_ids=ids, attention_mask=mask, past_key_values=soft, do_sample=False, max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)


def answers(model, tokenizer, rows: list[dict]) -> list[str]:
    """Return the query that the model writes for the question of each row."""
    prompts = [data.render(tokenizer, row["question"])[0] for row in rows]
    soft = getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
    write = continue_after_soft_prompt if soft else evaluation.complete
    with training.autocast():  # an adapter in fp32 beside weights in 16 bits
        written = write(model, tokenizer, prompts, max_new_tokens=48)
    return [shop.for_the_database(text.strip()) for text in written]


def right(found: list[str], rows: list[dict], split: str) -> int:
    """Return how many queries find in the databases of the split what the rows' own queries find."""
    among = shop.databases(split)
    return sum(shop.is_right(among, sql, row["answer"]) for sql, row in zip(found, rows, strict=True))


def run(method: str, seed: int, learning_rate: float, split: str, quantization: str | None = None) -> Outcome:
    """Adapt the laptop's model by a method, train it, and judge it on a split. ``quantization``: of the frozen weights,
    as in ``models.load_chat_model``."""
    runtime.seed_everything(seed)
    model, tokenizer = models.load_chat_model(quantization=quantization)
    runtime.use_eager_attention_on_cpu(model)
    model = adapt(model, method)
    start = time.perf_counter()
    losses = train(model, tokenizer, learning_rate, seed)
    seconds = time.perf_counter() - start
    rows = questions(split)
    correct = right(answers(model, tokenizer, rows), rows, split)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Outcome(trained, seconds, correct, len(rows), losses)
