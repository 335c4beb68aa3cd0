"""Make a new notebook: `make new NB=13_agents`, or with its title: TITLE="Agents that use tools".

Title and headings come from its table in lecture_utils/outline.toml; where there is none, it is given one to be edited.
The notebook is a skeleton that runs, and it is run: `make check` and the smoke run pass from the beginning, and the
README has its row.
"""

import argparse
import json
import re
import sys

import lecture
import links
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lecture_utils import data

TABLE = """
[{stem}]
title = {title}
lecture = ["after 23.5"]
about = "what it is about, in a few words"
minutes = ["…", "…"]
gpu = false
[{stem}.headings]
first-idea = "The first idea"
second-idea = "The second idea"
third-idea = "The third idea"
exercises = "Exercises"
summary = "Summary"
"""

HEADER = """# {title}

{badges}

*Lecture section {sections}.* What it is about, in two sentences.

- **You will** …
- **You will learn** …
- **You need** Python and a little PyTorch. This notebook stands alone.
- **Time**: about … minutes on two cores. On one core without bf16, as on Binder, it takes about … minutes."""

NOTE = '''start = """
What to wait for, what to ask, what to leave out.
"""
'''

IMPORTS = """import torch

from lecture_utils import exercises, plotting"""

CLAIM = """A question that the reader understands with what came before, then the idea in words and a picture.

**Predict first.** What will the figure show?"""
BOX = """> **The 2023 lecture** says … Today we know …"""
EQUAL = """by_hand = sum(value**2 for value in values) / len(values)
assert torch.isclose(by_hand, values.square().mean())"""

FIGURE = '''values = torch.linspace(0, 1, 20).square()
fig, ax = plotting.figure(5, 2.4)
ax.plot(values)
ax.set(xlabel="what", ylabel="how much, in its unit")
alt = """What the figure shows, for those who do not see it."""
plotting.show_figure(fig, alt)'''

CHECK = 'exercises.check_number("{n}", answer_{n}, 42, why="…", hint="…")'
SOLUTION = 'exercises.check_number("{n}", 42, 42, why="Done.", hint="")'

SUMMARY = """

- What was found, a line for each section.

**Since 2023** (month year). …

**References**: who, what (year), section, arXiv:…"""


def skeleton(stem: str) -> nbformat.NotebookNode:
    """Return a notebook of all headings in the outline; raises KeyError where it has no table there."""
    plan, cells = data.outline()[stem], []

    def add(make, source, slide="-", **given):
        metadata = {"slideshow": {"slide_type": slide}} | given.pop("metadata", {})
        cells.append(make(source, id=given.get("id", f"c{len(cells) + 1:03}"), metadata=metadata))

    header = {"title": plan["title"], "badges": links.badges(stem), "sections": " and ".join(plan["lecture"])}
    add(new_markdown_cell, HEADER.format(**header), "slide")
    add(new_code_cell, links.setup_cell(("torch",), plan["gpu"]), "skip")
    add(new_code_cell, IMPORTS)
    for heading, words in plan["headings"].items():
        title = f'<a id="{heading}"></a>\n\n## {words}'
        if heading == "exercises":
            add(
                new_markdown_cell,
                f"{title}\n\nThree levels: *warm-up*, *core*, *stretch* (no check).",
                "slide",
                id=heading,
            )
            for n, level in ((1, "warm-up"), (2, "core"), (3, "core")):
                add(new_markdown_cell, f"**{n} ({level}).** …", "fragment")
                add(new_code_cell, f"answer_{n} = ...")
                collapsed = {"cellView": "form", "jupyter": {"source_hidden": True}, "tags": ["hide-input"]}
                add(new_code_cell, CHECK.format(n=n), "skip", metadata=collapsed)
                hidden = {"jupyter": {"source_hidden": True}, "tags": ["solution"]}
                add(new_code_cell, SOLUTION.format(n=n), "skip", metadata=hidden)
            add(new_markdown_cell, "**4 (stretch, a project).** …", "fragment")
        elif heading == "summary":
            add(new_markdown_cell, title + SUMMARY, "slide", id=heading)
        else:
            add(new_markdown_cell, f"{title}\n\n{CLAIM}", "slide", id=heading)
            add(new_code_cell, FIGURE)
            add(new_markdown_cell, "What the figure shows, what it means, and what it does not mean.", "fragment")
            add(new_markdown_cell, "By hand and with the library, the same:")
            add(new_code_cell, EQUAL)
            if heading == next(iter(plan["headings"])):
                add(new_markdown_cell, BOX, "fragment")
    return new_notebook(cells=cells, metadata={"accelerator": "GPU"} if plan["gpu"] else {})


def main(stem: str, name: str = "") -> None:
    """Write the notebook, run it, and give it its place in the outline and the README."""
    path, outline = lecture.NOTEBOOKS / f"{stem}.ipynb", lecture.ROOT / "lecture_utils" / "outline.toml"
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", stem):
        sys.exit(f"{stem!r}: a notebook's name is two digits and words in lower case, such as 13_agents.")
    if path.exists():
        sys.exit(f"notebooks/{path.name} is there already; nothing was changed.")
    if stem not in data.outline():
        given = json.dumps(name or stem[3:].replace("_", " ").capitalize(), ensure_ascii=False)
        planned = outline.read_text(encoding="utf-8").rstrip() + "\n" + TABLE.format(stem=stem, title=given)
        lecture.write_whole(outline, planned)
    notes = lecture.ROOT / "docs" / "speaker_notes.toml"
    if f"[{stem}]" not in (text := notes.read_text(encoding="utf-8")):
        lecture.write_whole(notes, f"{text.rstrip()}\n\n[{stem}]\n{NOTE}")
    notebook = skeleton(stem)
    lecture.clean(notebook)
    lecture.write_whole(path, nbformat.writes(notebook) + "\n")
    if lecture.refresh(stem):
        sys.exit(f"notebooks/{path.name} is written but did not run to its end.")
    links.main(None)
    print(
        f"notebooks/{path.name} is written and in the README. Edit it, its table in lecture_utils/outline.toml and its "
        "note in docs/speaker_notes.toml."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stem", help="its number and name: 13_agents")
    parser.add_argument("--title", default="", help="its title, if the outline has none yet")
    given = parser.parse_args()
    main(given.stem, given.title)
