"""What the conditions of a trained C-U-Net do: levels, silence, everything, pairs, embeddings.

The paper's point is control. Here z is moved where training seldom or never put it, and the
estimates are measured. Measurements are functions of a separator and of one song's stems
``(5, samples)``, mixture first; :func:`over_songs` collects them. Nothing is chosen by them.

Levels are root mean squares over whole songs; SDR is the plain ratio of
:func:`cunet_lib.evaluation.metrics.whole_sdr`: silence as an estimate scores 0 dB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from cunet_lib.core.processes import progress
from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, VARIANTS
from cunet_lib.evaluation.metrics import whole_sdr
from cunet_lib.models.conditions import PAIRS, all_one_hot, between, faded, label, one_hot, vector
from cunet_lib.preprocess.store import Store
from cunet_lib.separation import separator
from cunet_lib.separation.separator import Separator

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Where faders are measured: the same for every instrument."""

FLOOR_DB = -120.0
"""Levels below it, digital silence too, count as this one: a number has a mean and a place."""

SILENCE, EVERYTHING = "silence", "mixture"


@dataclass(frozen=True)
class Run:
    """A trained C-U-Net and what it was trained with.

    Attributes
    ----------
    name
        Model, and suffix of the run if it has one: ``dense_complex-steady``.
    record
        Content of its ``run.json``.
    network
        The Keras model.
    """

    name: str
    record: dict
    network: keras.Model


def load_run(settings: Profile, model: str, *, seed: int, suffix: str = "") -> Run:
    """A finished training run of a C-U-Net variant.

    Raises
    ------
    ConfigError
        As :func:`cunet_lib.separation.separator.load_run`, or if the model is no variant.
    """
    if model not in VARIANTS:
        raise ConfigError(f"No C-U-Net {model!r}; there are: {', '.join(VARIANTS)}.")
    folder = settings.paths.run(model, seed, suffix)
    if suffix and not (folder / "run.json").is_file():
        raise ConfigError(
            f"No finished training run {folder.name}; "
            f"`make conditions PROFILE={settings.name}` trains it."
        )
    record, network = separator.load_run(settings, model, seed=seed, suffix=suffix)
    return Run(f"{model}-{suffix}" if suffix else model, record, network)


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """What was measured: one row per run with name, model, seed and training (in words)."""
    rows = [
        (
            run.name,
            *(run.record[key] for key in ("model", "seed", "steps", "best_val_loss")),
            describe_training(run.record["settings"]["train"]),
        )
        for run in runs
    ]
    columns = ["name", "model", "seed", "steps", "best_val_loss", "training"]
    return pd.DataFrame(rows, columns=columns)


def describe_training(train: Mapping) -> str:
    """How a run was conditioned, in words, from the ``train`` section of its settings.

    >>> describe_training({"conditions": ["one_hot"], "progressive": 0.25})
    'progressive conditions'
    """
    kinds = list(train["conditions"])
    share = train["progressive"] if "one_hot" in kinds else 0
    text = "progressive conditions" if share else "no progressive conditions"
    return text if kinds == ["one_hot"] else f"{text}, {' + '.join(dict.fromkeys(kinds))}"


# ------------------------------------------------------------------------------ measurements


def over_songs(
    measure: Callable[..., pd.DataFrame],
    store: Store,
    *separators: Mapping[str, Separator],
    label: str,
) -> pd.DataFrame:
    """Measure every run on every test song.

    Parameters
    ----------
    measure
        One of the measurements below, or a function like them: separators and a song's stems
        ``(5, samples)``, mixture first, to a table.
    separators
        By name of the run; as many mappings as ``measure`` takes separators.
    label
        What progress calls the songs, such as ``"faders: tracks measured"``.

    Returns
    -------
    pandas.DataFrame
        Columns model (name of the run) and track, then those of ``measure``.
    """
    entries = store.split("test")
    frames = []
    for entry in progress(entries, label, len(entries)):
        audio = np.array(store.audio(entry))
        for name in separators[0]:
            frame = measure(*(each[name] for each in separators), audio)
            frame.insert(0, "model", name)
            frame.insert(1, "track", entry.name)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def fader(
    separator: Separator, audio: np.ndarray, levels: Sequence[float] = LEVELS
) -> pd.DataFrame:
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
        *sizes, full = _rms(separator(audio[0], faded(instrument, (*levels, 1.0))))
        ratios = [size / full if full else np.nan for size in sizes]
        rows += [(instrument, *row) for row in zip(levels, ratios, strict=True)]
    return pd.DataFrame(rows, columns=["target", "z", "ratio"])


def extremes(separator: Separator, audio: np.ndarray) -> pd.DataFrame:
    """What is left when nothing is asked for, and what is missing when everything is.

    Returns
    -------
    pandas.DataFrame
        One row: silence_db, the level of the estimate at z = 0 in dB relative to the mixture;
        everything_db, the SDR of the estimate at z = (1, 1, 1, 1) with the mixture as reference;
        sum_db, the same of the sum of the four single estimates.
    """
    mixture = audio[0]
    nothing, everything = separator(mixture, np.stack([vector({}), _everything()]))
    added = separator(mixture, all_one_hot()).sum(axis=0)
    values = (level_db(nothing, mixture), _sdr(mixture, everything), _sdr(mixture, added))
    return pd.DataFrame([values], columns=["silence_db", "everything_db", "sum_db"])


def pairs(separator: Separator, audio: np.ndarray) -> pd.DataFrame:
    """Two instruments at once, against the sum of the two single estimates.

    Returns
    -------
    pandas.DataFrame
        One row per pair: condition (such as ``"bass + drums"``), and together_db, summed_db: SDR
        of either estimate with the true sum as reference; difference_db: the first minus the
        second.
    """
    single = dict(zip(INSTRUMENTS, separator(audio[0], all_one_hot()), strict=True))
    conditions = np.stack([vector(dict.fromkeys(pair, 1.0)) for pair in PAIRS])
    rows = []
    for pair, z, together in zip(PAIRS, conditions, separator(audio[0], conditions), strict=True):
        true = z @ audio[1:]
        summed = single[pair[0]] + single[pair[1]]
        rows.append((label(z), _sdr(true, together), _sdr(true, summed)))
    frame = pd.DataFrame(rows, columns=["condition", "together_db", "summed_db"])
    return frame.assign(difference_db=frame["together_db"] - frame["summed_db"])


def without_control(free: Separator, separator: Separator, audio: np.ndarray) -> pd.DataFrame:
    """What the generic model gives uncontrolled, against its own controlled estimates.

    Parameters
    ----------
    free
        Separator of the :func:`uncontrolled` network.
    separator
        Separator of the network itself.
    audio
        ``(5, samples)``, mixture first.

    Returns
    -------
    pandas.DataFrame
        One row per instrument and one for the mixture: target; uncontrolled_db, controlled_db and
        mixture_db, the SDR of the uncontrolled estimate, of the estimate with the target's own
        condition, and of the mixture taken as estimate (not-a-number for itself); and level_db,
        the uncontrolled estimate's level relative to the target's (not-a-number if that is
        silent).
    """
    mixture = audio[0]
    estimate = free(mixture, vector({})[None])[0]
    controlled = separator(mixture, np.concatenate([all_one_hot(), _everything()[None]]))
    references = {**dict(zip(INSTRUMENTS, audio[1:], strict=True)), EVERYTHING: mixture}
    rows = [
        (
            target,
            _sdr(reference, estimate),
            _sdr(reference, own),
            np.nan if target == EVERYTHING else _sdr(reference, mixture),
            level_db(estimate, reference),
        )
        for (target, reference), own in zip(references.items(), controlled, strict=True)
    ]
    columns = ["target", "uncontrolled_db", "controlled_db", "mixture_db", "level_db"]
    return pd.DataFrame(rows, columns=columns)


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


def _everything() -> np.ndarray:
    return np.ones(len(INSTRUMENTS), np.float32)


# ------------------------------------------------------------------------------ networks


def uncontrolled(network: keras.Model) -> keras.Model:
    """The same network without control: every gamma 1, every beta 0, whatever z is.

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


def ways(steps: int = 21) -> pd.DataFrame:
    """Conditions on the ways between the instruments, and from silence to each.

    Returns
    -------
    pandas.DataFrame
        Columns start and end (an instrument or ``"silence"``), share (0 to 1 of the way) and one
        per instrument with its level.
    """
    places = {SILENCE: vector({}), **{name: one_hot(name) for name in INSTRUMENTS}}
    frames = []
    for start, end in (*((SILENCE, name) for name in INSTRUMENTS), *PAIRS):
        frame = pd.DataFrame(between(places[start], places[end], steps), columns=INSTRUMENTS)
        share = np.linspace(0.0, 1.0, steps)
        frames.append(frame.assign(start=start, end=end, share=share))
    return pd.concat(frames, ignore_index=True)


def map_embeddings(runs: Sequence[Run], steps: int = 21) -> pd.DataFrame:
    """Control embeddings of each run on the :func:`ways`, in their two main directions.

    Principal components of all points of the ways, each run by itself.

    Returns
    -------
    pandas.DataFrame
        The columns of :func:`ways`, and model, x, y, and x_share, y_share: the share of the
        embeddings' variance that each direction has.
    """
    frames = []
    for run in runs:
        frame = ways(steps)
        points = embeddings(run.network, frame[list(INSTRUMENTS)].to_numpy())
        components = PCA(2, svd_solver="full")
        frame["x"], frame["y"] = components.fit_transform(points.astype(float)).T
        frame["x_share"], frame["y_share"] = components.explained_variance_ratio_
        frames.append(frame.assign(model=run.name))
    return pd.concat(frames, ignore_index=True)
