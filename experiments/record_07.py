"""Reproduce the recorded runs of notebook 07: `make record NB=07`, about ten minutes on two cores with bf16.

qlora     notebook 06's task with the frozen weights in NF4 and in FP4, three seeds each (06_methods has 16 bits)
"""

import runner


def qlora(weights: str, seed: int) -> dict:
    """Train LoRA on all linear layers, with the learning rate that notebook 06 chose for weights in 16 bits."""
    from lecture_utils import family

    method = "LoRA r=16, all linear"
    found = family.run(method, seed, family.METHODS[method], "test", quantization=weights.lower())
    losses = {"first_loss": found.losses[0], "last_losses": sum(found.losses[-10:]) / 10}
    return {"right": found.right, "total": found.total} | {name: round(loss, 3) for name, loss in losses.items()}


if __name__ == "__main__":
    planned = [{"weights": weights, "seed": seed} for weights in ("NF4", "FP4") for seed in range(3)]
    runner.run("07_qlora", planned, qlora, separately=True)
