"""PPO on a tiny model with random weights: what is written is scored as written, and rewards rise."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lecture_utils import models, ppo

PROMPTS = ["Say something.", "And a longer question than the first one, please?", "No?", "Why is that so?"]


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer("lecture-base")


def policy(tokenizer, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    lora = LoraConfig(
        r=8, lora_alpha=32, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"], layers_to_transform=[2],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(LlamaForCausalLM(config).eval(), lora)


def common(features, texts):
    """A reward that needs no model: how many e's are in the text."""
    return torch.tensor([float(text.count("e")) for text in texts])


def test_answers_are_scored_as_they_were_written(tokenizer):
    plan = ppo.PPOConfig(batch_size=4, max_new_tokens=6, temperature=0.8)
    run = ppo.PPOTrainer(policy(tokenizer), tokenizer, common, layer=2, config=plan)
    answers = run.write(PROMPTS, seed=1)
    assert answers.mask.shape == answers.log_p.shape == answers.values.shape == (4, 6)
    assert answers.mask[:, 0].all() and answers.kl.abs().max() < 1e-4  # the adapter has changed nothing yet
    for b, prompt in enumerate(PROMPTS):  # each alone, without padding
        from lecture_utils import data

        text = data.render(tokenizer, prompt)[0]
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        new = answers.ids[b, -6:][answers.mask[b]]
        with torch.inference_mode():
            logits = run.model(torch.cat((ids, new[None]), 1)).logits[0, ids.shape[1] - 1 : -1] / 0.8
        expected = logits.log_softmax(-1).gather(-1, new[:, None])[:, 0]
        assert torch.allclose(answers.log_p[b][answers.mask[b]], expected, atol=1e-4)
        assert answers.texts[b] == tokenizer.decode(new, skip_special_tokens=True).strip()


@torch.no_grad()
def test_columns_without_a_token_change_nothing(tokenizer):
    """Padding before every prompt and behind every answer: all is as without, and 0 behind the answers."""
    run = ppo.PPOTrainer(
        policy(tokenizer), tokenizer, common, layer=2, config=ppo.PPOConfig(mini_batch_size=3, max_new_tokens=6)
    )
    torch.nn.init.normal_(run.value.weight)
    torch.manual_seed(0)
    ids, seen = torch.randint(5, 900, (5, 12)), torch.ones(5, 12, dtype=torch.long)
    for row, (first, last) in enumerate(((0, 12), (3, 12), (1, 10), (5, 11), (0, 10))):  # 8 of prompt, 4 of answer
        seen[row, :first], seen[row, last:] = 0, 0
    own = seen[:, -4:].bool()
    hidden = ppo.lower_states(run.model, ids, seen, 2)
    plain = run._passes(hidden, ids, seen, 4)
    padded = run._passes(F.pad(hidden, (0, 0, 3, 2)), F.pad(ids, (3, 2)), F.pad(seen, (3, 2)), 6)
    for one, other in zip(plain, padded, strict=True):  # (5, 4, …) and (5, 6, …)
        assert other.shape[1] == 6 and torch.allclose(one[own], other[:, :4][own], atol=1e-5)
    assert not padded[0][:, :4][~own].any() and not padded[0][:, 4:].any()
    assert plain[0][own].max() < 0


def test_an_answer_ends_with_its_first_end_of_turn(tokenizer, monkeypatch):
    run = ppo.PPOTrainer(policy(tokenizer), tokenizer, common, layer=2, config=ppo.PPOConfig(max_new_tokens=4))
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def scripted(input_ids, **_):
        new = torch.tensor([[9, end, pad, pad], [9, 8, 7, 6], [end, pad, pad, pad], [9, 9, 9, end]])
        return torch.cat((input_ids, new), 1)

    monkeypatch.setattr(run.model, "generate", scripted)
    assert run.write(PROMPTS, seed=0).mask.sum(1).tolist() == [2, 4, 1, 4]


def test_a_round_makes_rewarded_answers_likelier_and_leaves_the_base_alone(tokenizer):
    scores = torch.tensor([3.0, -1.0, 3.0, -1.0])
    plan = ppo.PPOConfig(batch_size=4, max_new_tokens=6, num_ppo_epochs=4, learning_rate=2e-3, kl_coef=0.0)
    model = policy(tokenizer)
    before = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    run = ppo.PPOTrainer(model, tokenizer, lambda features, texts: scores, layer=2, config=plan)
    answers = run.write(PROMPTS, seed=0)
    report = run.learn(answers)
    with torch.no_grad():
        now, _ = run._pass(answers.hidden, answers.ids, answers.attention_mask, 6)
    gained = ((now - answers.log_p) * answers.mask).sum(1)
    assert (gained[scores > 0] > 0).all() and (gained[scores < 0] < 0).all()
    assert 0 <= report["clipped"] <= 1 and report["value loss"] > 0
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_a_survey_covers_every_prompt_and_teaches_nothing(tokenizer):
    run = ppo.PPOTrainer(policy(tokenizer), tokenizer, common, 2, ppo.PPOConfig(max_new_tokens=4))
    before = [p.clone() for p in run.model.parameters()]
    prompts = PROMPTS * 5  # 20: more than one batch
    found = run.sample_answers(prompts, seed=3)
    assert len(found.texts) == len(found.score) == len(found.kl) == 20 and not run.history
    assert found.score.tolist() == [text.count("e") for text in found.texts]
    assert found.texts == run.sample_answers(prompts, seed=3).texts != run.sample_answers(prompts, seed=4).texts
    assert all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))


def test_rates_fall_from_round_to_round(tokenizer):
    run = ppo.PPOTrainer(
        policy(tokenizer),
        tokenizer,
        common,
        2,
        ppo.PPOConfig(iterations=4, batch_size=4, max_new_tokens=3, learning_rate=1e-3),
    )
    seen = []
    write = run.write
    run.write = lambda *given, **more: seen.append(run.optimizer.param_groups[0]["lr"]) or write(*given, **more)
    run.train(PROMPTS)
    assert seen == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_training_counts_on_from_the_round_it_has_reached(tokenizer):
    run = ppo.PPOTrainer(
        policy(tokenizer), tokenizer, common, 2, ppo.PPOConfig(iterations=3, batch_size=4, max_new_tokens=4)
    )
    run.train(PROMPTS, until=1).train(PROMPTS)
    assert [h["iteration"] for h in run.history] == [0, 1, 2]
    assert run.history[0]["KL"] == pytest.approx(0, abs=1e-4)
    assert set(run.history[0]) == {"clipped", "policy loss", "value loss", "iteration", "reward", "KL", "tokens"}


def test_fit_reward_separates_what_can_be_separated():
    g = torch.Generator().manual_seed(0)
    direction = torch.randn(10, generator=g)
    rejected = torch.randn(200, 10, generator=g)
    chosen = torch.randn(200, 10, generator=g) + 0.5 * direction
    model = ppo.fit_reward_model(chosen[:150], rejected[:150], layer=3)
    assert (model(chosen[150:]) > model(rejected[150:])).float().mean() > 0.8
    both = model(torch.cat((chosen[:150], rejected[:150])))
    assert both.mean().abs() < 1e-4 and both.std().item() == pytest.approx(1, abs=1e-3)
    apart = (chosen - rejected)[150:] / model.scale
    logits = model.unit * (model(chosen[150:]) - model(rejected[150:]))  # of Bradley and Terry's probability
    assert torch.allclose(logits, apart @ model.weight, atol=1e-4)
    strict = ppo.fit_reward_model(chosen[:150], rejected[:150], layer=3, decay=1.0)
    assert strict.weight.norm() < model.weight.norm()


@torch.no_grad()
def test_lower_and_upper_blocks_are_the_whole_model(tokenizer):
    model = policy(tokenizer)
    ids, seen = torch.tensor([[5, 6, 7, 8], [9, 9, 10, 11]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    lm, run = model.get_base_model().model, []
    blocks = lm.layers
    for block in blocks:
        block.register_forward_hook(lambda *_: run.append(1))
    hidden = ppo.lower_states(model, ids, seen, 2)
    assert len(run) == 2 and lm.layers is blocks
    last = ppo.upper_states(model, hidden, seen, 2)
    assert len(run) == 3 and lm.layers is blocks
    whole = lm(input_ids=ids, attention_mask=seen).last_hidden_state
    assert torch.allclose(last[seen.bool()], whole[seen.bool()], atol=1e-5)
    with pytest.raises(IndexError):  # whatever stops a pass, the model stays whole
        ppo.lower_states(model, ids + 10_000_000, seen, 1)
    assert lm.layers is blocks


def test_answer_features_do_not_depend_on_the_company(tokenizer):
    model = policy(tokenizer)
    pairs = [(prompt, "An answer. " * (i + 1)) for i, prompt in enumerate(PROMPTS)]
    together = ppo.answer_features(model, tokenizer, pairs, layer=2)
    alone = torch.cat([ppo.answer_features(model, tokenizer, [pair], layer=2) for pair in pairs])
    assert together.shape == (4, 32) and torch.allclose(together, alone, atol=1e-5)
