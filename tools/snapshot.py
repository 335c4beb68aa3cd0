"""Take the text of all notebooks as the snapshot that notebook 09 searches: `make snapshot`."""

import datetime
import json
from dataclasses import asdict

import lecture

from lecture_utils import chunking


def main() -> None:
    sections = [asdict(section) for path in lecture.found(None) for section in chunking.sections(path)]
    taken = {"date": datetime.date.today().isoformat(), "sections": sections}
    lecture.write_whole(chunking.SNAPSHOT, json.dumps(taken, ensure_ascii=False, indent=1) + "\n")
    print(f"{len(sections)} sections of {len(lecture.found(None))} notebooks. Next: `make notebooks NB=09`, then 11.")


if __name__ == "__main__":
    main()
