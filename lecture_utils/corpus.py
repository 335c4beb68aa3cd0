"""Build the corpus for pretraining from the documentation that comes with Python and its packages.

Nothing is downloaded or redistributed. The docstrings are read from the installed files, cleaned, deduplicated, and
split by file. This takes less than a minute, and the result is kept in the cache.
"""

import ast
import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lecture_utils import downloads, runtime
from lecture_utils.registry import ModelError

PACKAGES = (  # installed with this course; missing ones are left out
    "IPython", "accelerate", "bitsandbytes", "datasets", "fsspec", "huggingface_hub", "jinja2", "jupyter_server",
    "matplotlib", "networkx", "nbconvert", "numpy", "pandas", "peft", "PIL", "pygments", "safetensors", "sympy",
    "tokenizers", "torch", "traitlets", "transformers", "trl",
)  # fmt: skip
HELD_OUT = 0.04  # share of the files
SHINGLE, REPEATED = 6, 0.4  # drop a paragraph if more than this share of its six-word shingles occurred before


@dataclass(frozen=True)
class Corpus:
    """Documents, each with the prose of one file. Two machines have the same corpus if ``digest`` is equal."""

    train: list[str]
    held_out: list[str]
    digest: str

    def __str__(self) -> str:
        count = len(self.train) + len(self.held_out)
        train, held_out = (sum(len(d.encode()) for d in part) / 1e6 for part in (self.train, self.held_out))
        return f"{count:,} documents, {train:.1f} MB to train on, {held_out:.2f} MB held out, digest {self.digest[:12]}"


def docstrings(source: str) -> list[str]:
    """Return the docstrings of a module, its classes and its functions in order, and none if the code is invalid."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    documented, statements, found = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef), [tree], []
    for node in statements:  # the list grows; expressions, nine nodes of ten, contain no docstrings and are left out
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            statements += getattr(node, field, ())
        if isinstance(node, documented):
            found.append((getattr(node, "lineno", 0), ast.get_docstring(node)))
    return [text for _, text in sorted(found, key=lambda item: item[0]) if text]


def paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs of a docstring that consist of whole sentences, without code, tables and markup."""
    text = re.sub(r":\w+:`~?([^`<]*?)(?:\s*<[^>]*>)?`", r"\1", docstring)  # roles of reStructuredText
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links
    text = text.replace("`", "").replace("**", "")
    return [p for p in (" ".join(part.split()) for part in re.split(r"\n\s*\n", text)) if is_prose(p)]


def is_prose(paragraph: str) -> bool:
    """Return whether a paragraph consists of English sentences."""
    if len(paragraph) < 60 or not paragraph[0].isupper() or paragraph[-1] not in ".:!?)":
        return False
    if re.search(r">>>|::|https?:|[{}\\|]|\.\. ", paragraph):
        return False
    plain = sum(c.isalpha() or c in " ,." for c in paragraph) / len(paragraph)
    words = paragraph.split()
    return plain > 0.93 and sum(w.isalpha() and w.islower() for w in words) / len(words) > 0.6


def files() -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the Python files of the standard library and, except at smoke scale, of the packages."""
    paths = sysconfig.get_paths()
    libraries = dict.fromkeys((paths["purelib"], paths["platlib"]))
    roots = [("stdlib", Path(paths["stdlib"]))]
    roots += [(name, Path(library) / name) for name in runtime.few(PACKAGES, 0) for library in libraries]
    skipped = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "_vendor", "vendored", "__pycache__"}
    for prefix, root in roots:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(d for d in subfolders if d not in skipped)
            for name in sorted(n for n in names if n.endswith(".py")):
                path = Path(folder) / name
                yield f"{prefix}/{path.relative_to(root).as_posix()}", path


def is_held_out(name: str) -> bool:
    """Return whether a file is held out. This depends only on its name, so that it is the same on every machine."""
    return int(hashlib.md5(name.encode()).hexdigest()[:8], 16) / 16**8 < HELD_OUT


def deduplicate(documents: dict[str, list[str]]) -> dict[str, list[str]]:
    """Drop paragraphs that repeat an earlier one exactly (except for digits) or nearly, and then empty documents.

    This is done before the corpus is split. Otherwise, the training text would contain parts of the held-out text.
    """
    seen, seen_shingles, kept = set(), set(), {}
    for name, parts in documents.items():
        new = []
        for part in parts:
            words = re.sub(r"\d", "0", part.lower()).split()
            key = hash(" ".join(words))
            shingles = {hash(tuple(words[i : i + SHINGLE])) for i in range(len(words) - SHINGLE + 1)}
            if key in seen or (shingles and len(shingles & seen_shingles) > REPEATED * len(shingles)):
                continue
            seen.add(key)
            seen_shingles |= shingles
            new.append(part)
        if new:
            kept[name] = new
    return kept


def build() -> Corpus:
    """Read, clean and split the corpus without using the cache."""
    from pydoc_data.topics import topics

    from tqdm.auto import tqdm

    raw = {}
    for name, path in tqdm(list(files()), desc="reading documentation", unit=" files", leave=False):
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if '"""' in source or "'''" in source:
            raw[name] = [p for text in docstrings(source) for p in paragraphs(text)]
    raw |= {f"topics/{topic}": paragraphs(text) for topic, text in topics.items()}
    documents = {name: "\n".join(parts) for name, parts in deduplicate(raw).items()}
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()
    shuffled = sorted(documents, key=lambda name: hashlib.md5(name.encode()).digest())  # the same on every machine
    train, held_out = ([documents[n] for n in shuffled if is_held_out(n) == wanted] for wanted in (False, True))
    return Corpus(train, held_out, digest)


def load() -> Corpus:
    """Return the corpus from the cache, and build it if it is not there yet. If the cache cannot be written to, because
    it is read-only or full, the corpus is built each time. A damaged file in the cache raises ModelError."""
    from filelock import FileLock

    path, built = downloads.cache_dir() / f"corpus-{_installed()}.json", None
    part = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.nullcontext() if path.exists() else FileLock(path.with_suffix(".lock")):  # other processes wait
            if not path.exists():
                built = build()
                part.write_text(json.dumps(built.__dict__), encoding="utf-8")
                part.replace(path)  # so that the file is never incomplete
        cached = path.read_text(encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        return built or build()
    try:
        return Corpus(**json.loads(cached))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error}). Remove it and run this again.") from error


def encode(tokenizer, documents: list[str]) -> list[int]:
    """Return the documents' token ids as one list, with the beginning-of-text token before each and at the end."""
    ids = [tokenizer.bos_token_id]
    for part in tokenizer(documents, add_special_tokens=False)["input_ids"]:
        ids += [*part, tokenizer.bos_token_id]
    return ids


def count_bytes(documents: list[str]) -> int:
    """Return the number of bytes of the documents, with one more for the end of each document."""
    return sum(len(document.encode()) + 1 for document in documents)


def _installed() -> str:
    """Return a short hash of the versions of the packages and of this module, on which the corpus depends."""
    versions = [f"python {sys.version_info[:3]}", downloads.sha256(Path(__file__))]
    for name in runtime.few(PACKAGES, 0):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version('pillow' if name == 'PIL' else name)}")
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:8]
