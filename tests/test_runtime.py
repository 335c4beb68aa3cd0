import os
import subprocess
import sys

import pytest
import torch

from lecture_utils import runtime


def test_scale_follows_the_override_and_refuses_nonsense(monkeypatch):
    for wanted in runtime.SCALES:
        monkeypatch.setenv("LECTURE_SCALE", wanted)
        assert runtime.scale() == wanted
    monkeypatch.setenv("LECTURE_SCALE", "huge")
    with pytest.raises(ValueError, match="laptop, gpu"):
        runtime.scale()


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
    code = "from lecture_utils import runtime; assert runtime.setup('torch') == 'laptop'"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"LECTURE_SCALE": "laptop"}
    )
    assert run.returncode == 0, run.stderr
    assert "lecture-utils" in run.stdout and "scale: laptop" in run.stdout


def test_peak_memory_grows_with_what_is_held():
    before = runtime.peak_memory_gb()
    block = torch.ones(int(2e8))  # 0.8 GB
    assert runtime.peak_memory_gb() >= before and runtime.peak_memory_gb() > block.nbytes / 1e9


def test_use_less_memory_keeps_the_users_choice(monkeypatch):
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "77")
    runtime.use_less_memory()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "77"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    runtime.use_less_memory()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "32"


def test_keep_memory_asks_glibc_alone(monkeypatch):
    asked = []

    class Library:
        def __init__(self, name):
            self.mallopt = lambda *setting: asked.append(setting)

    monkeypatch.setattr(runtime.ctypes, "CDLL", Library)
    for system, libc in (("Darwin", ""), ("Linux", "musl"), ("Linux", "glibc")):
        monkeypatch.setattr(runtime.platform, "system", lambda system=system: system)
        monkeypatch.setattr(runtime.platform, "libc_ver", lambda libc=libc: (libc, ""))
        runtime.keep_memory()
    assert asked == [(-3, 1 << 30), (-1, 2**31 - 1)]


def test_progress_bars_move_once_a_second_and_say_so_to_every_library():
    """More widget messages than a socket holds (1,000) and nbval waits in vain for the end of a cell."""
    code = (
        "from lecture_utils import runtime; runtime.setup(); "
        "from tqdm.auto import tqdm; print('interval', tqdm(range(2)).mininterval)"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TQDM_")}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "interval 1.0" in out.stdout
