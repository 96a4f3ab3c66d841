"""What a score is: every metric of the study, and how a track is scored by it.

A metric is one function and one entry of :data:`METRICS`; the rows of the score table, the tables
and their captions follow. The function takes the mixture ``(samples,)``, references and estimates
``(instruments, samples)`` in the order of :data:`cunet_lib.core.systems.INSTRUMENTS`, all mono
float64 at the study rate, and the settings. Its values are in the order of ``(metrics, targets,
frames)``, a whole track being one frame, and NaN where a score is undefined. Silent means that
every sample is zero, as in museval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.signal.audio import ensure_ffmpeg

PROTOCOL = "BSS Eval v4"
PROTOCOL_V3 = "BSS Eval v3"
SI_SDR = "SI-SDR"
PLAIN_SDR = "plain SDR"
SILENCE = "energy at silence"

MEDIAN = "median over frames"
WHOLE_TRACK = "whole track"
SILENT_FRAMES = "mean over silent frames"

MIXTURE = "mixture"
"""Target of scores that hold the sum of the estimates against the mixture."""

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
class Metrics:
    """What one function scores.

    Attributes
    ----------
    protocol
        As the score tables name it.
    headings
        Metric to its heading in tables, in the order of the values.
    score
        From mixture, references, estimates and settings to values.
    aggregation
        How the frames of a track become one value; a whole track is one frame.
    targets
        Instruments, or :data:`MIXTURE`.
    further
        Whether it stands in the table of further scores; those that have tables of their own do
        not.
    """

    protocol: str
    headings: dict[str, str]
    score: Callable[[np.ndarray, np.ndarray, np.ndarray, Profile], np.ndarray]
    aggregation: str = WHOLE_TRACK
    targets: tuple[str, ...] = INSTRUMENTS
    further: bool = True

    @property
    def measures(self) -> list[Measure]:
        """What it scores, in the order of the values."""
        return [Measure(metric, self.protocol, self.aggregation) for metric in self.headings]


@dataclass(frozen=True)
class Measure:
    """What a score is: one metric by one protocol, and how frames became one value of a track."""

    metric: str = "SDR"
    protocol: str = PROTOCOL
    aggregation: str = MEDIAN

    @property
    def entry(self) -> Metrics:
        """The entry of :data:`METRICS` that it comes from."""
        return next(
            each
            for each in METRICS
            if each.protocol == self.protocol and self.metric in each.headings
        )

    @property
    def heading(self) -> str:
        """How tables head it, such as ``"SDR v4"``."""
        return self.entry.headings[self.metric]

    @property
    def column(self) -> str:
        """How columns of CSV files start, such as ``"sdr_v4"``."""
        return self.heading.lower().replace(" ", "_").replace("-", "_")

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


def track_rows(
    mixture: np.ndarray,
    references: np.ndarray,
    estimates: np.ndarray,
    settings: Profile,
    *,
    metrics: Sequence[Metrics] | None = None,
) -> pd.DataFrame:
    """Every score of one track.

    Parameters
    ----------
    mixture
        ``(samples,)``; it and the others with some noise at every frequency (:func:`as_pcm`).
    references, estimates
        ``(instruments, samples)``.
    metrics
        :data:`METRICS` if not given.

    Returns
    -------
    pandas.DataFrame
        The columns of :data:`SCORE_COLUMNS` from ``target`` on; rows by protocol, target and
        metric. Frames without a score are left out of the value, which is NaN where no frame has
        one.
    """
    signals = (np.asarray(each, float) for each in (mixture, references, estimates))
    mixture, references, estimates = signals
    rows = []
    for entry in METRICS if metrics is None else metrics:
        values = entry.score(mixture, references, estimates, settings)
        values = np.asarray(values, float).reshape(len(entry.headings), len(entry.targets), -1)
        how, average = entry.aggregation, np.median if entry.aggregation == MEDIAN else np.mean
        for place, target in enumerate(entry.targets):
            for metric, frames in zip(entry.headings, values[:, place], strict=True):
                defined = frames[~np.isnan(frames)]
                counts = len(frames), len(frames) - len(defined)
                value = float(average(defined)) if len(defined) else float("nan")
                rows.append((target, metric, entry.protocol, how, value, *counts))
    return pd.DataFrame(rows, columns=SCORE_COLUMNS[3:])


def as_pcm(signals: np.ndarray) -> np.ndarray:
    """Signals rounded to the steps of 16-bit audio (float64, nothing is clipped).

    Resampling leaves next to nothing near the Nyquist frequency. There BSS Eval's filters are free
    to take any gain: in v4 they meet signals cut into frames, whose edges hold all frequencies, and
    framewise ISR, SIR and SAR become meaningless (SDR needs no filter). The rounding noise of 16
    bits, 98 dB below full scale, holds the filters down, and it is what an audio file has.
    """
    return np.round(np.asarray(signals, float) * 2**15) / 2**15


def _framing(settings: Profile) -> tuple[int, int]:
    """Window and hop of BSS Eval v4 in samples."""
    evaluate, rate = settings.evaluate, settings.signal.sample_rate
    return round(evaluate.window_seconds * rate), round(evaluate.hop_seconds * rate)


def frame_slices(samples: int, settings: Profile) -> list[slice]:
    """The frames that museval cuts: whole windows, or one of all samples if there are fewer."""
    window, hop = _framing(settings)
    count = max(0, (samples - window + hop) // hop) or 1
    return [slice(place * hop, min(place * hop + window, samples)) for place in range(count)]


def bss_eval_v4(
    mixture: np.ndarray, references: np.ndarray, estimates: np.ndarray, settings: Profile
) -> np.ndarray:
    """BSS Eval v4 by museval, all instruments against each other (Stöter et al. 2018, SiSEC 2018).

    museval refuses signals that are silent throughout. A silent reference is left out, since it
    cannot interfere with the others; a silent estimate leaves the other estimates' scores as they
    are, since each is scored by itself. Neither has a score: all its frames are undefined.

    Returns
    -------
    numpy.ndarray
        SDR, ISR, SIR and SAR ``(4, instruments, frames)`` in dB, to five decimals as museval's own
        files have them; NaN where undefined or infinite.
    """
    ensure_ffmpeg()
    import museval

    window, hop = _framing(settings)
    values = _heard(
        lambda ours, given: museval.evaluate(ours, given, win=window, hop=hop, mode="v4"),
        references,
        estimates,
        (4, len(frame_slices(len(mixture), settings))),
    )
    values = np.where(np.isfinite(values), values, np.nan)
    return np.array([round(value, 5) for value in values.ravel().tolist()]).reshape(values.shape)


def bss_eval_v3(
    mixture: np.ndarray, references: np.ndarray, estimates: np.ndarray, settings: Profile
) -> np.ndarray:
    """The paper's protocol: museval's BSS Eval v3 over the whole track, instrument by instrument.

    Two sources each (Vincent et al. 2006): the target, and the accompaniment, whose reference is
    the mixture minus the target and whose estimate is the mixture minus the target's estimate.
    museval's ``bss_eval_sources`` (without permutations) lets a filter of 512 taps adapt the
    references to the estimate first, so gain and equalisation of an estimate are not seen. Its ISR
    is undefined. Silence as in :func:`bss_eval_v4`.

    Returns
    -------
    numpy.ndarray
        SDR, SIR and SAR ``(3, instruments)`` in dB; NaN where the target or its estimate is
        silent, infinite above :data:`LIMIT`.
    """
    ensure_ffmpeg()
    from museval.metrics import bss_eval_sources

    values = [
        _heard(
            lambda ours, given: bss_eval_sources(ours, given, compute_permutation=False)[:3],
            np.stack([target, mixture - target]),
            np.stack([estimate, mixture - estimate]),
            (3, 1),
        )[:, 0, 0]
        for target, estimate in zip(references, estimates, strict=True)
    ]
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

    References and estimates ``(..., samples)`` give ``(...)``: NaN where the reference is silent,
    infinite above :data:`LIMIT`.
    """
    references = np.asarray(references, float)
    power = (references**2).sum(axis=-1)
    error = ((references - estimates) ** 2).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _limited(np.where(power > 0, 10 * np.log10(power / error), np.nan))


def si_sdr(references: np.ndarray, estimates: np.ndarray) -> np.ndarray:
    """Scale-invariant SDR (Le Roux et al. 2019), in dB; means are not removed.

    The reference is scaled to the estimate by least squares: ``alpha = <estimate, reference> /
    |reference|^2``; the score is ``|alpha reference|^2 / |alpha reference - estimate|^2``. Shapes
    as in :func:`whole_sdr`; NaN where the estimate is silent, too.
    """
    references, estimates = np.asarray(references, float), np.asarray(estimates, float)
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = (references * estimates).sum(axis=-1) / (references**2).sum(axis=-1)
        target = alpha[..., None] * references
        error = ((target - estimates) ** 2).sum(axis=-1)
        return _limited(10 * np.log10((target**2).sum(axis=-1) / error))


def frame_sdr(
    mixture: np.ndarray, references: np.ndarray, estimates: np.ndarray, settings: Profile
) -> np.ndarray:
    """SDR of BSS Eval v4 in each frame, without the filters that its other metrics take.

    In v4 the three error terms add up to the estimate minus the reference, whatever the filters
    are, so its SDR is the plain one of each frame: the values of :func:`bss_eval_v4`, unrounded.

    Returns
    -------
    numpy.ndarray
        ``(instruments, frames)`` in dB; NaN where museval defines no score: where an instrument or
        an estimate is silent, those aside that are silent in the whole track.
    """
    slices = frame_slices(len(mixture), settings)

    def sdr(*signals: np.ndarray) -> np.ndarray:
        frames = [[each[:, frame, 0] for each in signals] for frame in slices]
        sound = [all(part.any(axis=1).all() for part in frame) for frame in frames]
        return np.where(sound, np.stack([whole_sdr(*frame) for frame in frames], axis=1), np.nan)

    values = _heard(sdr, references, estimates, (1, len(slices)))[0]
    return np.where(np.isfinite(values), values, np.nan)


def energy_at_silence(
    mixture: np.ndarray, references: np.ndarray, estimates: np.ndarray, settings: Profile
) -> np.ndarray:
    """What is heard where it should not be, and what is missing where there should be something.

    After Schulze-Forster et al. 2019 ("Weakly informed audio source separation"), but relative to
    the mixture's energy in the same frame, so that a song's level does not matter, and not below
    :data:`FLOOR`. 0 dB: all of the mixture.

    * PES, predicted energy at silence: energy of the estimate in frames where the target is
      silent and the mixture is not.
    * EPS, energy at predicted silence: energy of the target in frames where the estimate is silent
      and the target is not.

    Returns
    -------
    numpy.ndarray
        PES and EPS ``(2, instruments, frames)`` in dB; NaN in all other frames.
    """
    slices = frame_slices(len(mixture), settings)
    squares = np.concatenate([mixture[None], references, estimates]) ** 2
    powers = np.stack([squares[:, frame].sum(axis=1) for frame in slices], axis=1)
    whole, targets, given = powers[0], *np.split(powers[1:], 2)
    predicted = (whole > 0) & (targets == 0)
    missed = (whole > 0) & (given == 0) & (targets > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.maximum(np.stack([given, targets]) / whole, 10 ** (FLOOR / 10))
    return np.where([predicted, missed], 10 * np.log10(shares), np.nan)


def _limited(values: np.ndarray) -> np.ndarray:
    return np.where(values > LIMIT, np.inf, values)


METRICS = (
    Metrics(
        PROTOCOL,
        {"SDR": "SDR v4", "ISR": "ISR v4", "SIR": "SIR v4", "SAR": "SAR v4"},
        bss_eval_v4,
        aggregation=MEDIAN,
        further=False,
    ),
    Metrics(
        PROTOCOL_V3, {"SDR": "SDR v3", "SIR": "SIR v3", "SAR": "SAR v3"}, bss_eval_v3, further=False
    ),
    Metrics(
        SI_SDR,
        {"SDR": "SI-SDR"},
        lambda mixture, references, estimates, _: si_sdr(references, estimates),
    ),
    Metrics(
        PLAIN_SDR,
        {"SDR": "Plain SDR"},
        lambda mixture, references, estimates, _: whole_sdr(references, estimates),
    ),
    # The accompaniment of each target: what is left when the target is taken out.
    Metrics(
        PLAIN_SDR,
        {"residual SDR": "Residual SDR"},
        lambda mixture, references, estimates, _: whole_sdr(
            mixture - references, mixture - estimates
        ),
    ),
    # All estimates together against the mixture: are they consistent?
    Metrics(
        PLAIN_SDR,
        {"sum SDR": "Sum SDR"},
        lambda mixture, references, estimates, _: whole_sdr(mixture, estimates.sum(axis=0)),
        targets=(MIXTURE,),
    ),
    Metrics(
        SILENCE,
        {"PES": "Predicted energy", "EPS": "Missed energy"},
        energy_at_silence,
        aggregation=SILENT_FRAMES,
        further=False,
    ),
)
"""Every metric of the study, in the order of the score table."""

FURTHER = [measure for entry in METRICS if entry.further for measure in entry.measures]
"""What the table of further scores shows."""
