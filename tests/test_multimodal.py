import pytest
import torch

from lecture_utils import multimodal
from lecture_utils.multimodal import Scene


def test_captions_say_all_three_things():
    scene = Scene("ring", "orange", "at the top")
    assert scene.caption(0) == "an orange ring at the top"
    for form in range(3):
        assert all(word in scene.caption(form) for word in ("ring", "orange", "at the top"))


def test_scenes_keep_to_their_pairs():
    pairs = [("circle", "red"), ("cross", "blue")]
    made = multimodal.scenes(50, seed=1, pairs=pairs)
    assert {(s.shape, s.colour) for s in made} == set(pairs) and made == multimodal.scenes(50, seed=1, pairs=pairs)
    assert len({(s.shape, s.colour) for s in multimodal.scenes(1000)}) == 30


def test_a_picture_has_its_colour_in_its_place():
    wanted = [
        Scene("square", "red", "on the left"),
        Scene("circle", "blue", "at the bottom"),
        Scene("ring", "green", "in the middle"),
    ]
    pictures = multimodal.draw(wanted, seed=3)
    assert pictures.shape == (3, 3, 24, 24) and pictures.min() >= 0 and pictures.max() <= 1
    assert torch.equal(pictures, multimodal.draw(wanted, seed=3))
    square, circle, ring = pictures
    assert square[:, 12, 6].argmax() == 0 and circle[:, 17, 12].argmax() == 2  # (channel, row, column)
    ground = ring[:, 0, 0]
    assert (ring[:, 12, 12] - ground).abs().max() < 0.12  # a ring is empty inside


def test_words_pad_and_refuse():
    words = multimodal.Words(["a red circle", "a blue ring here"])
    ids = words(["a red circle", "a blue ring here"])
    assert ids.shape == (2, 4) and ids[0, 3] == 0 and (ids[1] > 0).all() and len(words) == 7
    with pytest.raises(ValueError, match="dragon"):
        words(["a red dragon"])


def test_clip_has_vectors_of_length_one_and_padding_changes_nothing():
    torch.manual_seed(0)
    words = multimodal.Words([Scene("ring", "red", place).caption(k) for place in multimodal.PLACES for k in range(3)])
    model = multimodal.CLIP(len(words))
    short, long = "a red ring", "on the left there is a red ring"
    torch.testing.assert_close(model.captions(words([short, long]))[0], model.captions(words([short]))[0])
    pictures = multimodal.draw(multimodal.scenes(4))
    torch.testing.assert_close(model.pictures(pictures).norm(dim=1), torch.ones(4))
    assert model(pictures, words([short, long])).shape == (4, 2)


def test_clip_loss_is_the_mean_of_both_directions():
    torch.manual_seed(1)
    logits = torch.randn(5, 5)
    rows = -logits.log_softmax(1).diag().mean()
    columns = -logits.log_softmax(0).diag().mean()
    torch.testing.assert_close(multimodal.clip_loss(logits), (rows + columns) / 2)
    assert multimodal.clip_loss(torch.zeros(7, 7)).item() == pytest.approx(torch.tensor(7.0).log().item())
    assert multimodal.clip_loss(100 * torch.eye(4)) < 1e-6
