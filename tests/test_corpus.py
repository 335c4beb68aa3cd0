import errno
from pathlib import Path

import pytest

from lecture_utils import corpus

SOURCE = '''"""A module that shows what is kept and what is not kept when prose is read from docstrings.

    >>> code_is_not(prose)

Short.
"""


class Thing:
    """Hold a value and say what it is worth, see :class:`~package.Other` for the one that does not.

    Parameters
    ----------
    value : int
    """

    def method(self):
        """Return the value that was given when the object was made, whatever it has become since."""


def helper():
    "no paragraph is this short"
'''


def test_docstrings_and_their_prose():
    found = corpus.docstrings(SOURCE)
    assert len(found) == 4 and found[0].startswith("A module")
    prose = [p for text in found for p in corpus.paragraphs(text)]
    assert prose == [
        "A module that shows what is kept and what is not kept when prose is read from docstrings.",
        "Hold a value and say what it is worth, see package.Other for the one that does not.",
        "Return the value that was given when the object was made, whatever it has become since.",
    ]
    assert corpus.docstrings("def broken(:") == []


def test_repetitions_go_and_the_first_stays():
    long = "The quick brown fox jumps over the lazy dog and then it goes home to sleep until 7 in the morning."
    near = long.replace("morning", "evening")
    other = "Nothing in this sentence has been said before in any way that would matter to anybody at all."
    kept = corpus.deduplicate({"a": [long], "b": [long.replace("7", "8")], "c": [near, other], "d": []})
    assert kept == {"a": [long], "c": [other]}


def test_split_is_by_name_and_about_four_percent():
    names = [f"package/module_{i}.py" for i in range(20_000)]
    held = [n for n in names if corpus.is_held_out(n)]
    assert 0.03 < len(held) / len(names) < 0.05
    assert held == [n for n in names if corpus.is_held_out(n)]


def test_files_are_named_without_the_machine_s_paths():
    names = [name for name, _ in corpus.files()]
    assert len(names) == len(set(names)) > 1_000
    assert {"stdlib/json/decoder.py", "torch/nn/modules/linear.py"} <= set(names)
    assert not [n for n in names if n.startswith("/") or "/tests/" in n]


def test_cache_holds_what_was_built(tmp_path, monkeypatch):
    monkeypatch.setenv("LECTURE_CACHE", str(tmp_path))
    built = corpus.Corpus(["one"], ["two"], "0" * 64)
    monkeypatch.setattr(corpus, "build", lambda: built)
    assert corpus.load() == built
    monkeypatch.setattr(corpus, "build", lambda: 1 / 0)
    assert corpus.load() == built and [path.suffix for path in tmp_path.iterdir() if path.suffix != ".lock"] == [
        ".json"
    ]
    monkeypatch.setattr(corpus.downloads, "sha256", lambda path: "another version of the module")
    with pytest.raises(ZeroDivisionError):
        corpus.load()


def test_where_nothing_can_be_kept_the_corpus_is_built(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder can be made below this")
    monkeypatch.setenv("LECTURE_CACHE", str(tmp_path / "file" / "cache"))
    built = corpus.Corpus(["one"], ["two"], "0" * 64)
    monkeypatch.setattr(corpus, "build", lambda: built)
    assert corpus.load() == built


def test_on_a_full_disk_the_corpus_is_built_once_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("LECTURE_CACHE", str(tmp_path))
    built, times = corpus.Corpus(["one"], ["two"], "0" * 64), []
    monkeypatch.setattr(corpus, "build", lambda: times.append(1) or built)
    real = Path.write_text

    def full(path, text, **how):
        real(path, text[:5], **how)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert corpus.load() == built and len(times) == 1
    assert not list(tmp_path.glob("*.part")) and not list(tmp_path.glob("*.json"))


def test_a_damaged_corpus_says_what_to_remove(tmp_path, monkeypatch):
    monkeypatch.setenv("LECTURE_CACHE", str(tmp_path))
    path = tmp_path / f"corpus-{corpus._installed()}.json"
    for content in ("{", "[]", '{"train": []}'):
        path.write_text(content)
        with pytest.raises(corpus.ModelError, match="corpus-.*damaged.*Remove it"):
            corpus.load()


def test_docstrings_are_found_wherever_a_definition_can_stand():
    """Under if, try, with, match, a loop; not in what only looks like a definition."""
    source = "if x:\n    def a(): 'A'\nelse:\n    def b(): 'B'\ntry:\n    def c(): 'C'\nexcept E:\n    def d(): 'D'\n"
    source += "finally:\n    class F:\n        async def f(self): 'F'\nmatch x:\n    case 1:\n        def g(): 'G'\n"
    source += "with x:\n    while y:\n        def h(): 'H'\nz = lambda: 'no'\n'nor this'\n"
    assert corpus.docstrings(source) == list("ABCDFGH")
