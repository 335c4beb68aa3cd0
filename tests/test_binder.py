"""Binder, as near as a machine without Docker gets: `make slow K=binder` (an hour and a half on one core).

One core, one thread, no bf16; JupyterLab's server starts the kernel, and both together stay under 2 GB.
"""

import csv
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
LIMIT = 2.0e9  # bytes; mybinder.org kills a kernel a little above, at 2 GiB for all processes together
RECORD = ROOT / "build" / "binder.csv"
LIKE_BINDER = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LECTURE_BF16": "0", "ONEDNN_MAX_CPU_ISA": "AVX2"}


class Server:
    """A JupyterLab server on one core over a copy of the notebooks; kernels are started through its API."""

    def __init__(self, folder: Path):
        self.token, self.port, self.runtime = secrets.token_hex(), 18_000 + os.getpid() % 10_000, folder / "runtime"
        (folder / "notebooks").mkdir()
        for path in PATHS:
            shutil.copy(path, folder / "notebooks")
        options = [f"--ServerApp.token={self.token}", f"--port={self.port}", "--no-browser", "--allow-root"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={folder}"],
            env=os.environ | LIKE_BINDER | {"JUPYTER_RUNTIME_DIR": str(self.runtime)},
            stdout=subprocess.DEVNULL,
            stderr=(folder / "server.log").open("w"),
        )
        os.sched_setaffinity(self.process.pid, {min(os.sched_getaffinity(0))})
        for _ in range(120):
            try:
                self.ask("GET", "api/status")
                return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError((folder / "server.log").read_text()[-2000:])

    def ask(self, method: str, path: str, body: dict | None = None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}",
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def memory(self) -> int:
        """Bytes held by the server, its kernels and whatever they started; shared pages count once."""
        import psutil

        me, total = psutil.Process(self.process.pid), 0
        for process in [me, *me.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:  # it has ended meanwhile
                continue
        return total


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("binder"))
    server.ask("GET", "lab")
    yield server
    server.process.terminate()
    server.process.wait(30)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_stays_within_binders_memory(server, path):
    from jupyter_client import BlockingKernelClient

    body = {"path": f"notebooks/{path.name}", "name": path.name, "type": "notebook", "kernel": {"name": "python3"}}
    session = json.loads(server.ask("POST", "api/sessions", body))
    client = BlockingKernelClient(connection_file=str(server.runtime / f"kernel-{session['kernel']['id']}.json"))
    client.load_connection_file()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    peak, done, started = 0, threading.Event(), time.monotonic()

    def watch():
        nonlocal peak
        while not done.wait(0.5):
            peak = max(peak, server.memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                reply = client.execute_interactive(cell.source, timeout=3600, output_hook=lambda message: None)
                assert reply["content"]["status"] == "ok", "\n".join(reply["content"].get("traceback", []))
    finally:
        done.set()
        watcher.join()
        client.stop_channels()
        server.ask("DELETE", f"api/sessions/{session['id']}")
    RECORD.parent.mkdir(exist_ok=True)
    with RECORD.open("a", newline="") as file:
        csv.writer(file).writerow([path.stem, round(time.monotonic() - started), round(peak / 1e9, 2)])
    assert peak <= LIMIT, f"{peak / 1e9:.2f} GB at the peak, server and kernel together"


def test_repo2docker_takes_the_binder_folder():
    tool = Path(sys.executable).with_name("jupyter-repo2docker")
    if not tool.exists():
        pytest.skip("needs `pip install -e '.[binder]'`")
    said = subprocess.run(
        [tool, "--no-build", "--debug", "--user-name", "jovyan", "--user-id", "1000", str(ROOT)],
        capture_output=True,
        text=True,
    )
    recipe = said.stdout + said.stderr
    assert said.returncode == 0, recipe[-2000:]
    assert "binder/environment.yml" in recipe, "the conda environment is installed"
    assert re.search(r"(?m)^RUN (\./)?binder/postBuild", recipe), "and postBuild is run"


def test_post_build_in_a_clean_folder(tmp_path):
    """With torch there, as conda brings it, and an empty home; afterwards nothing is fetched."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "repo")], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    env = {"PATH": f"{tmp_path / 'env' / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    for command in (["python", "-m", "pip", "install", "-q", "torch>=2.11,<3"], ["binder/postBuild"]):
        done = subprocess.run(command, cwd=tmp_path / "repo", env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    code = "from lecture_utils import models; models.load_chat_model(models.LAPTOP_MODEL)"
    offline = env | {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    subprocess.run(["python", "-c", code], cwd=tmp_path, env=offline, check=True)
