"""JupyterLab as a student uses it: open a notebook, Run > Run All Cells, look at a figure, move a slider.

`make slow K=test_lab`, five minutes on two cores: notebook 01 is run by clicks in headless Chromium.
"""

import json
from pathlib import Path

import lecture
import nbformat
import pytest

pytestmark = pytest.mark.slow
NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "01_introduction.ipynb"
MINUTES = 60_000  # playwright's milliseconds
IDLE = ".jp-NotebookPanel-toolbar [data-status=idle]"
DONE = f"""document.querySelector("{IDLE}") &&
  [...document.querySelectorAll(".jp-InputArea-prompt")].every((prompt) => prompt.textContent !== "[*]:")"""


@pytest.fixture
def lab(jupyterlab, tmp_path):
    """A JupyterLab over a folder that holds the notebook; yields (the notebook's path, its address in the lab)."""
    work = tmp_path / "work"
    work.mkdir()
    nbformat.write(lecture.emptied(nbformat.read(NOTEBOOK, as_version=4)), work / NOTEBOOK.name)
    with jupyterlab(work, tmp_path) as (_, address, token):
        yield work / NOTEBOOK.name, f"{address}/lab/tree/{NOTEBOOK.name}?token={token}"


def choose(page, menu: str, entry: str) -> None:
    asked = page.locator(".jp-Dialog").all_inner_texts()
    assert not asked, asked
    page.get_by_role("menuitem", name=menu, exact=True).click()
    page.locator(".lm-Menu-item", has=page.get_by_text(entry, exact=True)).click()


def moved(page, name: str) -> dict:
    """Move the slider ``name`` one step to the right with the arrow key; return what is seen before and after."""
    control = page.locator(f".jp-OutputArea-output:has(label:text('{name}'))")
    knob = control.get_by_role("slider", name=name)
    for _ in range(60):  # JupyterLab draws what is in view; cells drawn above push this one away again
        knob.scroll_into_view_if_needed()
        if control.locator("output").inner_text():
            break
        page.wait_for_timeout(1000)
    seen = lambda: (control.locator("output").inner_text(), control.locator("[data-frame]:visible").all_inner_texts())  # noqa: E731
    before, place = seen(), int(knob.input_value())
    knob.focus()
    page.keyboard.press("ArrowRight")
    labels = json.loads(knob.get_attribute("data-labels"))
    return {"before": before, "after": seen(), "old": labels[place], "new": labels[place + 1]}


def check_slider(page):
    seen = moved(page, "temperature")
    assert seen["before"][0] == seen["old"] != seen["after"][0] == seen["new"]
    assert len(seen["before"][1]) == len(seen["after"][1]) == 1, "one frame is seen at a time"
    assert seen["before"][1] != seen["after"][1], "the bars have not moved"


def test_run_all_and_slider(lab, browser):
    path, address = lab
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(address)
    page.wait_for_selector(IDLE, timeout=3 * MINUTES)
    page.wait_for_timeout(5000)  # JupyterLab shows "idle" for a moment before it starts the kernel
    page.wait_for_selector(IDLE, timeout=3 * MINUTES)
    choose(page, "Run", "Run All Cells")
    cells = nbformat.read(path, as_version=4).cells
    page.wait_for_selector(f".jp-Notebook .jp-Cell >> nth={len(cells) - 1}", state="attached", timeout=5 * MINUTES)
    page.wait_for_function(DONE, timeout=25 * MINUTES)
    page.wait_for_timeout(5000)  # the prompt of a folded solution is not seen: it may be the last at work
    page.wait_for_function(DONE, timeout=5 * MINUTES)
    choose(page, "File", "Save Notebook")
    page.wait_for_selector(".jp-mod-dirty", state="detached", timeout=MINUTES)
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    failed = [output.traceback for cell in code for output in cell.outputs if output.output_type == "error"]
    assert not failed, "\n".join(failed[0])
    total = sum(cell.cell_type == "code" for cell in cells)
    assert [cell.execution_count for cell in code] == list(range(1, total + 1))

    # JupyterLab (4.6) drops a figure's alternative text; decks, pages and the site keep it.
    figures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    images = page.locator(".jp-OutputArea-output.jp-RenderedImage img")
    assert images.count() == figures > 0
    images.last.scroll_into_view_if_needed()
    assert images.last.is_visible() and images.last.evaluate("(img) => img.naturalWidth") > 300
    check_slider(page)

    page.reload()  # what this server ran and saved, it trusts
    page.wait_for_selector(IDLE, timeout=3 * MINUTES)
    check_slider(page)
