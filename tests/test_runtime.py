import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch

import lecture_utils
from lecture_utils import report, runtime


def test_scale_follows_the_override_and_refuses_nonsense(monkeypatch):
    for wanted in runtime.SCALES:
        monkeypatch.setenv("LECTURE_SCALE", wanted)
        assert runtime.scale() == wanted
    monkeypatch.setenv("LECTURE_SCALE", "huge")
    with pytest.raises(ValueError, match="laptop, gpu, smoke"):
        runtime.scale()


def test_datasets_does_without_a_home_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for home, elsewhere in ((tmp_path, False), (tmp_path / "nowhere", True)):
        monkeypatch.setattr(os, "environ", {"HOME": str(home)})
        runtime.quiet()
        assert os.access(os.environ.get("HF_DATASETS_CACHE", ""), os.W_OK) == elsewhere


def test_smoke_scale_limits_what_helpers_do_and_no_other_scale_does(monkeypatch):
    rows = [1, 2, 3, 4, 5]
    for scale in ("laptop", "gpu"):
        monkeypatch.setenv("LECTURE_SCALE", scale)
        assert not runtime.smoke() and runtime.limited(100, 3) == 100
        assert runtime.few(rows) == rows and runtime.spread(rows, 5) == rows
    monkeypatch.setenv("LECTURE_SCALE", "smoke")
    assert runtime.smoke() and (runtime.limited(100, 3), runtime.limited(2, 3)) == (3, 2)
    doubled = [2 * row for row in runtime.few(rows, most=2)]
    assert runtime.spread(doubled, len(rows)) == [2, 4, 2, 4, 2]
    assert runtime.spread(torch.tensor([[2, 3], [4, 5]]), 3).tolist() == [[2, 3], [4, 5], [2, 3]]
    assert runtime.few([7]) == [7] and runtime.spread([], 0) == []


def test_sizes_of_a_scale_are_the_laptops_but_for_those_that_it_names(monkeypatch):
    table = {"laptop": {"steps": 600, "rows": 16}, "smoke": {"steps": 2}, "gpu": {"rows": 64}}
    for scale, expected in (
        ("laptop", {"steps": 600, "rows": 16}),
        ("smoke", {"steps": 2, "rows": 16}),
        ("gpu", {"steps": 600, "rows": 64}),
    ):
        monkeypatch.setenv("LECTURE_SCALE", scale)
        assert runtime.sizes(**table) == expected
        with pytest.raises(KeyError, match="laptop lacks step"):
            runtime.sizes(laptop={"steps": 600}, smoke={"step": 2})
    monkeypatch.setenv("LECTURE_SCALE", "gpu")
    assert runtime.sizes(laptop={"steps": 600}, smoke={"steps": 2}) == {"steps": 600}


def test_a_small_card_is_still_a_laptop(monkeypatch):
    monkeypatch.delenv("LECTURE_SCALE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for size, expected in ((8e9, "laptop"), (15.6e9, "gpu")):
        card = type("Card", (), {"total_memory": size})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        assert runtime.scale() == expected


def test_a_t4_computes_in_fp16_not_in_emulated_bf16(monkeypatch):
    monkeypatch.setattr(runtime, "device", lambda: "cuda")
    for native, expected in ((False, torch.float16), (True, torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: n)
        assert runtime.compute_dtype() == expected


def test_bf16_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("LECTURE_SCALE", "laptop")
    for forced, expected in (("0", torch.float32), ("1", torch.bfloat16)):
        monkeypatch.setenv("LECTURE_BF16", forced)
        assert runtime.compute_dtype() == expected


def test_seeding_repeats():
    runtime.seed_everything(5)
    first = torch.rand(3)
    runtime.seed_everything(5)
    torch.testing.assert_close(first, torch.rand(3), rtol=0, atol=0)


def test_versions_names_what_is_missing():
    lines = runtime.versions("torch", "no-such-package").splitlines()
    installed = lines[0].split()[1]  # pip may leave out the build, "+cu130", that torch names
    assert torch.__version__.startswith(installed) and "not installed" in lines[1]


def test_setup_prints_versions_and_returns_the_scale():
    lecture = f"{lecture_utils.__version__}@main"
    code = f"from lecture_utils import runtime; assert runtime.setup('torch', lecture={lecture!r}) == 'laptop'"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"LECTURE_SCALE": "laptop"}
    )
    assert run.returncode == 0, run.stderr
    assert "lecture-utils" in run.stdout and "scale: laptop" in run.stdout


def test_only_a_notebook_that_asks_for_it_uses_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Card", (), {"total_memory": 15.6e9}))
    monkeypatch.setattr(runtime, "seed_everything", lambda _: None)
    for wanted, gpu, expected in (
        ("", False, "laptop"),
        ("", True, "gpu"),
        ("gpu", False, "gpu"),
        ("laptop", True, "laptop"),
    ):
        monkeypatch.setenv("LECTURE_SCALE", wanted)
        if not wanted:
            monkeypatch.delenv("LECTURE_SCALE")
        assert runtime.setup(gpu=gpu) == expected
        assert f"scale: {expected}, device: {'cuda' if expected == 'gpu' else 'cpu'}" in capsys.readouterr().out


def test_in_a_folder_that_cannot_be_written_another_is_taken_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LECTURE_SCALE", "laptop")
    runtime.setup()
    assert os.getcwd() == str(tmp_path) and "cannot be written" not in capsys.readouterr().out
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: os.getcwd() != str(tmp_path) and real(path, mode))
    runtime.setup()
    taken = os.getcwd()
    runtime.setup()  # the cell once more: it stays where it is
    said = capsys.readouterr().out
    assert os.getcwd() == taken != str(tmp_path) and said.count(f"what it saves goes to {taken}") == 1


def test_peak_memory_grows_with_what_is_held():
    before = runtime.peak_memory_gb()
    block = torch.ones(int(2e8))  # 0.8 GB
    assert runtime.peak_memory() == f"{runtime.peak_memory_gb():.2f} GB of main memory"  # no GPU in tests
    assert runtime.peak_memory_gb() >= before and runtime.peak_memory_gb() > block.nbytes / 1e9


def test_use_less_memory_keeps_the_users_choice(monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "77")
    runtime.use_less_memory()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "77"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    runtime.use_less_memory()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "32"


def test_progress_bars_move_once_a_second_and_say_so_to_every_library():
    """More widget messages than a socket holds (1,000) and nbval waits in vain for the end of a cell."""
    code = (
        "from lecture_utils import runtime; runtime.setup(); "
        "from tqdm.auto import tqdm; print('interval', tqdm(range(2)).mininterval)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TQDM_")}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "interval 1.0" in out.stdout


FROM_GIT = {
    "url": "https://…",
    "vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": "0123456789abcdef"},
}
FROM_A_FOLDER = {"url": "file:///…", "dir_info": {"editable": True}}


@pytest.fixture
def pip_wrote(monkeypatch):
    """Returns a function that makes pip have installed this package from ... (None: from an index)."""

    def wrote(source: dict | None) -> None:
        class Installed:
            def read_text(self, name):
                assert name == "direct_url.json"
                return source and json.dumps(source)

        monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())

    return wrote


def test_installed_from_is_the_branch_and_commit_of_git_alone(pip_wrote, monkeypatch):
    pip_wrote(FROM_GIT)
    assert runtime.installed_from() == ("main", "0123456789abcdef")
    for other in (FROM_A_FOLDER, None):
        pip_wrote(other)
        assert runtime.installed_from() == ("", "")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert runtime.installed_from() == ("", "")


def test_a_notebook_is_refused_by_another_version_or_branch(pip_wrote, monkeypatch):
    monkeypatch.setattr(lecture_utils, "__version__", "1.2.0")
    for source, wanted, right in (
        (FROM_GIT, "1.2.0@main", True),
        (FROM_GIT, "1.2.0@2027", False),
        (FROM_GIT, "1.3.0@main", False),
        (FROM_A_FOLDER, "1.2.0@2027", True),  # both are from the same checkout, whatever its branch
        (FROM_A_FOLDER, "1.3.0@main", False),
        (None, "1.2.0@main", True),
    ):
        pip_wrote(source)
        if right:
            runtime.check_lecture(wanted)
        else:
            with pytest.raises(RuntimeError, match=f"belongs to lecture {wanted}, but lecture-utils 1.2.0.*restart"):
                runtime.check_lecture(wanted)


def test_setup_refuses_a_wrong_lecture_before_it_does_anything(capsys):
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="belongs to lecture 0.0.0@main"):
        runtime.setup("torch", seed=7, lecture="0.0.0@main")
    assert capsys.readouterr().out == "" and torch.equal(torch.get_rng_state(), state)


def test_the_report_says_where_and_what_and_nothing_private(pip_wrote, monkeypatch):
    pip_wrote(FROM_GIT)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    monkeypatch.delenv("BINDER_REPO_URL", raising=False)
    monkeypatch.setattr(runtime, "versions", lambda *names: "\n".join(f"{name}  1" for name in names))
    said = report.report()
    for line in (
        f"lecture +{lecture_utils.__version__} main 0123456789ab",
        "Colab +yes", "Binder +no", r"Python +3\.\d+\.\d+", r"cores +\d+, torch uses \d+", "scale +(laptop|gpu)",
        "compute type +(bfloat16|float16|float32)", "torch  1", "nbval  1",
    ):  # fmt: skip
        assert re.search(f"(?m)^{line}$", said), f"no line {line!r} in\n{said}"
    assert not re.search(r"[/\\@]", said), "a path, or an address"


def test_the_report_can_be_asked_for_from_a_shell():
    run = subprocess.run([sys.executable, "-m", "lecture_utils.report"], capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    assert run.stdout.startswith("lecture ") and re.search(r"(?m)^torch +\d", run.stdout)


@pytest.mark.parametrize(
    ("samples", "ours", "cores", "expected"),
    [
        (["0.00 0.01 0.05 1/80 99"] * 3, 2, 2, False),  # nobody else
        (["2.00 0.01 0.05 3/80 99"] * 3, 2, 2, True),
        (["2.00 0.01 0.05 3/80 99", "2.00 0.01 0.05 1/80 99"], 2, 2, False),  # for a moment only
        (["2.00 0.01 0.05 3/80 99"] * 3, 2, 8, False),  # there is room for all
        (["9.00 9.00 9.00 8/80 99"] * 3, 2, 8, True),
    ],
)
def test_crowded_is_where_others_want_our_cores(samples, ours, cores, expected):
    assert lecture_utils.crowded(samples, ours, cores) is expected


@pytest.mark.parametrize(
    ("crowded", "before", "after"),
    [
        (False, {}, None),
        (True, {}, "2000"),
        (True, {"GOMP_SPINCOUNT": "7"}, "7"),
        (True, {"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_threads_sleep_soon_in_company_unless_the_user_wants_otherwise(crowded, before, after, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lecture_utils, "_look", list)
    monkeypatch.setattr(lecture_utils.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(lecture_utils, "crowded", lambda *_: crowded)
    lecture_utils._decide()
    assert os.environ.get("GOMP_SPINCOUNT") == after


@pytest.mark.parametrize("said", [OSError(), ["", "", ""], ["0.0 0.0 0.0 strange"]])
def test_an_odd_system_keeps_the_default(said, monkeypatch):
    def look():
        if isinstance(said, Exception):
            raise said
        return said

    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(lecture_utils, "_look", look)
    lecture_utils._decide()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_torch_is_not_loaded_before_its_threads_are_told_how_to_wait():
    """OpenMP reads it once."""
    code = "import sys, lecture_utils; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
