"""What the conditions of a trained C-U-Net do: levels, silence, everything, pairs, embeddings.

The paper's point is control. Here z is moved where training seldom or never put it, and the
estimates are measured. A measurement is a function of a :class:`Run` and of one song's stems
``(5, samples)``, mixture first, and an entry of :data:`MEASUREMENTS`; the notebook's table and
figure follow from the entry. Nothing is chosen by them.

Levels are root mean squares over whole songs; SDR is the plain ratio of
:func:`cunet_lib.evaluation.metrics.whole_sdr`: silence as an estimate scores 0 dB.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
import scipy.fft
from sklearn.decomposition import PCA

from cunet_lib.core.processes import progress
from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, VARIANTS, Variant
from cunet_lib.evaluation.metrics import whole_sdr
from cunet_lib.models.conditions import PAIRS, all_one_hot, label, one_hot, vector
from cunet_lib.preprocess.store import Store
from cunet_lib.preprocess.tracks import Originals
from cunet_lib.separation.catalog import describe
from cunet_lib.separation.separator import Separator, load_run
from cunet_lib.separation.songs import separate
from cunet_lib.separation.stream import SongSeparator
from cunet_lib.signal.bands import RATE

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Where faders are measured: the same for every instrument."""

FLOOR_DB = -120.0
"""Levels below it, digital silence too, count as this one: a number has a mean and a place."""

SILENCE, EVERYTHING = vector({}), np.ones(len(INSTRUMENTS), np.float32)


class Run:
    """A finished training run of a C-U-Net.

    Parameters and errors are those of :func:`cunet_lib.separation.separator.load_run`.

    Attributes
    ----------
    name, record
        Model, and content of its ``run.json``.
    training
        How it was conditioned, in words.
    network, separator
        The Keras model, and the same ready to separate.
    """

    def __init__(self, settings: Profile, model: str, *, seed: int):
        if not (settings.paths.run(model, seed) / "run.json").is_file():
            raise ConfigError(
                f"No finished training run {model}-seed{seed}; "
                f"`make reproduce PROFILE={settings.name}` trains those of the study, `make "
                f"conditions PROFILE={settings.name}` what it is compared with."
            )
        self.record, self.network = load_run(settings, model, seed=seed)
        self.name = model
        self.training = describe_training(self.record["settings"]["train"], VARIANTS[model])
        self.separator = Separator(self.network, settings.signal, settings.separate)
        self._shipped = settings.paths.models / f"{model}.keras"

    @functools.cached_property
    def shipped(self) -> SongSeparator:
        """The model as it ships, ready to separate songs at their own rate."""
        return SongSeparator(describe(self._shipped))

    @functools.cached_property
    def uncontrolled(self) -> Separator:
        """The same network without control (:func:`uncontrolled`), ready to separate."""
        return Separator(uncontrolled(self.network), self.separator.signal, self.separator.separate)

    def about(self, frame: pd.DataFrame, **columns: object) -> pd.DataFrame:
        """The frame, with the columns model (name of the run), training and seed before it."""
        columns |= {"model": self.name, "training": self.training, "seed": self.record["seed"]}
        return pd.concat([pd.DataFrame(columns, index=frame.index), frame], axis=1)


def describe_training(train: Mapping, variant: Variant) -> str:
    """How a run was conditioned, in words, from the ``train`` section of its settings."""
    kinds = list(dict.fromkeys(train["conditions"]))
    progressive = "one_hot" in kinds and train["progressive"] and variant.progressive
    text = "progressive conditions" if progressive else "no progressive conditions"
    return text if kinds == ["one_hot"] else f"{text}, {' + '.join(kinds)}"


# ------------------------------------------------------------------------------ measurements


def fader(run: Run, audio: np.ndarray) -> pd.DataFrame:
    """Level of each instrument's estimate against the level that z asks for.

    The ideal is a straight line: ``ratio`` equal to ``z``.

    Returns
    -------
    pandas.DataFrame
        One row per instrument and level: target, z, and ratio, the estimate's root mean square
        relative to that at z = 1; not-a-number where that one is silent.
    """
    rows = []
    for instrument in INSTRUMENTS:
        sizes = _rms(run.separator(audio[0], np.outer(LEVELS, one_hot(instrument))))
        ratios = sizes / sizes[-1] if sizes[-1] else np.full(len(sizes), np.nan)
        rows += [(instrument, *row) for row in zip(LEVELS, ratios, strict=True)]
    return pd.DataFrame(rows, columns=["target", "z", "ratio"])


def extremes(run: Run, audio: np.ndarray) -> pd.DataFrame:
    """What is left when nothing is asked for, and what is missing when everything is.

    Returns
    -------
    pandas.DataFrame
        One row: everything_db, the SDR of the estimate at z = (1, 1, 1, 1) with the mixture as
        reference; sum_db, the same of the sum of the four single estimates; silence_db, the level
        of the estimate at z = 0 in dB relative to the mixture.
    """
    mixture = audio[0]
    conditions = np.stack([SILENCE, EVERYTHING, *all_one_hot()])
    nothing, everything, *single = run.separator(mixture, conditions)
    values = _sdr(mixture, everything), _sdr(mixture, sum(single)), level_db(nothing, mixture)
    return pd.DataFrame([values], columns=["everything_db", "sum_db", "silence_db"])


def pairs(run: Run, audio: np.ndarray) -> pd.DataFrame:
    """Two instruments at once, against the sum of the two single estimates.

    Returns
    -------
    pandas.DataFrame
        One row per pair: condition (such as ``"bass + drums"``), and together_db, summed_db: SDR
        of either estimate with the true sum as reference; difference_db: the first minus the
        second.
    """
    single = run.separator(audio[0], all_one_hot())
    conditions = np.stack([vector(dict.fromkeys(pair, 1.0)) for pair in PAIRS])
    rows = [
        (label(z), _sdr(z @ audio[1:], together), _sdr(z @ audio[1:], z @ single))
        for z, together in zip(conditions, run.separator(audio[0], conditions), strict=True)
    ]
    frame = pd.DataFrame(rows, columns=["condition", "together_db", "summed_db"])
    return frame.assign(difference_db=frame["together_db"] - frame["summed_db"])


def without_control(run: Run, audio: np.ndarray) -> pd.DataFrame:
    """What the generic model gives uncontrolled, against its own controlled estimates.

    Returns
    -------
    pandas.DataFrame
        One row per instrument and one for the mixture: target; controlled_db, uncontrolled_db and
        mixture_db, the SDR of the estimate with the target's own condition, of the uncontrolled
        estimate, and of the mixture taken as estimate (not-a-number for itself); and level_db,
        the uncontrolled estimate's level relative to the target's (not-a-number if that is
        silent).
    """
    mixture = audio[0]
    # Whichever instrument is asked for: its estimate is the same.
    (estimate,) = run.uncontrolled(mixture, all_one_hot()[:1])
    controlled = run.separator(mixture, np.stack([*all_one_hot(), EVERYTHING]))
    rows = [
        (
            target,
            _sdr(reference, own),
            _sdr(reference, estimate),
            np.nan if target == "mixture" else _sdr(reference, mixture),
            level_db(estimate, reference),
        )
        for target, reference, own in zip(
            (*INSTRUMENTS, "mixture"), (*audio[1:], mixture), controlled, strict=True
        )
    ]
    columns = ["target", "controlled_db", "uncontrolled_db", "mixture_db", "level_db"]
    return pd.DataFrame(rows, columns=columns)


@dataclass(frozen=True)
class Measurement:
    """One thing to measure, and what its table and figure say.

    Attributes
    ----------
    measure
        Gives a table of one run and one song.
    keys
        Its columns that name what a row is about.
    columns
        Its other columns, each with what it holds, in words.
    shown
        The beginning of its caption.
    headline
        Title of the figure. ``wins``, of the ``cases`` of all runs, are those in which the median
        of the first column is above that of the second.
    drawn
        How many of the columns the figure has.
    across
        The key along which a value changes: columns of the table, a line in the figure.
    """

    measure: Callable[[Run, np.ndarray], pd.DataFrame]
    keys: tuple[str, ...]
    columns: Mapping[str, str]
    shown: str
    headline: str = ""
    drawn: int = 3
    across: str = ""


MEASUREMENTS = {
    "level": Measurement(
        fader,
        ("target", "z"),
        {"ratio": "level relative to z = 1"},
        "level of the estimate (root mean square over a song) relative to its level at z = 1, "
        "while one instrument is faded and the others stay at 0",
        across="z",
    ),
    "extremes": Measurement(
        extremes,
        (),
        {
            "everything_db": "SDR at z = 1, 1, 1, 1",
            "sum_db": "SDR of the four estimates' sum",
            "silence_db": "level at z = 0",
        },
        "SDR with the mixture as reference, and level at z = 0 relative to the mixture (silence "
        "is wanted)",
        "z = 1, 1, 1, 1 comes nearer to the mixture than the sum of four estimates in {wins} of "
        "{cases} networks",
    ),
    "pairs": Measurement(
        pairs,
        ("condition",),
        {
            "together_db": "both at once",
            "summed_db": "sum of two estimates",
            "difference_db": "difference",
        },
        "SDR with the sum of two stems as reference",
        "Asking for two at once beats the sum of two estimates in {wins} of {cases} cases",
        drawn=2,
    ),
    "uncontrolled": Measurement(
        without_control,
        ("target",),
        {
            "controlled_db": "controlled (own z)",
            "uncontrolled_db": "uncontrolled",
            "mixture_db": "mixture as estimate",
            "level_db": "level, uncontrolled",
        },
        "SDR with each instrument and the mixture as reference, and the uncontrolled estimate's "
        "level relative to it; uncontrolled is gamma 1, beta 0",
        "With control, SDR is higher than without it in {wins} of {cases} cases",
    ),
}
"""What is measured, by the name of its table and figure."""


def measured(name: str, store: Store, runs: Sequence[Run]) -> pd.DataFrame:
    """One of the :data:`MEASUREMENTS`, of every run on every test song.

    Returns
    -------
    pandas.DataFrame
        Columns track, model (name of the run), training and seed, then those of the measurement.
    """
    entries = store.split("test")
    frames = []
    for entry in progress(entries, f"{name}: tracks measured", len(entries)):
        audio = np.array(store.audio(entry))
        frames += [
            run.about(MEASUREMENTS[name].measure(run, audio), track=entry.name) for run in runs
        ]
    return pd.concat(frames, ignore_index=True)


def highs(run: Run, originals: Originals) -> pd.DataFrame:
    """SDR, over all channels of test songs, of what lies above the frequencies that a run hears.

    Parameters
    ----------
    originals
        At :data:`cunet_lib.signal.bands.RATE`.

    Returns
    -------
    pandas.DataFrame
        One row per track and instrument: track, model, training, seed; target and highs_db.
    """
    entries, frames = originals.split("test"), []
    for entry in progress(entries, "highs: tracks measured", len(entries)):
        mixture, *stems = originals.audio(entry)
        estimates = [*separate(mixture, RATE, model=run.shipped).values()]
        low = scipy.fft.rfftfreq(len(mixture), 1 / RATE) <= run.separator.signal.sample_rate / 2
        parts = []
        for sounds in (stems, estimates):
            spectra = scipy.fft.rfft(np.stack(sounds), axis=1)
            spectra[:, low] = 0
            parts.append(scipy.fft.irfft(spectra, len(mixture), axis=1).reshape(len(sounds), -1))
        scores = pd.DataFrame({"target": INSTRUMENTS, "highs_db": whole_sdr(*parts)})
        frames.append(run.about(scores, track=entry.name))
    return pd.concat(frames, ignore_index=True)


def level_db(signal: np.ndarray, reference: np.ndarray) -> float:
    """Level of a signal relative to a reference, in dB, at least :data:`FLOOR_DB`.

    Not-a-number if the reference is silent.
    """
    size, full = _rms(signal), _rms(reference)
    if not full:
        return np.nan
    return float(20 * np.log10(max(size / full, 10 ** (FLOOR_DB / 20))))


def _rms(audio: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(np.square(audio, dtype=float), axis=-1))


def _sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    return float(whole_sdr(reference[None], estimate[None])[0])


# ------------------------------------------------------------------------------ networks


def uncontrolled(network: keras.Model) -> keras.Model:
    """The same network without control: every gamma 1, every beta 0, whatever is asked for.

    A copy; its U-Net has the same weights, its control network ends in constants.
    """
    free = keras.models.clone_model(network)
    free.set_weights(network.get_weights())
    control = free.get_layer("control")
    for name, value in (("gammas", 1.0), ("betas", 0.0)):
        kernel, bias = control.get_layer(name).get_weights()
        control.get_layer(name).set_weights([np.zeros_like(kernel), np.full_like(bias, value)])
    return free


def embeddings(network: keras.Model, z: np.ndarray) -> np.ndarray:
    """Last hidden layer of the control network: what gammas and betas are linear functions of.

    ``(conditions, units)`` float32, of conditions ``(conditions, instruments)``.
    """
    control = network.get_layer("control")
    hidden = keras.Model(control.inputs[0], control.get_layer("gammas").input)
    return keras.ops.convert_to_numpy(hidden(np.asarray(z, np.float32), training=False))


def map_embeddings(runs: Sequence[Run], steps: int = 21) -> pd.DataFrame:
    """Control embeddings on the ways from silence to each instrument and between instruments.

    Returns
    -------
    pandas.DataFrame
        Columns model, training and seed of the run; start and end (an instrument or
        ``"silence"``), share (0 to 1 of the way) and one per instrument with its level; x, y, the
        embedding's two principal components over all points of the run; x_share, y_share, the
        shares of the variance that these have.
    """
    places = {"silence": SILENCE, **{name: one_hot(name) for name in INSTRUMENTS}}
    ways = []
    for start, end in (*(("silence", name) for name in INSTRUMENTS), *PAIRS):
        points = np.linspace(places[start], places[end], steps)
        way = pd.DataFrame(points, columns=INSTRUMENTS)
        ways.append(way.assign(start=start, end=end, share=np.linspace(0.0, 1.0, steps)))
    ways = pd.concat(ways, ignore_index=True)
    frames = []
    for run in runs:
        points = embeddings(run.network, ways[list(INSTRUMENTS)].to_numpy())
        components = PCA(2, svd_solver="full")
        x, y = components.fit_transform(points.astype(float)).T
        x_share, y_share = components.explained_variance_ratio_
        frames.append(run.about(ways.assign(x=x, y=y, x_share=x_share, y_share=y_share)))
    return pd.concat(frames, ignore_index=True)
