"""Songs in folders, and the folder that each song's parts are written to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cunet_lib.core.settings import ConfigError

SUFFIXES = (
    *(".aac", ".aif", ".aiff", ".ape", ".au", ".caf", ".flac", ".m4a", ".mka", ".mp3", ".mp4"),
    *(".oga", ".ogg", ".opus", ".tta", ".w64", ".wav", ".webm", ".wma", ".wv"),
)
"""Of songs in a folder; a song that is named may have any, or none."""


def find_songs(paths: Sequence[Path], out: Path) -> tuple[dict[Path, Path], set[Path]]:
    """Songs, those in folders too, at any depth.

    Returns
    -------
    names
        Song to its folder in ``out``: its name without the suffix; with it, or with the name of the
        folder it lies in, where several would meet. Songs of a folder keep the folders below it.
    within
        Those that were found in folders.

    Raises
    ------
    ConfigError
        If two would still meet.
    """
    left, within = {}, set()
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 - False too for a name that is too long
            left[path] = Path(path.name)
            continue
        found = [
            each
            for each in sorted(path.rglob("*"))
            if each.suffix.lower() in SUFFIXES
            and not any(part.startswith((".", "@", "__")) for part in each.relative_to(path).parts)
            and out.resolve() not in each.resolve().parents
            and each.is_file()
        ]
        # Reading the folder itself tells that it holds none.
        left |= {each: each.relative_to(path) for each in found} or {path: Path(path.name)}
        within |= {*found}
    names: dict[Path, Path] = {}
    for naming in (
        lambda path, name: name.parent / stem(name),
        lambda path, name: name,
        lambda path, name: path.absolute().parent.name / name,
    ):
        named = {path: naming(path, name) for path, name in left.items()}
        number = Counter(named.values())
        names |= {path: name for path, name in named.items() if number[name] == 1}
        left = {path: name for path, name in left.items() if path not in names}
    if left:
        raise ConfigError(
            f"{' and '.join(map(str, left))} would be written to one folder; separate them apart, "
            "each with another --out."
        )
    return names, within


def stem(path: Path) -> str:
    """A song's name as its folder has it."""
    return path.stem.strip(".") or path.name.strip(".") or "song"
