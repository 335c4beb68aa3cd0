"""Run twice on one machine, a notebook says the same: `make slow K=determinism`, twice a notebook's minutes each.

What is a time, or depends on one, is tagged `times-vary` and left out, and so are the times that trainers print.
"""

import re
from pathlib import Path

import lecture
import pytest

pytestmark = pytest.mark.slow
PATHS = lecture.found(None)
TIMES = re.compile(r"\b\d+:\d\d\b|'train_\w+': '?[\d.]+'?")


def said(path: Path) -> dict[str, str]:
    """Run a notebook; return each cell's text and tables, without times."""
    done = lecture.execute(path, "[1/1]")
    assert done.problem is None, lecture.reason(done.problem)
    lecture.clean(done.notebook)
    texts = {}
    for cell in done.notebook.cells:
        if cell.cell_type == "code" and "times-vary" not in cell.metadata.get("tags", []):
            parts = [out.get("text", "") or out.data.get("text/html", "") for out in cell.outputs]
            texts[cell.id] = TIMES.sub("", "\n".join(parts))
    return texts


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_two_runs_say_the_same(path):
    first, second = said(path), said(path)
    assert sum(map(len, first.values())) > 500
    assert [(cell, first[cell], second[cell]) for cell in first if first[cell] != second[cell]] == []
