"""Model cards: a page beside each trained model that says what it is, what it is worth, and how.

``model_card.md`` begins with a block of YAML, from which programs read the settings the model needs
(:func:`cunet_lib.separation.catalog.read_card`); the rest is for people. Its parts follow Mitchell
et al., "Model Cards for Model Reporting" (FAT* 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from cunet_lib.core.files import read_csv, read_run, write_atomically
from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, PAPER_NAMES, UNETS
from cunet_lib.evaluation.metrics import SDR_V4
from cunet_lib.separation.catalog import CARD, Found

LICENCE = "MIT"
"""Of the project: code, and weights that its rendered corpus trains; SPDX."""

DATA = {
    "rendered": (
        "Music rendered from scratch by this project: songs composed from a seed, drums, bass and "
        "other instruments played by a General MIDI SoundFont (TimGM6mb, as it ships in "
        "pretty_midi) and by synthesizers, vocals sung by a formant voice. No recording and no "
        "real voice is in it."
    ),
    "musdb18": (
        "MUSDB18, real music. Its own terms (https://sigsep.github.io/datasets/musdb.html) go "
        "with what is trained on it."
    ),
    "folder": "A folder of tracks of the user's own; their terms go with what is trained on them.",
    "musdb7s": (
        "The 7-second excerpts of MUSDB18, real music and very little of it. The terms of MUSDB18 "
        "(https://sigsep.github.io/datasets/musdb.html) go with what is trained on it."
    ),
}

KEPT = ("model", "kind", "seed", "profile", "created", "commit", "store", "settings")
"""What the block of YAML repeats of the run's record."""


def write_card(
    folder: Path,
    record: Mapping,
    *,
    file: str = "model.keras",
    half: bool = False,
    scores: Mapping[str, tuple[float, int]] | None = None,
) -> Path:
    """Write ``model_card.md``.

    Parameters
    ----------
    folder
        Where the model lies.
    record
        The run's record, as in ``run.json``; what it lacks is left out.
    file
        Name of the model's file.
    half
        Whether its weights are in half precision.
    scores
        Median SDR in dB and number of test tracks, by instrument; None before they are known.

    Returns
    -------
    pathlib.Path
        The card.
    """
    text = card(record, file=file, half=half, scores=scores)
    return write_atomically(folder / CARD, text)


def card(
    record: Mapping,
    *,
    file: str = "model.keras",
    half: bool = False,
    scores: Mapping[str, tuple[float, int]] | None = None,
) -> str:
    """Text of a model card; parameters as for :func:`write_card`."""
    settings = record.get("settings") or {}
    data, signal, train = (settings.get(key) or {} for key in ("data", "signal", "train"))
    model = record.get("model", "unknown")
    rate = signal.get("sample_rate")
    top = {"file": file, **{key: record[key] for key in KEPT if key in record}}
    lines = [
        "---",
        yaml.safe_dump(top, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {_title(model)}",
        "",
        f"`{file}`{' (weights in half precision)' if half else ''}: {_what(model)} of the "
        "Conditioned U-Net study (Meseguer-Brocal and Peeters, ISMIR 2019, arXiv:1907.01277).",
        "",
        "## Use",
        "",
        f"Isolates {_targets(model)} in a mixture, by a mask on its magnitude spectrogram"
        + (f", computed at {rate} Hz mono" if rate else "")
        + ". `cunet separate song.mp3` applies it to a file at the file's own rate and channels; "
        "there the mask above that rate's half is an extension, not learned.",
        "",
        "## Data",
        "",
        DATA.get(data.get("source"), "Unknown."),
        *_extent(settings.get("title"), data),
        "",
        "## Training",
        "",
        *_facts(record, signal, settings.get("model") or {}, train),
        "",
        "## Scores",
        "",
        *_scores(scores, data.get("source"), rate, half),
        "",
        "## Limits",
        "",
        *_limits(data.get("source"), rate),
        "",
        "## Licence",
        "",
        _licence(data.get("source")),
        "",
    ]
    return "\n".join(lines)


def write_cards(settings: Profile) -> list[Path]:
    """Write the cards of a profile's models anew, with their scores; returns the cards."""
    paths, written = settings.paths, []
    for folder in sorted(path.parent for path in paths.runs.glob("*/run.json")):
        record = read_run(folder)
        model, seed = record["model"], record["seed"]
        # A run with a suffix has other settings; the scores are not its own.
        own = folder == paths.run(model, seed)
        known = median_sdr(paths.results, model, seed) if own else None
        written.append(write_card(folder, record, scores=known))
        shipped = paths.models / f"{model}.keras"
        if own and seed == settings.seed and shipped.is_file():
            written.append(
                write_card(paths.models, record, file=shipped.name, half=True, scores=known)
            )
    return written


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
        number of tracks with a score. Empty if there are no scores that can be read.
    """
    columns = [*vars(SDR_V4), "model", "seed", "target", "value"]
    try:
        chosen = SDR_V4.rows(read_csv(folder / "scores" / "scores.csv", columns))
    except ConfigError:  # a list of models must not fail for a damaged table of scores
        return {}
    system = "unet" if model in UNETS else model
    chosen = chosen[(chosen["model"] == system) & (chosen["seed"] == seed)]
    targets = [model.removeprefix("unet_")] if model in UNETS else INSTRUMENTS
    values = chosen.dropna(subset="value").groupby("target")["value"].agg(["median", "count"])
    return {
        target: (float(values["median"][target]), int(values["count"][target]))
        for target in targets
        if target in values.index
    }


def scores_of(found: Found) -> dict[str, tuple[float, int]]:
    """:func:`median_sdr` of a model of the catalog; empty if it lies elsewhere."""
    if found.results is None or found.model is None:
        return {}
    return median_sdr(found.results, found.model, found.seed)


def _title(model: str) -> str:
    paper = PAPER_NAMES.get("unet" if model.startswith("unet_") else model)
    return f"{model} ({paper})" if paper else model


def _what(model: str) -> str:
    if model.startswith("unet_"):
        return "a U-Net dedicated to one instrument"
    return "a U-Net steered by a condition vector through FiLM layers"


def _targets(model: str) -> str:
    if model.startswith("unet_"):
        return model.removeprefix("unet_")
    return f"{', '.join(INSTRUMENTS)}, each at a level between 0 and 1, and sums of them,"


def _extent(title: str | None, data: Mapping) -> list[str]:
    lines = [f"In captions: {title}."] if title else []
    if data.get("source") == "rendered" and {"train_tracks", "test_tracks"} <= set(data):
        held = data.get("validation")
        held = held if isinstance(held, int) else len(held or ())
        lines.append(
            f"{data['train_tracks']} training songs, of which {held} are held out to choose the "
            f"epoch; {data['test_tracks']} test songs with other instruments, voices and chords. "
            f"Seed of the corpus: {data.get('seed', 'unknown')}."
        )
    return lines


def _facts(record: Mapping, signal: Mapping, model: Mapping, train: Mapping) -> list[str]:
    rows = [
        ("profile", record.get("profile")),
        ("seed", record.get("seed")),
        ("steps", record.get("steps")),
        ("batch size", record.get("batch_size")),
        ("learning rate", train.get("learning_rate")),
        ("epochs, best", _pair(record.get("epochs"), record.get("best_epoch"))),
        ("validation loss", record.get("best_val_loss")),
        ("parameters", record.get("parameters")),
        ("filters, blocks", _pair(model.get("filters"), model.get("blocks"))),
        ("frames of a patch", model.get("patch_frames")),
        ("window, hop", _pair(signal.get("n_fft"), signal.get("hop"))),
        ("conditions", ", ".join(train.get("conditions") or ()) or None),
        ("progressive conditions", train.get("progressive")),
        ("precision", record.get("precision")),
        ("seconds", record.get("seconds")),
        ("versions", _versions(record.get("versions"))),
        ("commit", record.get("commit")),
    ]
    return ["| what | value |", "|---|---|"] + [
        f"| {name} | {value} |" for name, value in rows if value is not None
    ]


def _pair(first: object, second: object) -> str | None:
    return None if first is None or second is None else f"{first}, {second}"


def _versions(versions: Mapping | None) -> str | None:
    return ", ".join(f"{name} {number}" for name, number in (versions or {}).items()) or None


def _scores(scores, source, rate, half) -> list[str]:
    if not scores:
        return ["Not known yet: `make reproduce` scores the model and completes this card."]
    lines = ["| instrument | median SDR, dB | test tracks |", "|---|---|---|"]
    lines += [f"| {name} | {value:.2f} | {tracks} |" for name, (value, tracks) in scores.items()]
    note = (
        f"SDR: source-to-distortion ratio by {SDR_V4.protocol} (museval), median over the frames "
        f"of a track, then over test tracks; {rate} Hz mono."
    )
    if source == "rendered":
        note += " On rendered music: not comparable with published MUSDB18 scores."
    if half:
        note += " Measured before the weights were rounded to half precision."
    return [*lines, "", note]


def _limits(source, rate) -> list[str]:
    lines = []
    if source == "rendered":
        lines.append(
            "* It has heard no real music. On recordings expect much less than the scores above."
        )
    if source == "musdb7s":
        lines.append("* Seven seconds of each song are far too little to learn from.")
    if rate:
        lines.append(
            f"* It hears one channel up to {rate / 2:g} Hz, and changes magnitudes only: the "
            "phase stays the mixture's."
        )
    lines.append("* Levels between 0 and 1 are asked for, not guaranteed.")
    lines.append("* Not for judging who plays or sings, nor for forensic use.")
    return lines


def _licence(source) -> str:
    text = f"The weights come under the licence of the code, {LICENCE} (file LICENSE)."
    if source in ("musdb18", "musdb7s"):
        text += " The terms of MUSDB18, above, go with them."
    return text
