"""Write the repository's address into badges, setup cells, README and citation, and the README's table.

    python tools/links.py              rewrite everything from pyproject.toml
    python tools/links.py owner/name   set the address there first

The address stands in pyproject.toml, [project.urls] Repository; all else is made from it.
"""

import re
import sys
import tomllib
from pathlib import Path

import lecture
import nbformat

import lecture_utils
from lecture_utils import data

ROOT = Path(__file__).resolve().parent.parent
FOR_NOTEBOOKS = (
    "pretrain",
    "finetune",
    "retrieve",
    "prompt",
    "evaluate",
    "agents",
)  # the extras that a notebook may need
SLUG = re.compile(r"[\w.-]+/[\w.-]+")
# Every place where an address of this repository can stand, and nothing else.
PLACES = (
    r"(?<=colab\.research\.google\.com/github/)[\w.-]+/[\w.-]+(?=/blob/)",
    r"(?<=mybinder\.org/v2/gh/)[\w.-]+/[\w.-]+(?=/)",
    r"(?<=git\+https://github\.com/)[\w.-]+/[\w.-]+(?=@)",
    r"(?<=git clone https://github\.com/)[\w.-]+/[\w.-]+",
    r"(?<=repository-code: https://github\.com/)[\w.-]+/[\w.-]+",
    r"(?<=\(https://github\.com/)[\w.-]+/[\w.-]+(?=/issues\))",
)
# The same for the branch: what stands before it is the group.
BRANCHES = (
    r"(colab\.research\.google\.com/github/[\w.-]+/[\w.-]+/blob/)[^/]+(?=/notebooks/)",
    r"(mybinder\.org/v2/gh/[\w.-]+/[\w.-]+/)[^?/]+(?=\?)",
)


def settings() -> dict:
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def project() -> tuple[str, str]:
    """Return (owner/name, branch) from pyproject.toml."""
    slug = settings()["project"]["urls"]["Repository"].removeprefix("https://github.com/")
    return slug, settings()["tool"]["lecture"]["branch"]


def addresses(stem: str) -> tuple[str, str]:
    """Return where Colab and Binder open a notebook."""
    slug, branch = project()
    return (
        f"https://colab.research.google.com/github/{slug}/blob/{branch}/notebooks/{stem}.ipynb",
        f"https://mybinder.org/v2/gh/{slug}/{branch}?urlpath=lab/tree/notebooks/{stem}.ipynb",
    )


def badges(stem: str) -> str:
    """Return the badge line of a notebook's header."""
    colab, binder = addresses(stem)
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Launch on Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def extras_of(packages: tuple[str, ...]) -> list[str]:
    """Return the extras of pyproject.toml that a notebook with these packages needs on Colab."""
    extras = settings()["project"]["optional-dependencies"]
    names = {extra: {re.match(r"[\w-]+", item).group() for item in extras[extra]} for extra in FOR_NOTEBOOKS}
    return [extra for extra in FOR_NOTEBOOKS if names[extra] & set(packages)]


def setup_cell(packages: tuple[str, ...], gpu: bool = False) -> str:
    """Return the source of a notebook's setup cell; ``packages`` are those whose versions it prints, ``gpu``: may it
    use one?"""
    slug, branch = project()
    extras = ",".join(extras_of(packages))
    wanted = f"lecture-utils[{extras}]" if extras else "lecture-utils"
    arguments = (
        [f'"{p}"' for p in packages]
        + [f'lecture="{lecture_utils.__version__}@{branch}"']
        + (["gpu=True"] if gpu else [])
    )
    call = f"({', '.join(arguments)})"
    if len("SCALE = runtime.setup" + call) > 88:  # as ruff would wrap it: notebooks/ruff.toml
        call = f"(\n    {', '.join(arguments)}\n)"
        if len(call.splitlines()[1]) > 88:
            call = "(\n" + "".join(f"    {argument},\n" for argument in arguments) + ")"
    return (
        "import sys\n\n"
        'if "google.colab" in sys.modules:\n'
        f'    %pip install -q "{wanted} @ git+https://github.com/{slug}@{branch}"\n'
        "from lecture_utils import runtime\n\n"
        f"SCALE = runtime.setup{call}"
    )


def packages_of(source: str) -> tuple[str, ...]:
    """Return the packages whose versions a setup cell prints."""
    return tuple(re.findall(r'(?<!=)"([\w-]+)"', source.split("runtime.setup(")[1]))


def rows() -> str:
    """Return the README's table of the notebooks: a row for each in the outline that there is."""
    lines = ["| Notebook | What runs in it | Minutes | Open in |", "|---|---|---|---|"]
    outline = data.outline()
    for path in lecture.found(None):
        plan = outline[path.stem]
        name = f"[{path.stem[:2]} {plan.get('short', plan['title'])}](notebooks/{path.name})"
        colab, binder = addresses(path.stem)
        minutes = "{} ({})".format(*plan["minutes"])
        cells = (name, plan["about"], minutes, f"[Colab]({colab}), [Binder]({binder})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_rows(readme: str) -> str:
    """Return the README with its table made anew."""
    return re.sub(r"(?m)^\| Notebook \| What runs.*(\n\|.*)*", lambda _: rows(), readme, count=1)


def rewrite(text: str, slug: str, branch: str) -> str:
    """Return a text whose addresses of this repository name another owner/name and branch."""
    for place in PLACES:
        text = re.sub(place, slug, text)
    for place in BRANCHES:
        text = re.sub(place, rf"\g<1>{branch}", text)
    return text


def main(wanted: str | None) -> None:
    if wanted:
        if not SLUG.fullmatch(wanted):
            sys.exit(f"{wanted!r} is not of the form owner/name.")
        path = ROOT / "pyproject.toml"
        address = f'Repository = "https://github.com/{wanted}"'
        lecture.write_whole(path, re.sub(r'(?m)^Repository = ".*"', address, path.read_text(encoding="utf-8")))
    slug, branch = project()
    for name in ("README.md", "CITATION.cff", "CONTRIBUTING.md"):
        path = ROOT / name
        lecture.write_whole(path, with_rows(rewrite(path.read_text(encoding="utf-8"), slug, branch)))
    outline = data.outline()
    for path in lecture.found(None):
        notebook = nbformat.read(path, as_version=4)
        header, setup = notebook.cells[0], next(cell for cell in notebook.cells if cell.cell_type == "code")
        header.source = rewrite(header.source, slug, branch)
        setup.source = setup_cell(packages_of(setup.source), outline[path.stem]["gpu"])
        lecture.write_whole(path, nbformat.writes(notebook) + "\n")
    print(f"Everything points at {slug}.")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
