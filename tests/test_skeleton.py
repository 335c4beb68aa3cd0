"""tools/skeleton.py: a stranger's first notebook runs, and the contract asks for no more than content."""

import os
import re
import subprocess
import sys

import lecture
import pytest
import skeleton

TABLE = """
[13_agents]
title = "Agents"
lecture = ["23.6"]
gpu = false
[13_agents.headings]
loop = "A loop with tools"
memory = "What it keeps"
safety = "What may go wrong"
exercises = "Exercises"
summary = "Summary"
"""


def test_what_is_there_is_kept_and_what_is_not_planned_is_told():
    stem = lecture.found("12")[0].stem
    before = lecture.found("12")[0].read_bytes()
    with pytest.raises(SystemExit, match="is there already; nothing was changed"):
        skeleton.main(stem)
    assert lecture.found("12")[0].read_bytes() == before
    with pytest.raises(SystemExit, match=r"outline.toml has no table \[13_nowhere\].*headings"):
        skeleton.main("13_nowhere")


def test_a_new_notebook_runs_and_lacks_only_content(copy_repository, tmp_path):
    """As CONTRIBUTING.md says, in a copy of this repository."""
    copy_repository(tmp_path)
    outline = tmp_path / "lecture_utils" / "outline.toml"
    outline.write_text(outline.read_text(encoding="utf-8") + TABLE, encoding="utf-8")

    def run(*command):
        environment = {"PYTHONPATH": str(tmp_path), "PYTHONUTF8": "1"}
        return subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )

    made = run("tools/skeleton.py", "13_agents")
    assert made.returncode == 0, made.stderr
    ran = run("tools/lecture.py", "refresh", "13")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    checked = run("-m", "pytest", "-q", "-k", "13_agents", "tests/test_notebooks.py")
    missing = set(re.findall(r"FAILED \S+::(\w+)\[13_agents\]", checked.stdout))
    assert missing == {"test_predictions_corrections_and_three_ways"}, checked.stdout[-3000:]
    assert run("-m", "ruff", "check", "notebooks").returncode == 0
    assert run("-m", "ruff", "format", "--check", "notebooks").returncode == 0
