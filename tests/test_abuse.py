"""Each notebook as a careless student on an odd machine runs it: `make slow K=abuse`, ten minutes a notebook.

The file lies alone in a folder whose name has a space and umlauts. The home is missing, the locale is
ASCII, the clock is fourteen hours ahead, and no proxy answers. Run by root on Linux, there is no network
at all, and nothing but that folder and a temporary one can be written: package, models, everything.

Every cell that takes long is interrupted once and run again (but not while it imports, which no library survives).
Then all cells run a second time in the same kernel, the setup cell after the last, and the last cell once more.
"""

import ast
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import lecture
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from lecture_utils import downloads, models

pytestmark = pytest.mark.slow
PATHS = lecture.found(None)
LONG = 8  # seconds after which a cell is interrupted, once
INTERRUPTED = ("KeyboardInterrupt", "CancelledError")  # the second in a cell with await
# $0, the folder, stays writable; the sockets to the kernel lie in it, so it needs no network
CAGE = [
    "unshare",
    "-mn",
    "sh",
    "-c",
    'mount --bind "$0" "$0" && mount -o remount,ro,bind / && ip link set lo up && cd "$PWD" && exec "$@"',
]


def caged(folder: Path) -> list[str]:
    """Return what to put before a command so that only ``folder`` can be written, [] where that needs more rights."""
    try:
        subprocess.run([*CAGE, folder, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [*CAGE, str(folder)]


class Kernel:
    """A kernel alone with a notebook in ``place / "Übung für Anna"``, in the worst of environments."""

    def __init__(self, place: Path):
        from jupyter_client.manager import KernelManager

        self.folder, temporary = place / "Übung für Anna", place / "tmp"
        self.folder.mkdir()
        temporary.mkdir()
        kept = {"PATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
        nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "all")}
        env = {key: value for key, value in os.environ.items() if key in kept} | nowhere
        env |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati"}
        env |= {"HOME": "/nowhere", "TMPDIR": str(temporary), "LECTURE_CACHE": str(downloads.cache_dir())}
        self.manager = KernelManager(transport="ipc", connection_file=str(temporary / "k.json"))
        self.manager.ip = str(temporary / "k")
        self.manager.kernel_spec.argv = [*caged(place), sys.executable, *self.manager.kernel_spec.argv[1:]]
        self.manager.start_kernel(env=env, cwd=str(self.folder))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def run(self, source: str, interrupt_after: float | None = None) -> dict:
        """Run a cell and return its reply."""
        timer = threading.Timer(interrupt_after or 0, self.manager.interrupt_kernel)
        if interrupt_after:
            timer.start()
        try:
            return self.client.execute_interactive(source, timeout=1800, output_hook=lambda message: None)["content"]
        finally:
            timer.cancel()

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def kernel(tmp_path):
    for name in (models.LAPTOP_MODEL, models.EMBEDDING_MODEL):
        downloads.fetch(name)  # read-only from here on
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


def passed(reply: dict, cell, when: str) -> None:
    said = "\n".join(reply.get("traceback", []))[-3000:]
    assert reply["status"] == "ok", f"cell {cell.id}, {when}:\n{cell.source[:200]}\n{said}"


def imports(source: str) -> str:
    """Return what a cell imports. Interrupted half-way, a library stays broken until the kernel is restarted."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    return "\n".join(ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_survives(kernel, path):
    shutil.copy(path, kernel.folder)
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    interrupted = []
    passed(kernel.run(cells[0].source), cells[0], "first of all")  # the setup cell also imports
    for cell in cells[1:]:
        kernel.run(imports(cell.source))
        reply = kernel.run(cell.source, interrupt_after=LONG)
        if reply["status"] == "error" and reply["ename"] in INTERRUPTED:
            interrupted.append(cell.id)
            reply = kernel.run(cell.source)
        passed(reply, cell, "after an interrupt" if cell.id in interrupted else "first run")
    for cell in cells:
        passed(kernel.run(cell.source), cell, "second run in one kernel")
    for cell in (cells[0], cells[-1]):
        passed(kernel.run(cell.source), cell, "setup cell last")
    print(f"{path.stem}: interrupted in {interrupted}")
    left = {place.name for place in kernel.folder.iterdir()} - {path.name, "runs"}
    assert not left, f"beside the notebook it left {left}"
