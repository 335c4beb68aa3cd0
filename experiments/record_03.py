"""Reproduce the recorded runs of notebook 03: `make record NB=03`, about an hour on two cores.

03_optimizers: what each part of an optimizer is worth. A small Llama is trained for 400 steps, with several learning rates
for each optimizer; the rate is chosen on one half of the held-out text and the other half is reported. 03_scaling: five
sizes on the same million tokens. 03_memory: a model that reads a small text again and again.
"""

import functools

import runner

BATCH, CONTEXT = 16, 128
RATES = {
    "SGD": (0.1, 0.3, 1.0),
    "SGD with momentum": (0.03, 0.1, 0.3),
    "Adam": (1e-3, 3e-3, 6e-3, 1e-2),
    "and clipping": (1e-3, 3e-3, 6e-3, 1e-2),
    "and a schedule": (3e-3, 6e-3, 1e-2, 3e-2),
    "and weight decay (AdamW)": (3e-3, 6e-3, 1e-2, 3e-2),
    "Muon for the matrices": (3e-3, 6e-3, 1e-2, 3e-2),
}
WIDTHS = {16: (1e-2, 2e-2), 32: (7e-3, 1.4e-2), 64: (5e-3, 1e-2), 128: (3.5e-3, 7e-3), 256: (1.5e-3, 2.5e-3)}


@functools.cache
def texts():
    """Return the training tokens, both halves of the held-out tokens, and the tokenizer of notebook 03."""
    import torch

    from lecture_utils import corpus, tokenization

    docs = corpus.load()
    tokenizer = tokenization.train_with_library(docs.train, 1_024)

    def encode(documents):
        return torch.tensor([i for part in tokenizer.encode_batch([d + "\n\n" for d in documents]) for i in part.ids])

    held_out = encode(docs.held_out)
    return encode(docs.train), held_out[:40_000], held_out[40_000:80_000], tokenizer, encode


def llama(width: int, layers: int = 4):
    import torch

    from lecture_utils import transformer

    torch.manual_seed(0)
    config = transformer.LlamaConfig(1_024, width, 8 * width // 3, layers, 4, 4, width // 4)
    return transformer.Llama(config)


def settings(steps: int, rate: float, **more):
    from lecture_utils import training

    return training.TrainingConfig(steps=steps, batch_size=BATCH, context_length=CONTEXT, learning_rate=rate, **more)


def train(model, tokens, steps: int, rate: float, **more):
    """Train with the package's loop, which has clipping, a schedule and weight decay."""
    from lecture_utils import training

    return training.Trainer(model, settings(steps, rate, **more)).train(tokens, progress=False)


def step_by_step(model, updates, config, batch_of, clip=True, schedule=True) -> None:
    """Train with any optimizer, in mixed precision. ``batch_of`` returns inputs and labels of a step."""
    import torch

    from lecture_utils import training

    for step in range(config.steps):
        with training.autocast():
            loss = training.next_token_loss(model, *batch_of(step))
        updates.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        if schedule:
            updates.param_groups[0]["lr"] = training.get_learning_rate(config, step)
        updates.step()


def loss_on(model, tokens) -> str:
    from lecture_utils import training

    return f"{training.mean_loss(model.eval(), tokens, CONTEXT):.3f}"


def optimizer_run(optimizer: str, rate: float) -> dict:
    """Train with one optimizer. Each one after Adam adds one thing to the one before."""
    import torch

    from lecture_utils import training

    tokens, dev, test, *_ = texts()
    model, index = llama(96), list(RATES).index(optimizer)
    if index >= 5:
        train(model, tokens, 400, rate, muon=index == 6)
    else:
        if index < 2:
            updates = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9 * index)
        else:
            updates = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        config = settings(400, rate)
        batch_of = functools.partial(training.get_batch, tokens, config)
        step_by_step(model, updates, config, batch_of, clip=index >= 3, schedule=index >= 4)
    return {"dev": loss_on(model, dev), "test": loss_on(model, test)}


def size(width: int, rate: float) -> dict:
    """Train a model of three layers on about a million tokens."""
    tokens, dev, test, *_ = texts()
    model = llama(width, 3)
    train(model, tokens, 500, rate)
    inner = sum(p.numel() for p in model.blocks.parameters())
    return {"parameters": inner, "dev": loss_on(model, dev), "test": loss_on(model, test)}


def memory(tokens: int, steps: int) -> None:
    """Train on a small text for many passes, and add a row with both losses every hundred steps."""
    from lecture_utils import training

    train_tokens, _, test, *_ = texts()
    small = train_tokens[:tokens]

    def each(run) -> None:
        if run.step % 100 == 0:
            read = run.step * BATCH * CONTEXT
            losses = {"trained on": loss_on(run.model, small[:20_000]), "held out": loss_on(run.model, test[:20_000])}
            runner.add("03_memory", {"steps": run.step, "passes": f"{read / tokens:.2f}"} | losses)
            run.model.train()

    training.Trainer(llama(128), settings(steps, 4e-3)).train(small, callback=each, progress=False)


if __name__ == "__main__":
    plans = [{"optimizer": name, "rate": rate} for name, rates in RATES.items() for rate in rates]
    runner.run("03_optimizers", plans, optimizer_run, separately=True)
    plans = [{"width": width, "rate": rate} for width, rates in WIDTHS.items() for rate in rates]
    runner.run("03_scaling", plans, size, separately=True)
    if not runner.done("03_memory"):
        memory(200_000, 1_500)
