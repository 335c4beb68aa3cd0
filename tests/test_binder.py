"""Binder, as near as a machine without Docker gets: `make slow K=binder` (an hour and a half on one core).

One core, one thread, no bf16; JupyterLab's server starts the kernel, and both together stay under 2 GB.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import lecture
import nbformat
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
LIMIT = 2.0e9  # bytes; mybinder.org kills a kernel a little above, at 2 GiB for all processes together
RECORD = ROOT / "build" / "binder.csv"
LIKE_BINDER = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LECTURE_BF16": "0", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def memory(server) -> int:
    """Bytes held by the server, its kernels and whatever they started; shared pages count once."""
    import psutil

    me, total = psutil.Process(server.pid), 0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has ended meanwhile
            continue
    return total


@pytest.fixture(scope="module")
def server(jupyterlab, tmp_path_factory):
    """A JupyterLab server on one core over a copy of the notebooks.

    Yields (process, ask, folder of the kernels' connection files); kernels are started by ask(method, path, body).
    """
    folder, place = tmp_path_factory.mktemp("binder"), tmp_path_factory.mktemp("settings")
    (folder / "notebooks").mkdir()
    for path in PATHS:
        shutil.copy(path, folder / "notebooks")
    with jupyterlab(folder, place, **LIKE_BINDER) as (process, address, token):
        os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})

        def ask(method: str, path: str, body: dict | None = None) -> bytes:
            data = json.dumps(body).encode() if body else None
            headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
            request = urllib.request.Request(f"{address}/{path}", data, headers, method=method)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()

        ask("GET", "lab")
        yield process, ask, place / "runtime"


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_stays_within_binders_memory(server, path):
    from jupyter_client import BlockingKernelClient

    process, ask, connections = server
    body = {"path": f"notebooks/{path.name}", "name": path.name, "type": "notebook", "kernel": {"name": "python3"}}
    session = json.loads(ask("POST", "api/sessions", body))
    client = BlockingKernelClient(connection_file=str(connections / f"kernel-{session['kernel']['id']}.json"))
    client.load_connection_file()
    client.hb_channel.time_to_dead = 60  # a kernel that shares its core with another program answers late
    client.start_channels()
    started = time.monotonic()
    try:
        client.wait_for_ready(timeout=120)
        with lecture.Watch(lambda: memory(process)) as watch:
            for cell in nbformat.read(path, as_version=4).cells:
                if cell.cell_type == "code":
                    reply = client.execute_interactive(cell.source, timeout=3600, output_hook=lambda message: None)
                    assert reply["content"]["status"] == "ok", "\n".join(reply["content"].get("traceback", []))
    finally:
        client.stop_channels()
        ask("DELETE", f"api/sessions/{session['id']}")
    RECORD.parent.mkdir(exist_ok=True)
    with RECORD.open("a", newline="") as file:
        csv.writer(file).writerow([path.stem, round(time.monotonic() - started), round(watch.peak / 1e9, 2)])
    assert watch.peak <= LIMIT, f"{watch.peak / 1e9:.2f} GB at the peak, server and kernel together"


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
