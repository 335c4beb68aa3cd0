"""Split the text of the course into chunks that know from which notebook and under which heading they come."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ANCHOR = re.compile(r'<a id="([a-z0-9-]+)"></a>')
SNAPSHOT = Path(__file__).parent / "assets" / "lecture_text" / "sections.json"
LEFT_OUT = ("exercises", "summary")  # sections that explain nothing new


@dataclass(frozen=True)
class Section:
    """A heading of the course and the text below it."""

    notebook: str  # its name in outline.toml, for example 06_lora_math
    heading: str  # its id
    title: str
    text: str


@dataclass(frozen=True)
class Chunk(Section):
    """A part of a section. ``number`` is its index within the section."""

    number: int = 0

    @property
    def id(self) -> str:
        return f"{self.notebook}#{self.heading}/{self.number}"

    @property
    def titled(self) -> str:
        """Return the title and the text. Both are searched, because a paragraph often does not name its own subject."""
        return f"{self.title}. {self.text}"


def lecture() -> list[Section]:
    """Return the sections of all notebooks from the snapshot in this package (see ``snapshot_date``).

    Because it is a snapshot, a changed sentence does not change any search. ``make snapshot`` renews it.
    """
    return [Section(**section) for section in _snapshot()["sections"]]


def snapshot_date() -> str:
    """Return the date on which the snapshot was taken from the notebooks, as YYYY-MM-DD."""
    return _snapshot()["date"]


def _snapshot() -> dict:
    return json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def markdown_to_text(markdown: str) -> str:
    """Return Markdown as text for the search, without anchors, images, targets of links, and marks of emphasis."""
    text = ANCHOR.sub("", markdown)
    text = re.sub(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)|!\[[^\]]*\]\([^)]*\)", "", text)  # badges, images
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)  # links
    text = re.sub(r"(?m)^(#+ |> ?)", "", text)  # headings, quotations
    parts = re.split(r"(\$\$.*?\$\$|\$[^$\n]+\$|`[^`]+`)", text, flags=re.DOTALL)  # formulas and code do not change
    parts[::2] = [re.sub(r"\*\*|(?<!\w)\*(?=\S)|(?<=\S)\*(?!\w)", "", part) for part in parts[::2]]
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip()


def sections(path: Path | str) -> list[Section]:
    """Return the sections of a notebook in order, each with the Markdown below a heading that has an anchor. Exercises,
    solutions and the summary are left out."""
    path, heading = Path(path), None
    texts, titles = {}, {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "markdown":
            continue
        text = "".join(cell["source"])
        if anchor := ANCHOR.search(text):
            heading = anchor.group(1)
            titles[heading] = re.search(r"(?m)^#+ (.+)$", text[anchor.end() :]).group(1)
            text = re.sub(r"(?m)^#+ .+\n?", "", text, count=1)
        if heading and heading not in LEFT_OUT and (text := markdown_to_text(text)):
            texts.setdefault(heading, []).append(text)
    return [Section(path.stem, heading, titles[heading], "\n\n".join(parts)) for heading, parts in texts.items()]


def _blocks(text: str, size: int) -> list[str]:
    """Split a text into paragraphs, code blocks and tables. A block of more than ``size`` words is split further, into
    its lines or sentences, and these into pieces of ``size`` words."""
    blocks = []
    for part in re.split(r"(```.*?(?:```|\Z))", text, flags=re.DOTALL):
        for block in [part] if part.startswith("```") else re.split(r"\n\s*\n", part):
            if len(block.split()) <= size:
                blocks.append(block.strip())
                continue
            has_lines = block.startswith(("```", "|", "- ", "1. "))
            for piece in block.splitlines() if has_lines else re.split(r"(?<=[.!?:])\s+", block):
                words = re.split(r"\s", piece)  # at tabs and line breaks, too
                blocks += [" ".join(words[i : i + size]).strip() for i in range(0, len(words), size)]
    return [block for block in blocks if block]


def chunk(section: Section, size: int = 80, overlap: int = 20) -> list[Chunk]:
    """Split a section into chunks of at most ``size`` words, between paragraphs or sentences where this is possible.

    Each chunk begins with the last blocks of the one before, which have at most ``overlap`` words. An empty section has
    no chunks.
    """
    assert 0 <= overlap < size
    chunks, current, count = [], [], 0  # count: the words in current
    for block in _blocks(section.text, size):
        length = len(block.split())
        if current and count + length > size:
            chunks.append("\n\n".join(current))
            while current and count > min(overlap, size - length):
                count -= len(current.pop(0).split())
        current.append(block)
        count += length
    chunks += ["\n\n".join(current)] if current else []
    return [Chunk(**asdict(section) | {"text": text}, number=i) for i, text in enumerate(chunks)]


def without_boxes(section: Section) -> Section:
    """Return a section without the boxes that say what the 2023 lecture got wrong. A search would find the wrong claim
    there and quote it."""
    kept = [part for part in re.split(r"\n\s*\n", section.text) if not part.startswith("The 2023 lecture")]
    return Section(**asdict(section) | {"text": "\n\n".join(kept)})


def corpus(size: int = 80, overlap: int = 20, without: Sequence[str] = ("09_rag",)) -> list[Chunk]:
    """Return the chunks of all notebooks, without boxes, except those in ``without`` (by default 09, which asks the
    questions and must therefore not contain the answers)."""
    kept = [without_boxes(section) for section in lecture() if section.notebook not in without]
    return [piece for section in kept for piece in chunk(section, size, overlap)]
