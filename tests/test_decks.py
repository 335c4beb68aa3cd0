"""Decks: what goes into one, and (slow, in headless Chromium without a network) that every slide holds its content."""

import re
import tomllib
from pathlib import Path

import decks
import lecture
import nbformat
import pytest

from lecture_utils import data

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
OUTLINE = data.outline()
CSS = (lecture.TEMPLATES / "deck" / "deck.css").read_text(encoding="utf-8")


@pytest.fixture(params=PATHS, ids=lambda p: p.stem)
def path(request):
    return request.param


def slide_type(cell):
    return cell.metadata.slideshow.slide_type


def test_arrangement(path):
    """A title slide, the outline's sections numbered in order, no skipped cell, a step after each prediction."""
    source = nbformat.read(path, as_version=4)
    cells = decks.arrange(source, path.stem).cells
    assert cells[0].source.startswith(f"# {OUTLINE[path.stem]['title']}\n\n*Lecture section")
    assert slide_type(cells[1]) == "notes", "how to run it is said beside the title"
    assert "colab" not in cells[0].source + cells[2].source and "You will" in cells[2].source
    found = [
        m for cell in cells if cell.cell_type == "markdown" for m in re.findall(r"(?m)^## (\S+) (.+)$", cell.source)
    ]
    titles = OUTLINE[path.stem]["headings"].values()
    assert found == [(f"{int(path.stem[:2])}.{i}", title) for i, title in enumerate(titles, 1)]
    assert not [cell for cell in cells if slide_type(cell) == "skip"]
    shown = [cell for cell in cells if slide_type(cell) not in ("notes", "text")]
    for cell, following in zip(shown, shown[1:], strict=False):
        if cell.cell_type == "markdown" and decks.PREDICT in cell.source:
            assert slide_type(following) != "-", f"the answer is on the slide with the question: {cell.source[:60]!r}"
    assert not [cell for cell in cells if "exercises.check" in cell.source], "a check shows the answer"
    assert not [c for c in shown if c.cell_type == "markdown" and re.search(r"\]\(\d\d_\w+\.ipynb", c.source)]


def test_brief_keeps_whole_sentences_and_what_they_lean_on():
    filler = "The weather in this town is mild and pleasant on most days of the long year. " * 5
    text = f"""## A heading

A cat sat on the mat. {filler}

{filler}A dog came in. It barked at **the animal**, as dogs do.

$$a = b$$

```python
x = 1

y = 2
```

{decks.PREDICT} Who runs away?

> **The 2023 lecture** says that dogs fly. {filler}

{filler}Here is the end:"""
    short = decks.brief(text)
    kept = ["## A heading", "A cat sat on the mat.", "A dog came in. It barked at **the animal**, as dogs do.",
            "$$a = b$$", "```python\nx = 1\n\ny = 2\n```", "Who runs away?", "Here is the end:"]  # fmt: skip
    assert all(part in short for part in kept) and "dogs fly" not in short
    assert [short.index(part) for part in kept] == sorted(short.index(part) for part in kept)
    assert decks.words(short) < decks.WORDS + 20 < decks.words(text)
    assert decks.brief(kept[2]) == kept[2]


def test_every_heading_keeps_a_sentence():
    filler = "The weather in this town is mild and pleasant on most days of the long year. " * 5
    short = decks.brief(f"### One\n\nA cat sat. {filler}\n\n### Two\n\nThis is a dog. {filler}")
    assert "### One\n\nA cat sat." in short and short.endswith("### Two\n\nThis is a dog.")


def test_brief_asks_no_question_without_its_answer():
    filler = "The weather in this town is mild and pleasant on most days of the long year. " * 5
    parts = ["A cat sat.", "Why did the cat sit?\n\nNobody knows.", "Where is **the dog**? Out.", "What now?"]
    short = decks.brief("\n\n".join(f"{part} {filler}" for part in parts))
    assert (
        "Why did the cat sit?\n\nNobody knows." in short
        and "Where is **the dog**?" in short
        and "What now" not in short
    )


def test_sentences_in_parentheses_or_quotes_stay_together():
    text = 'A cat. (It is long, and (so on) here. It goes on.) **Three.** Four dogs. She says, "I go. You stay." Five (a part.'
    found = ["A cat. (It is long, and (so on) here. It goes on.)", "**Three.** Four dogs.", "She says, \"I go. You stay.\"",
             "Five (a part."]  # fmt: skip
    assert decks.sentences(text) == found


def test_items_of_lists_keep_their_number_and_say_something():
    assert decks.lead("1. A cat sat on the mat. It slept.") == "1. A cat sat on the mat."
    assert decks.lead("- **Key**. Is it there? It was.") == "- **Key**. Is it there?"
    assert decks.lead("10. One") == "10. One"
    assert decks.named("- **Key** (`key`): is it there?") == "- **Key** (`key`)"
    assert decks.named("- A **key** fits here. It is small.") == "- A **key** fits here."


def test_slides_are_short_and_the_notes_hold_the_whole_text(path):
    """Beside headings, formulas, code, tables and predictions, a text has about 60 words, or is one sentence."""
    whole = {cell.id: cell.source for cell in lecture.offline(nbformat.read(path, as_version=4), ".html", "#/").cells}
    cells = decks.arrange(nbformat.read(path, as_version=4), path.stem).cells
    for i, cell in enumerate(cells[3:], 3):
        if cell.cell_type != "markdown" or slide_type(cell) in ("notes", "text"):
            continue
        parts = [b for b in decks.blocks(cell.source) if not decks.STAYS.match(b) and decks.PREDICT not in b]
        assert sum(map(decks.words, parts)) <= decks.WORDS or len(parts) < 3, cell.source
        if len(cell.source) < 0.9 * len(whole.get(cell.id, "")):
            [text] = [c.source for c in cells[i + 1 : i + 3] if slide_type(c) == "text"]
            assert whole[cell.id].strip().endswith(text[-100:])


def test_speaker_notes_are_those_of_the_outline():
    notes = tomllib.loads(decks.NOTES.read_text(encoding="utf-8"))
    assert list(notes) == list(OUTLINE)
    for stem, sections in notes.items():  # the notes of sections are written for a whole notebook or not at all
        assert list(sections) in (["start"], ["start", *OUTLINE[stem]["headings"]]), stem
    assert not [(s, h) for s, sections in notes.items() for h, note in sections.items() if not note.strip()]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio of two colours ``#rrggbb``, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_its_definition():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)  # the grey that just passes


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_of_text_and_code_has_contrast(theme):
    """4.5 to 1, WCAG 2.2's level AA, on the slide's paper and on the panels behind code."""
    light, dark = re.findall(r"(?s):root(?:\[data-theme=dark\])? \{(.+?)\n\}", CSS)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", light if theme == "light" else dark))
    assert set(colours) == {"paper", "ink", "soft", "line", "panel", "accent", "warm"}
    for name in ("ink", "soft", "accent"):
        for ground in ("paper", "panel"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    rules = [line for line in decks.code_colours().splitlines() if f"[data-theme={theme}]" in line]
    code = {colour.lower() for line in rules for colour in re.findall(r"(?<![-\w])color: (#[0-9A-Fa-f]{6})", line)}
    assert len(code) > 5
    low = {colour: round(contrast(colour, colours["panel"]), 2) for colour in code}
    assert not {colour: ratio for colour, ratio in low.items() if ratio < 4.5}


def test_deck_is_one_file(tmp_path):
    """No script, style, font or picture from elsewhere; alternative texts kept."""
    path = PATHS[0]
    [deck] = decks.write([path], tmp_path)
    html = deck.read_text(encoding="utf-8")
    markup = re.sub(r"(?s)<script>.*?</script>", "", html)
    assert not re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?!data:)[^"]+"', markup)
    assert not re.findall(r"url\((?!data:)['\"]?[^)]", "".join(re.findall(r"(?s)<style>(.*?)</style>", markup)))
    notebook = nbformat.read(path, as_version=4)
    figures = [
        output.metadata["image/png"]["alt"]
        for cell in notebook.cells
        if cell.cell_type == "code" and slide_type(cell) != "skip"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    images = re.findall(r'(?s)<img [^>]*src="data:image/png[^>]*>', markup)
    assert len(images) == len(figures) > 3 and all(re.search(r'alt="[^"]{20,}"', image) for image in images)


# ---- in a browser ----------------------------------------------------------------------------------------------


LOOK = """([h, v]) => {
  Reveal.slide(h, v, 99);
  const slide = Reveal.getCurrentSlide(), body = slide.querySelector('.body');
  const frame = document.querySelector('.slides').getBoundingClientRect();
  const outside = [...slide.querySelectorAll('.body *, .running')].filter((e) => {
    const box = e.getBoundingClientRect();
    if (!box.width || !box.height || e.closest('mjx-assistive-mml, defs, svg *')) return false;
    return box.right > frame.right + 1 || box.left < frame.left - 1 || box.bottom > frame.bottom + 1;
  }).map((e) => e.outerHTML.slice(0, 120));
  const clipped = [...slide.querySelectorAll('pre, .highlight, table')].filter((e) => e.scrollWidth > e.clientWidth + 1)
    .map((e) => e.outerHTML.slice(0, 120));
  return { outside, clipped, blank: !body.innerText.trim() && !body.querySelector('img, svg'),
           zoom: Number(body.dataset.zoom || 1), steps: slide.querySelectorAll('.fragment').length };
}"""


@pytest.mark.slow
def test_every_slide_of_a_deck(browser, path, tmp_path):
    [deck] = decks.write([path], tmp_path)
    context = browser.new_context(viewport={"width": 1280, "height": 720}, offline=True)
    page, left, errors = context.new_page(), [], []
    page.on("request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or left.append(request.url))
    page.on("console", lambda said: said.type == "error" and errors.append(said.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(deck.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
    slides = page.evaluate("Reveal.getSlides().map((s) => Reveal.getIndices(s))")
    assert len(slides) > len(OUTLINE[path.stem]["headings"])
    for at in slides:
        seen = page.evaluate(LOOK, [at["h"], at.get("v", 0)])
        assert not seen["outside"] and not seen["clipped"] and not seen["blank"], (at, seen)
        assert seen["zoom"] >= 0.6, f"slide {at} is too small to read: {seen['zoom']}"
    assert not left and not errors, (left, errors)

    notebook = decks.arrange(nbformat.read(path, as_version=4), path.stem)
    code = [c for c in notebook.cells if c.cell_type == "code" and "hide-input" not in c.metadata.get("tags", [])]
    on_slides = page.evaluate(
        "[...document.querySelectorAll('.slides .highlight')].map((e) => e.textContent).join('\\n')"
    )
    squeezed = re.sub(r"\s+", "", on_slides)
    missing = [c.source[:60] for c in code if re.sub(r"\s+", "", c.source) not in squeezed]
    assert not missing, f"lost on the way to the slides: {missing}"
    hidden = [c for c in notebook.cells if "hide-input" in c.metadata.get("tags", [])]
    assert not [c.source[:60] for c in hidden if re.sub(r"\s+", "", c.source) in squeezed], "scenery is hidden"
    headings = page.evaluate("[...document.querySelectorAll('.slides section.page[id]')].map((e) => e.id)")
    assert headings == list(OUTLINE[path.stem]["headings"]), "sections can be linked to"
    assert page.evaluate("document.querySelectorAll('.slides aside.notes').length") >= len(headings)
    page.keyboard.press("d")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 25, 31)", "dark paper"
    context.close()


@pytest.mark.slow
def test_handout(browser, tmp_path):
    """A page for each slide, and with the notes at least a page more for each that has some."""
    [deck] = decks.write(PATHS[:1], tmp_path)
    page = decks.opened(browser, deck)
    slides, noted = page.evaluate(
        "[Reveal.getTotalSlides(), document.querySelectorAll('.slides section.page:has(> aside.notes)').length]"
    )
    page.close()
    decks.print_pdf(browser, deck, notes=False)
    plain = len(re.findall(rb"/Type /Page\b", deck.with_suffix(".pdf").read_bytes()))
    decks.print_pdf(browser, deck, notes=True)
    with_notes = len(re.findall(rb"/Type /Page\b", deck.with_suffix(".pdf").read_bytes()))
    assert plain == slides and with_notes >= slides + noted > slides
