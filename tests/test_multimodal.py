import pytest
import torch

from lecture_utils import multimodal
from lecture_utils.multimodal import Scene


def test_captions_say_all_three_things():
    scene = Scene((("ring", "orange"),), "at the top")
    assert scene.caption(0) == "an orange ring at the top"
    for form in range(multimodal.FORMS):
        assert all(word in scene.caption(form) for word in ("ring", "orange", "at the top"))
    two = Scene((("ring", "orange"), ("circle", "red")))
    assert two.caption(0) == "an orange ring left of a red circle"
    assert two.caption(1) == "a red circle right of an orange ring"
    assert two.caption(2) == "on the left an orange ring , on the right a red circle"


def test_scenes_keep_to_their_pairs():
    pairs = [("circle", "red"), ("cross", "blue")]
    made = multimodal.scenes(50, seed=1, pairs=pairs)
    assert {thing for s in made for thing in s.things} == set(pairs)
    assert made == multimodal.scenes(50, seed=1, pairs=pairs)
    assert {len(s.things) for s in multimodal.scenes(200, two=0)} == {1}
    assert {len(s.things) for s in multimodal.scenes(200, two=1)} == {2}
    assert {thing for s in multimodal.scenes(1000) for thing in s.things} == set(multimodal.EVERY)


def test_a_picture_has_its_colours_in_their_places():
    wanted = [
        Scene((("square", "red"),), "on the left"),
        Scene((("circle", "blue"),), "at the bottom"),
        Scene((("ring", "green"),), "in the middle"),
        Scene((("square", "red"), ("square", "blue"))),
    ]
    pictures = multimodal.draw(wanted, seed=3)
    assert pictures.shape == (4, 3, 24, 24) and pictures.min() >= 0 and pictures.max() <= 1
    assert torch.equal(pictures, multimodal.draw(wanted, seed=3))
    square, circle, ring, two = pictures
    assert square[:, 12, 6].argmax() == 0 and circle[:, 17, 12].argmax() == 2  # (channel, row, column)
    ground = ring[:, 0, 0]
    assert (ring[:, 12, 12] - ground).abs().max() < 0.12  # a ring is empty inside
    assert (square[:, 12, 17] - square[:, 0, 0]).abs().max() < 0.12  # one thing, so nothing on the right
    assert two[:, 12, 6].argmax() == 0 and two[:, 12, 17].argmax() == 2
    assert (two[:, 12, 6] - two[:, 0, 0]).abs().max() > 0.2 and (two[:, 12, 11] - two[:, 0, 0]).abs().max() < 0.12


def test_words_pad_and_refuse():
    words = multimodal.WordTokenizer(["a red circle", "a blue ring here"])
    ids = words(["a red circle", "a blue ring here"])
    assert ids.shape == (2, 4) and ids[0, 3] == 0 and (ids[1] > 0).all() and len(words) == 7


@pytest.mark.parametrize("encoder", [multimodal.OrderedText, multimodal.WordSum])
def test_clip_has_vectors_of_length_one_and_padding_changes_nothing(encoder):
    torch.manual_seed(0)
    words = multimodal.vocabulary()
    model = multimodal.CLIP(len(words), text_encoder=encoder)
    short, long = "a red ring", "on the left there is a red ring"
    torch.testing.assert_close(model.captions(words([short, long]))[0], model.captions(words([short]))[0])
    pictures = multimodal.draw(multimodal.scenes(4))
    torch.testing.assert_close(model.pictures(pictures).norm(dim=1), torch.ones(4))
    assert model(pictures, words([short, long])).shape == (4, 2)
    assert model.patches(pictures).shape == (4, 9, 64)
    orders = model.captions(words(["a red ring left of a blue circle", "a blue circle left of a red ring"]))
    assert torch.allclose(*orders, atol=1e-5) == (encoder is multimodal.WordSum)
    if encoder is multimodal.OrderedText:  # without positions, equal words would give equal states
        assert not torch.allclose(*model.captions(words(["red red", "red red red"])), atol=1e-3)


def test_patches_go_row_by_row():
    torch.manual_seed(0)
    model = multimodal.CLIP(5)
    picture = torch.zeros(1, 3, 24, 24)
    changed = picture.clone()
    changed[:, :, :4, 20:] = 1  # the upper right corner
    moved = (model.patches(changed) - model.patches(picture)).abs().sum(-1)[0]  # (9,)
    assert moved[2] > 0 and moved[6] == 0  # the last patch of the first row, and not the first of the last


def test_clip_loss_is_the_mean_of_both_directions():
    torch.manual_seed(1)
    logits = torch.randn(5, 5)
    rows = -logits.log_softmax(1).diag().mean()
    columns = -logits.log_softmax(0).diag().mean()
    torch.testing.assert_close(multimodal.clip_loss(logits), (rows + columns) / 2)
    assert multimodal.clip_loss(torch.zeros(7, 7)).item() == pytest.approx(torch.tensor(7.0).log().item())
    assert multimodal.clip_loss(100 * torch.eye(4)) < 1e-6


def test_what_is_kept_from_training_is_made_of_parts_that_are_not():
    groups = [set(multimodal.SEEN), set(multimodal.DEVELOPMENT), set(multimodal.UNSEEN)]
    assert set.union(*groups) == set(multimodal.EVERY) and sum(map(len, groups)) == len(multimodal.EVERY)
    assert {shape for shape, _ in multimodal.SEEN} == set(multimodal.SHAPES)
    assert {colour for _, colour in multimodal.SEEN} == set(multimodal.COLOURS)


def test_training_brings_pictures_and_captions_together():
    clip = multimodal.train(steps=150, batch_size=64)
    shown = [Scene((pair,), "in the middle") for pair in multimodal.EVERY[::3]]
    near = multimodal.similarities(clip, multimodal.draw(shown, seed=9), [scene.caption() for scene in shown])
    assert not clip.training and (near.argmax(1) == torch.arange(len(shown))).float().mean() > 0.25  # chance .07


def test_projector_puts_the_picture_before_the_text(tiny, tokenizer):
    tiny.requires_grad_(False)
    projector, ids = multimodal.Projector(tiny, features=8), torch.tensor([[5, 6, 7], [8, 9, 10]])
    patches = torch.randn(2, 3, 8)
    read = projector(patches, ids)
    assert read.shape == (2, 6, 64)
    torch.testing.assert_close(read[:, 3:], tiny.get_input_embeddings()(ids))
    torch.testing.assert_close(read[1, 2], patches[1, 2] @ projector.matrix.weight.T + projector.matrix.bias)
    assert sum(p.numel() for p in projector.parameters()) == 8 * 64 + 64
    several = multimodal.Projector(tiny, features=8, tokens=4)(torch.randn(2, 1, 8), ids)
    assert several.shape == (2, 7, 64)


def test_caption_loss_is_the_librarys_and_trains_the_projector_alone(tiny, tokenizer):
    tiny.requires_grad_(False)
    projector, vector = multimodal.Projector(tiny, features=8), torch.randn(2, 4, 8)
    scene = Scene((("ring", "red"),), "at the top")
    prompt, caption = (tokenizer(t)["input_ids"] for t in (multimodal.PROMPT, " a red ring at the top."))
    ids = torch.tensor([prompt + caption])
    labels = torch.tensor([[-100] * (4 + len(prompt)) + caption])
    theirs = tiny(inputs_embeds=projector(vector[:1], ids), labels=labels).loss
    ours = multimodal.caption_loss(tiny, tokenizer, projector, vector[:1], [scene])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    other = Scene(
        (("dodecahedron", "turquoise"),), "at the top"
    )  # of another length: padded, and the padding not counted
    scenes, sizes = [scene, other], [len(tokenizer(f" {x.caption()}.")["input_ids"]) for x in (scene, other)]
    alone = [multimodal.caption_loss(tiny, tokenizer, projector, vector[i : i + 1], [x]) for i, x in enumerate(scenes)]
    both = multimodal.caption_loss(tiny, tokenizer, projector, vector, scenes)
    assert sizes[0] != sizes[1]
    torch.testing.assert_close(both, (alone[0] * sizes[0] + alone[1] * sizes[1]) / sum(sizes), atol=1e-5, rtol=1e-5)
    both.backward()
    assert projector.matrix.weight.grad.abs().sum() > 0 and all(p.grad is None for p in tiny.parameters())
    assert len(multimodal.describe(tiny, tokenizer, projector, vector, max_new_tokens=3)) == 2
