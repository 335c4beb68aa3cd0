"""How a recorded run is written down: one row of a CSV at a time, so that an interrupted recording goes on."""

import csv
import datetime
import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "lecture_utils" / "recorded"


def done(name: str) -> list[dict]:
    """Return the rows recorded so far."""
    from lecture_utils import data

    return data.recorded(name)[0] if (FOLDER / f"{name}.csv").exists() else []


def add(name: str, row: dict) -> None:
    """Append a row; the first brings the note and the head of the file."""
    target = FOLDER / f"{name}.csv"
    if not target.exists():
        note = f"recorded {datetime.date.today().isoformat()} on {os.cpu_count()} cores"
        target.parent.mkdir(exist_ok=True)
        target.write_text(f"# {note}; reproduce with: make record NB={name[:2]}\n")
        _append(target, row)
    _append(target, row.values())


def _append(target: Path, cells) -> None:
    with target.open("a") as file:
        csv.writer(file, lineterminator="\n").writerow(cells)
