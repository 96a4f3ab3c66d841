"""Trained models on disk: where they are, what they were trained on, what they scored.

Models lie in ``results/<profile>/models`` (shipped, half precision) and ``results/<profile>/runs``.
The one that ships with the project is found wherever ``CUNET_RESULTS`` puts the user's own results.
A model is named ``demo/cnn_complex``, ``demo/cnn_complex-seed0``, or by the last part alone.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import ValidationError

from cunet_lib.core.files import is_file
from cunet_lib.core.settings import ROOT, ConfigError, Profile, Separate, Signal, load_profile
from cunet_lib.core.systems import INSTRUMENTS, UNETS
from cunet_lib.evaluation.metrics import SDR_V4
from cunet_lib.report import card as cards

MEANINGLESS = "smoke"
"""Profile whose models are never taken unless named: they were trained for seconds."""


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
    scores
        Median SDR in dB and number of test tracks, by instrument (:func:`median_sdr`).
    """

    path: Path
    name: str
    model: str | None
    seed: int | None
    signal: Signal
    separate: Separate
    trained_on: str
    scores: Mapping[str, tuple[float, int]]


def results_root() -> Path:
    """Folder with one folder of results per profile."""
    return load_profile("demo").paths.results.parent


def available() -> list[Found]:
    """All models of the results folder: shipped ones first, ``demo`` before other profiles."""
    return [describe(path) for path in _files()]


def find(name: str | None = None) -> Found:
    """Find a model.

    Parameters
    ----------
    name
        A path to a ``.keras`` file or to a run folder; ``profile/name``; a name alone, which is
        looked for among shipped models first, then among runs, and in ``demo`` first. If not
        given, the shipped C-U-Net.

    Raises
    ------
    ConfigError
        If there is none, or several of the same rank.
    """
    if name is None:
        for path in _files():
            if _profile(path) != MEANINGLESS and not path.parent.name.startswith(UNETS):
                return describe(path)
        raise ConfigError(
            "There is no trained model yet; run `make reproduce`, or name one by --model PATH."
        )
    given = Path(name).expanduser()
    if is_file(given):
        return describe(given)
    if is_file(given / "model.keras"):
        return describe(given / "model.keras")
    if given.suffix == ".keras":
        raise ConfigError(f"No model {name}; `cunet models` lists those at hand.")
    fits = [path for path in _files() if _fits(_name(path), name)]
    if not fits:
        raise ConfigError(f"No model {name!r}; `cunet models` lists those at hand.")
    best = [path for path in fits if _rank(path) == _rank(fits[0])]
    if len(best) > 1 and _name(best[0]) != name:
        raise ConfigError(f"{name!r} could be {' or '.join(map(_name, best))}; name one of them.")
    return describe(best[0])


def describe(path: Path) -> Found:
    """What the files beside a model say of it.

    The record comes from ``run.json``, else from the model card, else from the manifest or the
    profile of the results folder it lies in. Without any, the paper's signal settings are assumed.

    Raises
    ------
    ConfigError
        If a record is there but damaged.
    """
    path = path.resolve()
    root = _root_of(path)
    record = _record(path)
    settings = record.get("settings") or {}
    model, seed = record.get("model"), record.get("seed")
    try:
        if not isinstance(settings, Mapping) or not isinstance(model, str | None):
            raise TypeError("settings are a mapping, a model has a name")
        signal = Signal.model_validate(settings.get("signal", {}))
        separate = Separate.model_validate(settings.get("separate", {}))
        trained_on = _trained_on(settings)
    except (ValidationError, TypeError) as error:
        raise ConfigError(
            f"The record beside {path} has settings that make no sense; train it again."
        ) from error
    folder = root / _profile(path) if root else None
    scores = median_sdr(folder, model, seed) if folder and model is not None else {}
    return Found(
        path,
        _name(path) if root else str(path),
        model,
        seed,
        signal,
        separate,
        trained_on,
        scores,
    )


def median_sdr(folder: Path, model: str, seed: int | None) -> dict[str, tuple[float, int]]:
    """Scores of a model, from ``scores/scores.csv`` in the results of a profile.

    Parameters
    ----------
    folder
        ``results/<profile>``.
    model, seed
        A C-U-Net, or one dedicated U-Net, which is scored on its own instrument.

    Returns
    -------
    dict
        Instrument to median SDR over test tracks (BSS Eval v4, median over frames; dB) and the
        number of tracks with a score. Empty if there are no scores.
    """
    scores = _scores(folder)
    if scores is None:
        return {}
    system = "unet" if model in UNETS else model
    chosen = scores[
        (scores["model"] == system)
        & (scores["seed"] == seed)
        & (scores["metric"] == SDR_V4.metric)
        & (scores["protocol"] == SDR_V4.protocol)
        & (scores["aggregation"] == SDR_V4.aggregation)
    ].dropna(subset="value")
    targets = [model.removeprefix("unet_")] if model in UNETS else INSTRUMENTS
    by_target = {target: chosen.loc[chosen["target"] == target, "value"] for target in targets}
    return {
        target: (float(values.median()), len(values))
        for target, values in by_target.items()
        if len(values)
    }


def write_cards(settings: Profile) -> list[Path]:
    """Write the cards of a profile's models anew, with their scores; returns the cards."""
    paths = settings.paths
    written = []
    for path in sorted(paths.runs.glob("*/run.json")):
        record = _json(path)
        if record.get("model") is None:
            continue
        known = median_sdr(paths.results, record["model"], record.get("seed"))
        # A run with a suffix has other settings; the scores are not its own.
        own = path.parent.name == f"{record['model']}-seed{record.get('seed')}"
        written.append(cards.write_card(path.parent, record, scores=known if own else None))
        shipped = paths.models / f"{record['model']}.keras"
        if own and record.get("seed") == settings.seed and shipped.is_file():
            written.append(
                cards.write_card(shipped.parent, record, file=shipped.name, half=True, scores=known)
            )
    return written


def table(models: Sequence[Found]) -> str:
    """Models with their scores, as lines for a terminal."""
    if not models:
        return "No trained model yet; `make reproduce` trains them."
    width = max(5, *(len(found.name) for found in models))
    columns = "".join(f"{instrument:>9}" for instrument in INSTRUMENTS)
    lines = [f"{'model':<{width}}{columns}  trained on"]
    for found in models:
        cells = (found.scores.get(instrument) for instrument in INSTRUMENTS)
        numbers = "".join(f"{cell[0]:9.1f}" if cell else f"{'-':>9}" for cell in cells)
        lines.append(f"{found.name:<{width}}{numbers}  {found.trained_on}")
    lines += [
        f"Median over test tracks of SDR in dB ({SDR_V4.protocol}, median over frames), each on",
        "test songs of its own kind: compare models of one profile only.",
    ]
    return "\n".join(lines)


def _roots() -> list[Path]:
    """Results folders: the user's, then that of the project."""
    return list(dict.fromkeys([results_root(), (ROOT / "results").resolve()]))


def _root_of(path: Path) -> Path | None:
    return next((root for root in _roots() if path.is_relative_to(root)), None)


def _files() -> list[Path]:
    found: dict[str, Path] = {}
    own, *projects = _roots()
    for root, patterns in (
        (own, ("*/models/*.keras", "*/runs/*/model.keras")),
        *((root, ("*/models/*.keras",)) for root in projects),
    ):
        for path in itertools.chain(*(root.glob(pattern) for pattern in patterns)):
            if not path.name.startswith("."):
                found.setdefault(_name(path), path)
    return sorted(found.values(), key=lambda path: (*_rank(path), _name(path)))


def _parts(path: Path) -> tuple[str, ...]:
    return path.relative_to(_root_of(path)).parts


def _profile(path: Path) -> str:
    return _parts(path)[0]


def _rank(path: Path) -> tuple:
    parts = _parts(path)
    return (parts[0] == MEANINGLESS, parts[1] != "models", parts[0] != "demo")


def _name(path: Path) -> str:
    parts = _parts(path)
    return f"{parts[0]}/{path.stem if parts[1] == 'models' else parts[2]}"


def _fits(full: str, name: str) -> bool:
    last = full.split("/")[1]
    return name in (full, last, last.split("-seed")[0])


def _record(path: Path) -> dict:
    if (path.parent / "run.json").is_file():
        return _json(path.parent / "run.json")
    card = cards.read(path.parent / cards.NAME)
    if card and card.get("file") == path.name:
        return card
    folder = path.parent.parent
    if path.parent.name != "models" or folder.parent not in _roots():
        return {}
    settings = {}
    if (folder / "manifest.json").is_file():
        settings = _json(folder / "manifest.json").get("settings") or {}
    if not settings:
        try:
            settings = load_profile(folder.name).model_dump(mode="json")
        except ConfigError:  # results of a profile that is gone
            return {}
    return {"model": path.stem, "seed": settings.get("seed"), "settings": settings}


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON; delete it and train again.") from error
    return content if isinstance(content, dict) else {}


def _trained_on(settings: Mapping) -> str:
    title, data = settings.get("title"), settings.get("data") or {}
    if not title:
        return "unknown data (no record beside it)"
    if not isinstance(title, str) or not isinstance(data, Mapping):
        raise TypeError("a title is text, data are settings")
    source = data.get("source")
    return f"{title}, no real music" if source == "rendered" else title


def _scores(folder: Path) -> pd.DataFrame | None:
    if not (folder / "scores" / "scores.csv").is_file():
        return None
    try:
        scores = pd.read_csv(folder / "scores" / "scores.csv")
    except (ValueError, OSError):  # a list of models must not fail for a damaged table of scores
        return None
    needed = {"model", "seed", "target", "metric", "protocol", "aggregation", "value"}
    return scores if needed <= set(scores) else None
