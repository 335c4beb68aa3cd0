"""Notebooks under pytest: at smoke scale by default, at laptop scale with ``--full``.

At smoke scale every cell runs, but nothing is trained for more than a few steps. A cell that asserts what only
training brings about has the tag ``full-scale`` and is skipped then; ``lecture_utils/outline.toml`` says why.
"""

import os
from collections import Counter

import nbval.kernel
import pytest

from lecture_utils import data


def pytest_addoption(parser):
    group = parser.getgroup("lecture")
    usual = os.environ.get("LECTURE_SCALE") or "smoke"
    group.addoption("--scale", dest="scale", default=usual, help=f"the scale of the notebooks (default here: {usual})")
    group.addoption("--full", dest="scale", action="store_const", const="laptop", help="short for --scale laptop")


def pytest_configure(config):
    """Start a kernel again that died at once: it looks for free ports first, and another one can take them meanwhile."""
    start = nbval.kernel.start_new_kernel

    def start_twice(*args, **kwargs):
        try:
            return start(*args, **kwargs)
        except RuntimeError:
            return start(*args, **kwargs)

    config.add_cleanup(lambda: setattr(nbval.kernel, "start_new_kernel", start))
    nbval.kernel.start_new_kernel = start_twice


def scale(config) -> str:
    """Return the scale that the notebooks run at."""
    return config.option.scale


def is_cell(item) -> bool:
    return item.path.suffix == ".ipynb" and hasattr(item, "cell")


def pytest_collection_modifyitems(config, items):
    if scale(config) != "smoke":
        return
    for item in items:
        if is_cell(item) and "full-scale" in item.cell.metadata.get("tags", ()):
            reasons = data.outline().get(item.path.stem, {}).get("full_scale", {})
            item.add_marker(pytest.mark.skip(reason=reasons.get(item.cell.id, "needs the full scale")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """The kernel of a notebook starts before its first cell and inherits the scale; the unit tests do not see it."""
    if not is_cell(item):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LECTURE_SCALE", scale(item.config))
        return (yield)


def pytest_terminal_summary(terminalreporter, config):
    """Print how long each notebook took."""
    seconds = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            name = getattr(report, "nodeid", "").split("::")[0]
            if name.endswith(".ipynb"):
                seconds[name] += report.duration
    if seconds:
        terminalreporter.section(f"notebooks at {scale(config)} scale")
        for name, took in sorted(seconds.items()):
            terminalreporter.write_line(f"{took:5.0f} s  {name}")
