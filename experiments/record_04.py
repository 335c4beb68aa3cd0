"""Reproduce the recorded runs of notebook 04: `make record NB=04`, about 25 minutes on two cores.

The chat model is finetuned on more and more of the pairs (notebook 08's recipe), and once in full, in fp32; each is
judged on the 140 held-out phrasings.
"""

import dataclasses
import tempfile

import runner

PLANNED = [{"method": "adapter", "pairs": n} for n in (50, 100, 200, 400, 800, 1_260)]
PLANNED += [{"method": "all parameters", "pairs": 1_260}]
LEARNING_RATE = {"all parameters": 2e-4}


def finetune(method: str, pairs: int) -> dict:
    import torch

    from lecture_utils import data, evaluation, finetuning, models, recipes, runtime

    qa = data.lecture_qa()
    recipe = recipes.get_recipe("laptop-facts")
    train = qa["train"].shuffle(seed=0).select(range(pairs))
    if method == "adapter":
        model, tokenizer, trainer = runner.finetune(recipe, train)
    else:
        runtime.seed_everything(0)
        model, tokenizer = models.load_chat_model(recipe.model, dtype=torch.float32)
        recipe = dataclasses.replace(recipe, learning_rate=LEARNING_RATE[method])
        with tempfile.TemporaryDirectory() as folder:
            trainer = finetuning.completion_trainer(
                model=model,
                args=recipes.training_arguments(recipe, folder, save_strategy="no", disable_tqdm=True),
                train_dataset=finetuning.tokenize_pairs(train, tokenizer, recipe),
                processing_class=tokenizer,
            )
            trainer.train()
    found = {"steps": trainer.state.global_step, "trained": models.count_parameters(model)[0]}
    found |= runner.scores(evaluation.evaluate(model, tokenizer, qa["test"]))
    return found | {"peak_gb": f"{runtime.peak_memory_gb():.2f}"}


if __name__ == "__main__":
    runner.run("04_data_size", PLANNED, finetune, separately=True)
