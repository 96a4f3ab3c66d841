"""Model cards: a page beside each trained model that says what it is, what it is worth, and how.

``model_card.md`` begins with a block of YAML, from which programs read the settings the model needs
(:func:`cunet_lib.separation.catalog.read_card`); the rest is for people. Its parts follow Mitchell
et al., "Model Cards for Model Reporting" (FAT* 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from cunet_lib.core.files import read_run, write_atomically
from cunet_lib.core.settings import Profile
from cunet_lib.core.systems import INSTRUMENTS, PAPER_NAMES, UNETS
from cunet_lib.evaluation.metrics import SDR_V4
from cunet_lib.evaluation.scores import read_scores
from cunet_lib.separation.catalog import CARD, Found

LICENCE = "MIT"
"""Of the project: code, and weights that its rendered corpus trains; SPDX."""

MUSDB = "Its terms (https://sigsep.github.io/datasets/musdb.html) go with what is trained on it."
DATA = {
    "rendered": (
        "Music rendered from scratch by this project: composed from a seed, played by a General "
        "MIDI SoundFont (TimGM6mb, as it ships in pretty_midi) and by synthesizers, sung by a "
        "formant voice. No recording and no real voice is in it."
    ),
    "musdb18": f"MUSDB18, real music. {MUSDB}",
    "folder": "A folder of tracks of the user's own; their terms go with what is trained on them.",
    "musdb7s": f"The 7-second excerpts of MUSDB18, real music and very little of it. {MUSDB}",
}

LIMITS = """\
* It hears one channel below half of its rate, and changes magnitudes only: the phase stays the \
mixture's.
* Levels between 0 and 1 are asked for; only a network with shares guarantees them.
* Not for judging who plays or sings, nor for forensic use."""
OWN_LIMITS = {
    "rendered": (
        "* It has heard no real music. On recordings expect much less than the scores above.\n"
    ),
    "musdb7s": "* Seven seconds of each song are far too little to learn from.\n",
}

KEPT = ("model", "kind", "seed", "profile", "created", "commit", "store", "settings")
"""What the block of YAML repeats of the run's record."""

FACTS = ("profile", "seed", "steps", "batch_size", "epochs", "best_epoch", "best_val_loss")
FACTS += ("parameters", "precision", "seconds", "commit")
"""What the table of the training repeats of it."""


def write_card(folder: Path, record: Mapping, **about) -> Path:
    """Write ``model_card.md`` beside a model; returns it. Parameters as for :func:`card`."""
    return write_atomically(folder / CARD, card(record, **about))


def card(
    record: Mapping,
    *,
    half: bool = False,
    scores: Mapping[str, tuple[float, int]] | None = None,
) -> str:
    """Text of a model card.

    Parameters
    ----------
    record
        The run's record, as in ``run.json``; what it lacks is left out.
    half
        Whether it is the shipped file, whose weights are in half precision.
    scores
        Median SDR in dB and number of test tracks, by instrument; None before they are known.
    """
    settings, model = record["settings"], record["model"]
    source, rate = settings["data"]["source"], settings["signal"]["sample_rate"]
    file, unet = f"{model}.keras" if half else "model.keras", model.startswith("unet_")
    paper = PAPER_NAMES.get(model)
    top = {"file": file, **{key: record[key] for key in KEPT if key in record}}
    several = f"{', '.join(INSTRUMENTS)}, each at a level between 0 and 1, and sums of them,"
    isolated = model.removeprefix("unet_") if unet else several
    facts = {name.replace("_", " "): record[name] for name in FACTS if record.get(name) is not None}
    facts["versions"] = ", ".join(f"{k} {v}" for k, v in (record.get("versions") or {}).items())
    return f"""---
{yaml.safe_dump(top, sort_keys=False, allow_unicode=True).rstrip()}
---

# {model}{f" ({paper})" if paper else ""}

`{file}`{" (weights in half precision)" if half else ""}: {
        "a U-Net dedicated to one instrument"
        if unet
        else "a U-Net steered by a condition vector through FiLM layers"
    } of the Conditioned U-Net study (Meseguer-Brocal and Peeters, ISMIR 2019, arXiv:1907.01277).

## Use

Isolates {isolated} in a mixture, by a mask on its magnitude spectrogram, computed at {rate} Hz
mono. `cunet separate song.mp3` applies it to a file at the file's own rate and channels. Above
half of {rate} Hz a small network goes on from the instruments' estimates, where `highs.npz` lies
beside the model; else the mask is an extension, not learned.

## Data

{settings["title"]}: {DATA[source]}

## Training

{_rows("what | value", facts.items())}

## Scores

{_scores(scores, source, rate, half)}

## Limits

{OWN_LIMITS.get(source, "")}{LIMITS}

## Licence

The weights come under the licence of the code, {LICENCE} (file LICENSE).{
        " The terms of MUSDB18, above, go with them." if str(source).startswith("musdb") else ""
    }
"""


def _rows(header: str, rows) -> str:
    width = header.count("|") + 1
    lines = [f"| {header} |", "|---" * width + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def _scores(scores, source, rate, half) -> str:
    if not scores:
        return "Not known yet: `make reproduce` scores the model and completes this card."
    rows = [(name, f"{value:.2f}", tracks) for name, (value, tracks) in scores.items()]
    note = (
        f"SDR: source-to-distortion ratio by {SDR_V4.protocol} (museval), median over the frames "
        f"of a track, then over test tracks; {rate} Hz mono."
    )
    if source == "rendered":
        note += " On rendered music: not comparable with published MUSDB18 scores."
    if half:
        note += " Measured before the weights were rounded to half precision."
    return f"{_rows('instrument | median SDR, dB | test tracks', rows)}\n\n{note}"


# ------------------------------------------------------------------------------ with scores


def write_cards(settings: Profile) -> list[Path]:
    """Write the cards of a profile's models anew, with their scores; returns the cards."""
    paths, written = settings.paths, []
    for folder in sorted(path.parent for path in paths.runs.glob("*/run.json")):
        record = read_run(folder)
        model, seed = record["model"], record["seed"]
        # A run with a suffix has other settings; the scores are not its own.
        own = folder == paths.run(model, seed)
        known = median_sdr(paths.results, model, seed) if own else None
        if own:
            # How it separates is no matter of its training: as the scores were made.
            record["settings"]["separate"] = settings.separate.model_dump(mode="json")
        written.append(write_card(folder, record, scores=known))
        shipped = paths.models / f"{model}.keras"
        if own and seed == 0 and shipped.is_file():
            written.append(write_card(paths.models, record, half=True, scores=known))
    return written


def median_sdr(folder: Path, model: str, seed: int | None) -> dict[str, tuple[float, int]]:
    """Scores of a model, from its system's table in ``results/<profile>/scores``.

    Returns
    -------
    dict
        Instrument to median SDR over test tracks (BSS Eval v4, median over frames; dB) and the
        number of tracks with a score; a dedicated U-Net is scored on its own instrument. Empty if
        there are no scores that can be read.
    """
    system, targets = model, INSTRUMENTS
    if model in UNETS:
        system, targets = "unet", [model.removeprefix("unet_")]
    try:
        path = folder / "scores" / f"{system}-seed{seed}.csv"
        chosen = SDR_V4.rows(read_scores(path)).dropna(subset="value")
    # A list of models must not fail for a damaged table, or a record with an impossible name.
    except (OSError, ValueError):
        return {}
    values = {target: chosen.loc[chosen["target"] == target, "value"] for target in targets}
    return {target: (float(v.median()), len(v)) for target, v in values.items() if len(v)}


def scores_of(found: Found) -> dict[str, tuple[float, int]]:
    """:func:`median_sdr` of a model of the catalog; empty if it lies elsewhere."""
    return median_sdr(found.results, found.model, found.seed) if found.results else {}
