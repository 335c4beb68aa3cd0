"""Write build/student/*.ipynb: the notebooks without solutions and outputs, for handing out.

Behind the exercises stands one cell more, which counts those that are right.
"""

import argparse
import os
import re
from pathlib import Path

import lecture
import nbformat
from nbformat.v4 import new_code_cell

BADGES = re.compile(r"\n\[!\[Open in Colab\].*\n")  # they open the notebooks with the solutions


def student_copy(notebook):
    """Return a copy without solutions, outputs and badges, with a cell that counts."""
    copy = lecture.emptied(notebook)
    kept = []
    for cell in copy.cells:
        if cell.id == "summary":
            slide = {"slideshow": {"slide_type": "skip"}}
            kept.append(new_code_cell("exercises.progress();", id="progress", metadata=slide))
        if "solution" not in cell.metadata.get("tags", []):
            kept.append(cell)
    kept[0].source = BADGES.sub("", kept[0].source)
    copy.cells = kept
    return copy


def write(paths: list[Path], folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        nbformat.write(student_copy(nbformat.read(path, as_version=4)), folder / path.name)
    return [folder / path.name for path in paths]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", nargs="?", help="a number (08) or the start of a name; default: all")
    written = write(lecture.found(parser.parse_args().notebook), lecture.BUILD / "student")
    print(f"{len(written)} notebooks without solutions under {os.path.relpath(written[0].parent)}")
