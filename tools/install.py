"""Install the lecture and what it needs into the environment that runs this. `make setup` calls it.

    python tools/install.py            everything of the extra "all"
    python tools/install.py finetune   another extra

uv installs, in a fraction of pip's time; where it cannot be had, pip does. On Linux, PyPI's torch is a CUDA build
of 3 GB. uv knows PyTorch's own index and takes the build that fits the machine: without a card the CPU's, 200 MB.
"""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WAIT = 60  # seconds in which PyTorch's index must have answered


def succeeds(*command: str, seconds: float | None = None, quiet: bool = False) -> bool:
    """Run a Python module's command; return whether it succeeded, in time."""
    try:
        return subprocess.run([sys.executable, "-m", *command], timeout=seconds, capture_output=quiet).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def pinned(name: str, requirements: list[str]) -> str:
    """Return the requirement of a package with its version range, as pyproject.toml has it."""
    return next(item for item in requirements if item.startswith(name))


def install(extra: str) -> bool:
    """Install the lecture with an extra; return whether that succeeded."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lecture = ("install", "--editable", f"{ROOT}[{extra}]")
    if not succeeds("pip", "install", "--quiet", pinned("uv", project["optional-dependencies"]["install"])):
        print("uv could not be installed: pip does its work, in some minutes.", flush=True)
        return succeeds("pip", *lecture)
    uv = ("uv", "pip", "install", "--python", sys.executable)
    torch = pinned("torch", project["dependencies"])
    if sys.platform == "linux" and not installed("torch"):
        fitting = (*uv, "--torch-backend", "auto", torch)
        if succeeds(*fitting, "--dry-run", seconds=WAIT, quiet=True):
            succeeds(*fitting)
        else:
            print(
                "PyTorch's index did not answer: pip takes PyPI's torch, most often a CUDA build of 3 GB.", flush=True
            )
            succeeds("pip", "install", "--no-compile", torch)
    return succeeds(*uv, *lecture[1:]) or succeeds("pip", *lecture)


def installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(not install(sys.argv[1] if len(sys.argv) > 1 else "all"))
