"""Write the lecture as a web site from its committed outputs; nothing is executed.

    python tools/build_site.py           build/site/index.html
    python tools/build_site.py FOLDER    the same under FOLDER

Sphinx reads one folder, so pages are brought together in build/site-src first: the
notebooks as they are, and the pages of docs/ with their lists filled in. What a
notebook looks like on its page is decided by ``prepare``, which docs/conf.py calls.
"""

import base64
import html
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import lecture
import links
import nbformat

from lecture_utils import data

SITE = lecture.ROOT / "docs"
OUTLINE = data.outline()
ARXIV, ARXIV_LINK = re.compile(r"arXiv:(\d{4}\.\d{4,5})"), r"[arXiv:\1](https://arxiv.org/abs/\1)"
# Where in a source: "(section 3.1 and Table 2)" after it, or ", table 2" within.
PLACE = re.compile(r" \(((?:sections?|tables?|figures?) [^)]*)\)|, (table \d+)(?=,)", re.IGNORECASE)


def prepare(notebook):
    """Return a notebook as its page shows it: without remote pictures, with solutions collapsed and figures with their
    alternative text."""
    page = lecture.offline(notebook)
    for cell in page.cells:
        if "**References.**" in cell.source:
            cell.source = ARXIV.sub(ARXIV_LINK, cell.source)
        tags = cell.metadata.setdefault("tags", [])
        shown = cell.metadata.setdefault("mystnb", {})
        if "solution" in tags:
            tags.append("hide-cell")
            shown.update(code_prompt_show="Show the solution", code_prompt_hide="Hide the solution")
        for output in cell.get("outputs", []):
            source = output.get("data", {}).get("text/html", "")
            if source.startswith('<div class="highlight">'):
                # plotting.show: its colours are made for white; as a code block it takes the page's
                code = html.unescape(re.sub(r"<[^>]+>", "", source)).strip("\n")
                output.data = {"text/markdown": f"~~~~python\n{code}\n~~~~"}
            # show_figure stores it with the output; MyST-NB looks for it at the cell
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                shown["image"] = {"alt": alt}
    return page


def cited(notebook) -> list[tuple[str, str]]:
    """Return (reference, place in it) for each reference of a notebook's summary.

    Raises ValueError if there is none: they are one paragraph that begins with **References.**
    """
    summary = next((c.source for c in reversed(notebook.cells) if "**References.**" in c.source), "")
    listed = summary.partition("**References.**")[2].strip()
    found = []
    for item in re.split(r"\s+·\s+|;\s+|\n+(?:[-*]\s+)?", listed):
        text = item.strip().removesuffix(".")
        if re.search(r"\b\d{4}|et al\.", text):  # a remark, such as "the models: in the table", is none
            place = PLACE.search(text)
            found.append((PLACE.sub("", text), next(filter(None, place.groups())) if place else ""))
    if not found:
        raise ValueError("no references: the summary ends with '**References.** Author year, title, arXiv:… · …'")
    return found


def by_author(text: str) -> str:
    """Return what a reference is sorted by: its text without first names' initials and accents."""
    plain = unicodedata.normalize("NFKD", re.sub(r"^([A-Z]\. )+", "", text))
    return "".join(letter for letter in plain if not unicodedata.combining(letter)).casefold()


def references(notebooks: dict) -> str:
    """Return the page of all references, each once, with links to the notebooks that cite it."""
    works = {}
    for stem, notebook in notebooks.items():
        try:
            its = cited(notebook)
        except ValueError as problem:
            raise ValueError(f"{stem}: {problem}") from None
        for text, place in its:
            link = ARXIV.search(text) or re.search(r"https?://[^\s)]+", text)
            work = works.setdefault(link.group() if link else by_author(text), {"texts": [], "cited": {}})
            work["texts"].append(text)
            work["cited"].setdefault(stem, place)
    lines = [
        "# References",
        "What the notebooks cite, each work once, by first author. The numbers lead to the notebooks "
        "that cite it, and say where in the work to look.",
    ]
    entries = [(max(work["texts"], key=len), work["cited"]) for work in works.values()]
    for text, citing in sorted(entries, key=lambda entry: by_author(entry[0])):
        where = ", ".join(
            f"[{stem[:2]}]({stem}.ipynb#summary)" + (f" ({place})" if place else "") for stem, place in citing.items()
        )
        lines.append(f"- {ARXIV.sub(ARXIV_LINK, text)}. Cited in {where}.")
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + "\n"


def contents(stems: list[str]) -> str:
    """Return the table of notebooks on the first page."""
    rows = ["| Notebook | After it you can … | Lecture | Minutes |", "|---|---|---|---|"]
    for stem in stems:
        plan = OUTLINE[stem]
        title = plan.get("short", plan["title"])
        cells = (f"[{stem[:2]} {title}]({stem}.ipynb)", plan["after"], ", ".join(plan["lecture"]), plan["minutes"][0])
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def minutes(numbers: str) -> str:
    """Return how long notebooks run together, in words: of ``08 09`` or of ``all``."""
    chosen = [plan for stem, plan in OUTLINE.items() if numbers == "all" or stem[:2] in numbers.split()]
    total = sum(float(plan["minutes"][0].replace("½", ".5")) for plan in chosen)
    return f"about {round(total)} minutes"


def picture(notebooks: dict, stem: str, cell: str, source: Path) -> str:
    """Write the figure of a notebook's cell into ``source`` and return the Markdown that shows it."""
    found = next(c for c in notebooks[stem].cells if c.id == cell)
    output = next(o for o in found.outputs if "image/png" in o.get("data", {}))
    name = f"{stem[:2]}-{cell}.png"
    (source / name).write_bytes(base64.b64decode(output.data["image/png"]))
    alt = " ".join(output.metadata["image/png"]["alt"].split())
    return f"[![{alt}]({name})]({stem}.ipynb)"


def assemble(source: Path) -> None:
    """Bring the pages together in ``source``, which is made anew."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in lecture.found(None)}
    for path in lecture.found(None):
        shutil.copy(path, source)
    filled = {
        "<!-- notebooks -->": contents(list(notebooks)),
        "<!-- toctree -->": "\n".join(f"{stem[:2]} {OUTLINE[stem]['title']} <{stem}>" for stem in notebooks),
        "<!-- repository -->": f"https://github.com/{links.project()[0]}",
    }
    for path in SITE.glob("*.md"):
        # A page here links to ../notebooks/…, as it must on GitHub, or to notebooks/…; on the site all lie together.
        page = re.sub(r"(?<=\]\()(\.\./)?notebooks/", "", path.read_text(encoding="utf-8"))
        for mark, text in filled.items():
            page = page.replace(mark, text)
        page = re.sub(r"<!-- minutes ([^>]+) -->", lambda found: minutes(found[1]), page)
        page = re.sub(r"<!-- figure (\S+) (\S+) -->", lambda found: picture(notebooks, *found.groups(), source), page)
        (source / path.name).write_text(page, encoding="utf-8")
    (source / "references.md").write_text(references(notebooks), encoding="utf-8")


def build(folder: Path) -> int:
    """Build ``folder``/site; return Sphinx's exit code. A warning is an error."""
    from sphinx.cmd.build import main as sphinx

    source, target = folder / "site-src", folder / "site"
    assemble(source)
    shutil.rmtree(target, ignore_errors=True)  # no page of a notebook that is gone
    given = ["-W", "--keep-going", "-q", "-c", SITE, "-d", folder / "site-doctrees", "-E", source, target]
    code = sphinx([str(word) for word in given])
    if not code:
        print(f"{target / 'index.html'}  ({len(list(target.glob('*.html')))} pages, open without a network)")
    return code


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]) if len(sys.argv) > 1 else lecture.BUILD))
