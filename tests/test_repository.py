"""One place for each thing: versions, the repository's address, the floors of the package."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import links
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# The layers of the package, as CONTRIBUTING.md lists them: module -> number.
LAYERS = {
    module: int(number)
    for number, modules in re.findall(
        r"(?m)^layer (\d)\s+(.*)$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    )
    for module in modules.split()
}


def ranges() -> dict[str, str]:
    """Package -> version range, from pyproject.toml."""
    listed = PROJECT["project"]["dependencies"] + sum(PROJECT["project"]["optional-dependencies"].values(), [])
    return {re.split(r"[<>=\[]", item)[0]: item[len(re.split(r"[<>=\[]", item)[0]) :] for item in listed}


@pytest.mark.parametrize("name", ["environment.yml", "binder/environment.yml"])
def test_conda_files_take_their_ranges_from_pyproject(name):
    listed = yaml.safe_load((ROOT / name).read_text())["dependencies"]
    conda = [item for item in listed if isinstance(item, str)]
    assert "pytorch-cpu" + ranges()["torch"] in conda
    python = next(item for item in conda if item.startswith("python="))
    floor = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.removeprefix("python=").split("."))) >= tuple(map(int, floor.split(".")))
    assert not [i for i in conda if re.search(r"[<>=]", i) and not i.startswith(("python=", "pytorch-cpu"))]


def test_binder_installs_the_package_and_fetches_models():
    script = (ROOT / "binder" / "postBuild").read_text()
    assert script.startswith("#!/bin/bash") and "set -e" in script
    assert "lecture_utils.models fetch" in script
    extras = set(re.search(r'"\.\[(.+?)\]"', script).group(1).split(","))
    assert extras <= set(PROJECT["project"]["optional-dependencies"])


def test_extras_and_package_data_exist():
    package = ROOT / "lecture_utils"
    assert (package / "outline.toml").exists()
    assert set(LAYERS) == {p.stem for p in package.glob("*.py")} - {"__init__"}


def test_imports_point_downwards():
    """A module imports from its own layer or a lower one, never from above."""
    for name, layer in LAYERS.items():
        tree = ast.parse((ROOT / "lecture_utils" / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lecture_utils"):
                tail = node.module.removeprefix("lecture_utils").lstrip(".")
                for used in [tail] if tail else [alias.name for alias in node.names]:
                    assert LAYERS[used] <= layer, f"{name} (layer {layer}) imports {used} (layer {LAYERS[used]})"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, lecture_utils; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_version_stands_once():
    import lecture_utils

    assert f"version: {lecture_utils.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{lecture_utils.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_links_point_at_the_one_address():
    slug, _ = links.project()
    for path in [ROOT / "README.md", ROOT / "CITATION.cff", *sorted((ROOT / "notebooks").glob("*.ipynb"))]:
        text = path.read_text(encoding="utf-8")
        found = {match for place in links.PLACES for match in re.findall(place, text)}
        assert found == {slug}, f"{path.name}: run `make links`"


def test_links_can_be_repointed_and_back():
    slug, branch = links.project()
    text = links.badges("08_qlora_llama2") + links.setup_cell(("torch",))
    moved = links.rewrite(text, "someone/fork", "spring-2027")
    assert moved.count("someone/fork") == 3 and moved.count("spring-2027") == 2 and slug not in moved
    assert links.rewrite(moved, slug, branch) == text


def test_a_fork_points_at_itself_and_nowhere_else_and_back(copy_repository, tmp_path):
    slug, _ = links.project()
    fork = "/".join(("another", "lecture"))  # nowhere else, this file included
    files = copy_repository(tmp_path)
    before = {path: path.read_bytes() for path in files}
    named = {path for path, content in before.items() if slug.encode() in content}
    assert {"README.md", "CITATION.cff", "pyproject.toml"} <= {path.name for path in named}

    def point_at(address):
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}  # this copy's package, not the installed one
        command = [sys.executable, "tools/links.py", address]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)

    point_at(fork)
    owner = slug.split("/")[0].lower().encode()
    for path in files:
        content = path.read_bytes()
        assert slug.encode() not in content and owner + b".github.io" not in content.lower(), path
        assert (fork.encode() in content) == (path in named), path
    point_at(slug)
    changed = [str(path.relative_to(tmp_path)) for path in files if path.read_bytes() != before[path]]
    assert not changed


def test_readme_table_is_generated():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert links.with_rows(readme) == readme, "run `make links`"
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert all(f"({address})" in readme for address in links.addresses(path.stem)), (
            f"{path.stem} has no row in the README"
        )


def test_ci_and_workflow_call_the_readmes_commands():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make test" in ci and "--full --only notebooks" in ci
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    steps = " ".join(step.get("run", "") for step in workflow["jobs"]["test"]["steps"])
    assert "make test" in steps and "make lecture" in steps
    assert workflow["permissions"] == {"contents": "read"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make lecture" in readme and "make test" in readme


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))


@pytest.fixture(params=WORKFLOWS, ids=lambda p: p.name)
def workflow(request):
    """(its text, what it says)"""
    text = request.param.read_text(encoding="utf-8")
    return text, yaml.safe_load(text)


def steps_of(workflow) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_actions_are_pinned_and_leave_no_credentials(workflow):
    """A tag can be moved; a commit cannot."""
    text, said = workflow
    used = [line for line in text.splitlines() if re.match(r"\s*(- )?uses:", line)]
    assert len(used) == sum("uses" in step for step in steps_of(said)) > 0
    for line in used:
        assert re.fullmatch(r"\s*(- )?uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*", line), line.strip()
    for step in steps_of(said):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_workflows_may_only_read_but_for_the_job_that_writes(workflow):
    _, said = workflow
    assert set(said["permissions"].values()) <= {"read"}, "write permissions belong to a job"
    for name, job in said["jobs"].items():
        writes = {scope for scope, how in job.get("permissions", {}).items() if how == "write"}
        assert not writes or len(said["jobs"]) > 1, f"{name} may write {writes}: give that to a job of its own"
        if writes:
            assert not any("actions/checkout" in step.get("uses", "") for step in job["steps"]), f"{name} runs our code"


def test_nothing_from_outside_is_pasted_into_a_shell(workflow):
    """``${{ … }}`` is put into the script before the shell sees it; through ``env:`` it stays a text."""
    _, said = workflow
    for step in steps_of(said):
        assert "${{" not in step.get("run", ""), step["run"]


def test_weekly_runs_everything_and_tells():
    weekly = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())
    assert {"schedule", "workflow_dispatch"} == set(weekly[True])  # YAML reads the key "on" as true
    jobs = weekly["jobs"]
    script = {name: "\n".join(step.get("run", "") for step in job["steps"]) for name, job in jobs.items()}
    assert "make lecture NB=all" in script["newest"] and "make test FULL=1" in script["newest"]
    assert jobs["colab"]["container"] == "${{ vars.COLAB_IMAGE }}" and "COLAB_IMAGE != ''" in jobs["colab"]["if"]
    for name in ("newest", "colab"):
        assert f"lecture_utils.report > build/{name}.txt" in script[name]
    assert set(jobs["issue"]["needs"]) == {"newest", "colab"} and jobs["issue"]["permissions"] == {"issues": "write"}
    assert "gh issue create" in script["issue"] and "gh issue comment" in script["issue"]


def test_the_issue_form_asks_for_the_report():
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    asked = {field["id"]: field for field in form["body"]}
    assert set(asked) == {"notebook", "door", "happened", "report"}
    assert all(field["validations"]["required"] for field in asked.values())
    assert set(asked["door"]["attributes"]["options"]) == {"Colab", "Binder", "laptop", "slides", "site"}
    assert "python -m lecture_utils.report" in asked["report"]["attributes"]["description"]


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"(?m)^([a-z0-9-]+):", (ROOT / "Makefile").read_text()))
    for name in ("README.md", "CONTRIBUTING.md"):
        used = set(re.findall(r"`?make ([a-z0-9-]+)", (ROOT / name).read_text(encoding="utf-8")))
        assert used - {"sure"} <= targets, used - targets


def test_recordings_are_made_anew_or_go_on(tmp_path):
    """`make record`: what is as committed goes, but 09's adapters; what an interrupted recording left stays."""

    def run(*command):
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    recorded = tmp_path / "lecture_utils" / "recorded"
    recorded.mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("05_a", "05_b", "09_adapters", "09_a"):
        (recorded / f"{name}.csv").write_text("old")
    run("git", "init", "-q")
    run("git", "add", ".")
    run("git", "-c", "user.name=x", "-c", "user.email=x@y.z", "commit", "-qm", "x")

    def record(number):
        run("make", "record", f"NB={number}", "RUN=true", "-o", "setup")
        return {path.stem for path in recorded.glob("*.csv")}

    begun = tmp_path / "build" / "record_05"  # where a recording keeps its checkpoints
    begun.mkdir(parents=True)
    assert record("05") == {"09_adapters", "09_a"} and not begun.exists()
    begun.mkdir()
    (recorded / "05_a.csv").write_text("half of the new one")
    assert record("05") == {"05_a", "09_adapters", "09_a"} and begun.exists()
    assert record("09") == {"05_a", "09_adapters"}
