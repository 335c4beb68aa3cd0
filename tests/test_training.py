import math
import subprocess
import sys

import pytest
import torch

from lecture_utils import baselines, training
from lecture_utils import transformer as tf

TOKENS = torch.randint(0, 30, (2_000,), generator=torch.Generator().manual_seed(0))
PLAN = training.Plan(steps=12, rows=4, time=16, peak=1e-2)


def small():
    torch.manual_seed(0)
    return tf.Llama(tf.LlamaConfig(30, 16, 32, 2, 4, 2, 4))


def test_schedule_rises_in_a_line_and_falls_in_a_cosine():
    plan = training.Plan(steps=101, peak=1.0, warmup=0.1, floor=0.2)
    rates = [training.learning_rate(plan, i) for i in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1) and rates[100] == pytest.approx(0.2)
    assert rates[55] == pytest.approx(0.6)
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_targets_are_the_next_tokens_and_batches_differ():
    plan = training.Plan(steps=1, rows=5, time=7)
    inputs, targets = training.batch(TOKENS, plan, 3)
    assert inputs.shape == targets.shape == (5, 7)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = TOKENS.tolist()
    for row, last in zip(inputs.tolist(), targets[:, -1].tolist(), strict=True):
        assert any(text[i : i + 8] == [*row, last] for i in range(len(text) - 7))
    assert torch.equal(training.batch(TOKENS, plan, 3)[0], inputs)
    assert not torch.equal(training.batch(TOKENS, plan, 4)[0], inputs)
    assert training.batch(TOKENS[:8], plan, 0)[0].tolist() == [TOKENS[:7].tolist()] * 5
    with pytest.raises(ValueError, match="7 tokens are too few"):
        training.batch(TOKENS[:7], plan, 0)


def test_accumulating_equals_the_large_batch(monkeypatch):
    """Two batches of four, added up, move the weights as one batch of the same eight rows."""
    monkeypatch.setenv("LECTURE_BF16", "0")
    whole, parts = small(), small()
    plan = training.Plan(steps=4, rows=4, time=16, accumulate=2)
    training.Run(parts, plan).advance(TOKENS)
    pieces = [training.batch(TOKENS, plan, i) for i in (0, 1)]
    monkeypatch.setattr(training, "batch", lambda *_: tuple(torch.cat(part) for part in zip(*pieces, strict=True)))
    training.Run(whole, training.Plan(steps=4, rows=8, time=16)).advance(TOKENS)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_resumed_run_is_the_same_bit_for_bit(tmp_path):
    straight = training.Run(small(), PLAN).train(TOKENS)
    training.Run(small(), PLAN).train(TOKENS, until=5).save(tmp_path / "run.pt")
    again = training.Run(small(), PLAN).resume(tmp_path / "run.pt")
    assert again.step == 5
    again.train(TOKENS)
    assert again.losses == straight.losses and len(again.losses) == 12
    for a, b in zip(straight.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == ["run.pt"]
    with pytest.raises(ValueError, match="peak, seed differ|peak differ"):
        training.Run(small(), training.Plan(steps=12, rows=4, time=16, peak=1e-3)).resume(tmp_path / "run.pt")
    assert training.Run(small(), PLAN).resume(tmp_path / "none.pt").step == 0


@pytest.mark.parametrize("make", [small, lambda: baselines.LSTM(30, 8, 16)], ids=["llama", "lstm"])
def test_muon_takes_the_hidden_matrices_and_resumes_bit_for_bit(make, tmp_path):
    plan = training.Plan(steps=6, rows=4, time=16, peak=1e-2, muon=True)
    torch.manual_seed(0)
    straight = training.Run(make(), plan)
    muon, adamw = straight.optimizers
    hidden = {n for n, p in straight.model.named_parameters() if p.ndim == 2 and n.split(".")[0] != "embedding"}
    held = [{id(p) for group in o.param_groups for p in group["params"]} for o in (muon, adamw)]
    named = [{n for n, p in straight.model.named_parameters() if id(p) in part} for part in held]
    assert type(muon).__name__ == "Muon" and named[0] == hidden
    assert named[1] == {n for n, _ in straight.model.named_parameters()} - hidden
    straight.train(TOKENS)
    torch.manual_seed(0)
    training.Run(make(), plan).train(TOKENS, until=2).save(tmp_path / "run.pt")
    again = training.Run(make(), plan).resume(tmp_path / "run.pt").train(TOKENS)
    assert again.losses == straight.losses and again.seconds > 0


def test_processes_share_a_batch_without_overlap():
    plan = training.Plan(steps=1, rows=6, time=5)
    whole, _ = training.batch(TOKENS, plan, 2)
    parts = [training.batch(TOKENS, plan, 2, (i, 3))[0] for i in range(3)]
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), whole)
    with pytest.raises(ValueError, match="rows=6 cannot be shared evenly among 4"):
        training.batch(TOKENS, plan, 2, (0, 4))


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
plan = training.Plan(steps=12, rows=4, time=16, peak=1e-2)
who = (accelerator.process_index, accelerator.num_processes)
if sys.argv[2] == "sharded":
    whole = sum(p.numel() for p in model.parameters())
    for part in (*model.blocks, model):
        fsdp.fully_shard(part, mesh=device_mesh.init_device_mesh("cpu", who[1:]))
    assert sum(p.to_local().numel() for p in model.parameters()) == whole // 2
else:
    model = accelerator.prepare(model)
run = training.Run(model, plan, share=who).train(tokens, progress=False)
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
    alone = training.Run(small(), PLAN).train(TOKENS)
    assert torch.load(tmp_path / "losses.pt", weights_only=True).tolist() == pytest.approx(alone.losses, abs=1e-5)


def test_it_learns_what_can_be_learnt():
    text = torch.tensor(list(range(10)) * 200)
    run = training.Run(small(), training.Plan(steps=100, rows=8, time=16, peak=1e-2)).train(text)
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

    assert training.mean_loss(Counting(), TOKENS[:length], time=16) == pytest.approx(math.log(30), abs=1e-5)
    model = small().eval()
    whole = training.mean_loss(model, TOKENS[:length], time=512)
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
    mean = training.mean_loss(small(), positions, time=16, rows=3)
    assert mean == pytest.approx(positions[1:].float().mean().item())


def test_lstm_trains_in_the_same_loop():
    torch.manual_seed(0)
    text = torch.tensor(list(range(10)) * 200)
    run = training.Run(baselines.LSTM(30, 8, 16), training.Plan(steps=60, rows=8, time=16, peak=1e-2)).train(text)
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
        out = training.orthogonal(torch.randn(shape), (3.4445, -4.775, 2.0315), 5)
        values = torch.linalg.svdvals(out)
        assert out.shape == shape and values.min() > 0.3 and values.max() < 1.3, values


def test_at_smoke_scale_a_plan_has_few_steps(monkeypatch):
    monkeypatch.setenv("LECTURE_SCALE", "smoke")
    assert training.Plan(steps=600).steps == 20 and training.Plan(steps=3).steps == 3
    monkeypatch.setenv("LECTURE_SCALE", "laptop")
    assert training.Plan(steps=600).steps == 600
