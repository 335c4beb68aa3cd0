"""The unit tests on the oldest and the newest versions that pyproject.toml allows: `make matrix`."""

from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent.parent
nox.options.default_venv_backend = "uv"
nox.options.envdir = str(ROOT / "build" / "matrix")


@nox.session(python="3.11", venv_params=["--seed"])  # models.py fetches with pip
def oldest(session):
    """The lower bounds themselves: whoever raises the use of a library raises its bound."""
    check(session, "--resolution=lowest-direct")


@nox.session(python="3.13", venv_params=["--seed"])
def newest(session):
    check(session, "--resolution=highest")


def check(session, resolution: str) -> None:
    session.chdir(ROOT)
    session.install(resolution, "--editable", ".[all]")
    session.run("uv", "pip", "list", external=True)  # what a report of a failure needs
    session.run("python", "-m", "pytest", "tests", *session.posargs)
