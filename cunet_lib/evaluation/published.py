"""Published scores on MUSDB18, and which of them may stand beside the study's own.

``published_scores.csv``, beside this module, holds one row per system, metric and target, with the
protocol and the source as found there. Scores of different protocols differ by several dB for the
same estimates, so a row stands in one table with ours only if everything in its :class:`Protocol`
equals ours: evaluation, aggregation, sources, sample rate, channels and data. All others are listed
in a table of their own, ``published``, each with its protocol spelled out. Rendered corpora never
show any of them.

To add figures, the paper's own tables for example, add rows to the file; nothing else. The words of
the column ``protocol`` decide: those that are a key of :data:`PROTOCOLS` are compared with ours,
others are taken as unequal. For the paper (whole-track BSS Eval v3 of the target and the
accompaniment) they are the first key:

    bss_eval_sources v3, whole track, 2 sources (target, accompaniment), 8192 Hz mono, MUSDB18 test
    tracks

in one line and with quotation marks around it, since it holds commas. ``target`` is an instrument
by its name here (the paper's "rest" is ``other``), or ``overall``.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.metrics import SCORE_METRICS, Measure

PATH = Path(__file__).with_name("published_scores.csv")

COLUMNS = (
    "system",
    "study",
    "metric",
    "target",
    "mean_db",
    "std_db",
    "median_db",
    "protocol",
    "source",
)
OVERALL = "overall"
"""Target of figures over all instruments."""


@dataclass(frozen=True)
class Protocol:
    """What must be equal for scores to share a table.

    Attributes
    ----------
    evaluation
        Such as ``"BSS Eval v4"``, as the score tables name it.
    aggregation
        Within a track: ``"whole track"``, or over frames of a length in seconds.
    frame_seconds
        Length and hop of those frames; None for whole tracks.
    sources
        What was evaluated together, which decides what counts as interference.
    sample_rate
        Hz.
    channels
        ``"mono"`` or ``"stereo"``.
    data
        The tracks scored.
    """

    evaluation: str
    aggregation: str
    frame_seconds: tuple[float, float] | None
    sources: str
    sample_rate: int
    channels: str
    data: str = "MUSDB18 test tracks"


FOUR = "bass, drums, other, vocals"
TWO = "target, accompaniment"

PROTOCOLS = {
    "bss_eval_sources v3, whole track, 2 sources (target, accompaniment), 8192 Hz mono, "
    "MUSDB18 test tracks": Protocol("BSS Eval v3", "whole track", None, TWO, 8192, "mono"),
    "bss_eval_sources v3, whole track, 4 sources, 10880 Hz mono, over MUSDB18 test tracks": (
        Protocol("BSS Eval v3", "whole track", None, FOUR, 10880, "mono")
    ),
    "museval BSSEval v4, median over 1 s frames then median over MUSDB18 test tracks, "
    "44.1 kHz stereo": Protocol(
        "BSS Eval v4", "median over frames", (1.0, 1.0), FOUR, 44100, "stereo"
    ),
}
"""What the words of the file's column ``protocol`` say. Words that leave something open, the rate
for instance, are not here: what is not known to be equal is not shown as equal."""

OUR_SOURCES = {"BSS Eval v4": FOUR, "BSS Eval v3": TWO}
"""What the study evaluates together in each evaluation."""


def load_published(path: Path = PATH) -> pd.DataFrame:
    """Read and check the published scores.

    Returns
    -------
    pandas.DataFrame
        Columns :data:`COLUMNS`; mean_db, std_db and median_db in dB, missing where not published.

    Raises
    ------
    ConfigError
        If the file is missing, or a line of it is not as it must be: one sentence names the line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restkey="beyond", restval="")
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ConfigError(
                    f"{path.name} line 1: the columns must be {', '.join(COLUMNS)}, in this order."
                )
            rows, seen = [], {}
            for row in reader:
                place = f"{path.name} line {reader.line_num}"
                rows.append(_checked(row, place))
                key = tuple(row[name] for name in ("system", "study", "metric", "target"))
                key += (row["protocol"],)
                if key in seen:
                    raise ConfigError(
                        f"{place}: {row['metric']} of {row['target']} by {row['system']!r} is "
                        f"there already, in line {seen[key]}, with the same protocol."
                    )
                seen[key] = reader.line_num
    except FileNotFoundError as error:
        raise ConfigError(f"{path.name} is missing; restore it with git.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path.name} is not a CSV table in UTF-8.") from error
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return frame.astype({name: float for name in COLUMNS if name.endswith("_db")})


def _checked(row: dict, place: str) -> dict:
    """A row with numbers in place of texts."""
    if "beyond" in row:
        raise ConfigError(
            f"{place}: there are more values than columns; values with commas need quotation marks."
        )
    for name in ("system", "study", "metric", "target", "protocol", "source"):
        if not row[name].strip():
            raise ConfigError(f"{place}: {name} is empty.")
    for name, valid in (("metric", SCORE_METRICS), ("target", (*INSTRUMENTS, OVERALL))):
        if row[name] not in valid:
            raise ConfigError(f"{place}: {name} is {row[name]!r}; valid: {', '.join(valid)}.")
    numbers = {}
    for name in ("mean_db", "std_db", "median_db"):
        try:
            numbers[name] = float(row[name]) if row[name].strip() else float("nan")
        except ValueError as error:
            raise ConfigError(f"{place}: {name} is {row[name]!r}, not a number.") from error
        if row[name].strip() and not math.isfinite(numbers[name]):
            raise ConfigError(f"{place}: {name} is {row[name]!r}, not a finite number.")
    if math.isnan(numbers["mean_db"]) and math.isnan(numbers["median_db"]):
        raise ConfigError(f"{place}: there is neither a mean_db nor a median_db.")
    if numbers["std_db"] < 0:
        raise ConfigError(f"{place}: std_db is {row['std_db']}, below 0.")
    return {**row, **numbers}


def our_protocol(settings: Profile, measure: Measure) -> Protocol | None:
    """Describe the study's scores of one evaluation; None where none can be compared.

    Parameters
    ----------
    measure
        Of the scores; its metric does not matter.

    Returns
    -------
    Protocol or None
        None for rendered corpora, and for evaluations that :data:`OUR_SOURCES` does not know.
    """
    if settings.data.source != "musdb18" or measure.protocol not in OUR_SOURCES:
        return None
    framed = measure.aggregation.endswith("over frames")
    return Protocol(
        measure.protocol,
        measure.aggregation,
        (settings.evaluate.window_seconds, settings.evaluate.hop_seconds) if framed else None,
        OUR_SOURCES[measure.protocol],
        settings.signal.sample_rate,
        "mono",
    )


def of_equal_protocol(settings: Profile, measure: Measure, published: pd.DataFrame) -> pd.DataFrame:
    """Those of the published rows that may stand beside ours; none for rendered corpora.

    Parameters
    ----------
    published
        As :func:`load_published` gives them.
    """
    ours = our_protocol(settings, measure)
    equal = [
        ours is not None and PROTOCOLS.get(protocol) == ours for protocol in published["protocol"]
    ]
    return published[equal].reset_index(drop=True)
