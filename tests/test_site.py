"""The web site of tools/build_site.py: built without a network, complete, every link inside it whole."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import build_site
import lecture
import links
import nbformat
import pytest
import yaml

from lecture_utils import data

ROOT = Path(__file__).resolve().parent.parent
OUTLINE = data.outline()
NOTEBOOKS = {path.stem: nbformat.read(path, as_version=4) for path in lecture.found(None)}
slow = pytest.mark.slow  # needs the extra `site` and half a minute


@pytest.fixture(scope="module")
def pages(site) -> dict:
    bs4 = pytest.importorskip("bs4", reason="no beautifulsoup4: it comes with sphinx-book-theme")
    return {path.name: bs4.BeautifulSoup(path.read_bytes(), "html.parser") for path in sorted(site.glob("*.html"))}


@pytest.fixture(params=list(NOTEBOOKS))
def stem(request):
    return request.param


def tagged(stem, tag):
    return [c for c in NOTEBOOKS[stem].cells if c.cell_type == "code" and tag in c.metadata.get("tags", [])]


def words(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip()


def said(cell) -> str:
    """Return the longest stretch of a markdown cell without markup, to look for on a page."""
    source = re.sub(r"(?m)^\d+\. ", "", cell.source)
    return max((words(part) for part in re.split(r"[*`\[\]()$#<>_|\n]", source)), key=len)


def test_references_of_every_notebook_are_found(stem):
    found = build_site.cited(NOTEBOOKS[stem])
    assert all(text[0].isalpha() and len(text) > 8 for text, _ in found), found
    listed = NOTEBOOKS[stem].cells[-1].source.partition("**References.**")[2]
    for number in build_site.ARXIV.findall(listed):
        assert any(number in text for text, _ in found), f"arXiv:{number} was lost"


def test_a_notebook_without_references_is_named():
    empty = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("**References.** the models: in the table")])
    with pytest.raises(ValueError, match="07_x: no references"):
        build_site.references({"07_x": empty})


def test_references_are_merged_and_sorted():
    cell = nbformat.v4.new_markdown_cell
    one = nbformat.v4.new_notebook(cells=[cell("**References.** Zhu 2020, arXiv:2001.00001 · Özil et al., Tool.")])
    two = nbformat.v4.new_notebook(
        cells=[cell("**References.** B. Abel 2019, *A book*; Zhu 2020, long name, arXiv:2001.00001 (section 2)")]
    )
    lines = build_site.references({"01_a": one, "02_b": two}).splitlines()
    assert [line for line in lines if line.startswith("- ")] == [
        "- B. Abel 2019, *A book*. Cited in [02](02_b.ipynb#summary).",
        "- Özil et al., Tool. Cited in [01](01_a.ipynb#summary).",
        "- Zhu 2020, long name, [arXiv:2001.00001](https://arxiv.org/abs/2001.00001). "
        "Cited in [01](01_a.ipynb#summary), [02](02_b.ipynb#summary) (section 2).",
    ]


def test_workflow_builds_what_is_on_main_and_only_its_deployment_may_write():
    text = (ROOT / ".github/workflows/pages.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    assert workflow[True] == {"push": {"branches": [links.project()[1]]}}  # YAML reads the key "on" as true
    assert workflow["permissions"] == {"contents": "read"} and "permissions" not in workflow["jobs"]["build"]
    assert workflow["jobs"]["deploy"]["permissions"] == {"pages": "write", "id-token": "write"}
    assert "python tools/build_site.py" in text and "path: build/site\n" in text


@slow
def test_pages_ask_nothing_of_another_machine(site, pages):
    remote = re.compile(r"^(https?:)?//")
    for name, page in pages.items():
        asked = [tag.get(a) for tag in page.select("[src], [srcset], [poster], [data]") for a in ("src", "srcset")]
        asked += [tag.get("data") for tag in page.select("object")] + [tag.get("href") for tag in page.select("link")]
        assert [address for address in asked if address], name
        assert not [address for address in asked if address and remote.match(address)], name
        styled = " ".join([tag["style"] for tag in page.select("[style]")] + [t.text for t in page.select("style")])
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", styled), name
        for script in page.select("script:not([src])"):
            assert not re.search(r"https?://", script.text), f"{name}: {script.text[:200]}"
    sheets = list(site.rglob("*.css"))
    assert len(sheets) > 3
    for sheet in sheets:
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


@slow
def test_links_inside_the_site_lead_somewhere(site, pages):
    named = {
        name: {tag["id"] for tag in page.select("[id]")} | {tag["name"] for tag in page.select("a[name]")}
        for name, page in pages.items()
    }
    checked = 0
    for name, page in pages.items():
        for tag in page.select("[href], [src]"):
            link = urlsplit(tag.get("href") or tag.get("src"))
            if link.scheme or link.netloc:
                continue
            checked += 1
            target = unquote(link.path) or name
            assert (site / target).is_file(), f"{name}: {link.geturl()}"
            if link.fragment and target.endswith(".html"):
                assert unquote(link.fragment) in named[target], f"{name}: {link.geturl()}"
    print(f"{checked} links inside {len(pages)} pages")
    assert checked > 100 * len(NOTEBOOKS)


@slow
def test_contents_hold_the_notebooks_in_order(pages):
    wanted = [f"{stem}.html" for stem in NOTEBOOKS]
    shown = [a["href"] for a in pages["index.html"].select("nav.bd-links a[href]")]
    assert shown == [*wanted, "teaching.html", "glossary.html", "references.html"]
    for before, after in zip(["index.html", *wanted], [*wanted, "teaching.html"], strict=True):
        assert pages[before].select_one("a.right-next")["href"] == after
        assert pages[after].select_one("a.left-prev")["href"] == before
    table = [a["href"] for a in pages["index.html"].select("article table a")]
    assert table == wanted


@slow
def test_headings_have_the_outlines_ids(pages, stem):
    article = pages[f"{stem}.html"].select_one("article")
    assert article.h1.text.startswith(OUTLINE[stem]["title"])
    for name, title in OUTLINE[stem]["headings"].items():
        section = article.find("section", id=name)
        assert section and section.h2.text.removesuffix("#") == title.replace("*", ""), name


@slow
def test_heading_levels_do_not_jump(pages):
    for name, page in pages.items():
        level = 0
        for heading in page.select("article :is(h1, h2, h3, h4, h5, h6)"):
            assert int(heading.name[1]) <= level + 1, f"{name}: {heading.text}"
            level = int(heading.name[1])


@slow
def test_all_prose_is_on_the_page(pages, stem):
    text = words(pages[f"{stem}.html"].select_one("article").text)
    assert not [said(c) for c in NOTEBOOKS[stem].cells if c.cell_type == "markdown" and said(c) not in text]


@slow
def test_figures_keep_their_alternative_text(pages, stem):
    outputs = [o for cell in NOTEBOOKS[stem].cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    wanted = [" ".join(o.metadata["image/png"]["alt"].split()) for o in outputs]
    shown = [" ".join(image.get("alt", "").split()) for image in pages[f"{stem}.html"].select(".cell_output img")]
    assert wanted and shown == wanted


@slow
def test_solutions_and_hidden_code_are_collapsed(pages, stem):
    closed = pages[f"{stem}.html"].select("details.hide:not([open])")
    for tag, label in (("solution", "Show the solution"), ("hide-input", "Show the code")):
        its = [fold for fold in closed if label in fold.summary.text]
        sources = [words(fold.select_one(".cell_input").text) for fold in its]
        assert sources == [words(cell.source) for cell in tagged(stem, tag)], label
    assert tagged(stem, "solution")


@slow
def test_each_notebook_stands_in_the_references(pages, stem):
    page = pages["references.html"].select_one("article")
    entries = [entry for entry in page.select("li") if entry.select(f'a[href="{stem}.html#summary"]')]
    assert entries
    for text, _ in build_site.cited(NOTEBOOKS[stem]):
        if number := build_site.ARXIV.search(text):
            assert any(number.group() in entry.text for entry in entries), text


@slow
def test_buttons_open_the_notebook_of_this_repository(pages, stem):
    slug, branch = links.project()
    shown = {a["href"] for a in pages[f"{stem}.html"].select(".article-header-buttons a[href]")}
    colab, binder = re.findall(r"\]\((https://[^)]+)\)(?: |$)", links.badges(stem))
    assert {colab, binder, f"https://github.com/{slug}"} <= shown
    assert pages[f"{stem}.html"].select_one("a.btn-download-source-button")["href"].endswith(f"{stem}.ipynb")


@slow
def test_the_notebook_to_download_is_the_committed_one(site, stem):
    assert (site / "_sources" / f"{stem}.ipynb").read_bytes() == (lecture.NOTEBOOKS / f"{stem}.ipynb").read_bytes()


@slow
def test_formulas_are_set_by_the_packaged_mathjax(site, pages):
    assert (site / "_static" / "tex-svg.js").read_text(encoding="utf-8") == lecture.mathjax()
    with_formulas = [page for page in pages.values() if page.select(".math")]
    assert len(with_formulas) > 5
    for page in with_formulas:
        assert page.select('script[src^="_static/tex-svg.js"]')


@slow
def test_search_knows_every_page(site, pages):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    known = re.search(r'"docnames":\s*\[([^\]]*)\]', index).group(1)
    assert set(re.findall(r'"([^"]+)"', known)) >= {*NOTEBOOKS, "index", "glossary", "teaching", "references"}
    assert pages["search.html"].select_one("#search-results")
