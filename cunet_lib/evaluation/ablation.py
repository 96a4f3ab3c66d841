"""What the evaluation of the paper's released code does to scores: labelled, and never a result.

That code scores something else than the separated audio. Each difference is applied here alone, and
all together, to the estimates of a sound separation, so that its effect can be told in dB. The
reference rescaling reads the references, which no separation may; that is why it is shown.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from cunet_lib.core.settings import Profile, Signal
from cunet_lib.evaluation import metrics
from cunet_lib.evaluation.evaluate import score_system
from cunet_lib.evaluation.metrics import SDR_V3, Measure, Metrics, track_rows
from cunet_lib.preprocess.store import Store
from cunet_lib.signal.spectral import magnitude_scale

SOUND = "sound"
"""The sound protocol: patches overlap, levels are kept, no reference is seen."""

ABLATIONS = (SOUND, "end to end", "own maximum", "reference range", "as released")
"""In the order in which the released code does it: patches joined end to end, the estimate divided
by its own maximum, then stretched to the reference's range; and all three."""

COMPARED = (
    SDR_V3.entry,
    Metrics(metrics.PROTOCOL, {"SDR": "SDR v4"}, metrics.frame_sdr, aggregation=metrics.MEDIAN),
    Measure("SDR", metrics.PLAIN_SDR, metrics.WHOLE_TRACK).entry,
    Measure("SDR", metrics.SI_SDR, metrics.WHOLE_TRACK).entry,
)
"""What ablations are compared by; SDR of BSS Eval v4 without its costly filters."""


def rescaled_to(estimates: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Estimates with the minimum-to-maximum range of the references, then with their mean.

    Both, and what is returned, ``(instruments, samples)``; an estimate without a range (silence)
    stays as it is.
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


def score_ablated(
    mixture: np.ndarray, references: np.ndarray, estimates: np.ndarray, settings: Profile
) -> pd.DataFrame:
    """Scores of one track under each of :data:`ABLATIONS`, with a column that names it.

    Parameters as for :func:`cunet_lib.evaluation.metrics.track_rows`; estimates are of overlapping
    patches and of those joined end to end, ``(2, instruments, samples)``.
    """
    (sound, joined), signal = estimates, settings.signal
    signals = {
        SOUND: sound,
        "end to end": joined,
        "own maximum": by_own_maximum(sound, signal),
        "reference range": rescaled_to(sound, references),
        "as released": rescaled_to(by_own_maximum(joined, signal), references),
    }
    return pd.concat(
        track_rows(mixture, references, given, settings, metrics=COMPARED).assign(ablation=name)
        for name, given in signals.items()
    )


def score_ablations(
    settings: Profile,
    store: Store,
    *,
    system: Callable[[np.ndarray], np.ndarray],
    joined: Callable[[np.ndarray], np.ndarray],
    **options,
) -> pd.DataFrame:
    """Score every test track under each ablation, and write ``scores/ablation/*.csv``.

    Parameters
    ----------
    system, joined
        The same system twice: with patches that overlap (``settings.separate.overlapping``) and
        with patches joined end to end (``separate.overlap=0``).
    **options
        Model, seed and workers as :func:`cunet_lib.evaluation.evaluate.score_system` takes them.

    Returns
    -------
    pandas.DataFrame
        Column ablation, then :data:`cunet_lib.evaluation.metrics.SCORE_COLUMNS`.
    """

    def both(mixture: np.ndarray) -> np.ndarray:
        return np.stack([system(mixture), joined(mixture)])

    both.version = f"{system.version} {joined.version}"
    options |= {"system": both, "score": score_ablated, "group": "ablation"}
    return score_system(settings, store, **options)
