"""Scores of one track by every protocol: museval's two, and those beside them.

* BSS Eval v4, framewise, four sources (Stöter et al. 2018, SiSEC 2018).
* BSS Eval v3 as the paper uses it (``bss_eval_sources``, Vincent et al. 2006): the whole track as
  one frame, two sources per instrument, the target and everything else.
* SI-SDR (Le Roux et al. 2019, "SDR - half-baked or well done?") and the plain SDR, over the whole
  track.
* Energy where a score is undefined, because the target or its estimate is silent (Schulze-Forster
  et al. 2019, "Weakly informed audio source separation").

Silent means that every sample is zero, as in museval. Signals are ``(instruments, samples)`` in
the order of :data:`cunet_lib.core.systems.INSTRUMENTS`, mono at the study rate; scores are in dB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from cunet_lib.core.settings import ConfigError, Evaluate
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.preprocess.tracks import ensure_ffmpeg

PROTOCOL = "BSS Eval v4"
SCORE_METRICS = ("SDR", "ISR", "SIR", "SAR")
PROTOCOL_V3 = "BSS Eval v3"
SI_SDR = "SI-SDR"
PLAIN_SDR = "plain SDR"
SILENCE = "energy at silence"
PROTOCOL_METRICS = {
    PROTOCOL: SCORE_METRICS,
    PROTOCOL_V3: ("SDR", "SIR", "SAR"),
    SI_SDR: ("SDR",),
    PLAIN_SDR: ("SDR", "residual SDR", "sum SDR"),
    SILENCE: ("PES", "EPS"),
}
"""Every protocol of the long score table and its metrics."""

WHOLE_TRACK = "whole track"
"""Aggregation of scores that take a track as one frame."""

SCORE_COLUMNS = (
    "model",
    "seed",
    "track",
    "target",
    "metric",
    "protocol",
    "aggregation",
    "value",
    "frames",
    "undefined_frames",
)
"""Columns of the long score table: one row per value. ``frames`` of a track, of which
``undefined_frames`` do not enter the value."""


@dataclass(frozen=True)
class Measure:
    """What a score is: one metric by one protocol, and how frames became one value of a track."""

    metric: str = "SDR"
    protocol: str = PROTOCOL
    aggregation: str = "median over frames"

    def rows(self, scores: pd.DataFrame) -> pd.DataFrame:
        """The rows of the long score table that hold this measure.

        Raises
        ------
        ConfigError
            If there are none.
        """
        facts = asdict(self)
        chosen = scores[(scores[list(facts)] == list(facts.values())).all(axis=1)]
        if chosen.empty:
            raise ConfigError(
                f"The scores hold no {self.metric} of {self.protocol}, {self.aggregation}; "
                "run `make reproduce`."
            )
        return chosen


SDR_V4 = Measure()
"""The study's first protocol: BSS Eval v4, median over 1 s frames."""

SDR_V3 = Measure("SDR", PROTOCOL_V3, WHOLE_TRACK)
"""The paper's protocol: BSS Eval v3 over whole tracks."""

FLOOR = -80.0
"""dB; what :func:`energy_at_silence` gives an estimate that is as silent as its target."""

LIMIT = 100.0
"""dB; a ratio above it is rounding noise, another on each machine, and given as infinite."""

SILENCE_AGGREGATION = "mean over silent frames"

Row = tuple[str, str, str, str, float, int, int]
"""Target, metric, protocol, aggregation, value, frames, undefined frames."""


def as_pcm(signals: np.ndarray) -> np.ndarray:
    """Signals rounded to the steps of 16-bit audio (float64, nothing is clipped).

    Resampling leaves next to nothing near the Nyquist frequency. There the filters of BSS Eval
    are free to take any gain, and do: over the whole signal it multiplies nothing, but in v4 they
    meet signals cut into frames, whose edges hold all frequencies, and framewise ISR, SIR and SAR
    become meaningless (SDR needs no filter). The rounding noise of 16 bits, 98 dB below full
    scale, is enough to hold the filters down, and it is what an audio file has.
    """
    return np.round(np.asarray(signals, float) * 2**15) / 2**15


def framing(evaluate: Evaluate, sample_rate: int) -> tuple[int, int]:
    """Window and hop in samples."""
    window = round(evaluate.window_seconds * sample_rate)
    return window, round(evaluate.hop_seconds * sample_rate)


def frame_slices(samples: int, window: int, hop: int) -> list[slice]:
    """The frames that museval cuts: whole windows, or one of all samples if there are fewer."""
    count = max(0, (samples - window + hop) // hop) or 1
    return [slice(place * hop, min(place * hop + window, samples)) for place in range(count)]


def bss_eval_v4(
    references: np.ndarray, estimates: np.ndarray, *, window: int, hop: int
) -> np.ndarray:
    """BSS Eval v4 by museval, all instruments against each other.

    museval refuses signals that are silent throughout. A silent reference is left out, since it
    cannot interfere with the others; a silent estimate leaves the other estimates' scores as they
    are, since each is scored by itself. Neither has a score: all its frames are undefined.

    Parameters
    ----------
    references, estimates
        ``(instruments, samples)``, with some noise at every frequency (:func:`as_pcm`).
    window, hop
        Samples.

    Returns
    -------
    numpy.ndarray
        ``(metrics, instruments, frames)``, metrics in the order of
        :data:`cunet_lib.evaluation.metrics.SCORE_METRICS`; NaN where undefined.
    """
    ensure_ffmpeg()
    import museval

    frames = len(frame_slices(references.shape[1], window, hop))
    return _heard(
        lambda ours, given: museval.evaluate(ours, given, win=window, hop=hop, mode="v4"),
        references,
        estimates,
        (len(SCORE_METRICS), frames),
    )


def bss_eval_v3(mixture: np.ndarray, references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """The paper's protocol: museval's BSS Eval v3 over the whole track, instrument by instrument.

    Two sources each: the target, and the accompaniment, whose reference is the mixture minus the
    target and whose estimate is the mixture minus the target's estimate. museval's
    ``bss_eval_sources`` (without permutations) lets a filter of 512 taps adapt the references to
    the estimate first, so gain and equalisation of an estimate are not seen. Its ISR is undefined.
    Silence as in :func:`bss_eval_v4`.

    Parameters
    ----------
    mixture
        ``(samples,)``.
    references, estimates
        ``(instruments, samples)``.

    Returns
    -------
    numpy.ndarray
        ``(3, instruments)``: SDR, SIR and SAR of each target; NaN where the target or its estimate
        is silent, infinite above :data:`LIMIT`.
    """
    ensure_ffmpeg()
    from museval.metrics import bss_eval_sources

    mixture = np.asarray(mixture, float)
    values = []
    for target, estimate in zip(
        np.asarray(references, float), np.asarray(estimates, float), strict=True
    ):
        both = _heard(
            lambda ours, given: bss_eval_sources(ours, given, compute_permutation=False)[:3],
            np.stack([target, mixture - target]),
            np.stack([estimate, mixture - estimate]),
            (3, 1),
        )
        values.append(both[:, 0, 0])
    return _limited(np.stack(values, axis=1))


def _heard(
    method: Callable, references: np.ndarray, estimates: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Scores ``(metrics, sources, frames)`` of a museval function, silent sources spared it."""
    heard = references.any(axis=1)
    scored = heard & estimates.any(axis=1)
    # A stand-in keeps museval going where an estimate is silent; its scores are dropped below.
    given = np.where(scored[:, None], estimates, references)[heard]
    values = np.full((shape[0], len(references), shape[1]), np.nan)
    if scored.any():
        values[:, heard] = method(references[heard, :, None], given[..., None])
        values[:, ~scored] = np.nan
    return values


def whole_sdr(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Signal-to-distortion ratio over whole signals, without any filter or projection, in dB.

    Parameters
    ----------
    references, estimates
        ``(..., samples)``.

    Returns
    -------
    numpy.ndarray
        ``(...)``; NaN where the reference is silent, infinite above :data:`LIMIT`.
    """
    references = np.asarray(references, float)
    power = (references**2).sum(axis=-1)
    error = ((references - estimates) ** 2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _limited(np.where(power > 0, 10 * np.log10(power / error), np.nan))


def si_sdr(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Scale-invariant SDR (Le Roux et al. 2019), in dB; means are not removed.

    The reference is scaled to the estimate by least squares: ``alpha = <estimate, reference> /
    |reference|^2``; the score is ``|alpha reference|^2 / |alpha reference - estimate|^2``.

    Parameters
    ----------
    references, estimates
        ``(..., samples)``.

    Returns
    -------
    numpy.ndarray
        ``(...)``; NaN where the reference or the estimate is silent, infinite above :data:`LIMIT`.
    """
    references, estimates = np.asarray(references, float), np.asarray(estimates, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = (references * estimates).sum(axis=-1) / (references**2).sum(axis=-1)
        target = alpha[..., None] * references
        error = ((target - estimates) ** 2).sum(axis=-1)
        return _limited(10 * np.log10((target**2).sum(axis=-1) / error))


def frame_sdr(
    references: np.ndarray, estimates: np.ndarray, *, window: int, hop: int
) -> np.ndarray:
    """SDR of BSS Eval v4 in each frame, without the filters that its other metrics take.

    In v4 the three error terms add up to the estimate minus the reference, whatever the filters
    are, so its SDR is the plain one of each frame. This is for where thousands of frames want no
    other metric; ``bss_eval_v4`` gives the same values.

    Parameters
    ----------
    references, estimates
        ``(instruments, samples)``.
    window, hop
        Samples.

    Returns
    -------
    numpy.ndarray
        ``(instruments, frames)``; NaN where museval defines no score: where an instrument or an
        estimate is silent, those aside that are silent in the whole track.
    """
    heard = references.any(axis=1)
    scored = heard & estimates.any(axis=1)
    given = np.where(scored[:, None], estimates, references)
    slices = frame_slices(references.shape[1], window, hop)
    values = np.full((len(references), len(slices)), np.nan)
    for place, frame in enumerate(slices):
        parts = references[:, frame], given[:, frame]
        if all(part[heard].any(axis=1).all() for part in parts):
            values[scored, place] = whole_sdr(parts[0][scored], parts[1][scored])
    return values


def energy_at_silence(
    mixture: np.ndarray, references: np.ndarray, estimates: np.ndarray, *, window: int, hop: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What is heard where it should not be, and what is missing where there should be something.

    After Schulze-Forster et al. 2019, but relative to the mixture's energy in the same frame, so
    that a song's level does not matter, and not below :data:`FLOOR`. 0 dB: all of the mixture.

    * PES, predicted energy at silence: energy of the estimate in frames where the target is
      silent and the mixture is not.
    * EPS, energy at predicted silence: energy of the target in frames where the estimate is silent
      and the target is not.

    Parameters
    ----------
    mixture
        ``(samples,)``.
    references, estimates
        ``(instruments, samples)``.
    window, hop
        Samples; the frames of BSS Eval v4.

    Returns
    -------
    list of tuple
        PES and EPS of each instrument, each the values of its frames in dB (empty if none).
    """
    slices = frame_slices(len(mixture), window, hop)
    squares = np.concatenate([mixture[None], references, estimates]).astype(float) ** 2
    powers = np.stack([squares[:, frame].sum(axis=1) for frame in slices], axis=1)
    whole, targets, given = powers[0], *np.split(powers[1:], 2)
    sounding = whole > 0
    return [
        (
            _relative(estimate, whole, sounding & (target == 0)),
            _relative(target, whole, sounding & (estimate == 0) & (target > 0)),
        )
        for target, estimate in zip(targets, given, strict=True)
    ]


def _relative(power: np.ndarray, whole: np.ndarray, frames: np.ndarray) -> np.ndarray:
    share = power[frames] / whole[frames]
    return 10 * np.log10(np.maximum(share, 10 ** (FLOOR / 10)))


def _limited(values: np.ndarray) -> np.ndarray:
    return np.where(values > LIMIT, np.inf, values)


def whole_track_rows(
    mixture: np.ndarray, references: np.ndarray, estimates: np.ndarray
) -> list[Row]:
    """Scores that take the track as one frame, per instrument.

    BSS Eval v3 (SDR, SIR, SAR; museval's ISR is undefined in it and has no row), SI-SDR, the plain
    SDR, and the plain SDR of the residual: the mixture minus the estimate against the mixture
    minus the target. Last, for target ``"mixture"``, the plain SDR of the estimates' sum against
    the mixture: how consistent the estimates are.

    Parameters and shapes as in :func:`bss_eval_v3`.
    """
    mixture = np.asarray(mixture, float)
    references, estimates = np.asarray(references, float), np.asarray(estimates, float)
    scores = {
        (metric, PROTOCOL_V3): values
        for metric, values in zip(
            PROTOCOL_METRICS[PROTOCOL_V3],
            bss_eval_v3(mixture, references, estimates),
            strict=True,
        )
    }
    scores["SDR", SI_SDR] = si_sdr(references, estimates)
    scores["SDR", PLAIN_SDR] = whole_sdr(references, estimates)
    scores["residual SDR", PLAIN_SDR] = whole_sdr(mixture - references, mixture - estimates)
    rows = [
        (target, metric, protocol, value)
        for (metric, protocol), values in scores.items()
        for target, value in zip(INSTRUMENTS, values, strict=True)
    ]
    consistency = whole_sdr(mixture, estimates.sum(axis=0))
    rows.append(("mixture", "sum SDR", PLAIN_SDR, consistency))
    return [(*row[:3], WHOLE_TRACK, float(row[3]), 1, int(np.isnan(row[3]))) for row in rows]


def further_rows(
    mixture: np.ndarray,
    references: np.ndarray,
    estimates: np.ndarray,
    *,
    sample_rate: int,
    evaluate: Evaluate,
) -> list[Row]:
    """Everything that is scored beside BSS Eval v4: :func:`whole_track_rows`, then silence.

    In the rows of :func:`energy_at_silence`, ``frames - undefined frames`` is the number of frames
    that their means are of: those with a silent target (PES) or a silent estimate (EPS).

    Parameters
    ----------
    mixture
        ``(samples,)``.
    references, estimates
        ``(instruments, samples)``.
    sample_rate
        Hz.
    evaluate
        Window and hop in seconds.
    """
    rows = whole_track_rows(mixture, references, estimates)
    window, hop = framing(evaluate, sample_rate)
    frames = len(frame_slices(len(mixture), window, hop))
    energies = energy_at_silence(mixture, references, estimates, window=window, hop=hop)
    for target, pair in zip(INSTRUMENTS, energies, strict=True):
        for metric, values in zip(PROTOCOL_METRICS[SILENCE], pair, strict=True):
            mean = float(values.mean()) if len(values) else float("nan")
            facts = (SILENCE_AGGREGATION, mean, frames, frames - len(values))
            rows.append((target, metric, SILENCE, *facts))
    return rows
