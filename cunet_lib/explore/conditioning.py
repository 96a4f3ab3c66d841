"""What the conditions of a trained C-U-Net do: levels, silence, everything, pairs, embeddings.

The paper's point is control. Here the condition vector z is moved where training seldom or never
put it, and the estimates are measured. Measurements are functions of a separator and of one song's
stems ``(5, samples)``, mixture first; :func:`over_songs` collects them. Nothing is chosen by them.

Levels are root mean squares over whole songs; SDR is the plain ratio of
:func:`cunet_lib.evaluation.evaluate.whole_sdr`, without BSS Eval's filters: silence as an estimate scores 0 dB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd

from cunet_lib.core.processes import progress
from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS, VARIANTS
from cunet_lib.evaluation.metrics import whole_sdr
from cunet_lib.models.conditions import PAIRS, all_one_hot, between, faded, label, one_hot, vector
from cunet_lib.models.unet import load
from cunet_lib.preprocess.store import Store
from cunet_lib.separation.separator import Separator

STEADY = "steady"
"""Suffix of the run that was trained without progressive conditions."""

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Where faders are measured: the same for every instrument."""

FLOOR_DB = -120.0
"""Levels below it, digital silence too, count as this one: a number has a mean and a place."""

SILENCE = "silence"
EVERYTHING = "mixture"


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
    """A finished training run.

    Parameters
    ----------
    model
        A C-U-Net variant.
    seed
        Of the run.
    suffix
        Of the run's folder: a run with other settings, beside the study's own.

    Raises
    ------
    ConfigError
        If the model is no C-U-Net, has not been trained yet, had other signal settings, or its
        record is damaged.
    """
    if model not in VARIANTS:
        raise ConfigError(f"No C-U-Net {model!r}; there are: {', '.join(VARIANTS)}.")
    folder = settings.paths.run(model, seed, suffix)
    path = folder / "run.json"
    if not path.is_file():
        raise ConfigError(
            f"No finished training run {folder.name}; "
            f"`make {'conditions' if suffix else 'reproduce'} PROFILE={settings.name}` trains it."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        trained = record["settings"]["signal"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} is damaged; delete the folder and run `make reproduce` again."
        ) from error
    if trained != settings.signal.model_dump(mode="json"):
        raise ConfigError(
            f"The run {folder.name} was trained with the signal settings {trained}; "
            "measure with the same."
        )
    name = f"{model}-{suffix}" if suffix else model
    return Run(name, record, load(folder / "model.keras"))


def run_table(runs: Sequence[Run]) -> pd.DataFrame:
    """What was measured, for tables and figures.

    Returns
    -------
    pandas.DataFrame
        One row per run: name, model, seed, training (in words), steps, best_val_loss.
    """
    rows = [
        {
            "name": run.name,
            "model": run.record["model"],
            "seed": run.record["seed"],
            "training": describe_training(run.record["settings"]["train"]),
            "steps": run.record["steps"],
            "best_val_loss": run.record["best_val_loss"],
        }
        for run in runs
    ]
    return pd.DataFrame(rows)


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

    Raises
    ------
    ConfigError
        If the store has no test songs.
    """
    entries = store.split("test")
    if not entries:
        raise ConfigError(f"The store {store.folder} has no test tracks.")
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
        estimates = separator(audio[0], faded(instrument, (*levels, 1.0)))
        *sizes, full = _rms(estimates)
        rows += [
            (instrument, level, size / full if full else np.nan)
            for level, size in zip(levels, sizes, strict=True)
        ]
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
    return pd.DataFrame(
        {
            "silence_db": [level_db(nothing, mixture)],
            "everything_db": [_sdr(mixture, everything)],
            "sum_db": [_sdr(mixture, added)],
        }
    )


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
    conditions = [vector({first: 1.0, second: 1.0}) for first, second in PAIRS]
    rows = []
    for (first, second), z, together in zip(
        PAIRS, conditions, separator(audio[0], np.stack(conditions)), strict=True
    ):
        true = audio[1 + INSTRUMENTS.index(first)] + audio[1 + INSTRUMENTS.index(second)]
        rows.append((label(z), _sdr(true, together), _sdr(true, single[first] + single[second])))
    frame = pd.DataFrame(rows, columns=["condition", "together_db", "summed_db"])
    frame["difference_db"] = frame["together_db"] - frame["summed_db"]
    return frame


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
    rows = []
    for place, target in enumerate((*INSTRUMENTS, EVERYTHING)):
        reference = mixture if target == EVERYTHING else audio[1 + place]
        rows.append(
            (
                target,
                _sdr(reference, estimate),
                _sdr(reference, controlled[place]),
                np.nan if target == EVERYTHING else _sdr(reference, mixture),
                level_db(estimate, reference),
            )
        )
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

    Parameters
    ----------
    z
        ``(conditions, instruments)``.

    Returns
    -------
    numpy.ndarray
        ``(conditions, units)`` float32.
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
        frame.insert(0, "start", start)
        frame.insert(1, "end", end)
        frame.insert(2, "share", np.linspace(0.0, 1.0, steps))
        frames.append(frame)
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
        points, shares = principal_components(
            embeddings(run.network, frame[list(INSTRUMENTS)].to_numpy())
        )
        frame.insert(0, "model", run.name)
        frame["x"], frame["y"] = points.T
        frame["x_share"], frame["y_share"] = shares
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def principal_components(points: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal component analysis by singular values.

    Signs are fixed: in each component the loading of largest magnitude is positive.

    Parameters
    ----------
    points
        ``(points, dimensions)``.
    count
        Components to keep.

    Returns
    -------
    coordinates : numpy.ndarray
        ``(points, count)``.
    shares : numpy.ndarray
        ``(count,)``, share of the variance; 0 where there is none.
    """
    centred = np.asarray(points, float) - np.mean(points, axis=0, dtype=float)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    shares = sizes**2 / max((sizes**2).sum(), np.finfo(float).tiny)
    return centred @ directions[:count].T, shares[:count]
