"""Slide decks of the notebooks, from their committed outputs; nothing is run.

html    build/slides/*.html, complete in themselves: they open from a file, without a network
pdf     build/slides/*.pdf, handouts; with --notes the speaker notes too (needs Chromium)
sheet   build/slides/*.png, all slides of a deck on one picture, to look through (needs Chromium)
"""

import argparse
import base64
import importlib.resources
import io
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path

import lecture
import nbformat
from nbformat.v4 import new_markdown_cell

FOLDER = lecture.BUILD / "slides"
NOTES = lecture.ROOT / "docs" / "speaker_notes.toml"
ANCHOR = re.compile(r'(<a id="([a-z0-9-]+)"></a>\n\n)## (.+)')
PREDICT = "**Predict first.**"
WORDS = 60  # of prose on a slide
# A sentence that begins like this is not understood without the one before it.
LEANS = re.compile(
    r"(But|And|So|Therefore|Then|Thus|Yet|However|Otherwise|Instead|Afterwards|This|These|That|Those|They|Their|It|Its|"
    r"He|She|His|Her|Such|Both|Neither|Second|Third|For example|In other words|"
    r"In the (first|second|third|fourth|fifth|last|other|others)|"
    r"The (first|second|third|other|others|latter|reason|result|same|two))\b"
)
POINTS = re.compile(r"\b(it|its|they|them|their|this|these|those|such)\b")
ENDS = re.compile(r"(?<! v)(?<!al)[.!?][\"”*)]*\s+(?=[A-Z\"“*`\[$])")
# Headings, anchors, formulas, code, tables, pictures, and exercises.
STAYS = re.compile(r"#|<a |\$\$|```|\||!\[|\*\*\d+ \(")
LIST = re.compile(r"- |\d+\. ")


def leans(sentence: str) -> bool:
    """Say whether a sentence seems to need the one before it, by its first words."""
    return bool(LEANS.match(sentence) or POINTS.search(" ".join(sentence.split()[:8])))


def words(text: str) -> int:
    """Count the words that a reader sees; a formula or a piece of code is one."""
    text = re.sub(r"<[^>]+>|\]\([^)]+\)", "", re.sub(r"`[^`]+`|\$[^$]+\$", "x", text))
    return len(text.split())


def sentences(text: str) -> list[str]:
    """Split a paragraph; a lead-in in bold stays with its sentence, and sentences in parentheses or quotes together."""
    found, start = [], 0
    for end in [match.end() for match in ENDS.finditer(text)] + [len(text)]:
        part = text[start:end]
        whole = part.count("(") == part.count(")") and part.count('"') % 2 == 0
        if whole and not re.fullmatch(r"\W*\*\*[^*]+\*\*\s*", part):
            found.append(part.strip())
            start = end
    return [*found, text[start:]] if text[start:].strip() else found


def lead(item: str) -> str:
    """Return the first sentence of a list's item, or the first two if that one only names it."""
    mark, text = re.match(rf"({LIST.pattern})(.*)", item, re.DOTALL).groups()
    first, *rest = sentences(text)
    return mark + " ".join([first, *rest[: words(first) < 4]])


def named(item: str) -> str:
    """Return the words in bold with which a list's item begins, or else its ``lead``."""
    found = re.match(rf"({LIST.pattern})\*\*[^*]+\*\*(:| \([^()[]*\))?", item)
    return found.group().rstrip(":") if found else lead(item)


def blocks(source: str) -> list[str]:
    """Split Markdown at its empty lines, but not inside a piece of code."""
    found: list[str] = []
    for block in re.split(r"\n\n+", source.strip()):
        if found and found[-1].count("```") % 2:
            found[-1] += f"\n\n{block}"
        else:
            found.append(block)
    return found


def brief(source: str) -> str:
    """Return the text for a slide: all of it if it is short, else whole sentences of about ``WORDS`` words together.

    Headings, formulas, tables, code, exercises and predictions stay. Of the rest, the first sentence comes first, then
    those that define a term (in bold) or stand below a heading, lists, the last one if it leads to the next cell, boxes,
    and the beginnings of paragraphs. A question comes with its answer only.
    """
    if words(source) <= WORDS:
        return source
    kept, units = {}, []  # the blocks that stay; (block, text, rank, whether it needs the unit before)
    headed = False  # a heading needs a sentence below it
    for number, block in enumerate(blocks(source)):
        if STAYS.match(block) or PREDICT in block:
            kept[number], headed = [block], block.startswith("#")
        elif block.startswith(">"):
            units.append((number, block, 3, False))
        elif LIST.match(block):
            items = re.split(rf"\n(?={LIST.pattern})", block)
            leads = "\n".join(map(lead, items))
            text = leads if words(leads) <= WORDS / 2 else "\n".join(map(named, items))
            units.append((number, text, 2, bool(units)))
        else:
            for j, text in enumerate(sentences(block)):
                rank = 1 if "**" in text or headed else 6 if text.endswith("?") else 4 if j == 0 else 5
                answers = bool(units) and units[-1][1].endswith("?")
                units.append((number, text, rank, bool(units) and not headed and (answers or leans(text))))
                headed = False
    if not units:
        return source
    rank = {k: unit[2] for k, unit in enumerate(units)} | {0: 0}
    if units[-1][1].endswith((":", "?")):
        rank[len(units) - 1] = 2.5
    chosen: set[int] = set()
    for k in sorted((k for k in rank if rank[k] < 6), key=lambda k: (rank[k], k)):
        needed = {k}
        while units[min(needed)][3]:
            needed.add(min(needed) - 1)
        if rank[k] == 2 and sum(words(units[n][1]) for n in chosen | needed) > WORDS:
            needed = {k}  # a list is understood without the sentence before it
        total = sum(words(units[n][1]) for n in chosen | needed)
        if not chosen or total <= (WORDS if rank[k] < 5 else WORDS / 2):
            chosen |= needed
    for k in sorted(chosen):
        kept.setdefault(units[k][0], []).append(units[k][1])
    return "\n\n".join(" ".join(kept[number]) for number in sorted(kept))


def markdown(source: str, slide_type: str):
    return new_markdown_cell(source, metadata={"slideshow": {"slide_type": slide_type}})


def arrange(notebook, stem: str):
    """Return a copy as a deck wants it: a title slide, numbered sections, notes, no skipped cells, short texts.

    What follows a prediction is a step of its own, so that the hall can guess before it sees. A text that is too long
    for a slide is shortened, and the whole of it goes to the notes.
    """
    copy = lecture.offline(notebook, suffix=".html", anchor="#/")
    notes = tomllib.loads(NOTES.read_text(encoding="utf-8")).get(stem, {}) if NOTES.exists() else {}
    title, _, rest = copy.cells[0].source.partition("\n")
    _, _, rest = rest.strip().partition("\n")  # the line of badges
    about, _, plan = rest.strip().partition("\n\n")
    cells = [markdown(f"{title}\n\n{about}", "slide")]
    if start := notes.get("start"):
        cells.append(markdown(start, "notes"))
    will = "\n".join(line for line in plan.splitlines() if line.startswith("- **You will"))
    cells.append(markdown(f"### In this notebook\n\n{will}", "subslide"))
    cells.append(markdown(plan, "text"))
    section, predicted = 0, False
    for cell in copy.cells[1:]:
        slide_type = cell.metadata.slideshow.slide_type
        if slide_type == "skip":
            continue
        if predicted and slide_type == "-":
            cell.metadata.slideshow.slide_type = "fragment"
        whole = cell.source
        if cell.cell_type == "markdown":
            cell.source = brief(whole)
        shortened = cell.source != whole
        cells.append(cell)
        predicted = cell.cell_type == "markdown" and PREDICT in cell.source
        if cell.cell_type == "markdown" and (found := ANCHOR.search(cell.source)):
            section += 1
            number = f"{int(stem[:2])}.{section}"
            cell.source = ANCHOR.sub(lambda m, number=number: f"{m[1]}## {number} {m[3]}", cell.source)
            if note := notes.get(found[2]):
                cells.append(markdown(note, "notes"))
            whole = whole[found.end() :].strip()
        if shortened:
            cells.append(markdown(f"*The text of the notebook:*\n\n{whole}", "text"))
    copy.cells = cells
    return copy


def font(family: str, data: bytes, style: str) -> str:
    kind = "woff" if data[:4] == b"wOFF" else "truetype"
    source = f"url(data:font/{kind};base64,{base64.b64encode(data).decode()}) format('{kind}')"
    return f"@font-face {{ font-family: '{family}'; src: {source}; {style} }}"


def code_colours() -> str:
    """Return pygments' colours for light and dark paper; both keep a contrast of 4.5."""
    from pygments.formatters import HtmlFormatter

    light = HtmlFormatter(style="default").get_style_defs("[data-theme=light] .highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs("[data-theme=dark] .highlight")
    unused = re.compile(r"(?m)^.*\.highlight (?:\{ background|\.w |\.hll ).*$|^(?:pre|td|span)\b.*$")  # paper, spaces
    return unused.sub("", light + "\n" + dark)


def assets() -> dict[str, str]:
    """Return everything a deck holds besides its cells, from pinned packages and templates/deck."""
    import matplotlib

    reveal = importlib.resources.files("sphinx_revealjs") / "_static/revealjs"
    read = lambda folder, name: (folder / name).read_text(encoding="utf-8")  # noqa: E731
    ours = lecture.TEMPLATES / "deck"
    sans = reveal / "dist/theme/fonts/source-sans-pro"
    mono = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf"
    styles = {
        "regular": "font-weight: 400;",
        "semibold": "font-weight: 600;",
        "italic": "font-style: italic;",
    }
    fonts = [font("Deck Sans", (sans / f"source-sans-pro-{k}.woff").read_bytes(), v) for k, v in styles.items()]
    return {
        "mathjax": lecture.mathjax(),
        "reveal_css": read(reveal, "dist/reveal.css"),
        "reveal_js": read(reveal, "dist/reveal.js"),
        "notes_js": read(reveal, "plugin/notes/notes.js"),
        "fonts": "\n".join([*fonts, font("Deck Mono", mono.read_bytes(), "")]),
        "code_css": code_colours(),
        "css": read(ours, "deck.css"),
        "js": read(ours, "deck.js"),
    }


def write(paths: list[Path], folder: Path = FOLDER) -> list[Path]:
    """Write one HTML deck for each notebook; return their paths."""
    from nbconvert import HTMLExporter

    templates = [str(lecture.TEMPLATES)]
    exporter = HTMLExporter(config=lecture.plumbing_hidden(), template_name="deck", extra_template_basedirs=templates)
    common, written = assets(), []
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        deck = common | {"title": lecture.title(notebook)}
        resources = {"metadata": {"name": path.stem}, "deck": deck}
        html = exporter.from_notebook_node(arrange(notebook, path.stem), resources=resources)[0]
        written.append(folder / f"{path.stem}.html")
        written[-1].write_text(html, encoding="utf-8")
    return written


class Browser:
    """Headless Chromium: the one at $CHROMIUM, the system's, or else playwright's own."""

    def __enter__(self):
        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            sys.exit("playwright is missing: pip install -e '.[browser]'")
        names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
        own = next((shutil.which(name) for name in names if name and shutil.which(name)), None)
        self.started = sync_playwright().start()
        root = hasattr(os, "geteuid") and os.geteuid() == 0  # Chromium's sandbox does not start as root
        try:
            self.chromium = self.started.chromium.launch(executable_path=own, args=["--no-sandbox"] if root else [])
        except Exception as error:
            self.started.stop()
            sys.exit(f"No Chromium could be started: install it, or run `playwright install chromium`.\n{error}")
        return self.chromium

    def __exit__(self, *problem):
        self.chromium.close()
        self.started.stop()


def opened(browser, deck: Path, query: str = "", **options):
    """Return the deck in a page, laid out and ready."""
    page = browser.new_page(viewport={"width": 1280, "height": 720}, **options)
    page.goto(f"{deck.resolve().as_uri()}{query}")
    page.wait_for_selector("html[data-ready]", state="attached", timeout=120_000)
    return page


def print_pdf(browser, deck: Path, notes: bool) -> Path:
    """Print a deck as PDF, a slide a page; return its path."""
    page = opened(browser, deck, "?print-pdf" + ("&showNotes=separate-page" if notes else ""))
    page.wait_for_selector(".pdf-page", state="attached", timeout=120_000)
    target = deck.with_suffix(".pdf")
    page.pdf(path=target, prefer_css_page_size=True, print_background=True, tagged=True, outline=True)
    page.close()
    return target


def pdf(paths: list[Path], notes: bool) -> None:
    with Browser() as browser:
        for deck in write(paths):
            print(os.path.relpath(print_pdf(browser, deck, notes)))


def sheet(paths: list[Path], dark: bool = False) -> None:
    """Photograph each slide, with everything shown, and paste the pictures in rows of five."""
    from PIL import Image
    from tqdm import tqdm

    with Browser() as browser:
        for deck in write(paths):
            page = opened(browser, deck, "?dark" if dark else "")
            slides = page.evaluate("Reveal.getSlides().map((s) => Reveal.getIndices(s))")
            small = []
            for at in tqdm(slides, desc=deck.stem):
                page.evaluate("([h, v]) => Reveal.slide(h, v, 99)", [at["h"], at.get("v", 0)])
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                small.append(picture.resize((512, 288), Image.Resampling.LANCZOS))
            page.close()
            rows = -(-len(small) // 5)
            whole = Image.new("RGB", (5 * 520, rows * 296), "#888888")
            for i, picture in enumerate(small):
                whole.paste(picture, (i % 5 * 520 + 4, i // 5 * 296 + 4))
            whole.save(deck.with_suffix(".png"))
            print(os.path.relpath(deck.with_suffix(".png")))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("html", "pdf", "sheet"))
    parser.add_argument("notebook", nargs="?", help="a number (08) or the start of a name; default: all")
    parser.add_argument(
        "--notes", action="store_true", help="pdf: a page of speaker notes after each slide that has them"
    )
    parser.add_argument("--dark", action="store_true", help="sheet: on dark paper")
    given = parser.parse_args()
    chosen = lecture.found(given.notebook)
    if given.what == "html":
        for deck in write(chosen):
            size = deck.stat().st_size / 1e6
            print(f"{os.path.relpath(deck)}  ({size:.1f} MB, opens without a network)")
    elif given.what == "pdf":
        pdf(chosen, given.notes)
    else:
        sheet(chosen, given.dark)
