"""Chunking: from the lecture's text to passages that know where they stand."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ANCHOR = re.compile(r'<a id="([a-z0-9-]+)"></a>')
SNAPSHOT = Path(__file__).parent / "assets" / "lecture_text" / "sections.json"
LEFT_OUT = ("exercises", "summary")  # sections without lecture text of their own


@dataclass(frozen=True)
class Section:
    """A heading of the lecture and the text under it."""

    notebook: str  # as in outline.toml: 06_lora_math
    heading: str  # its id
    title: str
    text: str


@dataclass(frozen=True)
class Chunk(Section):
    """A part of a section; ``number`` counts within it, from 0."""

    number: int = 0

    @property
    def id(self) -> str:
        return f"{self.notebook}#{self.heading}/{self.number}"

    @property
    def link(self) -> str:
        """Markdown link to the notebook's heading, from a notebook beside it."""
        return f"[{self.notebook[:2]}, {self.title}]({self.notebook}.ipynb#{self.heading})"

    @property
    def titled(self) -> str:
        """The text under its title, as it is searched: a paragraph alone often does not name its subject."""
        return f"{self.title}. {self.text}"


def lecture() -> list[Section]:
    """Return the lecture's text, section by section: the packaged snapshot of its notebooks (``snapshot_date``).

    A snapshot, so that a changed sentence changes no search; ``make snapshot`` renews it.
    """
    return [Section(**section) for section in _snapshot()["sections"]]


def snapshot_date() -> str:
    """Return the day on which the searched text was taken from the notebooks, as YYYY-MM-DD."""
    return _snapshot()["date"]


def _snapshot() -> dict:
    return json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def markdown_to_text(markdown: str) -> str:
    """Return markdown as text to search: no anchors, images or marks of emphasis."""
    text = ANCHOR.sub("", markdown)
    text = re.sub(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\)|!\[[^\]]*\]\([^)]*\)", "", text)  # badges, images
    text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)  # links
    text = re.sub(r"(?m)^(#+ |> ?)", "", text)
    parts = re.split(r"(\$\$.*?\$\$|\$[^$\n]+\$|`[^`]+`)", text, flags=re.DOTALL)  # formulas and code stay as they are
    parts[::2] = [re.sub(r"\*\*|(?<!\w)\*(?=\S)|(?<=\S)\*(?!\w)", "", part) for part in parts[::2]]
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip()


def sections(path: Path | str) -> list[Section]:
    """Return a notebook's sections in order: its markdown under each heading with an anchor. Speaker
    notes, exercises, solutions and the summary are left out."""
    path = Path(path)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    here = None
    for cell in cells:
        text, kind = "".join(cell["source"]), cell.get("metadata", {}).get("slideshow", {}).get("slide_type")
        if cell["cell_type"] != "markdown" or kind == "notes":
            continue
        if match := ANCHOR.search(text):
            here = match.group(1)
            titles[here] = re.search(r"(?m)^#+ (.+)$", text[match.end() :]).group(1)
            text = re.sub(r"(?m)^#+ .+\n?", "", text, count=1)
        if here and here not in LEFT_OUT and (text := markdown_to_text(text)):
            found.setdefault(here, []).append(text)
    return [Section(path.stem, here, titles[here], "\n\n".join(parts)) for here, parts in found.items()]


def _blocks(text: str, size: int) -> list[str]:
    """Return paragraphs, code blocks and tables whole; one longer than ``size`` words in sentences, or in lines."""
    blocks: list[str] = []
    for part in re.split(r"(```.*?(?:```|\Z))", text, flags=re.DOTALL):
        for block in [part] if part.startswith("```") else re.split(r"\n\s*\n", part):
            if not block.strip():
                continue
            if len(block.split()) <= size:
                blocks.append(block.strip())
                continue
            lines = block.startswith(("```", "|", "- ", "1. "))
            for piece in block.splitlines() if lines else re.split(r"(?<=[.!?:])\s+", block):
                words = re.split(r"\s", piece)  # a tab or a line break also parts words
                blocks += [" ".join(words[i : i + size]).strip() for i in range(0, len(words), size)]
    return [block for block in blocks if block]


def chunk(section: Section, size: int = 80, overlap: int = 20) -> list[Chunk]:
    """Return the chunks of a section: at most ``size`` words each, cut between paragraphs or sentences where that is
    possible; each begins with the last ``overlap`` words or fewer of the one before, in whole blocks. An empty
    section has none."""
    assert 0 <= overlap < size
    packed: list[list[str]] = []
    now: list[str] = []
    count = 0
    for block in _blocks(section.text, size):
        length = len(block.split())
        if now and count + length > size:
            packed.append(now)
            kept: list[str] = []
            for old in reversed(now):
                if sum(len(k.split()) for k in kept) + len(old.split()) > min(overlap, size - length):
                    break
                kept.insert(0, old)
            now, count = kept, sum(len(k.split()) for k in kept)
        now.append(block)
        count += length
    packed += [now] if now else []
    return [Chunk(**asdict(section) | {"text": "\n\n".join(parts)}, number=i) for i, parts in enumerate(packed)]


def corpus(size: int = 80, overlap: int = 20, without: Sequence[str] = ("09_rag",)) -> list[Chunk]:
    """Return the chunks of the whole lecture but the notebooks in ``without`` (09 asks, so it must not answer)."""
    text = lecture()
    return [piece for section in text if section.notebook not in without for piece in chunk(section, size, overlap)]
