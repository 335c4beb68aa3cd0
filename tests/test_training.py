import math
import subprocess
import sys

import pytest
import torch

from lecture_utils import baselines, training
from lecture_utils import transformer as tf

TOKENS = torch.randint(0, 30, (2_000,), generator=torch.Generator().manual_seed(0))
PLAN = training.TrainingConfig(steps=12, batch_size=4, context_length=16, learning_rate=1e-2)


def small():
    torch.manual_seed(0)
    return tf.Llama(tf.LlamaConfig(30, 16, 32, 2, 4, 2, 4))


def test_schedule_rises_in_a_line_and_falls_in_a_cosine():
    plan = training.TrainingConfig(steps=101, learning_rate=1.0, warmup_ratio=0.1, min_lr_ratio=0.2)
    rates = [training.get_learning_rate(plan, i) for i in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1) and rates[100] == pytest.approx(0.2)
    assert rates[55] == pytest.approx(0.6)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_targets_are_the_next_tokens_and_batches_differ():
    plan = training.TrainingConfig(steps=1, batch_size=5, context_length=7)
    inputs, targets = training.get_batch(TOKENS, plan, 3)
    assert inputs.shape == targets.shape == (5, 7)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = TOKENS.tolist()
    for row, last in zip(inputs.tolist(), targets[:, -1].tolist(), strict=True):
        assert any(text[i : i + 8] == [*row, last] for i in range(len(text) - 7))
    assert torch.equal(training.get_batch(TOKENS, plan, 3)[0], inputs)
    assert not torch.equal(training.get_batch(TOKENS, plan, 4)[0], inputs)
    assert training.get_batch(TOKENS[:8], plan, 0)[0].tolist() == [TOKENS[:7].tolist()] * 5


def test_accumulating_equals_the_large_batch(monkeypatch):
    """Two batches of four, added up, move the weights as one batch of the same eight rows."""
    monkeypatch.setenv("LECTURE_BF16", "0")
    whole, parts = small(), small()
    plan = training.TrainingConfig(steps=4, batch_size=4, context_length=16, gradient_accumulation_steps=2)
    training.Trainer(parts, plan).training_step(TOKENS)
    pieces = [training.get_batch(TOKENS, plan, i) for i in (0, 1)]
    monkeypatch.setattr(training, "get_batch", lambda *_: tuple(torch.cat(part) for part in zip(*pieces, strict=True)))
    training.Trainer(whole, training.TrainingConfig(steps=4, batch_size=8, context_length=16)).training_step(TOKENS)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_resumed_run_is_the_same_bit_for_bit(tmp_path):
    straight = training.Trainer(small(), PLAN).train(TOKENS)
    training.Trainer(small(), PLAN).train(TOKENS, until=5).save(tmp_path / "run.pt")
    again = training.Trainer(small(), PLAN).resume(tmp_path / "run.pt")
    assert again.step == 5
    again.train(TOKENS)
    assert again.losses == straight.losses and len(again.losses) == 12
    for a, b in zip(straight.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    with pytest.raises(ValueError, match="learning_rate, seed differ|learning_rate differ"):
        training.Trainer(
            small(), training.TrainingConfig(steps=12, batch_size=4, context_length=16, learning_rate=1e-3)
        ).resume(tmp_path / "run.pt")
    assert training.Trainer(small(), PLAN).resume(tmp_path / "none.pt").step == 0


@pytest.mark.parametrize("make", [small, lambda: baselines.LSTM(30, 8, 16)], ids=["llama", "lstm"])
def test_muon_takes_the_hidden_matrices_and_resumes_bit_for_bit(make, tmp_path):
    plan = training.TrainingConfig(steps=6, batch_size=4, context_length=16, learning_rate=1e-2, muon=True)
    torch.manual_seed(0)
    straight = training.Trainer(make(), plan)
    muon, adamw = straight.optimizers
    hidden = {n for n, p in straight.model.named_parameters() if p.ndim == 2 and n.split(".")[0] != "embedding"}
    held = [{id(p) for group in o.param_groups for p in group["params"]} for o in (muon, adamw)]
    named = [{n for n, p in straight.model.named_parameters() if id(p) in part} for part in held]
    assert type(muon).__name__ == "Muon" and named[0] == hidden
    assert named[1] == {n for n, _ in straight.model.named_parameters()} - hidden
    straight.train(TOKENS)
    torch.manual_seed(0)
    training.Trainer(make(), plan).train(TOKENS, until=2).save(tmp_path / "run.pt")
    again = training.Trainer(make(), plan).resume(tmp_path / "run.pt").train(TOKENS)
    assert again.losses == straight.losses and again.seconds > 0


def test_processes_share_a_batch_without_overlap():
    plan = training.TrainingConfig(steps=1, batch_size=6, context_length=5)
    whole, _ = training.get_batch(TOKENS, plan, 2)
    parts = [training.get_batch(TOKENS, plan, 2, (i, 3))[0] for i in range(3)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)
    with pytest.raises(AssertionError):
        training.get_batch(TOKENS, plan, 2, (0, 4))


PARALLEL = """
import os, sys
import torch
from accelerate import Accelerator
from torch.distributed import device_mesh, fsdp
from lecture_utils import training, transformer

accelerator = Accelerator(cpu=True)
torch.manual_seed(0)
model = transformer.Llama(transformer.LlamaConfig(30, 16, 32, 2, 4, 2, 4))
tokens = torch.randint(0, 30, (2_000,), generator=torch.Generator().manual_seed(0))
plan = training.TrainingConfig(steps=12, batch_size=4, context_length=16, learning_rate=1e-2)
who = (accelerator.process_index, accelerator.num_processes)
if sys.argv[2] == "sharded":
    whole = sum(p.numel() for p in model.parameters())
    for part in (*model.blocks, model):
        fsdp.fully_shard(part, mesh=device_mesh.init_device_mesh("cpu", who[1:]))
    assert sum(p.to_local().numel() for p in model.parameters()) == whole // 2
else:
    model = accelerator.prepare(model)
run = training.Trainer(model, plan, shard=who).train(tokens, progress=False)
losses = accelerator.gather(torch.tensor([run.losses])).mean(0)
if accelerator.is_main_process:
    torch.save(losses, sys.argv[1])
    print("processes:", accelerator.num_processes, flush=True)
accelerator.wait_for_everyone()
os._exit(0)  # PyTorch's threads may abort the usual way out
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["data parallel", "sharded"])
def test_two_processes_are_the_large_batch(how, tmp_path, monkeypatch):
    """Data parallel and sharded on two CPU processes: the losses of one process with all the rows."""
    monkeypatch.setenv("LECTURE_BF16", "0")
    (tmp_path / "parallel.py").write_text(PARALLEL)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone",
               str(tmp_path / "parallel.py"), str(tmp_path / "losses.pt"), how]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "processes: 2" in done.stdout
    alone = training.Trainer(small(), PLAN).train(TOKENS)
    assert torch.load(tmp_path / "losses.pt", weights_only=True).tolist() == pytest.approx(alone.losses, abs=1e-5)


def test_it_learns_what_can_be_learnt():
    text = torch.tensor(list(range(10)) * 200)
    run = training.Trainer(
        small(), training.TrainingConfig(steps=100, batch_size=8, context_length=16, learning_rate=1e-2)
    ).train(text)
    assert run.losses[-1] < 0.2 < run.losses[0]


@pytest.mark.parametrize("length", [9, 40, 41, 200])
def test_mean_loss_scores_each_token_once(length, monkeypatch):
    monkeypatch.setenv("LECTURE_BF16", "0")

    class Counting(torch.nn.Module):
        """Gives every token the probability 1/30."""

        def __init__(self):
            super().__init__()
            self.place = torch.nn.Parameter(torch.zeros(1))

        def forward(self, ids):
            return torch.zeros(*ids.shape, 30)

    assert training.mean_loss(Counting(), TOKENS[:length], context_length=16) == pytest.approx(math.log(30), abs=1e-5)
    model = small().eval()
    whole = training.mean_loss(model, TOKENS[:length], context_length=512)
    with torch.inference_mode():
        expected = training.next_token_loss(model, TOKENS[None, : length - 1], TOKENS[None, 1:length]).item()
    assert whole == pytest.approx(expected, abs=1e-4)


def test_windows_cover_the_text_without_gap(monkeypatch):
    monkeypatch.setenv("LECTURE_BF16", "0")
    scored = []

    def fake(model, inputs, targets, reduction):
        scored.append((inputs, targets))
        return targets.flatten().float()

    monkeypatch.setattr(training, "next_token_loss", fake)
    positions = torch.arange(100)
    mean = training.mean_loss(small(), positions, context_length=16, batch_size=3)
    assert mean == pytest.approx(positions[1:].float().mean().item())


def test_lstm_trains_in_the_same_loop():
    torch.manual_seed(0)
    text = torch.tensor(list(range(10)) * 200)
    run = training.Trainer(
        baselines.LSTM(30, 8, 16),
        training.TrainingConfig(steps=60, batch_size=8, context_length=16, learning_rate=1e-2),
    ).train(text)
    assert run.step == 60 and run.losses[-1] < run.losses[0] / 2


def test_bits_per_byte():
    assert training.bits_per_byte(math.log(2) * 8, 1, 1) == pytest.approx(8)
    assert training.bits_per_byte(math.log(16), 100, 400) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_muon_in_fp32_steps_as_torchs_in_bf16(shape, monkeypatch):
    """The same three steps, but for the rounding of bf16 (8 bits); the state has torch's names."""
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(training.runtime, "compute_dtype", lambda dtype=dtype: dtype)
        p = torch.nn.Parameter(start.clone())
        optimizer = training.Muon([p], lr=0.1, weight_decay=0.1)
        for grad in grads:
            p.grad = grad.clone()
            optimizer.step()
        results.append((p.detach() - start, list(optimizer.state_dict()["state"][0])))
    (ours, our_names), (theirs, their_names) = results
    assert our_names == their_names
    assert (ours - theirs).norm() < 0.03 * theirs.norm()
    assert ours.abs().max() > 0.05


def test_orthogonal_brings_all_singular_values_near_one():
    for shape in ((12, 12), (5, 30), (30, 5)):
        out = training.newton_schulz(torch.randn(shape), (3.4445, -4.775, 2.0315), 5)
        values = torch.linalg.svdvals(out)
        assert out.shape == shape and values.min() > 0.3 and values.max() < 1.3, values


def test_at_smoke_scale_a_plan_has_few_steps(monkeypatch):
    monkeypatch.setenv("LECTURE_SCALE", "smoke")
    assert training.TrainingConfig(steps=600).steps == 20 and training.TrainingConfig(steps=3).steps == 3
    monkeypatch.setenv("LECTURE_SCALE", "laptop")
    assert training.TrainingConfig(steps=600).steps == 600
