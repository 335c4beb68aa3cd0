"""The contract that every notebook keeps (CONTRIBUTING.md), over all notebooks found."""

import ast
import importlib
import re
import statistics
from pathlib import Path

import links
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from lecture_utils import data

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OUTLINE = data.outline()
SLIDES = {"slide", "subslide", "fragment", "skip", "-"}
ANCHOR = re.compile(r'<a id="([a-z0-9-]+)"></a>')


class Notebook:
    def __init__(self, node, path):
        self.node, self.cells, self.metadata = node, node.cells, node.metadata
        self.stem, self.size = path.stem, path.stat().st_size


@pytest.fixture(params=PATHS, ids=lambda p: p.stem)
def notebook(request):
    return Notebook(nbformat.read(request.param, as_version=4), request.param)


def code(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def markdown(nb):
    return [cell for cell in nb.cells if cell.cell_type == "markdown"]


def sections(nb) -> dict[str, str]:
    """Heading id -> the markdown of its section."""
    found, here = {}, None
    for cell in markdown(nb):
        if match := ANCHOR.search(cell.source):
            here = match.group(1)
        if here:
            found[here] = found.get(here, "") + "\n" + cell.source
    return found


def test_there_are_notebooks_and_all_are_in_the_outline():
    assert PATHS and {p.stem for p in PATHS} <= set(OUTLINE), "add the notebook to lecture_utils/outline.toml"


def test_valid_with_python3_kernel_and_no_widget_state(notebook):
    nbformat.validate(notebook.node)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata, "run `make notebooks`: it cleans widget state"


def test_header(notebook):
    first, plan = notebook.cells[0], OUTLINE[notebook.stem]
    assert first.cell_type == "markdown" and first.source.startswith(f"# {plan['title']}\n")
    assert links.badges(notebook.stem) in first.source, "run `make links`"
    for section in plan["lecture"]:
        assert section in first.source, f"the header names no section {section}"
    for word in ("You will", "You will learn", "You need", "Time"):
        assert word in first.source, f"the header lacks '{word}'"


def test_setup_cell_is_the_generated_one(notebook):
    setup = next(cell for cell in code(notebook))
    packages = links.packages_of(setup.source)
    assert setup.source == links.setup_cell(packages, OUTLINE[notebook.stem]["gpu"]), "run `make links`"


def test_accelerator_follows_the_outline(notebook):
    assert (notebook.metadata.get("accelerator") == "GPU") is OUTLINE[notebook.stem]["gpu"]


def test_headings_are_those_of_the_outline(notebook):
    """In order, each marked by its anchor, which is also the id of its cell."""
    found = []
    for cell in markdown(notebook):
        if match := re.search(r'<a id="([a-z0-9-]+)"></a>\n\n## (.+)', cell.source):
            found.append(match.groups())
            assert cell.id == match.group(1), f"the cell id of {match.group(1)!r} should be the heading id"
        else:
            assert not re.search(r"(?m)^## ", cell.source), f"a heading without an anchor: {cell.source[:60]!r}"
    assert found == list(OUTLINE[notebook.stem]["headings"].items())


def test_heading_levels_do_not_jump(notebook):
    level = 1
    for cell in markdown(notebook):
        for marks in re.findall(r"(?m)^(#+) ", cell.source):
            assert len(marks) <= level + 1, f"heading level jumps in {cell.source[:60]!r}"
            level = len(marks)


def test_cells_that_only_draw_or_format_are_collapsed(notebook):
    """In JupyterLab and in Colab; the site collapses them by their tag, and the decks leave their code out."""
    for cell in code(notebook):
        if "hide-input" in cell.metadata.get("tags", []):
            assert cell.metadata.get("jupyter", {}).get("source_hidden") is True, cell.id
            assert cell.metadata.get("cellView") == "form", cell.id


def test_cells_are_small(notebook):
    lengths = []
    for cell in code(notebook):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if not tags(cell) & {"hide-input", "solution"}:
            lengths.append(len(lines))
        limit = 30 if "class " in cell.source else 20
        assert len(lines) <= limit, f"{len(lines)} lines: {cell.source[:60]!r}"
        if cell.id != code(notebook)[0].id:  # the generated cell holds an address
            long = [line for line in cell.source.splitlines() if len(line) > 88]
            assert not long, f"over 88 characters, clipped on a slide: {long[0]!r}"
    assert statistics.median(lengths) <= 8


def test_every_cell_has_a_slide_type(notebook):
    for cell in notebook.cells:
        assert cell.metadata.get("slideshow", {}).get("slide_type") in SLIDES, cell.source[:60]


def test_predictions_corrections_and_three_ways(notebook):
    text = "\n".join(cell.source for cell in markdown(notebook))
    assert text.count("**Predict first.**") >= 2, "let the reader commit to a guess at least twice"
    assert "> **The 2023 lecture" in text, "no box says where the 2023 lecture differs"
    asserts = [node for cell in code(notebook) for node in ast.walk(tree(cell)) if isinstance(node, ast.Assert)]
    assert len(asserts) >= 3, "what is written by hand is held against the library by assertions"


def tree(cell):
    return ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", cell.source))


def test_exercises(notebook):
    checks = [c for c in code(notebook) if "exercises.check" in c.source and "solution" not in tags(c)]
    solutions = [c for c in code(notebook) if "solution" in tags(c)]
    assert len(checks) >= 3 and len(solutions) >= len(checks), (len(checks), len(solutions))
    for cell in checks:
        assert not re.search(r"hints?=(\"\"|{})", cell.source), "a check gives a hint"
        assert "hide-input" in tags(cell), "a check holds the answer, so it is a collapsed cell of its own"
        attempt = notebook.cells[notebook.cells.index(cell) - 1]
        assert attempt.cell_type == "code" and "..." in attempt.source, "before a check is the cell to fill in"
        said = "".join(o.get("text", "") for o in cell.outputs)
        assert "not attempted yet" in said, f"an exercise was committed with an attempt: {cell.source[:60]!r}"
    for cell in solutions:
        assert re.search(r"hints?=(\"\"|{})", cell.source), "a solution has no hint: so it is not counted as an attempt"
        assert cell.metadata.get("jupyter", {}).get("source_hidden") is True, "a solution's source is collapsed"
        assert ": right." in "".join(o.get("text", "") for o in cell.outputs), cell.source[:60]


def test_exercises_are_numbered_and_marked_by_level(notebook):
    """Rising: warm-up, core, stretch. The first two levels have a check of the same number."""
    text = sections(notebook)["exercises"]
    marked = re.findall(r"\*\*(\d+) \((warm-up|core|stretch)[^)]*\)\.\*\*", text)
    levels = [("warm-up", "core", "stretch").index(level) for _, level in marked]
    assert [int(number) for number, _ in marked] == list(range(1, len(marked) + 1))
    assert levels == sorted(levels) and set(levels) == {0, 1, 2}
    checked = re.findall(r'exercises\.check_\w+\(\s*"(\d+)"', "\n".join(c.source for c in code(notebook)))
    assert set(checked) == {number for number, level in marked if level != "stretch"}


def test_committed_as_run(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error", f"an error was committed: {output.get('ename')}"
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})
            text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r"Warning[:\]]|warnings\.warn", text), f"a warning: {text[:200]}"
            shown = text + str(output.get("data", {}).get("text/html", ""))
            assert not re.search(r"\bnan\b", shown), f"a number that is none: cell {cell.id}"
            assert not re.search(r"(/root|/home/|/work/|/Users/|[A-Z]:\\\\)", text), f"a path: {text[:200]}"


def test_no_table_is_made_and_not_shown(notebook):
    """A table is displayed only as the last expression of its cell, and a sentence that reads it stands beside nothing."""
    for cell in code(notebook):
        for statement in ast.parse(TransformerManager().transform_cell(cell.source)).body[:-1]:
            call = statement.value if isinstance(statement, ast.Expr) else None
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            assert name not in ("plotting.table", "HTML"), f"move it to the end of cell {cell.id}"


def test_committed_at_laptop_scale(notebook):
    """The setup cell prints the scale."""
    said = "".join(output.get("text", "") for output in code(notebook)[0].outputs)
    assert "scale: laptop" in said, "run `make notebooks`, without LECTURE_SCALE"


def test_cells_skipped_at_smoke_scale_are_listed_with_a_reason(notebook):
    """They assert what training brings about. The list stands in the outline; the smoke run finds what it lacks."""
    tagged = {cell.id for cell in code(notebook) if "full-scale" in tags(cell)}
    listed = OUTLINE[notebook.stem].get("full_scale", {})
    assert tagged == set(listed), "tag and list differ"
    assert all(len(reason) > 10 for reason in listed.values())


def test_no_cell_asks_for_the_smoke_scale(notebook):
    """Sizes come from one table; helpers apply the limits."""
    for cell in code(notebook):
        assert "smoke()" not in cell.source and not re.search(r"""SCALE\s*==\s*["']smoke""", cell.source), cell.id
        assert cell.source.count("smoke=") <= 1


def test_figures_have_alt_text(notebook):
    figures = [o for cell in code(notebook) for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(figures) >= 3
    for output in figures:
        alt = output.metadata.get("image/png", {}).get("alt", "")
        assert len(alt) > 20, "use plotting.show_figure(fig, alt)"


def test_size(notebook):
    assert notebook.size <= 600_000, f"{notebook.size:,} bytes"


def test_links_inside_the_repository_work(notebook):
    for cell in markdown(notebook):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", cell.source):
            stem = Path(target).stem
            assert (ROOT / "notebooks" / target).exists() or stem in OUTLINE, f"dead link: {target}"


def test_close(notebook):
    text = sections(notebook)["summary"]
    assert "Since 2023" in text and "References" in text and "arXiv" in text


def test_nobody_is_waited_for(notebook):
    """``input`` would hold up whoever runs all cells. What else is unsafe: test_security.py."""
    for cell in code(notebook):
        called = [node.func for node in ast.walk(tree(cell)) if isinstance(node, ast.Call)]
        assert "input" not in [getattr(function, "id", "") for function in called]


def test_what_cells_take_from_the_package_is_there(notebook):
    """Each name that a cell takes from a module of lecture_utils, as ``downloads.fetch`` does."""
    nodes = [node for cell in code(notebook) for node in ast.walk(tree(cell))]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "lecture_utils"]
    modules = {a.asname or a.name: importlib.import_module(f"lecture_utils.{a.name}") for i in imports for a in i.names}
    taken = [
        n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in modules
    ]
    assert len(taken) >= 10
    gone = {f"{n.value.id}.{n.attr}" for n in taken if not hasattr(modules[n.value.id], n.attr)}
    assert not gone, gone


class _Changed(ast.NodeVisitor):
    """Names that a cell adds to or deletes without having made them: ``name[0].append(...)``, ``name += ...``."""

    def __init__(self, cell):
        self.made, self.found = set(), set()
        self.visit(tree(cell))

    def change(self, place):
        while isinstance(place, ast.Subscript | ast.Attribute):
            place = place.value
        if isinstance(place, ast.Name) and place.id not in self.made:
            self.found.add(place.id)

    visit_FunctionDef = visit_Lambda = visit_ClassDef = lambda self, node: None  # runs when it is called

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Store):
            self.made.add(node.id)

    def visit_AugAssign(self, node):
        if not isinstance(node.op, ast.BitOr):  # of sets and mappings: a second time changes nothing
            self.change(node.target)
        self.generic_visit(node.value)

    def visit_Delete(self, node):
        for target in node.targets:
            self.change(target)

    def visit_Call(self, node):
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("append", "extend", "insert", "pop", "remove"):
            self.change(node.func.value)
        self.generic_visit(node)


def test_a_cell_may_run_twice(notebook):
    """Run again, a cell that adds to what an earlier one made would have things twice, and miss what it deleted
    (``name = None`` gives memory back as well)."""
    assert {cell.id: changed for cell in code(notebook) if (changed := _Changed(cell).found)} == {}
