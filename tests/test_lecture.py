"""tools/lecture.py: a notebook that fails is reported in one line, and what it did is kept."""

import lecture
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "its kernel died. Most often memory ran out"),
        ("raise ValueError('no such file')", "ValueError: no such file"),
    ],
)
def test_failure_is_one_line_and_earlier_output_is_kept(tmp_path, source, said):
    path = tmp_path / "01_broken.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("print('seen')"), new_code_cell(source)]), path)
    notebook, _, problem = lecture.execute(path, "[1/1]")
    assert said in lecture.reason(problem) and "\n" not in lecture.reason(problem)
    assert notebook.cells[0].outputs[0].text == "seen\n"


def test_success_has_no_problem(tmp_path):
    path = tmp_path / "02_fine.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 + 1")]), path)
    assert lecture.execute(path, "[1/1]")[2] is None


def test_clean_drops_what_needs_a_kernel_and_keeps_the_rest():
    """A progress bar or a button leaves no text of itself in a committed notebook; what was printed stays."""
    cell = new_code_cell("print('kept')")
    bar = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "  0%|  | 0/24"}
    cell.outputs = [
        new_output("display_data", bar),
        new_output("stream", name="stdout", text="kept\n"),
        new_output("stream", name="stderr", text=" 50%|###   | 1/2"),
        new_output("display_data", {"text/plain": "a figure"}),
    ]
    notebook = new_notebook(cells=[cell], metadata={"widgets": {}})
    lecture.clean(notebook)
    assert [o.get("text") or o.data["text/plain"] for o in cell.outputs] == ["kept\n", "a figure"]
    assert "widgets" not in notebook.metadata


def test_pages_lead_to_pages():
    told = "[06](06_lora_math.ipynb#merging), [a file](notes.ipynb)"
    page = lecture.to_html(new_notebook(cells=[new_markdown_cell(told)]), "08")
    assert 'href="06_lora_math.html#merging"' in page and 'href="notes.ipynb"' in page
