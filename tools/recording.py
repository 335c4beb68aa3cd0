"""How a recorded run is written down: one row of a CSV at a time, so that an interrupted recording goes on."""

import csv
import datetime
import io
import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "lecture_utils" / "recorded"


def done(name: str) -> list[dict]:
    """Return the rows recorded so far."""
    from lecture_utils import data

    return data.recorded(name)[0] if (FOLDER / f"{name}.csv").exists() else []


def add(name: str, row: dict) -> None:
    """Append a row; the first brings the note and the head of the file."""
    target, text = FOLDER / f"{name}.csv", io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    if not target.exists():
        note = f"recorded {datetime.date.today().isoformat()} on {os.cpu_count()} cores"
        text.write(f"# {note}; reproduce with: make record NB={name[:2]}\n")
        rows.writerow(row)
        target.parent.mkdir(exist_ok=True)
    rows.writerow(row.values())
    with target.open("a", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())  # at once: what is killed leaves no head without a row
