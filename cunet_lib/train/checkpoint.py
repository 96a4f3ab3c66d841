"""The state of an unfinished training on disk: whole, or not at all.

A checkpoint is one file, ``epoch-<number>.npz``: the variables of network and optimiser, and the
rest as JSON. Such an archive has a checksum of each part, so that a file cut short or altered is
seen. It is written under another name and renamed, and the one before it is kept. It also says
which training it belongs to: one of another training is never continued.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cunet_lib.core.files import remove_unfinished, replacing

FOLDER = "checkpoint"
"""Inside a run folder, until the training is finished."""

REUSED = (
    "finished before, and nothing changed since: not trained again (delete its folder to do so)"
)
"""Line for a training whose results are there already."""

_NAME = re.compile(r"epoch-(\d+)\.npz")
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A training as it was at the end of an epoch.

    Attributes
    ----------
    facts
        What the training belongs to: hashes of settings, data and code, by name.
    state
        Everything that is no array, as JSON can hold it; ``epochs`` says how many are done.
    variables
        Values of the network's and then the optimiser's, in their order.
    """

    facts: Mapping[str, Any]
    state: Mapping[str, Any]
    variables: Sequence[np.ndarray]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; the one before is kept, older ones are deleted.

    Raises
    ------
    cunet_lib.core.files.WriteError
        If the file cannot be written; the earlier ones are then as they were.
    """
    about = {"facts": checkpoint.facts, "state": checkpoint.state}
    text = json.dumps(about, allow_nan=False).encode()
    path = folder / f"epoch-{checkpoint.state['epochs']:06d}.npz"
    with replacing(path) as partial:
        np.savez(partial, *checkpoint.variables, about=np.frombuffer(text, np.uint8))
    for older in _files(folder)[_KEPT:]:
        older.unlink(missing_ok=True)
    return path


def load(
    folder: Path, facts: Mapping[str, Any], report: Callable[[str], None] = print
) -> Checkpoint | None:
    """The newest sound checkpoint of the training that these facts name, or None.

    Damaged ones are passed over, and all are if they belong to another training; each time one
    line says so.
    """
    remove_unfinished(folder)
    for path in _files(folder):
        found = _read(path)
        if found is None:
            report(f"checkpoint {path.name} is damaged and is passed over")
            path.unlink(missing_ok=True)
            continue
        if others := changed(found.facts, facts):
            epochs = _epochs(path)
            report(f"an unfinished training of {epochs} epochs is discarded: {others}")
            return None
        return found
    return None


def changed(known: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """What is not as it was known, such as ``"settings, code changed since"``; or nothing."""
    names = [name for name in facts if known.get(name) != facts[name]]
    return f"{', '.join(names)} changed since" if names else ""


def kept(run: Path) -> str:
    """What the stopped training of a run folder has kept, and what to do next; for people."""
    if (run / "run.json").exists():
        return "the training is finished and kept; the same command does the rest of its notebook"
    if files := _files(run / FOLDER):
        return f"epoch {_epochs(files[0])} is kept; the same command continues from there"
    return "no epoch was finished; the same command starts this training anew"


def _epochs(path: Path) -> int:
    """Epochs after which a checkpoint was written, by its name."""
    return int(_NAME.fullmatch(path.name)[1])


def _files(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    found = [path for path in folder.glob("epoch-*.npz") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_epochs, reverse=True)


def _read(path: Path) -> Checkpoint | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about = json.loads(arrays["about"].tobytes())
            variables = [arrays[f"arr_{place}"] for place in range(len(arrays.files) - 1)]
        return Checkpoint(dict(about["facts"]), dict(about["state"]), variables)
    except Exception:  # of a damaged or another archive: a dozen kinds
        return None
