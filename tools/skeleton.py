"""Write the skeleton of a new notebook: `make new NB=13_agents`.

Title and headings come from its table in lecture_utils/outline.toml. The skeleton runs as it is;
`make check` then names what is missing, which is the list of what to write.
"""

import sys

import lecture
import links
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from lecture_utils import data

HEADER = """# {title}

{badges}

*Lecture section {sections}.* What it is about, in two sentences.

- **You will** …
- **You will learn** …
- **You need** Python and a little PyTorch. This notebook stands alone.
- **Time**: about … minutes on two cores. On one core without bf16, as on Binder, it takes about … minutes."""

IMPORTS = """import torch

from lecture_utils import exercises, plotting"""

CLAIM = "One claim, one small cell, one visible result. **Predict first.** What will the figure show?"

FIGURE = '''values = torch.linspace(0, 1, 20).square()
fig, ax = plotting.figure(5, 2.4)
ax.plot(values)
ax.set(xlabel="what", ylabel="how much, in its unit")
alt = """What the figure shows, for those who do not see it."""
plotting.show_figure(fig, alt)'''

CHECK = """answer_{n} = ...

exercises.check_number("{n}", answer_{n}, 42, why="…", hint="…")"""
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
    add(new_markdown_cell, "For the lecturer: what to wait for, what to ask, what to leave out.", "notes")
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
                add(new_code_cell, CHECK.format(n=n))
                hidden = {"jupyter": {"source_hidden": True}, "tags": ["solution"]}
                add(new_code_cell, SOLUTION.format(n=n), "skip", metadata=hidden)
            add(new_markdown_cell, "**4 (stretch, a project).** …", "fragment")
        elif heading == "summary":
            add(new_markdown_cell, title + SUMMARY, "slide", id=heading)
        else:
            add(new_markdown_cell, f"{title}\n\n{CLAIM}", "slide", id=heading)
            add(new_code_cell, FIGURE)
            add(new_markdown_cell, "What the reader now knows, and what is still open.", "fragment")
    return new_notebook(cells=cells, metadata={"accelerator": "GPU"} if plan["gpu"] else {})


def main(stem: str) -> None:
    path = lecture.NOTEBOOKS / f"{stem}.ipynb"
    if path.exists():
        sys.exit(f"notebooks/{path.name} is there already; nothing was changed.")
    if stem not in data.outline():
        sys.exit(
            f"lecture_utils/outline.toml has no table [{stem}]. Give it one: title, lecture, gpu, and "
            f"[{stem}.headings], the last two of them exercises and summary."
        )
    notebook = skeleton(stem)
    lecture.clean(notebook)
    lecture.write_whole(path, nbformat.writes(notebook) + "\n")
    print(f"notebooks/{path.name} is written. Next: `make notebooks NB={stem}`, `make check`.")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else sys.exit("Which one? make new NB=13_agents"))
