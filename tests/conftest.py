"""Shared fixtures: a small random Llama with the laptop model's real tokenizer; copies of this repository."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import decks
import pytest
import secrets_check

from lecture_utils import models, runtime


def as_if_started_by_hand() -> None:
    """Forget what this process has inherited: the programs that tests start inherit it in turn.

    A shell lets what it starts in the background ignore Ctrl-C; others close standard input or set another umask.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        os.fstat(0)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # takes the lowest number that is free: 0
    os.umask(0o022)
    for name in ("LECTURE_SCALE", "LECTURE_BF16"):
        os.environ.pop(name, None)


as_if_started_by_hand()
runtime.quiet()
runtime.compile_nothing()
ROOT = Path(__file__).resolve().parent.parent
# Every way to the network that a build could take fails, on any system.
BUILD_SITE = """
import pathlib, socket, sys
def refused(*_, **__):
    raise OSError("this build may not use the network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refused
import build_site
sys.exit(build_site.build(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture(scope="session")
def tokenizer():
    return models.load_tokenizer(models.LAPTOP_MODEL)


@pytest.fixture
def tiny(tokenizer):
    """A random two-layer Llama with grouped-query attention; fresh for each test."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_folder(tiny, tokenizer, tmp_path):
    folder = tmp_path / "tiny"
    tiny.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def copy_repository():
    """Returns a function that copies this working tree, what is not yet committed included, without what git ignores."""

    def copy(target: Path) -> list[Path]:
        try:
            names = [path.relative_to(ROOT) for path in secrets_check.all_files(ROOT)]
        except subprocess.CalledProcessError:
            pytest.skip("not a git checkout")
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
        return [target / name for name in names]

    return copy


@pytest.fixture(scope="session")
def jupyterlab():
    """Returns a context manager that runs a JupyterLab server over a folder; gives (process, address, token).

    Settings, workspaces, trust and runtime files lie in ``place``, and no news is fetched.
    """

    @contextlib.contextmanager
    def serve(folder: Path, place: Path, **variables: str):
        settings = place / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
        env = {f"JUPYTERLAB_{key}_DIR": str(place / key.lower()) for key in ("SETTINGS", "WORKSPACES")}
        env |= {f"JUPYTER_{key}_DIR": str(place / key.lower()) for key in ("CONFIG", "DATA", "RUNTIME")}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        token, log = secrets.token_hex(), place / "server.log"
        options = [f"--ServerApp.root_dir={folder}", f"--port={port}", "--ServerApp.port_retries=0", "--no-browser"]
        with log.open("w") as file:
            server = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", *options, f"--IdentityProvider.token={token}", "--allow-root"],
                env=os.environ | env | {"IPYTHONDIR": str(place / "ipython")} | variables,
                stdout=file,
                stderr=file,
            )
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=10).close()
                    break
                assert server.poll() is None, log.read_text()[-2000:]
                time.sleep(0.5)
            else:
                pytest.fail(log.read_text()[-2000:])
            yield server, address, token
        finally:
            server.terminate()  # its kernels end with it
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    return serve


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium."""
    pytest.importorskip("playwright", reason="needs `pip install -e '.[browser]'`")
    with decks.Browser() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder that tools/build_site.py builds, without a network."""
    for module in ("sphinx", "myst_nb", "sphinx_book_theme"):
        pytest.importorskip(module, reason=f"no {module}: the site needs pip install -e '.[site]'")
    folder = tmp_path_factory.mktemp("built")
    path = os.pathsep.join([str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", BUILD_SITE, str(folder)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "site"
