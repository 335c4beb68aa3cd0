"""Copies for students: no solution, no output, and nothing that only a solution had defined."""

import ast
import builtins
import re
from pathlib import Path

import nbformat
import pytest
import student

PATHS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda p: p.stem)
def pair(request):
    notebook = nbformat.read(request.param, as_version=4)
    return notebook, student.student_copy(notebook)


def solutions(notebook):
    return [cell for cell in notebook.cells if "solution" in cell.metadata.get("tags", [])]


def test_solutions_outputs_and_badges_are_gone_and_the_rest_is_there(pair):
    notebook, copy = pair
    nbformat.validate(copy)
    assert solutions(notebook) and not solutions(copy)
    assert not [c for c in copy.cells if c.cell_type == "code" and (c.outputs or c.execution_count)]
    assert "colab.research" not in copy.cells[0].source and "colab.research" in notebook.cells[0].source
    left = [cell.id for cell in copy.cells if cell.id != "progress"]
    gone = {cell.id for cell in solutions(notebook)}
    assert left == [cell.id for cell in notebook.cells if cell.id not in gone]


def test_the_count_stands_after_the_exercises(pair):
    _, copy = pair
    ids = [cell.id for cell in copy.cells]
    assert ids[ids.index("progress") + 1] == "summary" and ids.index("progress") > ids.index("exercises")


def test_no_later_cell_needs_what_a_solution_defined(pair):
    _, copy = pair
    defined = set(dir(builtins))
    for cell in copy.cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", cell.source))
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        defined |= {node.id for node in names if isinstance(node.ctx, ast.Store | ast.Del)}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.arg):
                defined.add(node.arg)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                defined |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ExceptHandler) and node.name:
                defined.add(node.name)
        unknown = {node.id for node in names if isinstance(node.ctx, ast.Load)} - defined
        assert not unknown, f"{sorted(unknown)} in {cell.source[:60]!r}"


def test_written_side_by_side(tmp_path):
    written = student.write(PATHS[:2], tmp_path / "student")
    assert [p.name for p in written] == [p.name for p in PATHS[:2]] and all(p.exists() for p in written)
