"""Refuse files that hold what looks like a secret. Says where and of what kind, never the secret itself.

    python tools/secrets_check.py FILE …   the files of a commit: .pre-commit-config.yaml
    python tools/secrets_check.py          all that git tracks or would add

Of the standard library alone, so that the hook runs before anything is installed.
"""

import re
import subprocess
import sys
from pathlib import Path

KINDS = {
    "Hugging Face token": rb"hf_[A-Za-z0-9]{30,}",
    "GitHub token": rb"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,}",
    "GitLab token": rb"glpat-[\w-]{20,}",
    "AWS key": rb"(?<![A-Z0-9])(AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])",
    "Google key": rb"AIza[\w-]{35}",
    "Slack token": rb"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    "OpenAI or Anthropic key": rb"\bsk-(ant-|proj-)?[A-Za-z0-9_-]{20,}",
    "PyPI token": rb"pypi-AgE[\w-]{50,}",
    "private key": rb"-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----",
    "signed token": rb"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}",
    "password in an address": rb"[a-z]://[^\s/:@\"'<>{}\\]+:[^\s/:@\"'<>{}\\*]{3,}@[\w.-]",
    "secret in an assignment": (
        rb"(?i)(token|secret|passw(or)?d|api_?key|access_?key)[\"']?\s*[:=]\s*"
        rb"\\?[\"'][\w+/.-]{20,}={0,2}\\?[\"']"
    ),
}
PATTERNS = {kind: re.compile(pattern) for kind, pattern in KINDS.items()}
FILES = re.compile(r"(\.env(\..+)?|\.netrc|\.pypirc|\.pgpass|id_(rsa|dsa|ecdsa|ed25519)|.+\.(pem|p12|pfx|keystore))")


def found_in(path: Path) -> list[str]:
    """Return a line for each thing in a file that looks like a secret: place and kind."""
    found = [f"{path}: a file of this name holds secrets"] if FILES.fullmatch(path.name) else []
    if path.suffix == ".safetensors":  # millions of numbers; the registry holds the hash of each
        return found
    content = path.read_bytes()
    for kind, pattern in PATTERNS.items():
        for match in pattern.finditer(content):
            line = content.count(b"\n", 0, match.start()) + 1
            found.append(f"{path}, line {line}: looks like a {kind}")
    return found


def all_files(folder: Path = Path()) -> list[Path]:
    """Return the files that git tracks, and that it would add, from a folder on, by default the current one."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    said = subprocess.run(listed, cwd=folder, capture_output=True, text=True, check=True).stdout
    paths = (folder / name for name in sorted(set(said.split("\0"))) if name)
    return [path for path in paths if path.is_file()]  # one that was deleted is still listed


def main(names: list[str]) -> int:
    """Print what was found; return 1 if anything was."""
    files = [path for path in map(Path, names) if path.is_file()] if names else all_files()
    found = [line for path in files for line in found_in(path)]
    print(*found, sep="\n", end="\n" if found else "")
    if found:
        print("Take it out. If others may have seen it, withdraw it where it was issued: history keeps it.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
