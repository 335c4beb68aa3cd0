"""tools/verify.py, tools/install.py and conftest.py: what `make test` and `make setup` do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import install
import nbformat
import pytest
import verify
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent


# make test ----------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["check", "unit tests", "notebooks at smoke scale", None])
def test_a_failed_step_stops_no_other_and_is_in_the_summary(failing, monkeypatch, capsys):
    done = []

    def step(commands, environment):
        (name,) = [name for name, its in verify.steps(2, full=False).items() if its == commands]
        done.append(name)
        return name != failing

    monkeypatch.setattr(verify, "run", step)
    code = verify.main(["--jobs", "2"])
    said = capsys.readouterr().out.splitlines()
    assert done == ["check", "unit tests", "notebooks at smoke scale"]
    assert code == (failing is not None)
    summary = said[said.index("---") + 1 :]
    assert [line.split(":")[0] for line in summary] == done
    assert [" FAILED in " in line for line in summary] == [name == failing for name in done]


def test_a_command_that_fails_ends_its_step(tmp_path):
    seen = tmp_path / "seen"
    touch = ["pathlib", "-c", "pass"]  # a module that does nothing
    assert verify.run([["compileall", "-q", str(tmp_path)]], os.environ.copy()) is True
    assert verify.run([["no_such_module"], touch], os.environ.copy()) is False and not seen.exists()


def test_full_is_the_laptop_scale_and_several_jobs_share_the_cores():
    (smoke,), (full,) = (list(verify.steps(1, full).values())[-1] for full in (False, True))
    assert "--full" not in smoke and "--full" in full and "-n" not in smoke
    (shared,) = list(verify.steps(2, full=False).values())[-1]
    assert shared[shared.index("-n") + 1] == "2"


# pytest --nbval-lax -------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path):
    """A notebook that knows its scale, and a unit test, under our conftest.py."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    cells = [
        new_code_cell("import os\nscale = os.environ['LECTURE_SCALE']"),
        new_code_cell("assert scale == 'laptop', scale", metadata={"tags": ["full-scale"]}),
        new_code_cell("assert scale in ('smoke', 'laptop')"),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), tmp_path / "01_small.ipynb")
    (tmp_path / "test_unit.py").write_text("import os\ndef test_scale(): assert 'LECTURE_SCALE' not in os.environ\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run_pytest(project, *options, **variables):
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "--nbval-lax", "--nbval-current-env", *options]
    return subprocess.run(command, cwd=project, env=os.environ | variables, capture_output=True, text=True)


def test_notebooks_run_at_smoke_scale_or_full_and_unit_tests_see_neither(project):
    quick = run_pytest(project)
    assert quick.returncode == 0 and "3 passed, 1 skipped" in quick.stdout, quick.stdout
    assert "needs the full scale" in quick.stdout and "notebooks at smoke scale" in quick.stdout
    full = run_pytest(project, "--full")
    assert full.returncode == 0 and "4 passed" in full.stdout and "notebooks at laptop scale" in full.stdout, (
        full.stdout
    )


def test_the_environment_may_choose_the_scale_of_notebooks(project):
    chosen = run_pytest(project, "01_small.ipynb", LECTURE_SCALE="laptop")
    assert chosen.returncode == 0 and "3 passed" in chosen.stdout, chosen.stdout


def test_a_cell_that_needs_training_and_is_not_marked_fails(project):
    path = project / "01_small.ipynb"
    path.write_text(path.read_text().replace('"full-scale"', '"other"'))
    assert "1 failed" in run_pytest(project).stdout


# make setup ---------------------------------------------------------------------------------


@pytest.fixture
def commands(monkeypatch):
    """Returns a function that makes commands of install.py succeed or fail by a word in them; gives what was called."""

    def those_that_fail(*words, platform="linux", torch=False):
        called = []

        def succeeds(*command, seconds=None, quiet=False):
            called.append(" ".join(command))
            return not any(word in called[-1] for word in words)

        monkeypatch.setattr(install, "succeeds", succeeds)
        monkeypatch.setattr(install, "installed", lambda name: torch)
        monkeypatch.setattr(install.sys, "platform", platform)
        return called

    return those_that_fail


def test_on_linux_uv_takes_the_torch_that_fits(commands, capsys):
    called = commands()
    assert install.install("all")
    assert called[0].startswith("pip install --quiet uv>=")
    assert "--torch-backend auto torch>=" in called[1] and called[1].endswith("--dry-run")
    assert called[2] == called[1].removesuffix(" --dry-run")
    assert called[3].startswith("uv pip install") and called[3].endswith(f"--editable {ROOT}[all]") and len(called) == 4
    assert capsys.readouterr().out == ""


def test_without_pytorchs_index_pip_takes_torch_and_says_so_in_one_line(commands, capsys):
    called = commands("--dry-run")
    assert install.install("all")
    assert called[2].startswith("pip install --no-compile torch>=") and called[3].startswith("uv pip install")
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 1 and "index did not answer" in said


@pytest.mark.parametrize("where", [{"platform": "darwin"}, {"platform": "win32"}, {"torch": True}])
def test_elsewhere_and_where_torch_is_there_nobody_asks_for_it(commands, where):
    called = commands(**where)
    assert install.install("all") and not any("--torch-backend" in command for command in called)


def test_without_uv_pip_does_its_work(commands, capsys):
    called = commands("uv>=")
    assert install.install("finetune") and called[1:] == [f"pip install --editable {ROOT}[finetune]"]
    assert "pip does its work" in capsys.readouterr().out
    called = commands("uv pip install", torch=True)
    assert install.install("all") and called[-1].startswith("pip install --editable")
    commands("pip install")
    assert not install.install("all")


def test_an_index_that_does_not_answer_is_not_waited_for():
    assert install.succeeds("timeit", "-n1", "-r1", "import time; time.sleep(60)", seconds=0.5, quiet=True) is False
    assert install.succeeds("timeit", "-n1", "-r1", "pass", seconds=60, quiet=True) is True
