"""Reproduce what notebook 12 needs: `make record NB=12`, about ten minutes on two cores.

A projector is trained between the notebook's CLIP and the frozen chat model; `12_projector.csv` has
what the model then says of new pictures, by steps of training.
"""

import runner

STEPS = (0, 125, 250, 500, 1000)


def main() -> None:
    import torch
    from tqdm.auto import tqdm

    from lecture_utils import models, multimodal, runtime

    if runner.done("12_projector"):
        return
    runtime.quiet()
    clip, _ = multimodal.train(multimodal.SEEN)
    chat, tokenizer = models.load_chat_model()
    chat.requires_grad_(False)
    torch.manual_seed(0)
    projector = multimodal.Projector(chat)
    adam = torch.optim.AdamW(projector.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(adam, 1e-2, STEPS[-1])

    def look(shown, seed):
        with torch.no_grad():
            return clip.pictures(multimodal.draw(shown, seed))

    rows = []  # written at the end: half of a training is no recording
    for step in tqdm(range(STEPS[-1] + 1)):
        if step in STEPS:
            for name, pairs in (
                ("seen", multimodal.SEEN), ("never seen", multimodal.UNSEEN), ("another picture's vector", multimodal.UNSEEN)
            ):  # fmt: skip
                shown = multimodal.scenes(200, 1_000_000, pairs)
                vectors = look(shown, 1_000_000)
                if name.startswith("another"):
                    vectors = vectors.roll(1, 0)
                said = multimodal.describe(chat, tokenizer, projector, vectors)
                for scene, text in zip(shown, said, strict=True):
                    rows.append({"steps": step, "combination": name, "caption": scene.caption(), "said": text})
        if step == STEPS[-1]:
            break
        shown = multimodal.scenes(16, 2_000_000 + step, multimodal.SEEN)
        loss = multimodal.caption_loss(chat, tokenizer, projector, look(shown, 2_000_000 + step), shown)
        loss.backward()
        adam.step()
        adam.zero_grad()
        rate.step()
    for row in rows:
        runner.add("12_projector", row)


if __name__ == "__main__":
    main()
