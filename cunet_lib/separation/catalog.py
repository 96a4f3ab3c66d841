"""Trained models on disk: where they are, and what they were trained on.

Models lie in ``results/<profile>/models`` (shipped, half precision) and ``results/<profile>/runs``.
The one that ships with the project is found wherever ``CUNET_RESULTS`` puts the user's own results.
A model is named ``demo/cnn_complex``, ``demo/cnn_complex-seed0``, or by the last part alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError
from tabulate import tabulate

from cunet_lib.core.files import is_file, read_run
from cunet_lib.core.settings import ROOT, ConfigError, Separate, Signal, load_profile, parse_yaml
from cunet_lib.core.systems import INSTRUMENTS, UNETS

CARD = "model_card.md"
"""The page beside each trained model; it begins with a block of YAML."""

MEANINGLESS = "smoke"
"""Profile whose models are never taken unless named: they were trained for seconds."""

FIRST = ("beyond", "study", "demo")
"""Profiles whose models come before those of others, the best first."""


@dataclass(frozen=True)
class Found:
    """A model's file and what is known of it.

    Attributes
    ----------
    path
        The ``.keras`` file.
    name
        ``profile/name`` for models of the results folder, the path for others.
    model
        The network: ``unet_<instrument>`` or a C-U-Net; None where no record says.
    seed
        Of the run; None where no record says.
    signal, separate
        Settings it was trained with, and how patches are joined.
    trained_on
        In words.
    results
        Folder ``results/<profile>`` it lies in; None for models elsewhere.
    """

    path: Path
    name: str
    model: str | None
    seed: int | None
    signal: Signal
    separate: Separate
    trained_on: str
    results: Path | None


def find(name: str | None = None, *, signal: Signal | None = None) -> Found:
    """Find a model.

    Parameters
    ----------
    name
        A path to a ``.keras`` file or to a run folder; ``profile/name``; a name alone, which is
        looked for among shipped models first, then among runs, in those of :data:`FIRST` first. If
        not given, the shipped C-U-Net.
    signal
        If no name is given: settings that the model was trained with; any if not given.

    Raises
    ------
    ConfigError
        If there is none, or several of the same rank.
    """
    files = _files()
    if name is None:
        for full, path in files.items():
            profile, own = full.split("/")
            if profile != MEANINGLESS and not own.startswith(UNETS):
                found = describe(path)
                if signal in (None, found.signal):
                    return found
        raise ConfigError(
            f"There is no trained model {'with these signal settings ' if signal else ''}yet; run "
            "`make reproduce`, or name one by --model PATH."
        )
    given = Path(os.path.expanduser(name))  # noqa: PTH111 - an unknown ~user stays as it is
    for path in (given, given / "model.keras"):
        if is_file(path):
            return describe(path)
    # A model answers to its full name, to the last part of it, and to that without a seed.
    last = {full: full.split("/")[1] for full in files}
    fits = [full for full in files if name in (full, last[full], last[full].split("-seed")[0])]
    if not fits:
        raise ConfigError(f"No model {name!r}; `cunet models` lists those at hand.")
    best = [full for full in fits if _rank(files[full]) == _rank(files[fits[0]])]
    if len(best) > 1:
        raise ConfigError(f"{name!r} could be {' or '.join(best)}; name one of them.")
    return describe(files[best[0]])


def describe(path: Path) -> Found:
    """What the files beside a model say of it.

    The record comes from ``run.json``, else from the model card. Without either, the paper's
    signal settings are assumed.

    Raises
    ------
    ConfigError
        If a record is there but damaged.
    """
    path = path.resolve()
    names = {file.resolve(): name for name, file in _files().items()}
    if (path.parent / "run.json").is_file():
        record = read_run(path.parent)
    else:
        card = read_card(path.parent / CARD) or {}
        record = card if card.get("file") == path.name else {}
    settings, model = record.get("settings") or {}, record.get("model")
    try:
        if not isinstance(model, str | None):
            raise TypeError("a model has a name")
        signal = Signal.model_validate(settings.get("signal", {}))
        separate = Separate.model_validate(settings.get("separate", {}))
        trained_on = str(settings.get("title") or "unknown data (no record beside it)")
        if (settings.get("data") or {}).get("source") == "rendered":
            trained_on = f"{trained_on}, no real music"
    except (ValidationError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"The record beside {path} has settings that make no sense; train it again."
        ) from error
    name, results = names.get(path, str(path)), _results(path) if path in names else None
    return Found(path, name, model, record.get("seed"), signal, separate, trained_on, results)


def read_card(path: Path) -> dict | None:
    """The block of YAML at the top of a card; None if there is no card, or no such block."""
    try:
        parts = path.read_text(encoding="utf-8").split("---\n", 2)
        content = parse_yaml(parts[1]) if len(parts) == 3 and not parts[0] else None
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def table(scores: Callable[[Found], Mapping[str, tuple[float, int]]]) -> str:
    """All models with their scores, as lines for a terminal, in the order of :func:`find`.

    ``scores`` gives a model's median SDR in dB and number of test tracks, by instrument.
    """
    rows = []
    for found in map(describe, _files().values()):
        known = scores(found)
        values = (known.get(instrument, (None,))[0] for instrument in INSTRUMENTS)
        rows.append([found.name, *values, found.trained_on])
    if not rows:
        return "No trained model yet; `make reproduce` trains them."
    header = ["model", *INSTRUMENTS, "trained on"]
    lines = tabulate(rows, header, tablefmt="plain", floatfmt=".1f", missingval="-")
    return (
        f"{lines}\nMedian over test tracks of SDR in dB (BSS Eval v4, median over frames), each on "
        "test\nsongs of its own kind: compare models of one profile only."
    )


def _files() -> dict[str, Path]:
    """Models of the user's results folder and of the project's by name, best first."""
    own = load_profile("demo").paths.results.parent
    found: dict[str, Path] = {}
    for root, patterns in (
        (own, ("*/models/*.keras", "*/runs/*/model.keras")),
        (ROOT / "results", ("*/models/*.keras",)),
    ):
        for path in (path for pattern in patterns for path in root.glob(pattern)):
            profile, kind, *_, file = path.relative_to(root).parts
            name = f"{profile}/{path.stem if kind == 'models' else path.parent.name}"
            if not file.startswith("."):
                found.setdefault(name, path)
    return dict(sorted(found.items(), key=lambda item: (*_rank(item[1]), item[0])))


def _results(path: Path) -> Path:
    """The folder ``results/<profile>`` of a model in it."""
    return path.parents[1 if path.parent.name == "models" else 2]


def _rank(path: Path) -> tuple[bool, ...]:
    profile = _results(path).name
    shipped = path.parent.name == "models"
    return (profile == MEANINGLESS, not shipped, *(profile != name for name in FIRST))
