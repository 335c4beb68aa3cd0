"""Reproduce the recorded runs of notebook 08: `make record NB=08`, about 40 minutes on two cores.

Each run finetunes the laptop's model with one recipe and judges it on the 140 held-out phrasings.
"""

import dataclasses

import runner


def recipes() -> dict:
    """Return (recipe, seed) of every recorded run by its label."""
    from lecture_utils.recipes import get_recipe

    ours, change = get_recipe("laptop"), dataclasses.replace
    every = change(ours, first_layer=0)
    return {  # ours with seed 0 is the notebook's live run
        "ours, seed 1": (ours, 1),
        "ours, seed 2": (ours, 2),
        "all layers": (every, 0),
        "all layers, seed 1": (every, 1),
        "all layers, seed 2": (every, 2),
        "all layers, one epoch": (change(every, epochs=1.0), 0),
        "all layers, three epochs": (change(every, epochs=3.0), 0),
        "the lecture's settings": (get_recipe("laptop-2023"), 0),
        "ours, one epoch": (change(ours, epochs=1.0), 0),
        "ours, three epochs": (change(ours, epochs=3.0), 0),
    }


def finetune(label: str) -> dict:
    from lecture_utils import data, evaluation

    recipe, seed = recipes()[label]
    qa = data.lecture_qa()
    model, tokenizer, trainer = runner.finetune(recipe, qa["train"], seed)
    found = {"epochs": recipe.epochs, "seed": seed, "steps": trainer.state.global_step}
    return found | runner.scores(evaluation.evaluate(model, tokenizer, qa["test"]))


if __name__ == "__main__":
    runner.run("08_recipes", [{"label": label} for label in recipes()], finetune, separately=True)
