"""tools/skeleton.py: a stranger's first notebook, made as CONTRIBUTING.md says, passes `make check` and the smoke run."""

import os
import subprocess
import sys

import lecture
import pytest
import skeleton

from lecture_utils import data


def test_what_is_there_is_kept_and_a_name_without_a_number_is_refused():
    (there,) = lecture.found("12")
    before = there.read_bytes()
    with pytest.raises(SystemExit, match="is there already; nothing was changed"):
        skeleton.main(there.stem)
    assert there.read_bytes() == before
    with pytest.raises(SystemExit, match="two digits and words in lower case"):
        skeleton.main("agents")


def test_a_new_notebook_passes_the_check_and_the_smoke_run(copy_repository, tmp_path):
    """In a copy of this repository, by the commands of CONTRIBUTING.md."""
    copy_repository(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONUTF8": "1"}

    def run(*command):
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    def make(*target):  # with this environment, which is set up already
        return run("make", *target, f"RUN={sys.executable}", "-o", ".venv/.installed")

    for command in (("init", "-q"), ("add", ".")):
        assert run("git", *command).returncode == 0
    made = make("new", "NB=99_example", "TITLE=An example")
    assert made.returncode == 0, made.stdout + made.stderr
    assert "[99 An example](" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "[99_example]" in (tmp_path / "docs" / "speaker_notes.toml").read_text(encoding="utf-8")
    checked = make("check")
    assert checked.returncode == 0, (checked.stdout + checked.stderr)[-5000:]
    smoke = run(sys.executable, "-m", "pytest", "-q", "--nbval-lax", "notebooks/99_example.ipynb")
    assert smoke.returncode == 0 and "passed" in smoke.stdout, smoke.stdout[-5000:]
    assert "99_example" not in data.outline(), "only the copy was changed"
