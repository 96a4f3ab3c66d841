"""What the evaluation of the paper's released code does to scores: labelled, and never a result.

That code scores something else than the separated audio. Each difference is applied here alone, and
all together, to the estimates of a sound separation, so that its effect can be told in dB. The
reference rescaling reads the references, which no separation may; that is why it is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from cunet_lib.core.files import code_hash, write_json
from cunet_lib.core.settings import Profile, Signal
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation import metrics as measures
from cunet_lib.evaluation.evaluate import read_rows, score_each, write_table
from cunet_lib.evaluation.metrics import (
    PLAIN_SDR,
    PROTOCOL,
    PROTOCOL_METRICS,
    PROTOCOL_V3,
    SCORE_COLUMNS,
    SI_SDR,
    WHOLE_TRACK,
)
from cunet_lib.preprocess.store import Store
from cunet_lib.signal.spectral import magnitude_scale

SOUND = "sound"
"""The sound protocol: patches overlap, levels are kept, no reference is seen."""

REFERENCE_RANGE = "reference range"
OWN_MAXIMUM = "own maximum"
END_TO_END = "end to end"
AS_RELEASED = "as released"
ABLATIONS = (SOUND, END_TO_END, OWN_MAXIMUM, REFERENCE_RANGE, AS_RELEASED)
"""In the order in which the released code does it: patches joined end to end, the estimate divided
by its own maximum, then stretched to the reference's range; and all three."""


def rescaled_to(estimates: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Estimates with the minimum-to-maximum range of the references, then with their mean.

    Parameters
    ----------
    estimates, references
        ``(instruments, samples)``.

    Returns
    -------
    numpy.ndarray
        ``(instruments, samples)`` float64; an estimate without a range (silence) stays as it is.
    """
    given, wanted = np.asarray(estimates, float), np.asarray(references, float)
    ranges = np.ptp(given, axis=1, keepdims=True)
    gain = np.ptp(wanted, axis=1, keepdims=True) / np.where(ranges > 0, ranges, 1.0)
    # Range and mean fix everything: the shift by the reference's minimum goes with the mean.
    stretched = gain * given
    stretched += (wanted - stretched).mean(axis=1, keepdims=True)
    return np.where(ranges > 0, stretched, given)


def by_own_maximum(estimates: np.ndarray, signal: Signal) -> np.ndarray:
    """Estimates ``(instruments, samples)``, each divided by the maximum of its own spectrogram.

    The level in the mixture is lost; silence stays silence.
    """
    scales = [magnitude_scale(np.asarray(estimate, np.float32), signal) for estimate in estimates]
    return np.asarray(estimates, float) / np.array(scales)[:, None]


def ablated(
    references: np.ndarray, estimates: np.ndarray, joined: np.ndarray, signal: Signal
) -> dict[str, np.ndarray]:
    """What is scored under each of :data:`ABLATIONS`.

    Parameters
    ----------
    references, estimates
        ``(instruments, samples)``.
    joined
        Estimates from patches joined end to end, ``(instruments, samples)``.
    signal
        Spectrogram settings.

    Returns
    -------
    dict
        Ablation to estimates ``(instruments, samples)``.
    """
    return {
        SOUND: estimates,
        END_TO_END: joined,
        OWN_MAXIMUM: by_own_maximum(estimates, signal),
        REFERENCE_RANGE: rescaled_to(estimates, references),
        AS_RELEASED: rescaled_to(by_own_maximum(joined, signal), references),
    }


def ablation_rows(
    mixture: np.ndarray,
    references: np.ndarray,
    estimates: np.ndarray,
    *,
    window: int,
    hop: int,
) -> list[measures.Row]:
    """The scores that the ablations are compared by.

    BSS Eval v3 (SDR, SIR, SAR), SI-SDR and the plain SDR over the whole track, and the SDR of BSS
    Eval v4, median over frames (:func:`cunet_lib.evaluation.metrics.frame_sdr`).

    Parameters and shapes as in :func:`cunet_lib.evaluation.metrics.energy_at_silence`.
    """
    rows = []
    v3 = measures.bss_eval_v3(mixture, references, estimates)
    scores = dict(zip(PROTOCOL_METRICS[PROTOCOL_V3], v3, strict=True))
    for (metric, protocol), values in (
        *(((metric, PROTOCOL_V3), values) for metric, values in scores.items()),
        (("SDR", SI_SDR), measures.si_sdr(references, estimates)),
        (("SDR", PLAIN_SDR), measures.whole_sdr(references, estimates)),
    ):
        for target, value in zip(INSTRUMENTS, values, strict=True):
            rows.append(
                (target, metric, protocol, WHOLE_TRACK, float(value), 1, int(np.isnan(value)))
            )
    frames = measures.frame_sdr(references, estimates, window=window, hop=hop)
    for target, values in zip(INSTRUMENTS, frames, strict=True):
        defined = values[np.isfinite(values)]
        median = float(np.median(defined)) if len(defined) else float("nan")
        counts = (len(values), len(values) - len(defined))
        rows.append((target, "SDR", PROTOCOL, "median over frames", median, *counts))
    return rows


def score_ablations(
    settings: Profile,
    store: Store,
    *,
    model: str,
    seed: int,
    system: Callable[[np.ndarray], np.ndarray],
    joined: Callable[[np.ndarray], np.ndarray],
    workers: int | None = None,
) -> pd.DataFrame:
    """Score every test track under each ablation, and write ``scores/ablation/*.csv``.

    Parameters
    ----------
    model, seed
        Name and seed of the system, for the table and the file names.
    system
        Callable from mixture ``(samples,)`` to estimates, with patches that overlap
        (``settings.separate.overlapping``); its ``version`` identifies the weights.
    joined
        The same system with patches joined end to end (``separate.overlap=0``).
    workers
        As :func:`cunet_lib.evaluation.evaluate.score_system` takes them.

    Returns
    -------
    pandas.DataFrame
        Column ablation, then :data:`cunet_lib.evaluation.metrics.SCORE_COLUMNS`.
    """
    folder = settings.paths.museval / f"{model}-seed{seed}-ablation"
    version = (
        system.version,
        joined.version,
        store.hash,
        settings.section_hash("signal", "separate", "evaluate"),
        code_hash("cunet_lib/signal/spectral.py", "cunet_lib/separation", "cunet_lib/evaluation"),
    )
    score_each(
        settings,
        store,
        folder,
        version=version,
        files=_files,
        estimate=lambda audio: np.stack([system(audio[0]), joined(audio[0])]),
        score=_score,
        label="tracks ablated",
        workers=workers,
    )
    tables = []
    for entry in store.split("test"):
        for ablation, path in zip(ABLATIONS, _files(folder, entry.name), strict=True):
            rows = read_rows(path, track=entry.name, model=model, seed=seed)
            rows.insert(0, "ablation", ablation)
            tables.append(rows)
    table = pd.concat(tables, ignore_index=True)
    write_table(table, settings.paths.scores / "ablation" / f"{model}-seed{seed}.csv")
    return table[["ablation", *SCORE_COLUMNS]]


def _score(
    audio: np.ndarray, estimates: np.ndarray, settings: Profile, track: str, paths: list[Path]
) -> None:
    window, hop = measures.framing(settings.evaluate, settings.signal.sample_rate)
    variants = ablated(audio[1:], *estimates, settings.signal)
    for ablation, path in zip(ABLATIONS, paths, strict=True):
        rows = ablation_rows(audio[0], audio[1:], variants[ablation], window=window, hop=hop)
        write_json(path, {"track": track, "ablation": ablation, "rows": rows})


def _files(folder: Path, track: str) -> list[Path]:
    return [folder / ablation / f"{track}.json" for ablation in ABLATIONS]
