"""Reproduce what notebook 14 needs: `make record NB=14`, about two hours and a half on two cores.

First the packaged `lock-solver`, unless it is there. `14_depth.csv`: answers at once after longer trainings.
`14_grpo.csv`: GRPO and its variants on the locks, a row for each run. `14_chat.csv`: TRL's GRPO with the laptop's chat
model on the word problems of notebook 10. Its rows with the rate 0.001 are a first attempt that was stopped after 26
rounds (`chat(0, 1e-3)`).
"""

import dataclasses
import math
import sys
import tempfile

import runner

from lecture_utils import evaluation, grpo, problems, reasoning, recipes

STORIES = (0, 1, 2)  # all three patterns
SHOWN = 24  # worked solutions for the cold start
CHAT_STEPS = 30


def word_problems():
    """Return (24 worked solutions, problems to train on, 100 test problems): no text is in two of them."""
    test = problems.problems(100, seed=6, stories=STORIES)
    known = {problem.text for problem in test}
    fresh = [p for p in problems.problems(900, seed=40, stories=STORIES) if p.text not in known]
    return fresh[:SHOWN], fresh[SHOWN:], test


def marks(model, tokenizer, asked, **how) -> tuple[str, str]:
    """Return x or . for each problem, and the first three answers."""
    messages = [[{"role": "user", "content": problem.text}] for problem in asked]
    said = evaluation.generate_answers(model, tokenizer, messages, 60, 25, **how)
    right = [problems.last_number(text) == problem.answer for text, problem in zip(said, asked, strict=True)]
    return "".join("x" if r else "." for r in right), " | ".join(said[:3])


def chat(seed: int, rate: float = 5e-4) -> None:
    """A short supervised training on worked solutions (the cold start), then GRPO; the test problems before and after."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from lecture_utils import runtime

    if any((row["seed"], row["rate"], row["stage"]) == (seed, rate, "after") for row in runner.done("14_chat")):
        return
    runtime.quiet()
    shown, train, test = word_problems()
    pairs = Dataset.from_dict({"question": [p.text for p in shown], "answer": [p.steps for p in shown]})
    recipe = dataclasses.replace(recipes.get_recipe("manners"), epochs=2.0, learning_rate=1e-3)
    model, tokenizer, _ = runner.finetune(recipe, pairs, seed)
    model = model.merge_and_unload()

    def measure(stage: str) -> None:
        torch.manual_seed(seed)
        for way, how in (("greedy", {}), ("sampled", {"temperature": 1.0})):
            right, texts = marks(model, tokenizer, test, **how)
            runner.add("14_chat", {
                "rate": rate, "seed": seed, "stage": stage, "step": 0 if stage == "before" else CHAT_STEPS, "way": way,
                "reward": f"{right.count('x') / len(test):.3f}", "tokens": "", "right": right, "texts": texts,
            })  # fmt: skip
            print(seed, stage, way, right.count("x"), flush=True)

    measure("before")

    class Log(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **rest):
            if "reward" in logs:
                tokens = f"{float(logs['completions/mean_length']):.1f}"
                runner.add("14_chat", {
                    "rate": rate, "seed": seed, "stage": "training", "step": state.global_step, "way": "sampled",
                    "reward": f"{float(logs['reward']):.3f}", "tokens": tokens, "right": "", "texts": "",
                })  # fmt: skip

    def reward(prompts, completions, answer, **rest):
        said = [completion[0]["content"] for completion in completions]
        return [float(problems.last_number(text) == right) for text, right in zip(said, answer, strict=True)]

    asked = [{"prompt": [{"role": "user", "content": p.text}], "answer": p.answer} for p in train]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model, reward_funcs=reward, train_dataset=Dataset.from_list(asked), processing_class=tokenizer,
            args=GRPOConfig(
                output_dir=folder, per_device_train_batch_size=32, num_generations=8, max_completion_length=60,
                learning_rate=rate, lr_scheduler_type="constant", max_steps=CHAT_STEPS, logging_steps=1, seed=seed,
                save_strategy="no", report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
                disable_tqdm=True,
            ),
            peft_config=LoraConfig(
                r=16, lora_alpha=32, task_type="CAUSAL_LM", layers_to_transform=list(range(15, 30)),
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            ),
            callbacks=[Log()],
        )  # fmt: skip
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        trainer.train()
        model = trainer.model.eval()
    measure("after")


def start() -> None:
    """The packaged start: trained on the writers' solutions of 2 to 8 moves. Its checksum belongs into the registry."""
    import torch
    from safetensors.torch import save_file

    from lecture_utils import downloads

    target = runner.FOLDER.parent / "assets" / "lock_solver" / "model.safetensors"
    if target.exists():
        return
    torch.set_num_threads(1)
    model = reasoning.new_model()
    reasoning.train(model, reasoning.corpus(range(2, 9), 0, reasoning.held_out(2000)), 2500)
    half = {name: value.half() for name, value in model.state_dict().items() if name != "head.weight"}
    save_file(half, target, metadata={"format": "pt"})
    print(f"lock-solver: sha256 {downloads.sha256(target)}", flush=True)


def depth(name: str, blocks: int, steps: int) -> dict:
    """How many of 100 problems with each number of moves are solved (greedy) by a network that answers ``at once``, after
    its steps (``careful``), or after as many semicolons as these have characters (``filler``)."""
    import torch

    torch.set_num_threads(1)
    tests = {moves: reasoning.held_out(100, moves) for moves in range(2, 9)}

    def pairs():
        for problem in reasoning.problems(range(2, 9), 1, [p for group in tests.values() for p in group]):
            filler = ";" * 6 * len(problem.moves)
            answer = f"{filler}#{problem.answer}." if name == "filler" else reasoning.solution(problem, name)
            yield problem.question, answer

    model = reasoning.new_model(blocks=blocks)
    reasoning.train(model, pairs(), steps)
    return {
        f"moves {moves}": int(reasoning.solve(model, group, temperature=0.0)[1].sum()) for moves, group in tests.items()
    }


DEPTH = [
    {"name": name, "blocks": blocks, "steps": steps}
    for name, blocks, steps in (
        ("at once", 3, 1200), ("at once", 3, 4800), ("at once", 6, 1200), ("at once", 6, 4800),
        ("filler", 3, 1200), ("careful", 3, 400),
    )
]  # fmt: skip


def sloppy(problem, text: str) -> bool:
    """A verifier with a bug: every written step is right. Where no step is written, this is true."""
    return all(reasoning.steps_right(problem, text))


VARIANTS = {  # name: (moves, seeds, settings, reward)
    "GRPO": (8, 5, {}, reasoning.is_right),
    "sloppy verifier": (8, 5, {}, sloppy),
    "own right solutions": (8, 5, {"baseline": False}, reasoning.is_right),
    "9 moves": (9, 5, {}, reasoning.is_right),
    "12 moves": (12, 3, {"steps": 20}, reasoning.is_right),
    "no division by the deviation": (8, 5, {"scale": False}, reasoning.is_right),
    "Dr. GRPO": (8, 5, {"scale": False, "average": "constant"}, reasoning.is_right),
    "8 updates": (8, 5, {"steps": 20, "epochs": 8}, reasoning.is_right),
    "8 updates, clip 0.28": (8, 5, {"steps": 20, "epochs": 8, "clip": (0.2, 0.28)}, reasoning.is_right),
    "8 updates, no clip": (8, 5, {"steps": 20, "epochs": 8, "clip": (math.inf, math.inf)}, reasoning.is_right),
    "KL penalty": (8, 5, {"kl_coef": 0.04}, reasoning.is_right),
}


def series(numbers: list[float]) -> str:
    return " ".join(f"{x:.3g}" for x in numbers)


def locks(name: str, seed: int) -> dict:
    """A training with GRPO, and 32 solutions of each of 100 test problems before (seed -1) or after it."""
    import torch

    torch.set_num_threads(1)
    moves, _, settings, reward = VARIANTS[name]
    model, test = reasoning.load_start(), reasoning.held_out(100, moves)
    history = grpo.History()
    if seed >= 0:
        asked = reasoning.problems(moves, seed=100 + seed, without=reasoning.held_out(2000, moves))
        config = grpo.GRPOConfig(**{"steps": 40, "seed": seed} | settings)
        history = grpo.train(model, asked, config, reward)
    torch.manual_seed(0)
    texts, right = reasoning.solve(model, test, 32)
    _, greedy = reasoning.solve(model, test, 1, 0.0)
    written = [text for group in texts for text in group]
    return {
        "right": " ".join(map(str, right.sum(1).tolist())), "greedy": int(greedy.sum()),
        "tokens": f"{sum(map(len, written)) / len(written):.1f}",
        **{w: f"{sum(reasoning.writer_of(t) == w for t in written) / len(written):.3f}" for w in reasoning.WIDTHS},
        "example": written[0], "reward": series(history.reward), "length": series(history.length),
        "wrong_length": series(history.wrong_length), "clipped": series(history.clipped),
    }  # fmt: skip


def main() -> None:
    start()
    runner.run("14_depth", DEPTH, depth)
    planned = [
        {"name": name, "seed": seed}
        for name, (_, seeds, _, _) in VARIANTS.items()
        for seed in range(-1 if name in ("GRPO", "9 moves", "12 moves") else 0, seeds)
    ]
    runner.run("14_grpo", planned, locks)
    for seed in range(3):
        chat(seed)


if __name__ == "__main__":
    sys.exit(main())
