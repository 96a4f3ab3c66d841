"""Published scores on MUSDB18, and which of them may stand beside the study's own.

``published_scores.csv``, beside this module, holds one row per system, metric and target, with the
protocol and the source as found there. Scores of different protocols differ by several dB for the
same estimates, so a row stands in one table with ours only if everything in its :class:`Protocol`
equals ours. Rendered corpora never show any of them.

To add scores, the paper's own tables for example, add rows to the file; nothing else. The words of
the column ``protocol`` decide: those that are a key of :data:`PROTOCOLS` are compared with ours,
others are taken as unequal. For the paper they are :data:`PAPER`, with quotation marks around them,
since they hold commas. ``target`` is an instrument by its name here (the paper's "rest" is
``other``), or ``overall``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cunet_lib.core.settings import ConfigError, Profile
from cunet_lib.core.systems import INSTRUMENTS
from cunet_lib.evaluation.metrics import (
    MEDIAN,
    PROTOCOL,
    PROTOCOL_V3,
    SDR_V4,
    WHOLE_TRACK,
    Measure,
)

PATH = Path(__file__).with_name("published_scores.csv")

VALUES = ["mean_db", "std_db", "median_db"]
COLUMNS = ("system", "study", "metric", "target", *VALUES, "protocol", "source")
OVERALL = "overall"
"""Target of scores over all instruments."""


@dataclass(frozen=True)
class Protocol:
    """What must be equal for scores to share a table.

    Attributes
    ----------
    evaluation, aggregation
        As the score tables name protocol and aggregation.
    frame_seconds
        Length and hop of frames; None for whole tracks.
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
PAPER = (
    "bss_eval_sources v3, whole track, 2 sources (target, accompaniment), 8192 Hz mono, "
    "MUSDB18 test tracks"
)
PROTOCOLS = {
    PAPER: Protocol(PROTOCOL_V3, WHOLE_TRACK, None, TWO, 8192, "mono"),
    "bss_eval_sources v3, whole track, 4 sources, 10880 Hz mono, over MUSDB18 test tracks": (
        Protocol(PROTOCOL_V3, WHOLE_TRACK, None, FOUR, 10880, "mono")
    ),
    "museval BSSEval v4, median over 1 s frames then median over MUSDB18 test tracks, "
    "44.1 kHz stereo": Protocol(PROTOCOL, MEDIAN, (1.0, 1.0), FOUR, 44100, "stereo"),
}
"""What the words of the file's column ``protocol`` say. Words that leave something open, the rate
for instance, are not here: what is not known to be equal is not shown as equal."""

OUR_SOURCES = {PROTOCOL: FOUR, PROTOCOL_V3: TWO}
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
        If the file cannot be read, or a line of it is not as it must be: one sentence names it.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # ParserError, UnicodeDecodeError
        cause = " ".join(str(error).split()).rstrip(".")
        raise ConfigError(f"{path.name} cannot be read as a CSV table: {cause}.") from error
    if tuple(frame) != COLUMNS:
        raise ConfigError(
            f"{path.name} line 1: the columns must be {', '.join(COLUMNS)}, in this order."
        )
    numbers = frame[VALUES].apply(pd.to_numeric, errors="coerce")
    given = frame.apply(lambda column: column.str.strip() != "")
    texts = [name for name in COLUMNS if name not in VALUES]
    metrics, targets = tuple(SDR_V4.entry.headings), (*INSTRUMENTS, OVERALL)
    problems = {
        f"{', '.join(texts)} may not be empty": ~given[texts].all(axis=1),
        f"valid metrics: {', '.join(metrics)}": ~frame["metric"].isin(metrics),
        f"valid targets: {', '.join(targets)}": ~frame["target"].isin(targets),
        f"{', '.join(VALUES)} must be numbers or empty": (
            given[VALUES] & ~np.isfinite(numbers)
        ).any(axis=1),
        "there is neither a mean_db nor a median_db": (
            numbers[["mean_db", "median_db"]].isna().all(axis=1)
        ),
        "std_db is below 0": numbers["std_db"] < 0,
        "its score is there already, with the same protocol": frame.duplicated(
            ["system", "study", "metric", "target", "protocol"]
        ),
    }
    for words, wrong in problems.items():
        if wrong.any():
            raise ConfigError(f"{path.name} line {wrong.idxmax() + 2}: {words}.")
    return frame.assign(**numbers)


def our_protocol(settings: Profile, measure: Measure) -> Protocol | None:
    """Describe the study's scores by a measure, whose metric does not matter.

    Returns
    -------
    Protocol or None
        None for rendered corpora, and for evaluations that :data:`OUR_SOURCES` does not know.
    """
    if settings.data.source != "musdb18" or measure.protocol not in OUR_SOURCES:
        return None
    framed = measure.aggregation != WHOLE_TRACK
    return Protocol(
        measure.protocol,
        measure.aggregation,
        (settings.evaluate.window_seconds, settings.evaluate.hop_seconds) if framed else None,
        OUR_SOURCES[measure.protocol],
        settings.signal.sample_rate,
        "mono",
    )


def of_equal_protocol(settings: Profile, measure: Measure, published: pd.DataFrame) -> pd.DataFrame:
    """Those of the published rows that may stand beside ours; none for rendered corpora."""
    ours = our_protocol(settings, measure)
    equal = [ours is not None and PROTOCOLS.get(words) == ours for words in published["protocol"]]
    return published[equal].reset_index(drop=True)
