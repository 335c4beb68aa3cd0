"""Reproduce what notebook 12 needs: `make record NB=12`, about ninety minutes on two cores.

`12_sizes.csv`: two tasks learnt by transformers of nine sizes. `12_clip.csv`: five trainings of the small
CLIP with each text encoder, judged on combinations that were used for no choice. `12_projector.csv`: what a
frozen language model says of new pictures, by steps of training of the projector.
"""

import runner

STEPS = (0, 125, 250, 500, 1000)


def sizes() -> None:
    """Train transformers of nine widths on sums and on a phone book, with three seeds."""
    import torch

    from lecture_utils import emergence

    done = {(r["task"], r["width"], r["seed"]) for r in runner.done("12_sizes")}
    book = emergence.phone_book()
    for seed in range(3):

        def pages(step, seed=seed):
            generator = torch.Generator().manual_seed(seed * 10**6 + step)
            return book[torch.randint(len(book), (256,), generator=generator)]

        tasks = {
            "sums": (lambda step, seed=seed: emergence.sums(128, seed * 10**6 + step), emergence.sums(2000, 10**9)),
            "phone book": (pages, book),
        }
        for task, (examples, asked) in tasks.items():
            for width in emergence.WIDTHS:
                if (task, width, seed) in done:
                    continue
                model = emergence.train(width, examples, seed=seed)
                log_p, right = emergence.digit_scores(model, asked)
                runner.add("12_sizes", {
                    "task": task, "width": width, "seed": seed,
                    "parameters": sum(p.numel() for p in model.parameters()),
                    "log_p": round(log_p.mean().item(), 4), "digits": round(right.float().mean().item(), 4),
                    "answers": round(right.all(1).float().mean().item(), 4),
                })  # fmt: skip
                print(task, width, seed, flush=True)


def clips() -> None:
    """Train five CLIPs with each text encoder; count names of single things, and own captions before exchanged ones."""
    from lecture_utils import multimodal
    from lecture_utils.multimodal import Scene

    encoders = {"ordered": multimodal.OrderedText, "sum of words": multimodal.WordSum}
    names = [Scene((pair,)).caption().strip() for pair in multimodal.EVERY]
    done = {(r["encoder"], r["seed"]) for r in runner.done("12_clip")}
    for seed in range(5):
        for encoder, kind in encoders.items():
            if (encoder, seed) in done:
                continue
            clip, rows = multimodal.train(seed=seed, text_encoder=kind), []

            def count(what, pair, hits, encoder=encoder, seed=seed, rows=rows):
                row = {"encoder": encoder, "seed": seed, "what": what, "pair": pair}
                rows.append(row | {"right": int(sum(hits)), "total": len(hits)})

            for group, pairs in (("seen", multimodal.SEEN), ("new", multimodal.UNSEEN)):
                shown = multimodal.scenes(1200, 10**8, pairs, two=0)
                said = multimodal.similarities(clip, multimodal.draw(shown, 10**8), names).argmax(1)
                hits = [(s.things[0], multimodal.EVERY[i] == s.things[0]) for s, i in zip(shown, said, strict=True)]
                for pair in pairs:
                    count(f"named, {group}", f"{pair[1]} {pair[0]}", [hit for own, hit in hits if own == pair])
                shown = multimodal.scenes(1200, 10**8 + 1, pairs, two=1)
                shown = [s for s in shown if all(x != y for x, y in zip(*s.things, strict=True))][:600]
                for what, other in (("sides", sides_exchanged), ("colours", colours_exchanged)):
                    captions = [s.caption() for s in shown] + [other(s).caption() for s in shown]
                    near = multimodal.similarities(clip, multimodal.draw(shown, 10**8 + 1), captions)
                    own, wrong = near[:, : len(shown)].diagonal(), near[:, len(shown) :].diagonal()
                    count(f"{what} exchanged, {group}", "", (own > wrong + 1e-6).tolist())
            for row in rows:  # together: half of a judgement is no recording
                runner.add("12_clip", row)
            print(encoder, seed, flush=True)


def sides_exchanged(scene):
    """Return the scene with its two things in each other's place."""
    return type(scene)(scene.things[::-1])


def colours_exchanged(scene):
    """Return the scene with the colours of its two things exchanged."""
    (a, red), (b, blue) = scene.things
    return type(scene)(((a, blue), (b, red)))


def projectors() -> None:
    """Train a projector between CLIP and the frozen chat model, on a picture's vector or on its nine patches; the
    chat model then describes new pictures."""
    from lecture_utils import models, multimodal

    done = {r["input"] for r in runner.done("12_projector")}
    if done == {"vector", "patches"}:
        return
    clip = multimodal.train()
    chat, tokenizer = models.load_chat_model()
    chat.requires_grad_(False)
    if "vector" not in done:
        _projector(chat, tokenizer, "vector", lambda pixels: clip.pictures(pixels)[:, None], 4)
    if "patches" not in done:
        _projector(chat, tokenizer, "patches", clip.patches, 1)


def _projector(chat, tokenizer, name: str, encode, tokens: int) -> None:
    import torch
    from tqdm.auto import tqdm

    from lecture_utils import multimodal

    torch.manual_seed(0)
    projector = multimodal.Projector(chat, tokens=tokens)
    optimizer = torch.optim.AdamW(projector.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, STEPS[-1])

    def look(shown, seed):
        with torch.no_grad():
            return encode(multimodal.draw(shown, seed))

    groups = {"seen": multimodal.SEEN, "new": multimodal.UNSEEN, "another picture": multimodal.UNSEEN}
    rows = []  # written at the end: half of a training is no recording
    for step in tqdm(range(STEPS[-1] + 1)):
        if step in STEPS:
            for group, pairs in groups.items():
                shown = multimodal.scenes(200, 10**8, pairs)
                picture = look(shown, 10**8)
                if group == "another picture":
                    picture = picture.roll(1, 0)
                said = multimodal.describe(chat, tokenizer, projector, picture)
                for scene, text in zip(shown, said, strict=True):
                    row = {"input": name, "steps": step, "combination": group, "caption": scene.caption()}
                    rows.append(row | {"said": text})
        if step == STEPS[-1]:
            break
        shown = multimodal.scenes(16, 2 * 10**8 + step, multimodal.SEEN)
        loss = multimodal.caption_loss(chat, tokenizer, projector, look(shown, 2 * 10**8 + step), shown)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    for row in rows:
        runner.add("12_projector", row)


def main() -> None:
    from lecture_utils import runtime

    runtime.quiet()
    sizes()
    clips()
    projectors()


if __name__ == "__main__":
    main()
