"""Everything that `make test` checks, one step after the other; a failed step does not stop the next.

    python tools/verify.py [--jobs 2] [--full]

The steps: the lint and the notebooks' contract (`make check`), the unit tests, the notebooks. At the end a summary
and, if a step failed, a non-zero exit.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import lecture

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ("test_notebooks", "test_repository", "test_security")


def check() -> list[list[str]]:
    """Return the commands of `make check`."""
    contract = [f"tests/{name}.py" for name in CONTRACT]
    return [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest", "-q", *contract]]


def steps(jobs: int, full: bool) -> dict[str, list[list[str]]]:
    """Return name -> commands, each a Python module with its arguments."""
    many = ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else []
    apart = [f"--ignore=tests/{name}.py" for name in CONTRACT]
    scale = ["--full"] if full else []
    return {
        "check": check(),
        "unit tests": [["pytest", "-q", *many, *apart, "tests"]],
        f"notebooks at {'laptop' if full else 'smoke'} scale": [
            ["pytest", "-q", *many, "--nbval-lax", *scale, "notebooks"]
        ],
    }


def run(commands: list[list[str]], environment: dict[str, str]) -> bool:
    """Run commands until one fails; return whether none did."""
    return all(
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment).returncode == 0
        for command in commands
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="so many tests and notebooks at a time (default: 1)")
    parser.add_argument("--full", action="store_true", help="the notebooks at laptop scale")
    parser.add_argument("--only", choices=("check", "unit", "notebooks"), help="one of the three steps")
    given = parser.parse_args(arguments)
    environment = os.environ | lecture.shared_cores(given.jobs)
    said, failed = [], False
    for name, commands in steps(given.jobs, given.full).items():
        if given.only and not name.startswith(given.only):
            continue
        print(f"--- {name}", flush=True)
        started = time.monotonic()
        passed = run(commands, environment)
        failed |= not passed
        minutes, seconds = divmod(round(time.monotonic() - started), 60)
        said.append(f"{name}: {'passed' if passed else 'FAILED'} in {minutes}:{seconds:02d}")
    print("\n".join(("---", *said)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
