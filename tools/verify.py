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

import lecture

CONTRACT = ("test_notebooks", "test_repository", "test_security")


def steps(jobs: int, full: bool) -> dict[str, list[list[str]]]:
    """Return name -> commands, each a Python module with its arguments."""
    contract = [f"tests/{name}.py" for name in CONTRACT]
    many = ["-n", str(jobs), "--dist", "loadfile"] if jobs > 1 else []
    apart = [f"--ignore={path}" for path in contract]
    scale = ["--full"] if full else []
    return {
        "check": [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pytest", "-q", *contract]],
        "unit tests": [["pytest", "-q", *many, *apart, "tests"]],
        f"notebooks at {'laptop' if full else 'smoke'} scale": [
            ["pytest", "-q", *many, "--nbval-lax", *scale, "notebooks"]
        ],
    }


def run(commands: list[list[str]], environment: dict[str, str]) -> bool:
    """Run commands until one fails; return whether none did."""
    return all(
        subprocess.run([sys.executable, "-m", *command], cwd=lecture.ROOT, env=environment).returncode == 0
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
        took = lecture.clock(round(time.monotonic() - started))
        said.append(f"{name}: {'passed' if passed else 'FAILED'} in {took}")
    print("\n".join(("---", *said)))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
