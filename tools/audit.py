"""The licences of the installed packages and their known vulnerabilities: `make audit`.

    python tools/audit.py    writes build/licences.md, prints both in short

Fails on a vulnerability, and where nobody could be asked for them: not to know is not to be safe. A licence never
fails; those that ask something of whoever passes the package on, or that are not told, are named.
"""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from lecture_utils import runtime

LICENCES = Path(__file__).resolve().parent.parent / "build" / "licences.md"
COPYLEFT = re.compile(
    r"GPL|General Public|\bMPL|Mozilla|\bEPL|Eclipse|CDDL|EUPL|CeCILL|Share.?Alike|-SA\b", re.IGNORECASE
)
UNTOLD = re.compile(r"(unknown|none|other.*|.*proprietary.*|)", re.IGNORECASE)


def run(module: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", module, *options], capture_output=True, text=True)


def licences() -> list[dict]:
    """Return name, version and licence of each installed package, as it tells them itself."""
    said = run("piplicenses", "--format=json", "--from=mixed", "--with-system", "--ignore-packages", "lecture-utils")
    said.check_returncode()
    found = [{key.lower(): " ".join(value.split()) for key, value in row.items()} for row in json.loads(said.stdout)]
    return sorted(found, key=lambda row: row["name"].casefold())


def as_markdown(rows: list[dict]) -> str:
    lines = ["# Licences of the installed packages", "", "| package | version | licence |", "|---|---|---|"]
    cells = [[row[key].replace("|", "\\|") for key in ("name", "version", "license")] for row in rows]
    return "\n".join(lines + [f"| {' | '.join(cell)} |" for cell in cells]) + "\n"


def remarkable(rows: list[dict]) -> str:
    """Return one line on the licences to look at: copyleft, and not told."""
    copyleft = [f"{row['name']} ({row['license']})" for row in rows if COPYLEFT.search(row["license"])]
    untold = [row["name"] for row in rows if UNTOLD.fullmatch(row["license"])]
    return f"copyleft: {', '.join(copyleft) or 'none'}; not told: {', '.join(untold) or 'none'}"


def vulnerabilities() -> tuple[list[str], list[str], int]:
    """Return (a line for each known vulnerability, the packages nobody knew, how many were asked about).
    Raises ConnectionError where the service does not answer, or knows hardly a package."""
    said = run("pip_audit", "--format=json", "--progress-spinner=off", "--skip-editable")
    try:
        packages = json.loads(said.stdout)["dependencies"]
    except ValueError:
        reason = (said.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise ConnectionError(textwrap.shorten(runtime.redact_secrets(reason), 120, placeholder=" …")) from None
    packages = [package for package in packages if package["name"] != "lecture-utils"]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) > len(packages) / 2:  # an index of one's own need not have advisories; pip-audit calls this success
        raise ConnectionError(f"it knows nothing of {len(unknown)} of {len(packages)} packages")
    found = [
        f"{package['name']} {package['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or '-'}"
        for package in packages
        for known in package.get("vulns", ())
    ]
    return found, unknown, len(packages)


def main() -> int:
    rows = licences()
    LICENCES.parent.mkdir(exist_ok=True)
    LICENCES.write_text(as_markdown(rows), encoding="utf-8")
    print(f"licences of {len(rows)} packages: build/{LICENCES.name}; {remarkable(rows)}")
    try:
        found, unknown, asked = vulnerabilities()
    except ConnectionError as error:
        print(
            f"vulnerabilities: NOT CHECKED, the advisory service cannot be asked ({error}). Run it with the internet."
        )
        return 1
    print(f"vulnerabilities: {len(found)} known in {asked} packages; not known there: {', '.join(unknown) or 'none'}")
    print(*(f"  {line}" for line in found), sep="\n", end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
