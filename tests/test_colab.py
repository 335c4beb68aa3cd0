"""Colab, as near as a machine without it gets: `make slow K=colab` (an hour on one core, 7 GB of disk).

Colab's Python and versions (colab-2026-08.txt) in an environment of their own; each notebook alone and
untouched in an empty folder with an empty home. This working tree is served as the git address that
the setup cell names, uncommitted changes included. Left in build/colab: what each run said and took.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import lecture
import links
import nbformat
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
PINS = ROOT / "tests" / "colab-2026-08.txt"
PYTHON, AS_OF = "3.13", "2026-08-25"  # what the pins leave open is as it was on that day
BUILD = ROOT / "build" / "colab"
# What a fresh Colab kernel is taken to have imported before the first cell. Not pandas, and with it not
# pyarrow: colabtools' data_table.py says that it avoids that.
STARTUP = """
import json, os, sys
import google.colab, ipywidgets, matplotlib.pyplot, numpy, psutil, requests
with open(os.environ["COLAB_IMPORTED"], "w") as file:
    json.dump(sorted({name.split(".")[0] for name in sys.modules}), file)
"""
KEPT = ("torch", "torchvision", "numpy", "transformers", "peft", "accelerate", "matplotlib", "pandas")
PIP_MAY_SAY = "Note: you may need to restart the kernel to use updated packages."  # %pip says so always
BAR = re.compile(r"\d+%\||it/s\]|s/it\]|^\s*$")


def uv(*arguments) -> str:
    tool = Path(sys.executable).with_name("uv")
    if not tool.exists():
        pytest.skip("needs `pip install -e '.[matrix]'`")
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def versions(python: Path) -> dict[str, str]:
    return {row["name"]: row["version"] for row in json.loads(uv("pip", "list", "--format=json", "--python", python))}


@pytest.fixture(scope="session")
def colab() -> Path:
    """The environment before anything of ours is in it; made once for each list of pins."""
    made, base = BUILD / "made-from.txt", BUILD / "base"
    if not made.exists() or made.read_text() != PINS.read_text():
        made.unlink(missing_ok=True)
        uv("venv", "--clear", "--relocatable", "--seed", "--python", PYTHON, base)
        uv("pip", "install", "--exclude-newer", AS_OF, "--compile-bytecode", "--python", base, "-r", PINS)
        made.write_text(PINS.read_text())
    return base


@pytest.fixture(scope="session")
def served(copy_repository, tmp_path_factory) -> dict[str, str]:
    """The environment variables with which git finds this working tree at the lecture's address."""
    slug, branch = links.project()
    tree = tmp_path_factory.mktemp("served") / "repository"
    copy_repository(tree)
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (
        ["init", "--quiet", f"--initial-branch={branch}"],
        ["config", "uploadpack.allowFilter", "true"],  # as the real host does; pip asks for a partial clone
        ["config", "uploadpack.allowAnySHA1InWant", "true"],
        ["add", "--all", "--force"],
        [*who, "commit", "--quiet", "--message=the working tree"],
    ):
        subprocess.run(["git", *command], cwd=tree, check=True)
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{tree.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{slug}",
    }


@pytest.fixture
def runtime(colab, served, tmp_path):
    """(python, environment variables) of a fresh Colab runtime with an empty home."""
    env = BUILD / f"runtime-{os.getpid()}"
    shutil.copytree(colab, env, symlinks=True, copy_function=os.link)  # pip replaces files, never writes into one
    (packages,) = env.glob("lib/python*/site-packages")
    (packages / "google" / "colab").mkdir()
    (packages / "google" / "colab" / "__init__.py").touch()
    (packages / "google_colab-1.0.0.dist-info").mkdir()  # libraries ask for it by its name, accelerate for one
    (packages / "google_colab-1.0.0.dist-info" / "METADATA").write_text("Name: google-colab\nVersion: 1.0.0\n")
    for folder in ("home", "content", "ipython/profile_default/startup"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "ipython/profile_default/startup/colab.py").write_text(STARTUP)
    # Neither the test runner's settings nor those that conftest.py's quiet() makes.
    ours = [
        "LECTURE_", "PYTHON", "PYTEST", "JUPYTER", "XDG_", "VIRTUAL_ENV", "MPL",
        "HF_", "TRANSFORMERS_", "TOKENIZERS_", "TRL_", "TQDM_", "ONEDNN_",
    ]  # fmt: skip
    kept = {key: value for key, value in os.environ.items() if not key.startswith(tuple(ours))}
    yield env / "bin" / "python", kept | served | {
        "PATH": f"{env / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PIP_CACHE_DIR": str(BUILD / "pip"),
        "COLAB_RELEASE_TAG": "simulated",
        "COLAB_IMPORTED": str(tmp_path / "imported.json"),
    }  # fmt: skip
    shutil.rmtree(env)


def execute(notebook, folder: Path, python: Path, env: dict) -> float:
    """Execute in place with Colab's kernel; return the seconds that the setup cell took."""
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    spec = folder.parent / "kernels" / "colab"
    spec.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    specs = KernelSpecManager(kernel_dirs=[str(spec.parent)], ensure_native_kernel=False)
    took, started = [], time.monotonic()
    client = NotebookClient(
        notebook,
        timeout=3600,
        km=AsyncKernelManager(kernel_name="colab", kernel_spec_manager=specs),
        resources={"metadata": {"path": str(folder)}},
        on_cell_executed=lambda cell, **_: cell.cell_type == "code" and took.append(time.monotonic() - started),
    )
    client.owns_km = True  # else the kernel lives on
    client.execute(env=env)
    return took[0]


def said(cell) -> list[tuple[str, str]]:
    """(stream, line) of a cell's text, a bar that was drawn over in its last state."""
    rows = [(o.name, line) for o in cell.outputs if o.output_type == "stream" for line in o.text.split("\n")]
    return [(stream, line.rstrip("\r").rsplit("\r", 1)[-1]) for stream, line in rows]


def fearsome(stream: str, line: str) -> bool:
    """Would a student who sees this line think that something is wrong?"""
    alarm = re.search(r"Warning[:\]]|warnings\.warn|Traceback|^\s*(ERROR\b|WARNING\b|(error|warning): (?!\d))", line)
    return bool(alarm) or (stream == "stderr" and not BAR.search(line))


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_runs_alone_on_colab(path, runtime, tmp_path):
    python, env = runtime
    before = versions(python)
    notebook = lecture.emptied(nbformat.read(path, as_version=4))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    asked = "from lecture_utils import runtime\nprint(runtime.peak_memory_gb())"
    notebook.cells.append(nbformat.v4.new_code_cell(asked))  # after the end, so that the file runs as it is
    shutil.copy(path, tmp_path / "content")
    started = time.monotonic()
    try:
        install = execute(notebook, tmp_path / "content", python, env)
    finally:
        BUILD.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, BUILD / path.name)  # to look at
    after = versions(python)

    # The install replaces nothing that Colab's own packages need, and nothing imported before.
    changed = {name for name in before if before[name] != after.get(name)}
    assert not changed & set(KEPT), {name: (before[name], after.get(name)) for name in changed & set(KEPT)}
    imported = set(json.loads(Path(env["COLAB_IMPORTED"]).read_text()))
    listing = "import importlib.metadata as m, json; print(json.dumps(m.packages_distributions()))"
    whose = json.loads(ask(python, env, listing))
    loaded = {name.lower().replace("_", "-") for module in imported for name in whose.get(module, [])}
    assert "numpy" in loaded and not changed & loaded, f"needs a restart: {changed & loaded}"
    if "finetune" not in links.extras_of(links.packages_of(code[0].source)):
        assert not {"trl", "bitsandbytes"} & set(after)

    # The package is the one that this notebook belongs to, and another is refused.
    wanted = re.search(r'lecture="(.+?)"', code[0].source).group(1)
    check = "from lecture_utils import runtime; runtime.check_lecture({!r})".format
    ask(python, env, check(wanted))
    for other in (wanted.replace("@", "1@"), wanted + "-old"):
        refused = subprocess.run([python, "-c", check(other)], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert refused.returncode == 1 and f"belongs to lecture {other}" in refused.stderr
    report = ask(python, env, None)
    for line in ("Colab +yes", f"lecture +{wanted.replace('@', ' ')} [0-9a-f]{{12}}"):
        assert re.search(f"(?m)^{line}$", report), report

    # A student sees nothing to fear.
    shown = [row for cell in code for row in said(cell)]
    feared = [line for stream, line in shown if fearsome(stream, line) and line.strip() != PIP_MAY_SAY]
    peak = float(notebook.cells[-1].outputs[0].text)
    with (BUILD / "runs.csv").open("a", newline="") as file:
        took = [round(install), round(time.monotonic() - started), round(peak, 2)]
        csv.writer(file).writerow([path.stem, *took, " ".join(sorted(changed))])
    assert not feared, "\n".join(feared)


def ask(python: Path, env: dict, code: str | None) -> str:
    """Run code, or the report, with Colab's Python outside the notebook; return what it printed."""
    what = ["-c", code] if code else ["-m", "lecture_utils.report"]
    done = subprocess.run([python, *what], cwd=env["HOME"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
