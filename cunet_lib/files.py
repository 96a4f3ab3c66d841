"""Writing files so that a half-written one is never believed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Temporary name beside ``path`` to write to; it becomes ``path`` if the body succeeds.

    The name is unique, so that two processes that write the same file do not meet, and keeps the
    suffix, by which some writers choose a format. Folders are made where missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}.partial-", suffix=path.suffix
    )
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(0o644)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write text (UTF-8) or bytes as a whole; returns ``path``."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path) as partial:
        partial.write_bytes(data)
    return path


def write_json(path: Path, content: object) -> Path:
    """Write JSON as a whole, readable by people; returns ``path``."""
    return write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def code_hash(*modules: str) -> str:
    """Hash of the source of library modules, to tell results of older code from today's."""
    folder = Path(__file__).parent
    sources = b"".join((folder / f"{module}.py").read_bytes() for module in modules)
    return hashlib.sha256(sources).hexdigest()[:16]
