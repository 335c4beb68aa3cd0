"""Accessibility of everything that students read: axe-core over the site, the decks and the pages, light and dark.

`make slow K=accessibility`, some minutes in headless Chromium without a network. WCAG 2.2, levels A and AA, and the
order of headings; axe's "serious" and "critical" findings are mended, not excluded.
"""

import importlib.resources
from pathlib import Path

import decks
import lecture
import nbformat
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
THEMES = ("light", "dark")
CHECK = """axe.run(document, {
  runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'],
  rules: { 'target-size': { enabled: true } }, resultTypes: ['violations', 'incomplete'],
})"""
# All slides of a deck one below the other, and without reveal.js's empty sheets, above which axe measures no contrast.
UNROLL = """() => {
  document.querySelectorAll('.slides section').forEach((slide) => {
    slide.hidden = false; slide.removeAttribute('aria-hidden');
    slide.classList.remove('past', 'future'); slide.classList.add('present');
  });
  document.querySelectorAll('.fragment').forEach((step) => step.classList.add('visible'));
  document.head.insertAdjacentHTML('beforeend', `<style>
    html, body, .reveal, .reveal .slides, .reveal .slides section { position: relative !important; inset: auto !important;
      transform: none !important; display: block !important; height: auto !important; overflow: visible !important; }
    .reveal .keys { position: static !important; }
    .reveal .backgrounds, .reveal .controls, .reveal .progress, .reveal .slide-number { display: none !important; }
  </style>`);
  return [...document.querySelectorAll('.slides section.page')].filter((slide) => !slide.checkVisibility()).length;
}"""


@pytest.fixture
def context(browser):
    pytest.importorskip("axe_playwright_python", reason="needs `pip install -e '.[browser]'`")
    made = browser.new_context(viewport={"width": 1280, "height": 720}, offline=True, reduced_motion="reduce")
    yield made
    made.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """What tools/lecture.py run writes, from the committed outputs: two notebooks and the index, one of them failed."""
    folder, record = tmp_path_factory.mktemp("pages"), {}
    for path in [*lecture.found("02"), *lecture.found("08")]:
        notebook = nbformat.read(path, as_version=4)
        (folder / f"{path.stem}.html").write_text(lecture.to_html(notebook, path.stem), encoding="utf-8")
        took = {"seconds": 60, "peak_gb": 1.2, "failed": not record, "jobs": 1}
        record[path.stem] = took | {"day": "2026-11-28"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lecture, "BUILD", folder)
        lecture.write_index(record)
    return folder


def faults(page) -> list[str]:
    """Return what axe finds on the page as it is shown: serious, critical, or a jump between headings."""
    page.evaluate("window.MathJax?.startup?.promise.then(() => {})")
    if not page.evaluate("Boolean(window.axe)"):
        script = importlib.resources.files("axe_playwright_python") / "axe.min.js"
        page.evaluate(script.read_text(encoding="utf-8"))
    found = page.evaluate(CHECK)
    unseen = [
        node
        for rule in found["incomplete"]
        for node in rule["nodes"]
        if rule["id"] == "color-contrast"
        and node["any"][0]["data"]["messageKey"] == "bgOverlap"
        # a formula's strokes may lie over the line's own rectangle; its paragraph's colours are measured elsewhere
        and not page.evaluate("(place) => document.querySelector(place).querySelector('svg')", node["target"][0])
    ]
    assert not unseen, f"contrast was not measured: {[node['html'][:200] for node in unseen[:3]]}"
    return [
        f"{rule['id']}: {' '.join(node['html'][:200].split())}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical") or rule["id"] == "heading-order"
        for node in rule["nodes"]
    ]


def paper(page) -> str:
    return str(
        page.evaluate("[document.documentElement, document.body].map((e) => getComputedStyle(e).backgroundColor)")
    )


BAD = """<!doctype html><html><head><title>a page</title></head><body><main><h1>One</h1><h3>Three</h3>
<p style="color: #888">grey</p><p>See <a href="x" style="color: #111; text-decoration: none">this</a> text.</p>
<input type="range"><img src="data:,"><table><tr><td>1</td></tr></table></main></body></html>"""


def test_faults_are_seen(context):
    page = context.new_page()
    page.set_content(BAD)
    seen = {fault.partition(":")[0] for fault in faults(page)}
    assert seen == {"color-contrast", "heading-order", "html-has-lang", "image-alt", "label", "link-in-text-block"}


@pytest.mark.parametrize(
    "name",
    ["index", "glossary", "teaching", "references", "search", "02_architecture", "07_quantization", "08_qlora_llama2"],
)
def test_site(context, site, name):
    page, papers = context.new_page(), set()
    page.goto((site / f"{name}.html").as_uri())
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme }", theme)
        papers.add(paper(page))
        assert not faults(page), theme
    assert len(papers) == 2, "both themes were the same"


@pytest.mark.parametrize("name", ["index", "02_architecture", "08_qlora_llama2"])
def test_page(context, pages, name):
    page, papers = context.new_page(), set()
    page.goto((pages / f"{name}.html").as_uri())
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        papers.add(paper(page))
        assert not faults(page), theme
    assert len(papers) == (2 if name == "index" else 1), "notebooks' pages are always light"


@pytest.mark.parametrize("stem", [path.stem for path in lecture.found(None)])
def test_deck(browser, tmp_path, stem):
    """The page around the first slide, then the content of all slides."""
    [deck] = decks.write(lecture.found(stem), tmp_path)
    papers = set()
    for theme in THEMES:
        page = decks.opened(browser, deck, "?dark" if theme == "dark" else "", offline=True)
        page.add_style_tag(content=".reveal .backgrounds { display: none !important; }")
        papers.add(paper(page))
        assert not faults(page), theme
        assert page.evaluate(UNROLL) == 0, "a slide is not seen"
        assert not faults(page), theme
        page.close()
    assert len(papers) == 2, "both themes were the same"


def test_slider_of_a_deck_by_keyboard(browser, tmp_path):
    """The arrow keys move the slider while it has the focus, and then not the slide."""
    [deck] = decks.write(lecture.found("01"), tmp_path)
    page = decks.opened(browser, deck, offline=True)
    page.evaluate("""() => {
      const at = Reveal.getIndices(document.querySelector('[type=range]').closest('section.page'));
      Reveal.slide(at.h, at.v, 99);
    }""")
    slider = page.get_by_role("slider", name="temperature")
    slider.focus()
    value = page.locator(".slides section.present section.present output").first
    before = page.url, slider.input_value(), value.inner_text()
    page.keyboard.press("ArrowRight")
    after = page.url, slider.input_value(), value.inner_text()
    assert before[0] == after[0] and int(after[1]) == int(before[1]) + 1 and before[2] != after[2]
