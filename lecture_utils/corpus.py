"""The pretraining corpus: the documentation that Python and its packages carry with them.

Nothing is downloaded or redistributed: docstrings are read from the installed files, cleaned,
freed of repetitions, and split by file. Built once (under a minute), then kept in the cache.
"""

import ast
import contextlib
import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lecture_utils import downloads, runtime
from lecture_utils.registry import ModelError

PACKAGES = (  # installed with this lecture; one that is missing is left out
    "IPython", "accelerate", "bitsandbytes", "datasets", "fsspec", "huggingface_hub", "jinja2", "jupyter_server",
    "matplotlib", "networkx", "nbconvert", "numpy", "pandas", "peft", "PIL", "pygments", "safetensors", "sympy",
    "tokenizers", "torch", "traitlets", "transformers", "trl",
)  # fmt: skip
HELD_OUT = 0.04  # share of the files
SHINGLE, REPEATED = 6, 0.4  # a paragraph goes when this share of its six-word runs was seen before


@dataclass(frozen=True)
class Corpus:
    """Documents, each one file's prose; ``digest`` tells whether two machines have the same."""

    train: list[str]
    held_out: list[str]
    digest: str

    def __str__(self) -> str:
        sizes = (sum(len(d.encode()) for d in part) / 1e6 for part in (self.train, self.held_out))
        return "{:,} documents, {:.1f} MB to train on, {:.2f} MB held out, digest {}".format(
            len(self.train) + len(self.held_out), *sizes, self.digest[:12]
        )


def docstrings(source: str) -> list[str]:
    """Return the docstrings of a module, its classes and functions, in order. Code that does not
    parse has none."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    holders, statements, found = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef), [tree], []
    for node in statements:  # it grows; expressions, nine nodes of ten, hold none and are left out
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            statements += getattr(node, field, ())
        if isinstance(node, holders):
            found.append((getattr(node, "lineno", 0), ast.get_docstring(node)))
    return [text for _, text in sorted(found, key=lambda item: item[0]) if text]


def paragraphs(docstring: str) -> list[str]:
    """Return what is prose in a docstring: whole sentences, no code, tables or markup."""
    text = re.sub(r":\w+:`~?([^`<]*?)(?:\s*<[^>]*>)?`", r"\1", docstring)  # RST roles
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links
    text = text.replace("`", "").replace("**", "")
    return [p for p in (" ".join(part.split()) for part in re.split(r"\n\s*\n", text)) if is_prose(p)]


def is_prose(paragraph: str) -> bool:
    """Is this a paragraph of English sentences?"""
    if len(paragraph) < 60 or not paragraph[0].isupper() or paragraph[-1] not in ".:!?)":
        return False
    if re.search(r">>>|::|https?:|[{}\\|]|\.\. ", paragraph):
        return False
    plain = sum(c.isalpha() or c in " ,." for c in paragraph) / len(paragraph)
    words = paragraph.split()
    return plain > 0.93 and sum(w.isalpha() and w.islower() for w in words) / len(words) > 0.6


def files() -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the Python files that are read: the standard library's, then the packages' (at smoke
    scale without them)."""
    paths = sysconfig.get_paths()
    roots = [("stdlib", Path(paths["stdlib"]))]
    roots += [
        (name, Path(base) / name)
        for name in _packages()
        for base in dict.fromkeys((paths["purelib"], paths["platlib"]))
    ]
    skipped = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "_vendor", "vendored", "__pycache__"}
    for prefix, root in roots:
        for folder, below, names in os.walk(root):
            below[:] = sorted(d for d in below if d not in skipped)
            for name in sorted(n for n in names if n.endswith(".py")):
                path = Path(folder) / name
                yield f"{prefix}/{path.relative_to(root).as_posix()}", path


def is_held_out(name: str) -> bool:
    """Does a file belong to the held-out part? Decided by its name alone, the same on every machine."""
    return int(hashlib.md5(name.encode()).hexdigest()[:8], 16) / 16**8 < HELD_OUT


def deduplicate(documents: dict[str, list[str]]) -> dict[str, list[str]]:
    """Drop paragraphs seen before, word for word (digits aside) or nearly; then documents left empty.

    The whole corpus is cleaned before it is split, else what is held out was half learnt.
    """
    exact, shingles, kept = set(), set(), {}
    for name, parts in documents.items():
        mine = []
        for part in parts:
            words = re.sub(r"\d", "0", part.lower()).split()
            key = hash(" ".join(words))
            runs = {hash(tuple(words[i : i + SHINGLE])) for i in range(len(words) - SHINGLE + 1)}
            if key in exact or (runs and len(runs & shingles) > REPEATED * len(runs)):
                continue
            exact.add(key)
            shingles |= runs
            mine.append(part)
        if mine:
            kept[name] = mine
    return kept


def build() -> Corpus:
    """Read, clean and split the corpus anew."""
    from tqdm.auto import tqdm

    raw = {}
    for name, path in tqdm(list(files()), desc="reading documentation", unit=" files", leave=False):
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if '"""' in source or "'''" in source:
            raw[name] = [p for text in docstrings(source) for p in paragraphs(text)]
    from pydoc_data import topics

    for topic, text in topics.topics.items():
        raw[f"topics/{topic}"] = paragraphs(text)
    documents = {name: "\n".join(parts) for name, parts in deduplicate(raw).items()}
    digest = hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()
    parts = {True: [], False: []}
    for name in sorted(documents, key=lambda n: hashlib.md5(n.encode()).digest()):  # shuffled, the same everywhere
        parts[is_held_out(name)].append(documents[name])
    return Corpus(parts[False], parts[True], digest)


def load() -> Corpus:
    """Return the corpus from the cache, built and kept there the first time; where nothing can be
    kept (read-only, full) it is built each time. Raises ModelError where what is kept was damaged."""
    from filelock import FileLock

    path, made = downloads.cache_dir() / f"corpus-{_installed()}.json", None
    half = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.nullcontext() if path.exists() else FileLock(path.with_suffix(".lock")):  # others wait
            if not path.exists():
                made = build()
                half.write_text(json.dumps(made.__dict__), encoding="utf-8")
                half.replace(path)  # whole or not at all
        kept = path.read_text(encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
        return made or build()
    try:
        return Corpus(**json.loads(kept))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error}). Remove it and run this again.") from error


def encode(tokenizer, documents: list[str]) -> list[int]:
    """Return the documents as one stream of ids, the beginning-of-text token before each (it ends the last, too)."""
    ids = [tokenizer.bos_token_id]
    for part in tokenizer(documents, add_special_tokens=False)["input_ids"]:
        ids += [*part, tokenizer.bos_token_id]
    return ids


def count_bytes(documents: list[str]) -> int:
    """Return the bytes of the documents, one for each document's end."""
    return sum(len(document.encode()) + 1 for document in documents)


def _packages() -> tuple[str, ...]:
    return runtime.few(PACKAGES, 0)


def _installed() -> str:
    """Return a short name for this set of packages and this module: another set is another corpus."""
    import importlib.metadata
    import sys

    versions = [f"python {sys.version_info[:3]}", downloads.sha256(Path(__file__))]
    for name in _packages():
        try:
            versions.append(f"{name} {importlib.metadata.version('pillow' if name == 'PIL' else name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return hashlib.sha256("\n".join(versions).encode()).hexdigest()[:8]
