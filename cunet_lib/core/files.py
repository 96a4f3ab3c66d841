"""Files of the study: written whole or not at all, locked, hashed; damaged ones are named."""

from __future__ import annotations

import ast
import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cunet_lib.core.settings import ROOT, ConfigError

if TYPE_CHECKING:
    import pandas as pd

UNWRITABLE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EACCES: "mend its permissions",
    errno.EPERM: "mend its permissions",
    errno.EROFS: "choose a folder that can be written to (CUNET_DATA, CUNET_RESULTS)",
    errno.EIO: "look after the disk",
    errno.ENAMETOOLONG: "shorten the name that it is made from",
    errno.ENOTDIR: "move the file that is where a folder should be",
    errno.EISDIR: "move the folder that is where the file should be",
    errno.ELOOP: "mend the symbolic link",
}
"""Reasons for which a file cannot be written, and what helps."""


class WriteError(OSError):
    """A file could not be written; the message is one sentence with its name and the remedy."""

    def __str__(self) -> str:
        remedy = UNWRITABLE.get(self.errno, UNWRITABLE[errno.ENOSPC])
        return (
            f"{self.filename} cannot be written ({self.strerror}); what was there before is "
            f"untouched: {remedy} and run the same command again."
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell in one sentence that ``path`` could not be written; other errors pass.

    Raises
    ------
    WriteError
        If the disk is full or may not be written to.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, WriteError) or not _is_unwritable(error, path.parent):
            raise
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from error


@contextlib.contextmanager
def replacing(path: Path, *, suffix: str | None = None) -> Iterator[Path]:
    """Temporary name beside ``path`` to write to; it becomes ``path`` if the body succeeds.

    The name is unique, so that two processes that write the same file do not meet, and keeps the
    suffix (or has the given one), by which some writers choose a format. Folders are made where
    missing. If the body fails, ``path`` stays as it was.

    Raises
    ------
    WriteError
        As :func:`writing`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent,
            # Names may be as long as the file system allows, and this one is longer.
            prefix=f".{path.stem[:40]}.partial-",
            suffix=path.suffix if suffix is None else suffix,
        )
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            # The rename may reach the disk before the content does: a power cut would then leave
            # an empty file under the final name.
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.chmod(0o644)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _is_unwritable(error: OSError, folder: Path) -> bool:
    """Whether an error means that a file could not be written, rather than read or computed."""
    if error.errno is None:
        # NumPy and HDF5 tell of a short write without saying why.
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free < 1 << 20
    if error.filename is not None:
        named = Path(os.fsdecode(error.filename))
        if named.parent != folder and named not in (folder, *folder.parents):
            return False  # another file, which the body reads
    return error.errno in UNWRITABLE


is_file = os.path.isfile
"""Whether there is a file that may be looked at; False for names that no file can have."""


def remove_unfinished(folder: Path) -> None:
    """Delete what :func:`replacing` left in a folder when its process was killed."""
    for leftover in folder.glob(".*.partial-*"):
        leftover.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> Path:
    """Write text (UTF-8) or bytes as a whole; returns ``path``; errors as of :func:`writing`."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    # Without a suffix: searches such as `*.csv` never find what a killed process left.
    with replacing(path, suffix="") as partial:
        partial.write_bytes(data)
    return path


@contextlib.contextmanager
def locked(path: Path, busy: str, *, seconds: float = 0.0) -> Iterator[None]:
    """Hold an exclusive lock while the body runs; it ends with the process, however that ends.

    Where the file system has no locks, the body runs all the same. The lock file is
    made if need be, and left behind empty. Another holder is waited for ``seconds``, or longer
    where ``CUNET_LOCK_SECONDS`` says so; ``busy`` is the sentence of the error.

    Raises
    ------
    ConfigError
        If another process, or this one elsewhere, still holds it then.
    WriteError
        If the lock file cannot be made.
    """
    import filelock

    seconds = max(seconds, float(os.environ.get("CUNET_LOCK_SECONDS") or 0))
    # A soft lock would outlive its process: without locks of the system, go on with none.
    lock = filelock.FileLock(path, seconds, poll_interval=0.1, fallback_to_soft=False)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise ConfigError(busy) from None
        except (NotImplementedError, OSError) as error:
            if getattr(error, "errno", errno.ENOLCK) not in (errno.ENOLCK, errno.ENOSYS):
                raise
    try:
        yield
    finally:
        lock.release()


def write_json(path: Path, content: object) -> Path:
    """Write JSON as a whole, readable by people; returns ``path``; errors as of :func:`writing`."""
    return write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path, *keys: str, kind: type = dict) -> Any:
    """Content of a JSON file that the study wrote, an object with these keys or what ``kind`` says.

    Raises
    ------
    ConfigError
        If it is missing or damaged; the message names the file and the remedy.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise missing(path) from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, "it is not valid JSON") from error
    if not isinstance(content, kind):
        raise damaged(path, "it holds something else")
    for key in keys:
        if content.get(key) is None:
            raise damaged(path, f"it lacks {key!r}")
    return content


def read_csv(path: Path, columns: Sequence[str] = (), **options: Any) -> pd.DataFrame:
    """A CSV file that the study wrote, with at least these columns; options of ``pandas.read_csv``.

    Raises
    ------
    ConfigError
        If it is missing or damaged; the message names the file and the remedy.
    """
    import pandas as pd

    try:
        text = path.read_bytes()
        frame = pd.read_csv(io.BytesIO(text), **options)
    except FileNotFoundError as error:
        raise missing(path) from error
    except (OSError, ValueError, OverflowError) as error:  # ParserError, UnicodeDecodeError, ...
        raise damaged(path, "it is not a CSV table") from error
    # Every table ends with a line break; pandas would fill up a row that was cut.
    if not text.endswith(b"\n"):
        raise damaged(path, "it is cut short")
    lacking = [column for column in columns if column not in frame]
    if lacking or frame.empty:
        raise damaged(path, f"column {lacking[0]!r} is missing" if lacking else "it has no rows")
    return frame


RUN_KEYS = ("model", "seed", "settings", "parameters", "trainable_parameters", "batch_size")
RUN_KEYS += ("steps", "epochs", "best_epoch", "best_val_loss", "seconds", "patches_per_second")
RUN_KEYS += ("precision",)
"""What every record of a training run holds."""


def read_run(folder: Path) -> dict:
    """Record of the training run in a folder, ``run.json``, with at least :data:`RUN_KEYS`.

    Raises
    ------
    ConfigError
        If the run is not finished or its record is damaged.
    """
    return read_json(folder / "run.json", *RUN_KEYS)


def missing(path: Path) -> ConfigError:
    """The error for a file of the study that is not there."""
    return ConfigError(f"{_short(path)} is missing; run `make reproduce`.")


def damaged(path: Path, problem: str, command: str = "make reproduce") -> ConfigError:
    """The error for a file of the study that cannot be used: one sentence with the remedy."""
    return ConfigError(f"{_short(path)} is damaged: {problem}; delete it and run `{command}`.")


def _short(path: Path) -> str:
    """A path of the study as messages name it: its last parts, from the profile's folder on."""
    for root in (os.environ.get("CUNET_RESULTS"), os.environ.get("CUNET_DATA"), ROOT):
        if root and path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return Path(*path.parts[-4:]).as_posix()


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def code_hash(*places: str) -> str:
    """Hash of code without comments and docstrings, to tell older code from today's.

    Places are rooms or files of the checkout, such as ``"cunet_lib/models"`` or
    ``"cunet_lib/signal/spectral.py"``. Files enter in the order of their names.
    """
    digest = hashlib.sha256()
    for place in places:
        for path in sorted((ROOT / place).rglob("*.py")) or [ROOT / place]:
            code, _ = parsed(path.read_text("utf-8"))
            digest.update(f"{path.relative_to(ROOT)}\n{code}\n".encode())
    return digest.hexdigest()[:16]


@cache
def parsed(source: str) -> tuple[str, frozenset[str]]:
    """Code without comments, docstrings and layout, as text, and the dotted names that it imports.

    Made once a process. What is no Python, such as a notebook's magic commands, stays as it is.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source, frozenset()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(body := getattr(node, "body", None), list):
            node.body = [
                part
                for part in body
                if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            ]
    return ast.dump(tree, annotate_fields=False), frozenset(names)
