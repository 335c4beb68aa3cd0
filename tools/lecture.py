"""Run and refresh the lecture's notebooks. Called by the Makefile.

run      execute copies, write build/*.html and build/index.html
refresh  execute in place and clean, so that what is committed is as run
"""

import argparse
import html
import importlib.resources
import os
import re
import sys
import time
from copy import deepcopy
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build"
TEMPLATES = Path(__file__).parent / "templates"
CELL_SECONDS = 1800


def found(wanted: str | None) -> list[Path]:
    """Return the notebooks in lecture order; ``wanted`` is a number or the start of a name."""
    notebooks = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if wanted:
        chosen = [n for n in notebooks if n.name.startswith(wanted.zfill(2) if wanted.isdigit() else wanted)]
        if not chosen:
            sys.exit(f"No notebook starts with {wanted!r}. There are: {', '.join(n.stem for n in notebooks)}")
        return chosen
    return notebooks


def execute(path: Path, label: str):
    """Execute a notebook top to bottom with one progress line; return (notebook, seconds, error)."""
    from nbclient import NotebookClient
    from tqdm import tqdm

    notebook = nbformat.read(path, as_version=4)
    total = sum(cell.cell_type == "code" for cell in notebook.cells)
    started, problem = time.monotonic(), None
    layout = "{desc} {percentage:3.0f}%|{bar:24}| cell {n_fmt}/{total_fmt} [{elapsed}]"
    with tqdm(total=total, desc=f"{label} {path.stem:<28}", bar_format=layout, file=sys.stdout) as bar:
        client = NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_executed=lambda cell, **_: cell.cell_type == "code" and bar.update(),
        )
        try:
            client.execute()
        except Exception as error:  # a failed cell, a dead kernel, whatever: the next notebook still runs
            problem = error
    return notebook, time.monotonic() - started, problem


def reason(problem: Exception) -> str:
    """Return one line that says why a notebook failed."""
    if "Kernel died" in str(problem):
        return "its kernel died. Most often memory ran out: close other programs and run it again."
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).strip()  # without the traceback's colours
    return (plain or repr(problem)).splitlines()[-1][:300]


def clean(notebook) -> None:
    """Keep what a reader needs: outputs and counts, but no widget state, times or paths."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                output.text = "".join(line.rsplit("\r", 1)[-1] for line in output.text.splitlines(keepends=True))
                if not output.text.strip() or ("|" in output.text and "%" in output.text):
                    continue  # a text progress bar: of interest while it runs
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                continue  # a progress bar, or buttons: nothing to see without a kernel
            if kept and output.output_type == kept[-1].output_type == "stream" and output.name == kept[-1].name:
                kept[-1].text += output.text
            else:
                kept.append(output)
        cell.outputs = kept


def run(wanted: str | None) -> int:
    """Execute and write HTML; the sources stay as they are. Returns the number that failed."""
    BUILD.mkdir(exist_ok=True)
    rows, failed = [], 0
    notebooks = found(wanted)
    for number, path in enumerate(notebooks, 1):
        notebook, seconds, problem = execute(path, f"[{number}/{len(notebooks)}]")
        clean(notebook)
        (BUILD / f"{path.stem}.html").write_text(to_html(notebook, path.stem), encoding="utf-8")
        rows.append((path.stem, title(notebook), seconds, problem is None))
        if problem is not None:
            failed += 1
            print(f"    failed: {reason(problem)}\n    see {os.path.relpath(BUILD / path.stem)}.html")
    write_index(rows)
    print(f"{len(rows) - failed} of {len(rows)} notebooks ran. Open {os.path.relpath(BUILD / 'index.html')}")
    return failed


def refresh(wanted: str | None) -> int:
    """Execute in place and clean; a notebook that fails is left as it was."""
    failed = 0
    notebooks = found(wanted)
    for number, path in enumerate(notebooks, 1):
        notebook, _, problem = execute(path, f"[{number}/{len(notebooks)}]")
        if problem is None:
            clean(notebook)
            nbformat.write(notebook, path)
        else:
            failed += 1
            print(f"    failed, left as it was: {reason(problem)}")
    return failed


def title(notebook) -> str:
    lines = notebook.cells[0].source.splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "?")


def mathjax() -> str:
    """Return MathJax 3 (SVG output, complete in one file) from its pinned package."""
    return (importlib.resources.files("mathjax") / "static/mathjax/es5/tex-svg.js").read_text(encoding="utf-8")


def offline(notebook, notes: bool):
    """Return a copy whose badges are plain links (their pictures are remote), with the
    speaker notes or without."""
    copy = deepcopy(notebook)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\[!\[([^\]]*)\]\(https?:[^)]*\)\]", r"[\1]", cell.source)
    if not notes:
        copy.cells = [c for c in copy.cells if c.metadata.get("slideshow", {}).get("slide_type") != "notes"]
    return copy


def split_exercise(source: str) -> tuple[str, str]:
    """Return an exercise's cell as (what the student writes, the check): the check holds the answer."""
    found = re.search(r"(?m)^exercises\.check", source)
    return (source[: found.start()].rstrip(), source[found.start() :]) if found else (source, "")


def to_html(notebook, name: str) -> str:
    """Render a notebook as one page that needs no network."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[str(TEMPLATES)], embed_images=True)
    resources = {"metadata": {"name": name}, "lecture": {"mathjax": mathjax()}}
    page = offline(notebook, notes=False)
    for cell in page.cells:
        if cell.cell_type == "markdown":  # the other pages lie beside this one
            cell.source = re.sub(r"(\]\(\d\d_\w+)\.ipynb", r"\1.html", cell.source)
    return exporter.from_notebook_node(page, resources=resources)[0]


def write_index(rows) -> None:
    """Write build/index.html over every page there is, with the times of this run."""
    timed = {stem: (seconds, ok) for stem, _, seconds, ok in rows}
    items = []
    for path in found(None):
        if not (BUILD / f"{path.stem}.html").exists():
            continue
        seconds, ok = timed.get(path.stem, (None, True))
        note = "an earlier run" if seconds is None else f"{seconds:.0f} s" if ok else f"failed after {seconds:.0f} s"
        heading = html.escape(title(nbformat.read(path, as_version=4)))
        items.append(f'<li><a href="{path.stem}.html">{heading}</a> <small>{note}</small></li>')
    page = (TEMPLATES / "index.html").read_text(encoding="utf-8").replace("<!-- notebooks -->", "\n".join(items))
    (BUILD / "index.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("run", "refresh"))
    parser.add_argument("notebook", nargs="?", help="a number (08) or the start of a name; default: all")
    given = parser.parse_args()
    sys.exit({"run": run, "refresh": refresh}[given.action](given.notebook) > 0)
