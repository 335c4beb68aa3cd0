"""tools/lecture.py: a notebook that fails is reported in one line, and what it did is kept."""

import json

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
    done = lecture.execute(path, "[1/1]")
    assert said in lecture.reason(done.problem) and "\n" not in lecture.reason(done.problem)
    assert done.notebook.cells[0].outputs[0].text == "seen\n"


def test_success_has_no_problem_and_its_memory_is_measured(tmp_path):
    """Half a gigabyte, held for a second and let go, is in the record."""
    path = tmp_path / "02_fine.ipynb"
    held = "import time\nheld = bytearray(b'x') * 500_000_000\ntime.sleep(1)\ndel held"
    nbformat.write(new_notebook(cells=[new_code_cell(held)]), path)
    done = lecture.execute(path, "[1/1]")
    assert done.problem is None and done.seconds > 1
    assert 0.5 < done.peak_gb < 0.8


def test_record_keeps_what_did_not_run_and_names_what_breaks_a_budget(tmp_path, monkeypatch):
    first, second, third = sorted(p.stem for p in lecture.found(None))[:3]
    monkeypatch.setattr(lecture, "RECORD", tmp_path / "build" / "record.json")
    lecture.keep_record({third: lecture.Run(None, 301, 1.0, ValueError())})
    record = lecture.keep_record({first: lecture.Run(None, 179.6, 1.81, None)})
    assert record == {
        first: {"seconds": 180, "peak_gb": 1.81, "failed": False},
        third: {"seconds": 301, "peak_gb": 1.0, "failed": True},  # one of those that train for longer
    }
    assert json.loads(lecture.RECORD.read_text()) == record
    assert [line.split()[0] for line in lecture.over_budget(record)] == [first, third]
    assert lecture.budget(None) == 2 and lecture.budget(first) == 1 and lecture.budget(second) == 0
    assert lecture.over_budget({f"{i:02}_x": {"seconds": 180, "peak_gb": 1} for i in range(10)}) == []
    assert lecture.over_budget({f"{i:02}_x": {"seconds": 180, "peak_gb": 1} for i in range(11)})[0].startswith("all")


def test_index_tells_seconds_memory_and_what_failed(tmp_path, monkeypatch):
    first, second = (p.stem for p in lecture.found(None)[:2])
    monkeypatch.setattr(lecture, "BUILD", tmp_path)
    for stem in (first, second):
        (tmp_path / f"{stem}.html").write_text("")
    took = {"seconds": 61, "peak_gb": 1.2}
    lecture.write_index({first: took | {"failed": False}, second: took | {"failed": True}})
    page = (tmp_path / "index.html").read_text()
    assert page.count("<td>1:01<td>1.20 GB") == 2 and "<th>2:02<th>at most 1.20 GB" in page
    assert page.index(first) < page.index(second) < page.index("failed") < page.index("together")


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
