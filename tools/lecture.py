"""Run and refresh the lecture's notebooks. Called by the Makefile.

run      execute copies, write build/*.html and build/index.html; what does not run is shown as committed
refresh  execute in place and clean, so that what is committed is as run
budget   hold the seconds and the memory of the last runs against the budgets
"""

import argparse
import contextlib
import datetime
import hashlib
import html
import importlib.resources
import json
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import nbformat

import lecture_utils
from lecture_utils import runtime

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build"
TEMPLATES = Path(__file__).parent / "templates"
RECORD = BUILD / "record.json"  # seconds and peak memory of each notebook's last run
CELL_SECONDS = 1800
# Budgets, on two cores with fast bf16. Some notebooks train for longer.
SECONDS, PEAK_GB, ALL_SECONDS = 180, 1.8, 45 * 60
LONGER = {"03": 240, "04": 240, "05": 300, "08": 300, "14": 240, "15": 240}
HALF = 2  # times as long, at most, takes a notebook on half of the cores (10: 1.4, 06: 1.5, 03: 1.9, 12: 2.0)


class Run(NamedTuple):
    """One notebook, executed. peak_gb: of the kernel and its children, looked at five times a second."""

    notebook: nbformat.NotebookNode
    seconds: float
    peak_gb: float
    problem: Exception | None


def found(wanted: str | None) -> list[Path]:
    """Return the notebooks in lecture order; ``wanted`` is a number, the start of a name, or "all"."""
    notebooks = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if wanted and wanted != "all":
        chosen = [n for n in notebooks if n.name.startswith(wanted.zfill(2) if wanted.isdigit() else wanted)]
        if not chosen:
            sys.exit(f"No notebook starts with {wanted!r}. There are: {', '.join(n.stem for n in notebooks)}")
        return chosen
    return notebooks


def held_by(client) -> int:
    """Return the bytes that a notebook's kernel and its children hold (libraries, which they share, once); 0 before
    it starts and after it ends."""
    import psutil

    held = 0
    with contextlib.suppress(AttributeError, psutil.Error):  # not started yet, or ended meanwhile
        kernel = psutil.Process(client.km.provisioner.pid)
        held = kernel.memory_info().rss
        for child in kernel.children(recursive=True):
            memory = child.memory_info()
            held += memory.rss - getattr(memory, "shared", 0)
    return held


class Watch(threading.Thread):
    """Looks five times a second how much memory is held, and keeps the most as ``peak``, in bytes."""

    def __init__(self, held: Callable[[], int]):
        super().__init__(daemon=True)
        self.held, self.peak, self.done = held, 0, threading.Event()

    def run(self):
        while not self.done.wait(0.2):
            self.peak = max(self.peak, self.held())

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        self.join()


def execute(path: Path, cell_done: Callable[[], object] = lambda: None) -> Run:
    """Execute a notebook top to bottom; ``cell_done`` is called after each code cell."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    started, problem = time.monotonic(), None
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],  # each kernel warns that it speaks to us unencrypted
        resources={"metadata": {"path": str(path.parent)}},
        skip_cells_with_tag="full-scale" if runtime.smoke() else "skip-execution",
        on_cell_executed=lambda cell, **_: cell.cell_type == "code" and cell_done(),
    )
    with Watch(lambda: held_by(client)) as watch:
        try:
            client.execute()
        except Exception as error:  # a failed cell, a dead kernel, whatever: the next notebook still runs
            problem = error
    return Run(notebook, time.monotonic() - started, watch.peak / 1e9, problem)


def execute_all(paths: list[Path], jobs: int = 1) -> Iterator[tuple[Path, Run]]:
    """Execute notebooks, ``jobs`` at a time (the longest first, else the last would be waited for alone), with
    one progress line; yield each with its run as it ends."""
    from tqdm import tqdm

    if jobs > 1:
        paths = sorted(paths, key=lambda path: path.stem[:2] not in LONGER)
    total = sum(cell.cell_type == "code" for path in paths for cell in nbformat.read(path, as_version=4).cells)
    layout = "{desc} {percentage:3.0f}%|{bar:24}| cell {n_fmt}/{total_fmt} [{elapsed}]"
    waiting, ended, running = iter(paths), queue.SimpleQueue(), []

    def work():
        for path in waiting:
            running.append(path.stem)
            bar.set_description_str(" + ".join(running))
            ended.put((path, execute(path, bar.update)))
            running.remove(path.stem)

    with tqdm(total=total, bar_format=layout, file=sys.stdout) as bar:
        for _ in range(jobs):
            threading.Thread(target=work, daemon=True).start()
        for number in range(1, len(paths) + 1):
            path, done = ended.get()
            said = f"failed: {reason(done.problem)}" if done.problem else f"{done.peak_gb:.2f} GB"
            bar.write(f"[{number}/{len(paths)}] {path.stem:<28} {clock(round(done.seconds)):>5}  {said}", sys.stdout)
            yield path, done


def over_budget(record: dict) -> list[str]:
    """Return a line for each budget that a record (stem: seconds, peak_gb, jobs) breaks."""
    said = []
    for stem, took in record.items():
        seconds = LONGER.get(stem[:2], SECONDS) * (HALF if took["jobs"] > 1 else 1)
        if took["seconds"] > seconds:
            said.append(f"{stem} took {took['seconds']} s; its budget is {seconds:.0f} s")
        if took["peak_gb"] > PEAK_GB:
            said.append(f"{stem} held {took['peak_gb']} GB; its budget is {PEAK_GB} GB")
    if (total := in_all(record)) > ALL_SECONDS:
        said.append(f"all took {total / 60:.0f} minutes; the budget is {ALL_SECONDS / 60:.0f}")
    return said


def in_all(record: dict) -> int:
    """Return the seconds that the notebooks of a record took together."""
    return round(sum(took["seconds"] / took["jobs"] for took in record.values()))


def keep_record(runs: dict[str, Run], jobs: int = 1) -> dict:
    """Write how each run went, of ``jobs`` at a time, beside the notebooks that did not run now and are
    as they were when they ran; return them all."""
    record, today = read_record(), datetime.date.today().isoformat()
    paths = {path.stem: path for path in found(None)}
    for stem, run in runs.items():
        took = {"seconds": round(run.seconds), "peak_gb": round(run.peak_gb, 2)}
        took |= {"failed": run.problem is not None, "jobs": jobs}
        record[stem] = took | {"day": today, "notebook": fingerprint(paths[stem])}
    record = {stem: record[stem] for stem in paths if record.get(stem, {}).get("notebook") == fingerprint(paths[stem])}
    RECORD.parent.mkdir(exist_ok=True)
    write_whole(RECORD, json.dumps(record, indent=1) + "\n")
    return record


def read_record() -> dict:
    """Return how the last run of each notebook went."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def fingerprint(path: Path) -> str:
    """Return a hash of a notebook's file: a page of another state of it is out of date."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


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
        if "hide-input" in cell.metadata.get("tags", []):  # collapsed in JupyterLab and in Colab
            cell.metadata.setdefault("jupyter", {})["source_hidden"] = True
            cell.metadata["cellView"] = "form"
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


def run(wanted: str | None, jobs: int) -> int:
    """Execute and write HTML; the sources stay as they are. Returns the number that failed."""
    BUILD.mkdir(exist_ok=True)
    runs, started, paths = {}, time.monotonic(), found(wanted)
    jobs = min(jobs, len(paths))
    os.environ |= shared_cores(jobs)
    for path, done in execute_all(paths, jobs):
        runs[path.stem] = done
        clean(done.notebook)
        how = f"Run on this machine on {today()}, in {clock(round(done.seconds))} minutes."
        (BUILD / f"{path.stem}.html").write_text(to_html(done.notebook, path.stem, how), encoding="utf-8")
    took = clock(round(time.monotonic() - started))
    record = keep_record(runs, jobs)
    write_committed(record)
    write_index(record, set(runs))
    failed = sum(done.problem is not None for done in runs.values())
    print(f"{len(runs) - failed} of {len(runs)} notebooks ran, in {took}.")
    rest = "" if len(paths) == len(found(None)) else " The other notebooks: `make lecture NB=all`."
    print(f"Open {os.path.relpath(BUILD / 'index.html')} in a browser.{rest}")
    return failed


def write_committed(record: dict) -> None:
    """Write the pages of the notebooks that have not run here as they are now."""
    from tqdm import tqdm

    others = [path for path in found(None) if path.stem not in record or not page_of(path).exists()]
    for path in tqdm(others, desc="pages as committed", leave=False, file=sys.stdout):
        record.pop(path.stem, None)
        notebook = nbformat.read(path, as_version=4)
        page_of(path).write_text(to_html(notebook, path.stem, "Outputs as committed."), encoding="utf-8")


def page_of(path: Path) -> Path:
    return BUILD / f"{path.stem}.html"


def today() -> str:
    return f"{datetime.date.today():%d %B %Y}".lstrip("0")


def shared_cores(jobs: int) -> dict[str, str]:
    """Return the environment of ``jobs`` processes that share the cores: so many threads for each, which fall asleep
    soon when they wait (``lecture_utils/__init__.py`` says why)."""
    if jobs == 1:
        return {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"OMP_NUM_THREADS": str(max(1, -(-cores // jobs))), "GOMP_SPINCOUNT": lecture_utils.SHORT_WAIT}


def refresh(wanted: str | None) -> int:
    """Execute in place and clean; a notebook that fails is left as it was. What is committed is run at laptop scale."""
    if (os.environ.get("LECTURE_SCALE") or "laptop") != "laptop":
        sys.exit(
            f"LECTURE_SCALE={os.environ['LECTURE_SCALE']}: notebooks are committed as run at laptop scale. Unset it."
        )
    runs, notebooks = {}, found(wanted)
    for path, done in execute_all(notebooks):
        if done.problem is None:
            clean(done.notebook)
            write_whole(path, nbformat.writes(done.notebook) + "\n")
            page_of(path).unlink(missing_ok=True)  # of the notebook as it was
            runs[path.stem] = done
    keep_record(runs)
    return len(notebooks) - len(runs)


def budget(wanted: str | None) -> int:
    """Print which budgets the record breaks; return how many."""
    if not RECORD.exists():
        sys.exit("Nothing is recorded yet: run `make lecture NB=all` first.")
    chosen = {path.stem for path in found(wanted)}
    broken = over_budget({stem: took for stem, took in read_record().items() if stem in chosen})
    print("\n".join(broken) or "Every notebook is within its budget.")
    return len(broken)


def write_whole(path: Path, text: str) -> None:
    """Replace a file by its new text at once: what stops this leaves the old one."""
    half = path.with_name(f"{path.name}.part")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def title(notebook) -> str:
    lines = notebook.cells[0].source.splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "?")


def mathjax() -> str:
    """Return MathJax 3 (SVG output, complete in one file) from its pinned package."""
    return (importlib.resources.files("mathjax") / "static/mathjax/es5/tex-svg.js").read_text(encoding="utf-8")


def emptied(notebook):
    """Return a copy as it was before anything was run."""
    copy = deepcopy(notebook)
    for cell in copy.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return copy


def offline(notebook, suffix: str = ".ipynb", anchor: str = "#"):
    """Return a copy whose badges are plain links, because their pictures are remote. Links to other notebooks get the
    ``suffix``, and those to a heading the ``anchor``."""
    copy = deepcopy(notebook)
    for cell in copy.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\[!\[([^\]]*)\]\(https?:[^)]*\)\]", r"[\1]", cell.source)
            other = re.compile(r"(?<=\]\()(\d\d_\w+)\.ipynb(#)?")
            cell.source = other.sub(lambda m: m[1] + suffix + (anchor if m[2] else ""), cell.source)
    return copy


def plumbing_hidden():
    """Return nbconvert's configuration that leaves out the code of collapsed cells and keeps their outputs."""
    from traitlets.config import Config

    return Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"hide-input"}}})


def to_html(notebook, name: str, how: str = "") -> str:
    """Render a notebook as one page that needs no network; ``how`` it came about stands at its top."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        config=plumbing_hidden(), template_name="page", extra_template_basedirs=[str(TEMPLATES)], embed_images=True
    )
    resources = {"metadata": {"name": name}, "lecture": {"mathjax": mathjax(), "how": how}}
    page = offline(notebook, suffix=".html")  # the other pages lie beside this one
    return exporter.from_notebook_node(page, resources=resources)[0]


def write_index(record: dict, now: set[str] = frozenset()) -> None:
    """Write build/index.html over all pages: which ran ``now`` or earlier on this machine, in how long and with how
    much memory at the peak, and which show the committed outputs."""
    rows = []
    for path in found(None):
        heading = html.escape(title(nbformat.read(path, as_version=4)))
        if not page_of(path).exists():
            continue
        if (took := record.get(path.stem)) is None:
            how, gb = "as committed", ""
        else:
            when = "run now" if path.stem in now else f"run on {took['day']}"
            how, gb = f"{when} on this machine, {clock(took['seconds'])}", f"{took['peak_gb']:.2f} GB"
            if took["failed"]:
                how = f"<strong>failed</strong> ({how})"
        rows.append(f'<tr><td><a href="{path.stem}.html">{path.stem[:2]} {heading}</a><td>{how}<td>{gb}</tr>')
    if len(record) > 1:
        jobs = max(took["jobs"] for took in record.values())
        together = "together" if jobs == 1 else f"together, {jobs} at a time"
        peak = max(took["peak_gb"] for took in record.values())
        rows.append(f"<tr><th>{together}<th>{clock(in_all(record))}<th>at most {peak:.2f} GB</tr>")
    page = (TEMPLATES / "index.html").read_text(encoding="utf-8").replace("<!-- notebooks -->", "\n".join(rows))
    (BUILD / "index.html").write_text(page, encoding="utf-8")


def clock(seconds: int) -> str:
    return f"{seconds // 60}:{seconds % 60:02d}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = {"run": run, "refresh": refresh, "budget": budget}
    parser.add_argument("action", choices=actions)
    parser.add_argument("notebook", nargs="?", help="a number (08), the start of a name, or all (default)")
    parser.add_argument("--jobs", type=int, default=1, help="run: so many notebooks at a time (default: 1)")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: at least one notebook runs at a time")
    try:
        sys.exit(actions[given.action](given.notebook, *([given.jobs] if given.action == "run" else [])) > 0)
    except KeyboardInterrupt:
        sys.exit("\nStopped. What had not ended is as it was.")
