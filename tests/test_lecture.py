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
    done = lecture.execute(path)
    assert said in lecture.reason(done.problem) and "\n" not in lecture.reason(done.problem)
    assert done.notebook.cells[0].outputs[0].text == "seen\n"


def test_success_has_no_problem_and_its_memory_is_measured(tmp_path):
    """Half a gigabyte, held for a second and let go, is in the record."""
    path = tmp_path / "02_fine.ipynb"
    held = "import time\nheld = bytearray(b'x') * 500_000_000\ntime.sleep(1)\ndel held"
    nbformat.write(new_notebook(cells=[new_code_cell(held)]), path)
    done = lecture.execute(path)
    assert done.problem is None and done.seconds > 1
    assert 0.5 < done.peak_gb < 0.8


def test_two_notebooks_run_at_a_time_and_one_that_fails_stops_none(tmp_path, capsys):
    """Each of the first two waits for what the other does: one after the other, both would give up."""
    meet = """import pathlib, time
        pathlib.Path("{own}").touch()
        until = time.monotonic() + 60
        while not pathlib.Path("{other}").exists():
            assert time.monotonic() < until, "the other did not run meanwhile"
            time.sleep(0.05)""".replace("\n        ", "\n")
    sources = {
        "01_one": meet.format(own="a", other="b"),
        "02_two": meet.format(own="b", other="a"),
        "03_long": "raise ValueError('in vain')",
        "04_long": "import os\nprint(os.getpid())",
    }
    for name, source in sources.items():
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), tmp_path / f"{name}.ipynb")
    ended = list(lecture.execute_all(sorted(tmp_path.glob("*.ipynb")), jobs=2))
    assert {path.stem: done.problem is None for path, done in ended} == {
        "01_one": True, "02_two": True, "03_long": False, "04_long": True,
    }  # fmt: skip
    assert {path.stem for path, _ in ended[:2]} == {"03_long", "04_long"}, "what takes long goes first"
    said = [line for line in capsys.readouterr().out.splitlines() if line.lstrip("\r").startswith("[")]
    assert len(said) == 4 and sum("failed: ValueError: in vain" in line for line in said) == 1


def test_record_keeps_what_did_not_run_and_names_what_breaks_a_budget(tmp_path, monkeypatch):
    first, second, third = sorted(p.stem for p in lecture.found(None))[:3]
    monkeypatch.setattr(lecture, "RECORD", tmp_path / "build" / "record.json")
    lecture.keep_record({third: lecture.Run(None, 241, 1.0, ValueError())})
    record = lecture.keep_record({first: lecture.Run(None, 179.6, 1.81, None)})
    kept = {stem: {k: v for k, v in took.items() if k not in ("day", "notebook")} for stem, took in record.items()}
    assert kept == {
        first: {"seconds": 180, "peak_gb": 1.81, "failed": False, "jobs": 1},
        third: {"seconds": 241, "peak_gb": 1.0, "failed": True, "jobs": 1},  # one of those that train for longer
    }
    assert json.loads(lecture.RECORD.read_text()) == record
    assert [line.split()[0] for line in lecture.over_budget(record)] == [first, third]
    assert lecture.budget(None) == 2 and lecture.budget(first) == 1 and lecture.budget(second) == 0
    shared = lecture.keep_record({third: lecture.Run(None, 479, 1.0, None)}, jobs=2)  # on half of the cores
    assert [line.split()[0] for line in lecture.over_budget(shared)] == [first]


def test_budget_of_all_notebooks_is_their_time_together():
    def all_of(count, jobs):
        took = {"seconds": 150, "peak_gb": 1, "jobs": jobs}
        return lecture.over_budget({f"{i:02}_x": took for i in range(count)})

    assert all_of(18, jobs=1) == [] and all_of(36, jobs=2) == []
    assert all_of(19, jobs=1)[0].startswith("all took 48 minutes") and all_of(37, jobs=2)[0].startswith("all")


@pytest.fixture
def two_notebooks(tmp_path, monkeypatch):
    """Two small notebooks with committed outputs instead of the lecture's, and a folder to build into."""
    for name, said in (("01_one", "committed one"), ("02_two", "committed two")):
        cell = new_code_cell(f"print('run ' + '{name}')", outputs=[new_output("stream", name="stdout", text=said)])
        notebook = new_notebook(cells=[new_markdown_cell(f"# The {name[3:]}"), cell])
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(lecture, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(lecture, "BUILD", tmp_path / "build")
    monkeypatch.setattr(lecture, "RECORD", tmp_path / "build" / "record.json")
    return tmp_path


def test_each_notebook_has_a_page_that_says_how_it_came_about(two_notebooks, capsys):
    build = two_notebooks / "build"
    assert lecture.run("01", jobs=2) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "index.html" in last and "make lecture NB=all" in last
    index = (build / "index.html").read_text()
    assert index.index("The one") < index.index("run now on this machine, 0:") < index.index("The two")
    assert index.index("The two") < index.rindex("as committed")
    one, two = ((build / f"{name}.html").read_text() for name in ("01_one", "02_two"))
    assert "run 01_one" in one and "committed one" not in one and "Run on this machine on " in one
    assert "committed two" in two and "Outputs as committed." in two

    lecture.run("02", jobs=1)  # the first has run here before: its page stays
    index = (build / "index.html").read_text()
    assert index.index("run on 20") < index.index("The two") < index.index("run now on this machine")
    assert (build / "01_one.html").read_text() == one

    path = two_notebooks / "notebooks" / "01_one.ipynb"
    path.write_text(path.read_text().replace("committed one", "committed anew"))
    lecture.run("02", jobs=1)  # the first has changed since: its page shows what is committed now
    assert "committed anew" in (build / "01_one.html").read_text()
    assert "run on 20" not in (build / "index.html").read_text()


def test_all_runs_all(two_notebooks, capsys):
    assert lecture.run("all", jobs=1) == 0
    assert (two_notebooks / "build" / "index.html").read_text().count("run now on this machine") == 2
    assert "NB=all" not in capsys.readouterr().out


def test_index_tells_seconds_memory_and_what_failed(tmp_path, monkeypatch):
    first, second = (p.stem for p in lecture.found(None)[:2])
    monkeypatch.setattr(lecture, "BUILD", tmp_path)
    for stem in (first, second):
        (tmp_path / f"{stem}.html").write_text("")
    took = {"seconds": 61, "peak_gb": 1.2, "jobs": 1, "day": "2026-11-28"}
    lecture.write_index({first: took | {"failed": False}, second: took | {"failed": True}}, {first, second})
    page = (tmp_path / "index.html").read_text()
    assert page.count("run now on this machine, 1:01") == 2 and "<th>2:02<th>at most 1.20 GB" in page
    assert page.index(first) < page.index(second) < page.index("failed") < page.index("<th>together<th>")
    lecture.write_index({stem: took | {"failed": False, "jobs": 2} for stem in (first, second)})
    assert "<th>together, 2 at a time<th>1:01<th>" in (tmp_path / "index.html").read_text()


def test_notebooks_are_not_committed_at_another_scale(two_notebooks, monkeypatch):
    before = lecture.found("01")[0].read_bytes()
    monkeypatch.setenv("LECTURE_SCALE", "smoke")
    with pytest.raises(SystemExit, match="as run at laptop scale"):
        lecture.refresh("01")
    assert lecture.found("01")[0].read_bytes() == before


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


def test_a_page_shows_the_output_of_plumbing_but_not_its_code():
    shown = [new_output("stream", text="what it drew")]
    cell = new_code_cell("draw_the_figure()", outputs=shown, metadata={"tags": ["hide-input"]})
    page = lecture.to_html(new_notebook(cells=[cell, new_code_cell("train_the_model()")]), "08")
    assert "what it drew" in page and "draw_the_figure" not in page and "train_the_model" in page
