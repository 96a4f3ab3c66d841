"""The state of a training on disk, until its notebook is done: whole, or not at all.

A checkpoint is one file, ``epoch-<number>.<hash>.npz``: the arrays of network and optimiser, and
the rest as JSON. Its name carries the SHA-256 of its content, so that a file cut short or altered
is seen; it is written under another name and renamed, and the one before it goes only then. Which
training it belongs to stands in it too: a checkpoint of another is never continued.

When the training is finished, ``finished.json`` takes their place: it says only which training that
was, since the run folder has its results. A notebook that is run again because it was stopped after
its training finds them by that.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cunet_lib.core.files import remove_unfinished, sync_folder, write_atomically, write_json

FOLDER = "checkpoint"
"""Inside a run folder."""

REUSED = (
    "was trained to the end before and nothing changed since: not trained again "
    f"(delete its folder {FOLDER} to do so)"
)
"""Line for a training whose results are there already."""

_FINISHED = "finished.json"
_NAME = re.compile(r"epoch-(\d+)\.([0-9a-f]{16})\.npz")
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A training as it was at the end of an epoch.

    Attributes
    ----------
    facts
        What the training belongs to: hashes of settings, data and code, by name.
    state
        Everything that is no array, as JSON can hold it.
    network, optimizer
        Values of their variables, in their order.
    """

    facts: Mapping[str, Any]
    state: Mapping[str, Any]
    network: Sequence[np.ndarray]
    optimizer: Sequence[np.ndarray]


def save(folder: Path, checkpoint: Checkpoint, *, epochs: int) -> Path:
    """Write a checkpoint after so many epochs; the one before is kept, older ones are deleted.

    Raises
    ------
    cunet_lib.core.files.WriteError
        If the file cannot be written; the earlier ones are then as they were.
    """
    about = {"facts": checkpoint.facts, "state": checkpoint.state}
    text = json.dumps(about, allow_nan=False).encode()
    arrays = {"about": np.frombuffer(text, np.uint8)}
    for part in ("network", "optimizer"):
        values = getattr(checkpoint, part)
        arrays |= {f"{part}_{index:04d}": value for index, value in enumerate(values)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()[:16]
    path = write_atomically(folder / f"epoch-{epochs:06d}.{digest}.npz", content)
    sync_folder(folder)
    for older in _files(folder)[_KEPT:]:
        older.unlink(missing_ok=True)
    return path


def load(
    folder: Path, facts: Mapping[str, Any], report: Callable[[str], None] = print
) -> Checkpoint | None:
    """The newest sound checkpoint of this training, or None.

    Damaged ones are passed over, and all are if they belong to another training; each time one
    line says so.

    Parameters
    ----------
    folder
        Of the checkpoints.
    facts
        What this training belongs to.
    report
        Gets the lines.
    """
    remove_unfinished(folder)
    for path in _files(folder):
        found = _read(path)
        if found is None:
            report(f"checkpoint {path.name} is damaged and is passed over")
            path.unlink(missing_ok=True)
            continue
        if changed := _changed(found.facts, facts):
            report(
                f"an unfinished training of {epochs_of(path)} epochs is discarded: "
                f"{', '.join(changed)} changed since"
            )
            return None
        return found
    return None


def finish(folder: Path, facts: Mapping[str, Any]) -> None:
    """Note that a training is finished and its results are written; its checkpoints go.

    Raises
    ------
    cunet_lib.core.files.WriteError
        If the note cannot be written; the checkpoints are then as they were.
    """
    write_json(folder / _FINISHED, facts)
    sync_folder(folder)
    for path in _files(folder):
        path.unlink(missing_ok=True)


def finished(folder: Path, facts: Mapping[str, Any], report: Callable[[str], None] = print) -> bool:
    """Whether this training was finished, and not forgotten since.

    One line says so if another was. Parameters are those of :func:`load`.
    """
    try:
        known = dict(json.loads((folder / _FINISHED).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return False
    if changed := _changed(known, facts):
        report(f"a finished training is replaced: {', '.join(changed)} changed since")
    return not changed


def forget(run: Path) -> None:
    """Let the next training into a run folder begin anew, if the last one there is finished."""
    # A training that goes on there meanwhile keeps what is its own.
    if (run / FOLDER / _FINISHED).exists():
        shutil.rmtree(run / FOLDER, ignore_errors=True)


def kept(run: Path) -> str:
    """What the stopped training of a run folder has kept, and how to go on; for people."""
    files = _files(run / FOLDER)
    if (run / FOLDER / _FINISHED).exists():
        return "the training is finished and kept; the same command does the rest of its notebook"
    if files:
        return f"epoch {epochs_of(files[0])} is kept; the same command goes on from there"
    if (run / "run.json").exists():
        return "an earlier run is as it was; the same command starts this training anew"
    return "no epoch was finished; the same command starts this training anew"


def epochs_of(path: Path) -> int:
    """Epochs after which a checkpoint was written, by its name."""
    return int(_NAME.fullmatch(path.name)[1])


def _files(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    found = [path for path in folder.glob("epoch-*.npz") if _NAME.fullmatch(path.name)]
    return sorted(found, key=epochs_of, reverse=True)


def _changed(known: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Names of the facts that are not as they were known."""
    facts = json.loads(json.dumps(facts))  # as JSON returns it: lists for tuples
    return [name for name in facts if known.get(name) != facts[name]]


def _read(path: Path) -> Checkpoint | None:
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] != _NAME.fullmatch(path.name)[2]:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            parts = {
                part: [arrays[name] for name in sorted(arrays.files) if name.startswith(part)]
                for part in ("network", "optimizer")
            }
        return Checkpoint(facts=dict(about["facts"]), state=dict(about["state"]), **parts)
    except Exception:
        # Its name fits its content, which still is none of ours: archives and arrays of other
        # kinds raise a dozen errors, which all mean that this is no checkpoint.
        return None
