import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from lecture_utils import data, evaluation, finetuning, models, recipes, registry, shapes

PAIRS = Dataset.from_list(
    [{"question": f"What is number {n}?", "answer": f"It is {n * n}.", "key": str(n * n)} for n in range(12)]
)


@pytest.fixture
def chosen(tiny_folder):
    return recipes.Recipe(name="t", model=str(tiny_folder), rank=4, alpha=8, batch_size=4, learning_rate=1e-2)


def make_trainer(chosen, folder, **overrides):
    model, tokenizer = models.load_chat_model(chosen.model, chosen.quantization, torch.float32)
    overrides = {"disable_tqdm": True, "save_strategy": "no"} | overrides
    return finetuning.completion_trainer(
        model=model,
        args=recipes.training_arguments(chosen, folder, **overrides),
        train_dataset=finetuning.tokenize_pairs(PAIRS, tokenizer, chosen),
        processing_class=tokenizer,
        peft_config=recipes.lora_config(chosen),
    )


def test_unknown_recipe_lists_the_names():
    with pytest.raises(ValueError, match="laptop.*lecture-2023"):
        recipes.get_recipe("lab")


def test_recipes_name_models_of_the_registry():
    assert {r.model for r in recipes.RECIPES.values()} <= set(registry.REGISTRY)
    lecture = recipes.get_recipe("lecture-2023")
    assert (lecture.rank, lecture.alpha, lecture.batch_size, lecture.learning_rate) == (64, 16, 4, 2e-4)


def test_adapters_from_a_layer_on(chosen, tmp_path):
    trainer = make_trainer(dataclasses.replace(chosen, first_layer=1), tmp_path)
    names = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * len(shapes.Shape.MATRICES) and all(".layers.1." in n for n in names)
    whole = make_trainer(chosen, tmp_path)
    assert sum(p.requires_grad for p in whole.model.parameters()) == 2 * len(names)


def test_loss_and_gradients_equal_trls_own(chosen, tmp_path):
    """Three ways, one answer: our loss on answer positions, TRL's, and cross-entropy by hand."""
    from trl import SFTTrainer

    trainer = make_trainer(chosen, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    count = (batch["labels"][:, 1:] != -100).sum()
    trainer.model.eval()
    ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count)
    theirs = SFTTrainer.compute_loss(trainer, trainer.model, dict(batch), num_items_in_batch=count)
    logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    hand = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-4)
    assert ours.item() == pytest.approx(hand.item(), rel=1e-4)
    weight = next(p for n, p in trainer.model.named_parameters() if "lora_B" in n)
    a, b = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_the_answer_and_its_end_are_learnt_and_nothing_else(chosen, tmp_path, tokenizer):
    trainer = make_trainer(chosen, tmp_path)
    row = trainer.train_dataset[3]
    learnt = tokenizer.decode([t for t in row["labels"] if t != -100])
    assert learnt == "It is 9.<|im_end|>"  # and no line break after it
    assert row["input_ids"].count(1) == 2  # one <|im_start|> a turn: no double BOS


def test_the_whole_row_is_learnt_when_asked(chosen, tmp_path, tokenizer):
    trainer = make_trainer(dataclasses.replace(chosen, completion_only_loss=False), tmp_path)
    assert -100 not in trainer.train_dataset[0]["labels"]
    assert "What is number" in tokenizer.decode(trainer.train_dataset[0]["labels"])


def test_the_adapter_is_trained_in_fp32(chosen, tmp_path):
    trainer = make_trainer(chosen, tmp_path)
    trained = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert trained == {torch.float32}


def test_training_lowers_the_loss_and_the_adapter_survives(chosen, tmp_path, tokenizer):
    folder = tmp_path / "run"
    model, _, _ = finetuning.finetune(
        dataclasses.replace(chosen, epochs=25), PAIRS, folder, disable_tqdm=True, save_strategy="no"
    )
    assert not model.training
    base, _ = models.load_chat_model(chosen.model, "nf4", torch.float32)
    after = evaluation.answer_loss(model, tokenizer, PAIRS)
    assert after < evaluation.answer_loss(base, tokenizer, PAIRS) - 0.5  # a random frozen head allows little
    again, _ = finetuning.load_finetuned(folder, "nf4", merge=False)
    assert evaluation.answer_loss(again, tokenizer, PAIRS) == pytest.approx(after, rel=0.02)
    merged, _ = finetuning.load_finetuned(folder)
    assert not hasattr(merged, "peft_config") or type(merged).__name__ == "LlamaForCausalLM"
    finetuning.export(folder, tmp_path / "merged")
    whole, _ = models.load_chat_model(str(tmp_path / "merged"))
    assert evaluation.answer_loss(whole, tokenizer, PAIRS) == pytest.approx(
        evaluation.answer_loss(merged, tokenizer, PAIRS), rel=0.02
    )


class Stop(Exception):
    """Stands for the student's press of the stop button."""


def stopped_at(step):
    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == step:
                raise Stop

    return Interrupt()


def test_interrupted_training_goes_on_from_its_checkpoint(chosen, tmp_path, capsys):
    """The weights, the optimizer's step and the log are those of the checkpoint."""
    from safetensors.torch import load_file

    chosen = dataclasses.replace(chosen, epochs=2)  # six steps
    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    mark = finetuning.fingerprint(chosen, PAIRS)
    first = make_trainer(chosen, tmp_path, **settings)
    first.add_callback(stopped_at(5))
    with pytest.raises(Stop):
        finetuning.train(first, mark)
    saved = load_file(tmp_path / "checkpoint-4" / "adapter_model.safetensors")
    second = make_trainer(chosen, tmp_path, **settings)
    found = {}

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            if not found:
                found["step"] = state.global_step
                found.update({n: p.detach().clone() for n, p in model.named_parameters() if "lora" in n})

    second.add_callback(Look())
    finetuning.train(second, mark)
    assert "Resuming from step 4" in capsys.readouterr().out
    assert found.pop("step") == 4 and second.state.global_step == 6
    assert len(found) == len(saved) and all(v.abs().sum() > 0 for n, v in found.items() if "lora_B" in n)
    for name, value in found.items():
        torch.testing.assert_close(value, saved[name.replace(".default", "")], msg=name)
    logged = [e["step"] for e in second.state.log_history if "loss" in e]
    assert logged == [1, 2, 3, 4, 5, 6]
    assert not list(tmp_path.glob("checkpoint-*"))  # nothing left once complete


def test_a_checkpoint_that_was_cut_off_is_passed_over(chosen, tmp_path, capsys):
    """Killed while it was saving: the one before counts."""
    chosen = dataclasses.replace(chosen, epochs=2)  # six steps
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    first = make_trainer(chosen, tmp_path, **settings)
    first.add_callback(stopped_at(4))
    with pytest.raises(Stop):
        finetuning.train(first, "m")
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()  # written last
    second = make_trainer(chosen, tmp_path, **settings)
    finetuning.train(second, "m")
    assert "Resuming from step 3." in capsys.readouterr().out and second.state.global_step == 6


FULL = """
import subprocess, sys
sys.path.insert(0, "tests")
import test_finetuning as t
from lecture_utils import finetuning, models, recipes

chosen = recipes.Recipe(name="t", model=sys.argv[1], rank=64, alpha=8, batch_size=4, target_modules="all-linear")
for size in sys.argv[3:]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", sys.argv[2]], check=True)
    trainer = t.make_trainer(chosen, sys.argv[2] + "/run", save_strategy="steps", save_steps=1)
    try:
        finetuning.train(trainer, "m")
    except models.ModelError as error:
        print(size, trainer.state.global_step, error)
    subprocess.run(["umount", sys.argv[2]], check=True)
"""


def test_a_full_disk_says_so_and_what_to_do(tiny_folder, tmp_path):
    """File systems so small that they fill up in the adapter, in the optimizer's state, in a later checkpoint."""
    small = tmp_path / "small"
    small.mkdir()
    command = [sys.executable, "-c", FULL, tiny_folder, small, "300", "1200", "6000"]
    root = Path(__file__).resolve().parent.parent
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", small], capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    run = subprocess.run(["unshare", "-m", *command], cwd=root, capture_output=True, text=True)
    said = [line for line in run.stdout.splitlines() if "The disk is full" in line]
    assert [line.split()[:2] for line in said] == [["300", "1"], ["1200", "1"], ["6000", "2"]], run.stderr[-2000:]
    assert all("last whole checkpoint" in line for line in said)


def test_another_recipe_or_resume_false_starts_clean_and_says_so(chosen, tmp_path, capsys):
    settings = {"save_strategy": "steps", "save_steps": 1}
    for mark, resume, said in (("other", True, "another recipe's or other data's"), ("same", False, "as asked")):
        cut = make_trainer(chosen, tmp_path / said, **settings)
        cut.add_callback(stopped_at(2))
        with pytest.raises(Stop):
            finetuning.train(cut, "same")
        again = make_trainer(chosen, tmp_path / said, **settings)
        finetuning.train(again, mark, resume)
        assert said in capsys.readouterr().out and again.state.global_step == 3


def test_running_the_training_cell_twice_starts_over(chosen, tmp_path, capsys):
    trainer = make_trainer(chosen, tmp_path)
    first = finetuning.train(trainer, "m").training_loss
    assert "Starting clean (no checkpoint yet)" in capsys.readouterr().out
    assert finetuning.train(trainer, "m").training_loss == pytest.approx(first, rel=1e-3)


def test_fingerprint_sees_recipe_and_data(chosen):
    mark = finetuning.fingerprint(chosen, PAIRS)
    assert mark == finetuning.fingerprint(chosen, PAIRS)
    assert mark != finetuning.fingerprint(dataclasses.replace(chosen, rank=5), PAIRS)
    assert mark != finetuning.fingerprint(chosen, PAIRS.select(range(11)))


def test_out_of_memory_says_what_to_try(chosen, tmp_path, monkeypatch):
    trainer = make_trainer(chosen, tmp_path)

    def full(**_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "train", full)
    with pytest.raises(models.ModelError, match="halve batch_size"):
        finetuning.train(trainer)


def test_a_folder_without_an_adapter_says_so(tmp_path):
    with pytest.raises(models.ModelError, match="no adapter"):
        finetuning.load_finetuned(tmp_path)


def write(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
    return path


def test_command_line_finetunes_and_chats(tiny_folder, tmp_path, capsys):
    out = tmp_path / "mine"
    finetuning.main(
        ["--recipe", "laptop", "--model", str(tiny_folder), "--data", str(write(tmp_path / "my.jsonl")),
         "--output", str(out), "--max-steps", "2", "--hold-out", "0.25"]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "before: loss" in said and "after: loss" in said and "3 held-out pairs" in said
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    lines = iter(["Hello?", ""])
    finetuning.chat_loop(out, read=lambda _: next(lines))
    assert "Ask" in capsys.readouterr().out

    def ended(_):
        raise EOFError

    finetuning.chat_loop(out, read=ended)


def test_command_line_names_the_bad_line(tmp_path):
    bad = tmp_path / "my.jsonl"
    bad.write_text('{"question": "q"}\n')
    run = subprocess.run(
        [sys.executable, "-m", "lecture_utils.finetuning", "--data", str(bad), "--output", str(tmp_path / "o")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1 and "pair 1: 'answer' is missing" in run.stderr and "Traceback" not in run.stderr


def test_rows_are_the_tokens_that_the_evaluation_sees(tokenizer):
    rows = finetuning.tokenize_pairs(PAIRS, tokenizer, recipes.get_recipe("laptop"))
    for row, pair in zip(rows, PAIRS, strict=True):
        prompt, completion = data.token_ids(tokenizer, pair["question"], pair["answer"])
        assert row["input_ids"] == prompt + completion
        assert row["completion_mask"] == [0] * len(prompt) + [1] * len(completion)


def test_template_options_reach_the_rows(tokenizer, monkeypatch):
    seen = []
    monkeypatch.setattr(data, "token_ids", lambda *_, **options: (seen.append(options), ([1], [2]))[1])
    finetuning.tokenize_pairs(PAIRS.select([0]), tokenizer, recipes.get_recipe("qwen3-1.7b"))
    assert seen == [{"enable_thinking": False}]


@pytest.mark.slow
def test_two_processes_train_under_accelerate(tiny_folder, tmp_path):
    out = tmp_path / "two"
    run = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
         "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "lecture_utils.finetuning",
         "--recipe", "laptop", "--model", str(tiny_folder), "--data", str(write(tmp_path / "my.jsonl")),
         "--output", str(out), "--max-steps", "2"],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert (out / "adapter" / "adapter_model.safetensors").exists()
    assert run.stdout.count("before: loss") == 1  # only the first process judges
