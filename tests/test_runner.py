import subprocess
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
SCRIPT = """
import csv, sys
sys.path.insert(0, {experiments!r})
from pathlib import Path
import runner

runner.FOLDER = Path(sys.argv[0]).parent


def done(name):
    file = runner.FOLDER / f"{{name}}.csv"
    return list(csv.DictReader(file.read_text().splitlines()[1:])) if file.exists() else []


runner.done = done


def once(size):
    print("ran", size)
    return {{"twice": size * 2}}


for name in ("99_first", "99_second"):
    runner.run(name, [{{"size": "a"}}, {{"size": "b"}}], once, separately=True)
"""


def test_each_run_is_done_once_in_its_own_process_and_what_is_there_is_not_repeated(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(experiments=str(EXPERIMENTS)))
    (tmp_path / "99_first.csv").write_text("# note\nsize,twice\na,aa\n")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("ran a") == 1 and run.stdout.count("ran b") == 2
    for name in ("99_first", "99_second"):
        assert (tmp_path / f"{name}.csv").read_text().splitlines()[1:] == ["size,twice", "a,aa", "b,bb"]


def test_keep_memory_asks_glibc_alone(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    import record_01

    asked = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda *setting: asked.append(setting)

    monkeypatch.setattr(record_01.ctypes, "CDLL", Library)
    for system, libc in (("Darwin", ""), ("Linux", "musl"), ("Linux", "glibc")):
        monkeypatch.setattr(record_01.platform, "system", lambda system=system: system)
        monkeypatch.setattr(record_01.platform, "libc_ver", lambda libc=libc: (libc, ""))
        record_01.keep_memory()
    assert asked == [(-3, 1 << 30), (-1, 2**31 - 1)]
